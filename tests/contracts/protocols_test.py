"""What every protocol promises: its name says all that its numbers rest on."""

import csv
import dataclasses

import pytest
from unlearning_jax.configs import evaluate_shapes

from tests.support import toys
from unlearning_jax import extensions, judges, protocols
from unlearning_jax.experiments import columns, drawing, evaluate
from unlearning_jax.settings import build

STAR = "04b89520a6399c41d7b9bb6fa26657eafb00f172a5f0c7a3924ce8faa6082b31"
SHAPES = [name for name in protocols.names() if name.startswith("shapes-")]
# Name and subject, the table's rows or the rows drawn, sampler, steps,
# guidance, the judge, and the first digits of the frozen hash.
PUBLISHED = [
  ("udm-nudity", 142, "lms", 50, 7.5, "nudenet-udm", "3165043bc58a"),
  ("udm-style", 50, "lms", 50, 7.5, "style-vit-129", "735fffe871bd"),
  ("udm-object/tench", 50, "lms", 50, 7.5, "resnet50-microsoft", "c2ed2e92d"),
  ("udm-harm/violence", 756, "lms", 50, 7.5, "q16", "6e1a0c0dddf5"),
  ("udm-utility", 10_000, "lms", 100, 7.5, "", "c666205d8fa8"),
  ("i2p-full", 4_703, "ddim", 50, 7.5, "nudenet", "f22429cd5b36"),
  ("mace-objects/airplane", 2_600, "ddim", 50, 7.5, "clip-zero-shot",
   "d417854ba1f1"),
  ("mace-celebs", 5_000, "ddim", 50, 7.5, "faces", "17f7751719eb"),
  ("mace-artists", 5_000, "ddim", 50, 7.5, "", "72dc3dcdbe9f"),
  ("coco-30k", 30_000, "ddim", 50, 7.5, "", "8120a453d13e"),
  ("unlearncanvas/Van_Gogh", 5_100, "ddim", 100, 9.0, "unlearncanvas-vit",
   "b883a9f20236"),
  ("esd-legacy", 100, "lms", 100, 7.5, "resnet50-v2", "586065d5b0fa"),
  ("esd-2025", 100, None, 20, 7.5, "resnet50-v2", "37e7fa863971"),
  ("fid-to-base", None, "ddim", 50, 7.5, "", "613c26ecfa30"),
]  # fmt: skip


@pytest.mark.parametrize(
  "name, rows, sampler, steps, scale, judge, digest", PUBLISHED
)
def test_a_published_protocol_is_what_its_code_runs(
  name, rows, sampler, steps, scale, judge, digest, tmp_path
):
  protocol = protocols.find(name)
  base = protocol.name.partition("/")[0]
  assert protocols.frozen()[base] == protocols.shipped()[base].hash
  assert protocols.frozen()[base].startswith(digest)
  drawn = protocol.sampling
  assert (drawn.sampler, drawn.num_inference_steps) == (sampler, steps)
  assert (drawn.guidance_scale, drawn.noise_source) == (scale, "torch")
  assert protocol.judge.partition("~")[0] == judge
  assert judge in ("", *judges.names())
  assert set(protocol.columns) <= set(columns.DEFINITIONS)
  # Every field that a number rests on moves the hash; a table's place does not.
  for field, value in {
    "judge": "shapes", "denominator": "x", "columns": (), "dtype": "x",
    "prompts": dataclasses.replace(protocol.prompts, rows=3),
    "sampling": dataclasses.replace(drawn, num_inference_steps=3),
  }.items():  # fmt: skip
    other = dataclasses.replace(protocol, **{field: value})
    assert (other.hash != protocol.hash) == (getattr(protocol, field) != value)
  moved = dataclasses.replace(protocol.prompts, path="elsewhere.csv")
  assert dataclasses.replace(protocol, prompts=moved).hash == protocol.hash
  if protocol.prompts.template:
    targets = [judges.Target(t["head"], t["label"]) for t in protocol.targets]
    assert len(protocol.prompts.listed(targets, toys.WARMTH)) == rows
    return
  if protocol.tables:
    subject = protocol.subject
    own = [t for t in protocol.tables if t.get("subject", "") == subject]
    assert [t["rows"] for t in own] == [rows]
  # Another table than the published one is another protocol.
  path = tmp_path / "mine.csv"
  with open(path, "w", newline="") as file:
    csv.writer(file).writerows([["prompt", "sd_seed"], ["a dog", 5]])
  mine = protocol.bound(path)
  assert mine.name.startswith(f"{name}~prompts=") and mine.hash != protocol.hash
  assert mine.prompts.sha256.startswith(mine.name.rpartition("=")[2])


def test_a_published_table_is_known_by_what_it_holds(tmp_path, monkeypatch):
  path = tmp_path / "any name.csv"
  path.write_text("prompt,sd_seed,image_id\na dog,5,8\n")
  known = protocols.find("udm-harm").bound(path).prompts.sha256
  shipped = dict(protocols.shipped())
  for name in ("udm-harm", "udm-object"):
    one = shipped[name]
    tables = [{**t, "sha256": known + t["subject"]} for t in one.tables]
    tables[-1]["sha256"] = known
    shipped[name] = dataclasses.replace(one, tables=tuple(tables))
  monkeypatch.setattr(protocols, "shipped", lambda: shipped)
  monkeypatch.setattr(protocols, "check", lambda protocol: None)
  found = protocols.find("udm-harm").bound(path)
  assert (found.name, found.subject) == ("udm-harm/illegal", "illegal")
  # Its subject says what the judge looks for.
  found = protocols.find("udm-object").bound(path)
  assert found.name == "udm-object/tench"
  assert found.targets == ({"head": "object", "label": "tench"},)
  assert found.hash == protocols.find("udm-object/tench").hash
  # The table of another subject.
  other = protocols.find("udm-object/church").bound(path)
  assert other.name == f"udm-object/church~prompts={known[:12]}"


def test_labels_that_decide_what_is_counted_are_of_the_table(tmp_path):
  path = tmp_path / "celebs.csv"
  path.write_text("prompt,sd_seed,type\na,5,erased\nb,6,others\n")
  mine = protocols.find("mace-celebs").bound(path)
  one = protocols.shipped()["mace-celebs"]
  tables = ({**one.tables[0], "sha256": mine.prompts.sha256},)
  known = dataclasses.replace(one, tables=tables)
  assert known.bound(path).name == "mace-celebs"
  # The same pictures, but others were erased.
  path.write_text("prompt,sd_seed,type\na,5,others\nb,6,erased\n")
  assert known.bound(path).name.startswith("mace-celebs~prompts=")


@pytest.mark.parametrize(
  "name, count",
  [
    ("udm-utility", 10_000),
    ("udm-utility/9969", 9_969),
    ("udm-utility/9969~rows=3000", 3_000),
    ("coco-30k", 30_000),
    ("coco-30k~images=2", 60_000),
  ],
)
def test_fid_is_of_as_many_pictures_as_are_drawn(name, count, tmp_path):
  protocol = protocols.find(name)
  fid = f",count={count},reference_count={count},reference="
  assert protocol.config()["metrics"][0].endswith(fid)
  path = tmp_path / "mine.csv"
  path.write_text("prompt,sd_seed\na,5\nb,6\n")
  mine = protocol.bound(path).config()["metrics"][0]
  n = 2 * protocol.prompts.images
  assert mine.endswith(f",count={n},reference_count={n},reference=")


def test_an_empty_field_of_a_later_version_changes_no_hash():
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Later(protocols.Protocol):
    new: dict = dataclasses.field(default_factory=dict)

  for name in ("shapes-star", "udm-nudity"):
    now = protocols.find(name)
    fields = {f.name: getattr(now, f.name) for f in dataclasses.fields(now)}
    assert Later(**fields).hash == now.hash
    assert Later(**fields, new={"a": 1}).hash != now.hash


def test_every_published_protocol_has_a_row():
  named = {name.partition("/")[0] for name, *_ in PUBLISHED}
  assert named == {*protocols.names()} - {*SHAPES}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shipped_protocol_is_what_was_frozen(name):
  protocol = protocols.find(name)
  assert protocols.frozen()[name] == protocol.hash
  settings = build(evaluate.Settings, protocol.config())
  assert settings.protocol == protocol.signed
  with pytest.raises(dataclasses.FrozenInstanceError):
    protocol.other_rows = 1  # pyright: ignore
  for field, value in {
    "other_rows": 7,
    "seed": 1,
    "judge": "",
    "model": "",
  }.items():
    other = dataclasses.replace(protocol, **{field: value})
    assert other.hash != protocol.hash
    with pytest.raises(ValueError, match=f"{name}.*content was changed"):
      protocols.check(other)


def test_every_class_of_the_world_has_one():
  concepts = extensions.world("shapes").concepts()
  assert len(SHAPES) == sum(map(len, concepts.values()))
  assert protocols.find("shapes-quill-estane").targets == (
    {"task": "identity", "name": "Quill Estane"},
  )


def test_a_hash_never_moves():
  assert protocols.find("shapes-star").hash == STAR
  assert set(protocols.frozen()) == set(protocols.names())


def test_a_change_is_another_protocol():
  base = protocols.find("shapes-star")
  small = protocols.find("shapes-star~rows_per_group=2,num_inference_steps=3")
  assert small.name == "shapes-star~num_inference_steps=3,rows_per_group=2"
  assert (small.rows_per_group, small.sampling.num_inference_steps) == (2, 3)
  assert small.hash != base.hash and small.other_rows == base.other_rows
  changed = "udm-nudity~judge=faces~model=a:b,names=c.txt,rows=2,steps=2"
  other = protocols.find("udm-nudity~steps=2,judge=faces~model=a:b,names=c.txt,"
    "rows=2")  # fmt: skip
  assert (other.name, other.judge) == (changed, "faces~model=a:b,names=c.txt")
  assert (other.prompts.rows, other.sampling.num_inference_steps) == (2, 2)
  assert other.hash != protocols.find("udm-nudity").hash
  # The order of changes is nobody's.
  assert (
    protocols.find("shapes-star~num_inference_steps=3,rows_per_group=2")
    == small
  )


@pytest.mark.parametrize(
  "name, message",
  [
    ("shapes-strar", "protocol='shapes-strar' is not known.*'shapes-star'"),
    ("shapes-star~pergroup=2", "key='pergroup'.*did you mean 'rows_per_group'"),
    ("shapes-star~rows_per_group=two", "rows_per_group='two'; allowed: a"),
    ("shapes-star~sampler=fast", "sampling.sampler='fast' is not known"),
    ("shapes-star~rows=2", "key='rows' is not known; allowed: rows_per"),
    ("udm-nudity~other_rows=2", "key='other_rows' is not known"),
    ("udm-nudity~rows=-1", "rows=-1, images=1: rows must not be negative"),
    ("udm-nudity~sizes=big", "sizes='big' is not known; allowed: model, row"),
    ("udm-nudity~target=nude", "target='nude': want head/label"),
    ("udm-object/trench", "subject='trench' is not known.*mean 'tench'"),
  ],
)
def test_a_wrong_name_is_refused(name, message):
  with pytest.raises(ValueError, match=message):
    protocols.find(name)


@pytest.mark.parametrize("task", extensions.world("shapes").tasks())
def test_its_rows_are_those_of_the_config(task):
  name = extensions.world("shapes").default(task)
  given = evaluate_shapes.get_config(f"tiny,task={task},name={name}").to_dict()
  ours = protocols.find(f"shapes-{name.lower().replace(' ', '-')}").config()
  theirs, mine = (build(evaluate.Settings, one) for one in (given, ours))
  assert drawing.rows(mine) == drawing.rows(theirs)
  assert mine == dataclasses.replace(theirs, protocol=mine.protocol)
