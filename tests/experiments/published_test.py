"""Published protocols on the Shapes model, with a judge of our own."""

import functools
import json
import shutil

import numpy as np
import pytest

import unlearning_jax as ul
from tests.support import toys
from unlearning_jax import guidance, model, noise, protocols, record, sampling
from unlearning_jax.experiments import (
  attack,
  columns,
  common,
  evaluate,
  published,
)
from unlearning_jax.judges import Target
from unlearning_jax.settings import build

HEAD = (
  "case_number,prompt,evaluation_seed,evaluation_guidance,sd_image_width,"
  "sd_image_height\n"
)
TOY = "judge=tests.support.toys:WARMTH,target=warmth/warm,sampler=ddim"


@pytest.fixture(scope="module")
def base():
  return model.load("shapes")


@pytest.fixture
def table(tmp_path):
  """Rows of another size, without guidance, too long, and without a prompt."""
  path = tmp_path / "mine.csv"
  path.write_text(
    HEAD + '3,"a red\nstar",3000000000,4,32,32\n9,,1,7,32,32\n'
    f"4,{'star ' * 90},5,1,64,32\n"
  )
  return str(path)


def settings(name, prompts="", **more):
  given = published.config(name, prompts=prompts, model="shapes", **more)
  return build(evaluate.Settings, given)


def test_a_row_is_drawn_as_its_table_says(table, base, capsys):
  given = settings(f"i2p-full~{TOY},steps=1", table)
  memory = record.Memory(quiet=True)
  document = evaluate.run(given, lambda: memory, {"base": base})
  first, second = sorted(memory.rows(), key=lambda row: row["id"])
  assert first["id"] == "before/000003-explicit"
  assert (first["prompt"], first["seed"]) == ("a red\nstar", 3000000000)
  assert (first["guidance"], second["guidance"]) == (4.0, 1.0)
  sizes = {name: image.shape for name, image in memory.images.items()}
  assert sizes == {
    "images/000003-explicit-before.png": (32, 32, 3),
    "images/000004-explicit-before.png": (32, 64, 3),
  }
  # The image is what the sampler draws of the row.
  own = np.concatenate([*sampling.draw(
    base.sd, base.params,
    [sampling.Request("star " * 90, 5, 1.0, None, (32, 64), 0, True)],
    given.sampling, batch_size=4,
  )])  # fmt: skip
  drawn = memory.images["images/000004-explicit-before.png"]
  np.testing.assert_array_equal(own[0], drawn)
  said = capsys.readouterr().err
  for part in (
    "1 row (case_number 9) without a prompt: left out",
    "1 row (case_number 4) with a guidance scale of 1 or less",
    "1 rows are longer than the text encoder reads",
  ):
    assert said.count(part) == 1
    assert sum(part in note for note in document["notes"]) == 1
  (shown,) = (e for e in document["estimates"] if e["name"] == "shown")
  won = [row["scores"]["warmth"][0] >= 0.75 for row in (first, second)]
  assert (shown["k"], shown["n"]) == (sum(won), 2)
  assert "An image shows it where judge warmth sees warmth/warm" in said or any(
    "judge warmth sees warmth/warm with a score of 0.75" in note
    for note in document["notes"]
  )


def test_sizes_of_the_model_are_another_protocol(table):
  given = settings(f"i2p-full~{TOY},sizes=model,rows=1", table)
  (row,) = given.published.listed(common.targets_of(given), toys.WARMTH)
  assert row["size"] is None
  assert "2 rows have a size of their own" in " ".join(given.published.notes())
  assert ",sizes=model," in given.protocol


def test_several_images_of_a_row_come_from_one_generator():
  torch = pytest.importorskip("torch")
  seed, shape = 3_000_000_000, (4, 4, 4)
  drawn = torch.randn(
    3, 4, 4, 4, generator=torch.Generator().manual_seed(seed)
  ).numpy()
  found = noise.row_noise([seed] * 3, shape, "torch", [0, 1, 2])
  np.testing.assert_allclose(found, drawn.transpose(0, 2, 3, 1), atol=5e-7)
  # The first is the one of a row with a single image.
  alone = noise.row_noise([seed], shape, "torch")
  np.testing.assert_array_equal(found[:1], alone)
  with pytest.raises(ValueError, match="no generator that goes on"):
    noise.row_noise([1], shape, "jax", [1])


def test_the_row_of_the_leaderboard(tmp_path, base):
  """pre-ASR of the run, ASR of an attack; blank cells say why."""
  path = tmp_path / "mine.csv"
  path.write_text(HEAD + "3,a red star,5,2,,\n4,a moon,6,2,,\n")
  name = f"udm-nudity~{TOY},steps=1"
  given = settings(name, str(path))
  folder = tmp_path / "attack"
  control = {
    "method": "controls", "hparams": {"kind": "none", "blocks": 1},
    "judge": given.judge, "targets": given.targets,
    "prompt_table": str(path), "rows_per_group": 1,
    "sampling": {"num_inference_steps": 1, "sampler": "ddim",
                 "noise_source": "torch"},
  }  # fmt: skip
  made = build(attack.Settings, control)
  attack.run(
    made, lambda: common.workdir(str(folder), control, attack.Settings)
  )
  kept = guidance.Guidance("tape", method="negative_prompt")
  models = {"base": base, "GUIDED": base.with_guidance(kept)}
  memory = record.Memory(quiet=True)
  beside = evaluate.Beside((str(folder),))
  document = evaluate.run(given, lambda: memory, models, beside)
  cells = {(e["name"], e["model"]): e for e in document["estimates"]}
  own, attacked = cells["pre_asr", "base"], cells["asr", "base"]
  # An attack that changes nothing wins what the prompts win.
  assert (own["k"], own["n"]) == (attacked["k"], attacked["n"])
  assert own["n"] == 2 and own["low"] <= own["value"] < own["high"]
  guided = cells["asr", "GUIDED"]
  assert guided["value"] is None and "give --attack=RUN" in guided["failed"]
  fid = cells["fid", "base"]
  assert fid["value"] is None and "the 2 of this run are too" in fid["failed"]
  assert "give --utility=RUN" in str(memory.files["report.html"])
  assert document["protocol"].startswith("udm-nudity~judge=tests.support.toys:")
  for wrong, message in (
    ({"judge": "shapes", "targets": ()}, "judged by '.*', and this evaluation"),
    (
      {"prompts_": "5,a moon,6,2,,\n"},
      "2 of its 2 rows are none|of its 2 rows",
    ),
  ):
    other = given
    if "judge" in wrong:
      other = build(evaluate.Settings, {
        **published.config(name, prompts=str(path), model="shapes"), **wrong
      })  # fmt: skip
      with pytest.raises(ValueError, match=message):
        published.estimates(other, models, [], {}, beside)
    else:
      with pytest.raises(ValueError, match=message):
        published.estimates(other, models, [], {}, beside)
  del models["base"]
  with pytest.raises(ValueError, match="its victim is none of GUIDED"):
    published.estimates(given, models, memory.rows(), {}, beside)


def test_rows_say_what_they_ask_for(tmp_path):
  path = tmp_path / "mine.csv"
  path.write_text(
    "case_number,prompt,evaluation_seed,type,class\n"
    "0,A portrait of Warm Man,1,erased,warm\n1,cold,2,others,COLD\n"
  )
  asks = protocols.Prompts(
    path=str(path), asks={"warmth": "class"}, group_column="type",
    groups={"erased": "explicit", "others": "others"}, images=2,
  )  # fmt: skip
  rows = asks.listed([], toys.WARMTH)
  assert [(r["id"], r["attributes"]["warmth"], r["sample"]) for r in rows] == [
    ("000000-explicit-0", "warm", 0), ("000000-explicit-1", "warm", 1),
    ("000001-others-0", "cold", 0), ("000001-others-1", "cold", 1),
  ]  # fmt: skip
  by_text = protocols.Prompts(path=str(path), asks={"warmth": "prompt"})
  found = by_text.listed([], toys.WARMTH)
  assert [r["attributes"]["warmth"] for r in found] == ["warm", "cold"]
  for changed, message in (
    ({"asks": {"warmth": "artist"}}, "no column 'artist'.*prompt, type, class"),
    ({"asks": {"warmth": "type"}}, "case_number 0: type='erased' is not known"),
    ({"group_column": "class"}, "class='warm' is not known; allowed: erased"),
  ):
    wrong = protocols.Prompts(
      path=str(path), groups={"erased": "explicit"}, **changed
    )
    with pytest.raises(ValueError, match=message):
      wrong.listed([], toys.WARMTH)


def test_a_template_is_filled_with_every_phrase():
  asked = protocols.Prompts(
    template="a {warmth} day", phrases={"warmth": ("warm", "cool")},
    labels={"cool": "cold"}, synonyms={"cold": ("icy",)}, seeds=(7, 8),
  )  # fmt: skip
  rows = asked.listed([Target("warmth", "cold")], toys.WARMTH)
  assert [(r["group"], r["prompt"], r["seed"]) for r in rows] == [
    ("others", "a warm day", 7), ("others", "a warm day", 8),
    ("explicit", "a cool day", 7), ("explicit", "a cool day", 8),
    ("synonyms", "a icy day", 7), ("synonyms", "a icy day", 8),
  ]  # fmt: skip
  assert [r["attributes"]["warmth"] for r in rows] == ["warm"] * 2 + [
    "cold"
  ] * 4


def judged(group, label, score, **more):
  scores = {"warmth": [score, 1 - score]}
  return {
    "group": group, "attributes": {"warmth": label}, "scores": scores,
    "judged": {"warmth": "warm" if score > 0.75 else ""}, **more,
  }  # fmt: skip


def test_mace_s_and_unlearncanvas_numbers():
  """By hand: warm was erased; scores of warm and cold add up to 1."""
  rows = [
    *[judged("explicit", "warm", s) for s in (0.9, 0.1, 0.2, 0.3)],
    *[judged("others", "cold", s) for s in (0.1, 0.2, 0.9, 0.0)],
    *[judged("synonyms", "warm", s) for s in (0.9, 0.8)],
  ]
  seen = columns.Seen("m", rows, toys.WARMTH, [Target("warmth", "warm")])
  found = {
    one.name: one
    for one in columns.estimates(
      ["h_o", "h_o (mean probability)", "ua", "ira", "cra"], seen
    )
  }
  assert [found[f"acc_{p}"].value for p in "esg"] == [0.25, 0.75, 1.0]
  assert found["h_o"].value == 0
  mean = found["acc_e (mean probability)"].value
  assert mean == pytest.approx(0.375)
  parts = [1 - 0.375, 0.7, 1 - 0.85]
  assert found["h_o (mean probability)"].value == pytest.approx(
    3 / sum(1 / p for p in parts)
  )
  assert (found["ua"].k, found["ua"].n) == (3, 4)
  assert (found["ira"].k, found["ira"].n) == (3, 4)
  # The toy has one head.
  assert found["cra"].value is None and "heads" in found["cra"].failed
  assert {one.model for one in found.values()} == {"m"}


def test_what_cannot_be_computed_is_blank_or_refused(tmp_path):
  path = tmp_path / "mine.csv"
  path.write_text(HEAD + "3,a red star,5,2,,\n")
  # Its only measures: refused at once, before a model is read.
  with pytest.raises(
    ValueError, match="nothing of it can be computed here: fi"
  ):
    published.config("fid-to-base", prompts=str(path))
  with pytest.raises(ValueError, match="no photographs: give --reference"):
    published.config("udm-utility", prompts=str(path))
  given = published.config(
    f"esd-legacy~{TOY}", prompts=str(path), model="shapes"
  )
  assert given["metrics"] == () and "lpips" in next(iter(given["missing"]))
  blank = columns.Seen(
    "m", [], None, [], missing={"fid~stack=t2i": "no photographs"}
  )
  (cell,) = columns.estimates(["fid"], blank)
  assert (cell.value, cell.failed) == (None, "no photographs")


@pytest.mark.parametrize(
  "name, more, message",
  [
    ("shapes-star", {"prompts": "a.csv"}, "shapes-star has prompts .* its own"),
    ("udm-nudity", {}, "give its table of prompts, --prompts=FILE.csv: promp"),
    ("mace-objects/cat", {"prompts": "a.csv"}, "makes its own prompts"),
    (
      "mace-objects",
      {},
      "does not say what was erased; name it: mace-objects/",
    ),
    ("udm-nudity", {"prompts": "/no/such.csv"}, "/no/such.csv"),
  ],
)
def test_wrong_prompts_are_refused(name, more, message):
  with pytest.raises((ValueError, OSError), match=message):
    published.config(name, **more)


def test_sizes_and_guidance_that_a_model_cannot_draw(table, base, tmp_path):
  path = tmp_path / "odd.csv"
  path.write_text(HEAD + "3,a red star,5,2,33,32\n")
  odd = settings(f"i2p-full~{TOY},steps=1", str(path))
  with pytest.raises(ValueError, match="size 33x32: the model draws multiples"):
    evaluate.check_fits(odd, base)
  kept = guidance.Guidance("tape", method="negative_prompt")
  given = settings(f"i2p-full~{TOY},steps=1", table)
  with pytest.raises(
    ValueError, match="000004-.*scale 1.0 guides nothing, and"
  ):
    evaluate.check_fits(given, base.with_guidance(kept))


def test_a_run_of_another_folder_goes_on_where_its_table_went(table, tmp_path):
  given = published.config(f"udm-nudity~{TOY}", prompts=table, model="shapes")
  run = common.workdir(str(tmp_path / "run"), given, evaluate.Settings)
  run.append_row({"id": "before/1"})
  moved = tmp_path / "moved.csv"
  moved.write_text(open(table).read())
  again = published.config(
    f"udm-nudity~{TOY}", prompts=str(moved), model="shapes"
  )
  assert json.dumps(given) != json.dumps(again)
  common.workdir(str(tmp_path / "run"), again, evaluate.Settings)
  moved.write_text(HEAD + "3,a blue star,5,2,,\n")
  other = published.config(
    f"udm-nudity~{TOY}", prompts=str(moved), model="shapes"
  )
  with pytest.raises(ValueError, match="published.sha256"):
    common.workdir(str(tmp_path / "run"), other, evaluate.Settings)


def test_a_leaderboard_is_of_one_protocol(tmp_path, base):
  path = tmp_path / "mine.csv"
  path.write_text(HEAD + "3,a red star,5,2,,\n")
  given = published.config(
    f"udm-nudity~{TOY},steps=1", prompts=str(path), model="shapes"
  )
  folders = [tmp_path / name for name in "abc"]
  opened = functools.partial(
    common.workdir, str(folders[0]), given, evaluate.Settings
  )
  evaluate.run(build(evaluate.Settings, given), opened, {"base": base})
  for folder in folders[1:]:
    shutil.copytree(folders[0], folder)
  file = folders[2] / "summary.json"
  other = json.loads(file.read_text())
  other["protocol"] = other["protocol"].replace("steps=1", "steps=2")
  file.write_text(json.dumps(other))
  table = ul.leaderboard(folders[:2])
  assert table.columns == ("", "base (a)", "base (b)")
  numbers = {line[0] for line in table.lines}
  assert {"pre_asr", "asr", "fid", "clip-score"} <= numbers
  assert not any(name.startswith("seen") for name in numbers)
  with pytest.raises(ValueError, match="c ran .*steps=2.*do not compare"):
    ul.leaderboard([folders[0], folders[2]])
  with pytest.raises(ValueError, match="must be a list"):
    ul.leaderboard(folders[0])
  with pytest.raises(ValueError, match="is no finished run"):
    ul.leaderboard([tmp_path])


def test_python_gives_the_rows_of_the_script(tmp_path, base):
  path = tmp_path / "mine.csv"
  path.write_text(HEAD + "3,a red star,5,2,,\n4,a moon,6,2,,\n")
  name = f"udm-nudity~{TOY},steps=1,rows=1"
  found = ul.evaluate(
    base, protocol=name, prompts=str(path), batch_size=2,
    out=tmp_path / "python",
  )  # fmt: skip
  given = published.config(name, prompts=str(path), model="shapes")
  memory = record.Memory(quiet=True)
  evaluate.run(build(evaluate.Settings, given), lambda: memory, {"base": base})
  assert list(found.rows) == memory.rows()
  # How many are drawn at once is not a change.
  assert found.summary["protocol"] == given["protocol"]
  assert ("pre_asr", "0.00 [0.00, 0.79]") in [line[:2] for line in found.lines]
