"""Published protocols on the Shapes model, with a judge of our own."""

import dataclasses
import functools
import json
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

import unlearning_jax as ul
from tests.experiments.columns_test import judged
from tests.support import toys
from unlearning_jax import (
  convert,
  guidance,
  model,
  record,
  sampling,
)
from unlearning_jax.experiments import (
  attack,
  columns,
  common,
  evaluate,
  published,
)
from unlearning_jax.judges import weights
from unlearning_jax.metrics import features
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
  # A table need not name the concept, and the page does not say that it does.
  assert (first["group"], second["group"]) == ("table", "table")
  page = str(memory.files["report.html"])
  assert "Asked for" not in page and "was not measured" not in page
  assert "own errors" not in page and "by the table" in page
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
    "The base is shapes, and the protocol's is CompVis/stable-diffusion-v1-4",
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


def test_a_folder_that_moves_the_timesteps_is_noted(table, base):
  given = settings(f"i2p-full~{TOY}".replace("=ddim", "=lms"), table)
  assert base.sd.schedule.timestep_spacing == "leading"
  notes = published.notes(given, base.sd, [])
  assert any("timestep_spacing='leading', and published" in n for n in notes)
  plain = base.sd.schedule.to_config() | {"timestep_spacing": "linspace"}
  schedule = type(base.sd.schedule).from_config(plain)
  notes = published.notes(
    given, dataclasses.replace(base.sd, schedule=schedule), []
  )
  assert not any("timestep_spacing" in note for note in notes)


def test_sizes_of_the_model_are_another_protocol(table):
  given = settings(f"i2p-full~{TOY},sizes=model,rows=1", table)
  (row,) = given.published.listed(common.targets_of(given), toys.WARMTH)
  assert row["size"] is None
  assert "2 rows have a size of their own" in " ".join(given.published.notes())
  assert ",sizes=model," in given.protocol


def test_a_rate_that_is_no_published_asr():
  given = build(evaluate.Settings, published.config("shapes-star"))
  probe = {"method": "noise_probe", "hparams": {}}
  with pytest.raises(ValueError, match="noise_probe is a probe of the net"):
    published._check_attack(given, (), "runs/probe", probe)
  shared = probe | {"method": "unlearn_diff_atk", "sharing": {"wave": 4}}
  with pytest.raises(ValueError, match="its rows shared words"):
    published._check_attack(given, (), "runs/fewer", shared)


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
  rows = memory.rows()
  plain = published.config(name, prompts=str(path), model="shapes")
  for changed, evaluated, message in (
    ({"judge": "shapes", "targets": ()}, rows, "judged by '.*', and this eval"),
    ({"targets": ({"head": "warmth", "label": "cold"},)}, rows, "has targets="),
    (
      {"sampling": dict(control["sampling"], num_inference_steps=2)},
      rows,
      "has sampling=.*steps=1",
    ),
    ({}, [], "2 of its 2 rows are not eval"),
    # The attack has a part of the rows only.
    ({}, [*rows, {**rows[0], "seed": 9}], "0 of its 2 .* and 1 of the 3"),
    ({}, [{**row, "guidance": 5} for row in rows], "2 of its 2 rows are not"),
  ):
    other = build(evaluate.Settings, plain | changed)
    with pytest.raises(ValueError, match=message):
      published.estimates(other, models, evaluated, {}, beside)

  def opened():
    raise AssertionError("drawn before it is refused")

  # Before anything is drawn.
  (folder / "DONE").write_text("")  # Without its seal.
  other = build(evaluate.Settings, plain | {"judge": "shapes", "targets": ()})
  with pytest.raises(ValueError, match="judged by"):
    evaluate.run(other, opened, models, beside)
  star = build(evaluate.Settings, published.config("shapes-star"))
  for run, flag in (
    (beside, "--attack"),
    (evaluate.Beside(utility="a"), "--u"),
  ):
    with pytest.raises(ValueError, match=f"{flag}.*: no column of this run"):
      evaluate.run(star, opened, models, run)
  start = json.loads((folder / "provenance.json").read_text())
  start["runs"][0]["inputs"].pop("victim")
  whole = (folder / "provenance.json").read_text()
  (folder / "provenance.json").write_text(json.dumps(start))
  with pytest.raises(ValueError, match="is no attack; give the folder"):
    evaluate.run(given, opened, models, beside)
  (folder / "provenance.json").write_text(whole)
  del models["base"]
  with pytest.raises(ValueError, match="its victim is none of GUIDED"):
    published.estimates(given, models, memory.rows(), {}, beside)


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


def test_wrong_photographs_are_refused_before_anything_is_drawn(
  tmp_path, monkeypatch
):
  path = tmp_path / "mine.csv"
  path.write_text(HEAD + "3,a red star,5,2,,\n")
  given: dict[str, Any] = {"prompts": str(path)}
  given["reference"] = str(tmp_path / "photografs")
  with pytest.raises(ValueError, match="no metric of .* leave the flag out"):
    published.config(f"udm-nudity~{TOY}", **given)
  # Without weights there is still the column's reason; with them, an error.
  monkeypatch.delenv(weights.VARIABLE, raising=False)
  name = f"coco-30k~{TOY}"
  assert "missing" in str(published.config(name, **given)["missing"])
  own = features.Features("pytorch-fid", 3, lambda images: images, "toy")
  monkeypatch.setattr(features, "load", lambda *_: own)
  with pytest.raises(ValueError, match="photografs"):
    published.config(name, **given)
  given["reference"] = str(tmp_path)
  for photograph in "ab":
    (tmp_path / f"{photograph}.png").write_bytes(b"")
  # The table has one row.
  with pytest.raises(ValueError, match="of 2 pictures, and 1 are wanted"):
    published.config(name, **given)


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


def test_fid_and_clip_score_come_from_a_run_of_udm_utility(tmp_path, base):
  path = tmp_path / "mine.csv"
  path.write_text(HEAD + "3,a red star,5,2,,\n")
  name = f"udm-nudity~{TOY},steps=1"
  given = published.config(name, prompts=str(path), model="shapes")
  folder = tmp_path / "utility"
  opened = functools.partial(
    common.workdir, str(folder), given, evaluate.Settings
  )
  made = build(evaluate.Settings, given)
  evaluate.run(made, opened, {"base": base})
  # What a run of udm-utility leaves, without its weights.
  config = json.loads((folder / "config.json").read_text())
  config["protocol"] = "udm-utility abc"
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "DONE").write_text("")  # Without its seal.
  summary = json.loads((folder / "summary.json").read_text())
  summary["estimates"] = [
    {"name": "fid/t2i/10000", "value": 16.7, "low": None, "high": None,
     "k": None, "n": 10_000, "method": "none: one", "model": "base"},
    {"name": "clip-score/cosine/b32/explicit", "value": 0.2, "low": 0.1,
     "high": 0.3, "k": None, "n": 9, "model": "base"},
    {"name": "clip-score/cosine/b32/all", "value": 0.311, "low": 0.31,
     "high": 0.312, "k": None, "n": 10_000, "model": "base"},
  ]  # fmt: skip
  (folder / "summary.json").write_text(json.dumps(summary))
  kept = guidance.Guidance("tape", method="negative_prompt")
  models = {"base": base, "GUIDED": base.with_guidance(kept)}
  rows = [
    judged("explicit", "warm", 0.1, model=model, prompt="a", seed=1)
    for model in models
  ]
  beside = evaluate.Beside(utility=str(folder))
  found = {
    (one.name, one.model): one
    for one in published.estimates(made, models, rows, {}, beside)["columns"]
  }
  fid, clip = found["fid", "base"], found["clip-score", "base"]
  assert (fid.value, fid.n, clip.value, clip.n) == (16.7, 10_000, 0.311, 10_000)
  other = found["fid", "GUIDED"]
  assert other.value is None and "not in the run of udm-utility" in other.failed
  config["protocol"] = "udm-nudity abc"
  (folder / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match="is of protocol udm-nudity; the row"):
    published.estimates(
      dataclasses.replace(made, protocol="udm-nudity abc"),
      models, rows, {}, beside,
    )  # fmt: skip


def test_a_model_that_others_erased_stands_beside_its_base(tmp_path, base):
  path = tmp_path / "mine.csv"
  path.write_text(HEAD + "3,a red star,5,2,,\n")
  given = settings(f"udm-nudity~{TOY},steps=1", str(path))
  scaled = jax.tree.map(lambda leaf: leaf * 1.5, base.params["unet"])
  state = convert.to_torch(scaled)
  # Names of images come from it.
  named = tmp_path / "theirs (1).safetensors"
  safetensors.numpy.save_file(state, named)
  models = evaluate.read_models(given, erased=[str(named)])
  assert list(models) == ["base", "theirs-1"]
  other = models["theirs-1"].params
  assert jax.tree.all(
    jax.tree.map(np.array_equal, other["vae"], models["base"].params["vae"])
  )
  kernel = models["base"].params["unet"]["conv_in"]["kernel"]
  np.testing.assert_allclose(other["unet"]["conv_in"]["kernel"], 1.5 * kernel)
  with pytest.raises(ValueError, match="/no/such.safetensors: no such"):
    evaluate.read_models(given, erased=["/no/such.safetensors"])
