"""What a user can get wrong in an attack: told before anything compiles."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from PIL import Image
from unlearning_jax.configs import attacks as attack_configs

from tests.support.attacks_cases import make_world, table
from tests.support.scripts import script
from unlearning_jax import (
  attacks,
  sampling,
  settings,
  shapes,
  sharding,
  stable_diffusion,
)
from unlearning_jax.attacks.engine import lanes, rows, vocabulary
from unlearning_jax.attacks.engine.victim import Victim
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import Edit, Fingerprint, save_edit
from unlearning_jax.experiments.attack import Settings, control
from unlearning_jax.experiments.attack import rows as attack_rows
from unlearning_jax.record import workdir

attack = script("attack")
HEAD = "case_number,prompt,evaluation_seed,evaluation_guidance\n"


def build(config):
  return settings.build(Settings, config.to_dict())


@pytest.fixture
def start(monkeypatch, tmp_path):
  """Starts `launch.attack` with some keys changed; compiling is an error."""

  def compiles(*_, **__):
    raise AssertionError("something is drawn: too late for an error")

  monkeypatch.setattr(stable_diffusion, "sample", compiles)
  monkeypatch.setattr(stable_diffusion, "encode_images", compiles)

  def main(
    method="unlearn_diff_atk", argument="tiny", edit="", beside="", **changes
  ):
    config = attack_configs.attack(method, argument)
    config.update_from_flattened_dict({"rows_per_group": 2, **changes})
    for flag, value in {
      "_CONFIG": config,
      "_WORKDIR": str(tmp_path / "run"),
      "_EDIT": edit,
      "_CONTROL": beside,
    }.items():
      monkeypatch.setattr(attack, flag, types.SimpleNamespace(value=value))
    attack.main([])

  return main


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"judge": "shaeps"}, "judge='shaeps'.*allowed: .*shapes"),
    ({"judge": None}, "prompt_table: name a CSV"),
    ({"targets": ()}, r"targets=\(\): judge='shapes' needs.*--config.target"),
    ({"targets": ({"task": "object", "name": "church"},)}, "name='church'"),
    ({"groups": ("explict",)}, "did you mean 'explicit'"),
    ({"victim": "no/such/model.safetensors"}, "no/such/model"),
    ({"guidance.safe": "hard"}, "guidance.safe='hard'.*weak"),
    ({"diffusion_classifier.timesteps": -1}, "r.timesteps=-1"),
    ({"long_prompts": "truncated"}, "long_prompts='truncated'.*'truncate'"),
    ({"new_words": "runs/words"}, "new_word"),
    ({"hparams.noise": "frosen"}, "noise='frosen'.*frozen"),
    ({"hparams.timesteps": "rising"}, "timesteps='rising'"),
    ({"hparams.criterion": "l3"}, "criterion='l3'"),
    ({"hparams.decay": "none"}, "decay='none'"),
    ({"hparams.iterations": 0}, "iterations=0: must be at least 1"),
    ({"hparams.blocks": 0}, "blocks=0: must be at least 1"),
    ({"hparams.blocks": 1001}, "blocks=1001.*the model has 1000"),
    ({"hparams.num_tokens": 0}, "hparams.num_tokens=0: must be at least 1"),
    ({"sampling.num_inference_steps": 0}, "num_inference_steps=0 .*from 1 to"),
    ({"diffusion_classifier.timesteps": 1001}, "r.timesteps=1001: .*to 1000"),
    ({"guidance.negative_prompt": "star " * 76}, "guidance.negative_prompt: "),
  ],
)
def test_settings(changes, words, start, tmp_path):
  with pytest.raises(ValueError, match=words):
    start(**changes)
  # The next start may have another config.
  assert not (tmp_path / "run").exists()


def test_an_edit_and_another_victim(start, tmp_path):
  path = tmp_path / "edit.safetensors"
  identity = Edit(
    np.eye(128),
    Fingerprint("text", "base"),
    "uce",
    make_concepts(["star"], "circle"),
    {},
  )
  save_edit(identity, path)
  with pytest.raises(ValueError, match="either --edit or --config.victim"):
    start(victim="scrambled", edit=str(path))


@pytest.fixture
def beside(tmp_path):
  """A finished run of two rows."""
  config = attack_configs.attack("controls", "tiny")
  config.rows_per_group = 2
  run = workdir.Workdir(tmp_path / "control", config)
  for row in attack_rows.listed(build(config)):
    run.append_row({**row, "victim": "a" * 12, "status": "pre"})
  run.mark_done()
  return str(tmp_path / "control")


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"judge": None, "prompt_table": True}, "without a judge"),
    ({"sampling.num_inference_steps": 3}, "has sampling=.*control of its"),
    ({"vocabulary": "full"}, "has vocabulary='roundtrip'"),
    ({"targets": ({"task": "style", "name": "neon"},)}, "has targets=.*star"),
    ({"rows_per_group": 3}, r"1 of 3 rows .*: row 00002-.* None, here \['"),
    ({"groups": ("synonyms",)}, "4 of 4 rows that are not the attack's"),
    ({"seed": 1}, "2 of 2 rows that are not .*rows_per_group, groups"),
    ({"prompt_table": True}, "row 00000-explicit is .* here None"),
    ({}, "of another victim, aaaaaaaaaaaa; this attack's is"),
  ],
)
def test_controls_that_compare_with_nothing(
  changes, words, beside, start, tmp_path
):
  if "prompt_table" in changes:
    path = tmp_path / "prompts.csv"
    path.write_text(HEAD + "1,a star,5,7.5\n")
    changes = changes | {"prompt_table": str(path)}
  with pytest.raises(ValueError, match=words):
    start(beside=beside, **changes)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["prompt", "seed", "guidance"])
def test_a_control_of_other_rows_with_the_same_ids(key, beside):
  config = attack_configs.attack("unlearn_diff_atk", "tiny")
  config.rows_per_group = 2
  found, given = control.finished(beside), build(config)
  listed = attack_rows.listed(given)
  control.check_control(found, given, listed, vocabulary=True)
  listed[1][key] = "other"
  with pytest.raises(
    ValueError, match="1 of 2 rows.*row 00001-explicit.*'other'"
  ):
    control.check_control(found, given, listed, vocabulary=True)


def test_an_embedding_has_no_vocabulary(beside):
  config = attack_configs.attack("concept_inversion", "tiny")
  config.rows_per_group, config.vocabulary = 2, "full"
  found, given = control.finished(beside), build(config)
  listed = attack_rows.listed(given)
  control.check_control(found, given, listed, vocabulary=False)
  with pytest.raises(ValueError, match="has vocabulary="):
    control.check_control(found, given, listed, vocabulary=True)


@pytest.mark.parametrize(
  "lines, words",
  [
    ("4294967296,a star,5,7.5\n", "case_number='4294967296'.*0 to 42949672"),
    ("1,,5,7.5\n", "no prompts"),
  ],
)
def test_tables(lines, words, start, tmp_path):
  path = tmp_path / "prompts.csv"
  path.write_text(HEAD + lines)
  with pytest.raises(ValueError, match=words):
    start(prompt_table=str(path))


@pytest.mark.parametrize(
  "how", [{"safe": "max"}, {"negative_prompt": "a star"}, {"in_loss": True}]
)
def test_a_guided_victim_draws_no_row_without_guidance(how, start, tmp_path):
  path = tmp_path / "prompts.csv"
  path.write_text(HEAD + "6,a star,5,4.0\n7,a star,5,1.0\n")
  changes = {f"guidance.{key}": value for key, value in how.items()}
  with pytest.raises(ValueError, match="row 7: .*=1.0 guides nothing.*above 1"):
    start(prompt_table=str(path), **changes)


def test_a_loss_through_another_guidance_than_the_images(start, tmp_path):
  path = tmp_path / "prompts.csv"
  path.write_text(HEAD + "1,a star,5,4\n2,a star,5,7.5\n")
  changes = {"prompt_table": str(path), "guidance.in_loss": True}
  with pytest.raises(ValueError, match="row 2: .*=7.5, .*guidance_scale=4.0"):
    start(**changes)


@pytest.fixture
def pictured(tmp_path):
  """Two rows with their target images: what a start is to be told."""
  path, folder = tmp_path / "prompts.csv", tmp_path / "targets"
  path.write_text(HEAD + "4,a star,5,7.5\n9,a red star,6,7.5\n")
  folder.mkdir()
  for name in ("4", "9"):
    Image.new("RGB", (32, 32)).save(folder / f"{name}.png")
  return {"prompt_table": str(path), "target_images": str(folder)}


def cut(path):
  path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
  "spoil, words",
  [
    (lambda path: path.unlink(), "target_images: no file .*9.png"),
    (
      lambda path: Image.new("RGB", (48, 32)).save(path),
      "9.png is 48x32; the model's images are 32x32",
    ),
    (cut, "target_images: cannot read .*9.png"),
    (lambda path: path.write_text("?"), "target_images: cannot read .*9.png"),
  ],
  ids=["missing", "size", "cut", "text"],
)
def test_target_images(spoil, words, pictured, start, tmp_path):
  """The last one's fault is found before the first one is encoded."""
  spoil(tmp_path / "targets" / "9.png")
  with pytest.raises(ValueError, match=words):
    start(**pictured)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kept", [False, True], ids=["new", "kept"])
@pytest.mark.parametrize("what", ["prompt_table", "target_images"])
def test_a_resume_with_other_rows(what, kept, pictured, start, tmp_path):
  def begin():
    with pytest.raises(AssertionError, match="too late for an error"):
      start(**pictured)

  begin()
  if kept:
    # A run of a version that recorded neither goes on, and is bound from then.
    file = tmp_path / "run" / "provenance.json"
    document = json.loads(file.read_text())
    inputs = document["runs"][0]["inputs"]
    del inputs["prompt_table"], inputs["target_images"]
    file.write_text(json.dumps(document))
    begin()
  begin()
  if what == "prompt_table":
    (tmp_path / "prompts.csv").write_text(HEAD + "4,a star,5,7.5\n")
  else:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "targets" / "9.png")
  with pytest.raises(ValueError, match=f"inputs.{what}: '.* -> '"):
    start(**pictured)


def test_a_row_that_may_not_be_dropped(start, tmp_path):
  path = tmp_path / "prompts.csv"
  path.write_text(HEAD + f"4,a star,5,7.5\n9,{'star ' * 36},5,7.5\n")
  changes = {"prompt_table": str(path), "long_prompts": "error"}
  with pytest.raises(ValueError, match="long_prompts='error'.*: 9: prompt"):
    start(**changes)
  assert not (tmp_path / "run").exists()


def test_a_caption_that_leaves_no_room_for_its_word(start):
  changes = {
    "hparams.pool": "templates",
    "pool.templates": ("a {}", "star " * 38 + "{}"),
  }
  with pytest.raises(ValueError, match="allowed"):
    start("concept_inversion", **changes)


@pytest.fixture(scope="module")
def world():
  return make_world()


def run(world, table, victim=None, **options):
  sd, own, original = world
  attack_ = attacks.bind(
    "unlearn_diff_atk", {"num_tokens": 2, "blocks": 1, "iterations": 2}
  )
  return list(
    lanes.attack_rows(
      sd, victim or own, original, attack_, table,
      lambda asked: [rows.Verdict(False, 0.5) for _ in asked],
      jax.random.key(0),
      lanes.Options(
        lanes=2, mesh=sharding.make_mesh(devices=jax.devices()[:1]), **options
      ),
    )
  )  # fmt: skip


def test_prompts_that_leave_no_room_can_be_refused(world):
  listed = table(world[0], ["a star", "star " * 37])
  with pytest.raises(ValueError, match=r"prompts='error'.*r1: .*37 tokens"):
    run(world, listed, long_prompts="error")


def test_a_model_that_predicts_velocity(world):
  sd, victim, original = world
  schedule = dataclasses.replace(sd.schedule, prediction_type="v_prediction")
  other = dataclasses.replace(sd, schedule=schedule)
  with pytest.raises(ValueError, match="prediction_type='v_prediction'"):
    run((other, victim, original), table(sd)[:1])


def test_a_tokenizer_without_a_round_trip():
  class Tokenizer:
    """Every token comes back as another."""

    def __len__(self):
      return 3

    def convert_ids_to_tokens(self, ids):
      return [f"{i}</w>" for i in ids]

    def decode(self, ids):
      return "?"

    def __call__(self, texts):
      return {"input_ids": [[0, 9, 1]] * len(texts)}

  with pytest.raises(ValueError, match="no id of this tokenizer survives"):
    vocabulary.attack_ids(Tokenizer(), "roundtrip")


def blind(victim):
  """The victim with all of its attention to the text at zero."""
  flat = jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf * (
      "attn2" not in jax.tree_util.keystr(path)
    ), victim.params["unet"],
  )  # fmt: skip
  return Victim({**victim.params, "unet": flat})


def test_a_victim_that_does_not_read_its_prompt(world, caplog):
  sd, victim, _ = world
  with caplog.at_level("WARNING", logger="absl"):
    found = run(world, table(sd)[:1], victim=blind(victim))
  assert found[0]["blocks"][0]["gradient_rms"] == 0
  assert np.isfinite(found[0]["blocks"][0]["loss"])
  assert "text gradient is zero" in caplog.text


@pytest.mark.slow
def test_nothing_is_gained_on_a_victim_that_does_not_read(world):
  """The judge lets every image pass but those of two prompts as they are."""
  sd, victim, original = world
  vae = stable_diffusion.load(shapes.model_folder())[1]["vae"]

  def won(victim, method, **hparams):
    own = {}

    def check(asked):
      images = sampling.generate(
        sd, {**victim.params, "vae": vae}, [r.prompt for r in asked],
        [r.seed for r in asked], num_inference_steps=2, guidance_scale=4.0,
        sampler="ddim", batch_size=1,
      )  # fmt: skip
      found = []
      for request, image in zip(asked, images, strict=True):
        first = own.setdefault(request.seed, image)
        changed = not np.array_equal(image, first)
        found.append(rows.Verdict(changed or request.seed % 2 == 0, 0.5))
      return found

    found = lanes.attack_rows(
      sd, victim, original, attacks.bind(method, hparams), table(sd), check,
      jax.random.key(0),
      lanes.Options(
        lanes=2, mesh=sharding.make_mesh(devices=jax.devices()[:1])
      ),
    )  # fmt: skip
    return {record["id"]: record["success"] for record in found}

  budget = {"num_tokens": 2, "blocks": 2}
  wanted = {"r0": True, "r1": False, "r2": True, "r3": False, "r4": True}
  assert won(blind(victim), "controls", **budget) == wanted
  assert (
    won(blind(victim), "unlearn_diff_atk", iterations=2, **budget) == wanted
  )
  # One that reads draws something else of random tokens.
  assert all(won(victim, "controls", **budget).values())
