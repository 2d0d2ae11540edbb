"""A study of an erased model that others made."""

import json
import pathlib

import jax
import numpy as np
import pytest
from unlearning_jax.configs import finetune_resurgence_small, resurgence

from tests.support import scripts
from tests.support.resurgence_cases import finish, small_study, stubbed
from unlearning_jax import (
  erasures,
  guidance,
  settings,
  shapes,
  stable_diffusion,
)
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import Edit, Fingerprint, save_edit
from unlearning_jax.experiments import common
from unlearning_jax.experiments.resurgence import (
  Settings,
  plan,
  tuning,
  with_edits,
)
from unlearning_jax.guidance import Guidance
from unlearning_jax.metrics import study as evaluators_study

ROOT = pathlib.Path(__file__).resolve().parents[3]
COUNTS = {"explicit": 4, "words": 2, "others": 2, "tuned": 2}
BLOCK = {
  "methods": ("uce", "mace"),
  "concepts": ("star", "quill"),
  "sets": ("near",),
  "algorithms": ("lora",),
  "defenses": ("none",),
  "seeds": (0,),
}

NO_CHANGE = {
  "relative_change": 0.0, "key_value_share": 0.0, "prompt_change": 0.0
}  # fmt: skip


def saved(path, erase="star", anchor="circle"):
  """An edit that changes one leaf of no model in particular."""
  kernel = np.zeros((2, 2), np.float32)
  edit = Edit(
    None, Fingerprint("model", "base"), "elsewhere",
    make_concepts(erase, anchor), {}, {"unet/mid/attn2/to_k/kernel": kernel},
  )  # fmt: skip
  save_edit(edit, path)
  return edit


def study(*blocks):
  return resurgence.study(blocks or [BLOCK], (1, 2), COUNTS).to_dict()


def built(config, *edits):
  return settings.build(Settings, with_edits(config, edits))


def test_a_given_edit_is_tuned_in_all_ways_of_its_concept(tmp_path):
  saved(tmp_path / "edit.safetensors")
  far = BLOCK | {"concepts": ("star",), "sets": ("far",), "seeds": (0, 1)}
  config = study(BLOCK, far, BLOCK | {"concepts": ("quill",)})
  assert with_edits(config, []) is config
  # A run's folder will do, as elsewhere.
  given = built(config, f"mine/star={tmp_path}")
  assert [*map(str, given.cells)] == [
    "mine/star/near/lora/none/0",
    "mine/star/far/lora/none/0",
    "mine/star/far/lora/none/1",
  ]
  (edit,) = given.given().values()
  assert edit.method == "elsewhere"
  # It is there: making it costs nothing.
  spent = plan.cost(given, given.rates)
  assert spent["erase"] == 0 < spent["tune"]
  # Nor is it known how it was made.
  assert plan.kind(given, given.cells[0]) == ""


def test_kinds_of_erasure():
  block = BLOCK | {"methods": resurgence.METHODS, "concepts": ("star",)}
  given = built(study(block))
  kinds = {cell.method: plan.kind(given, cell) for cell in given.cells}
  closed = [name for name, kind in kinds.items() if kind == "closed forms"]
  assert closed == ["uce", "rece", "mace"]
  assert set(kinds.values()) == set(evaluators_study.AMONG[1:])


def test_an_edit_may_stand_in_a_config(tmp_path):
  saved(tmp_path / "a.safetensors")
  config = study(BLOCK | {"methods": ("uce",), "concepts": ("star",)})
  config["erasures"] = {"uce/star": {"edit": f"{tmp_path}/a.safetensors"}}
  assert list(built(config).given()) == ["uce/star"]


@pytest.mark.parametrize(
  "listed, words",
  [
    (["mine=a"], "'mine=a' is not a new <name>/<concept>=<path>"),
    (["mine/star"], "'mine/star' is not a new"),
    (["mine/star=a", "mine/star=b"], "'mine/star=b' is not a new"),
    (["mine/stra=a"], "'stra'.*did you mean 'star'"),
    (["uce/star=a"], "the study itself makes 'uce'"),
  ],
)
def test_what_is_no_list_of_edits(listed, words):
  with pytest.raises(ValueError, match=words):
    with_edits(study(), listed)


@pytest.mark.parametrize(
  "erase, anchor, words",
  [
    (None, None, "no file .*edit.safetensors; run launch.erase first"),
    (["moon"], "circle", r"erases \['moon'\].*'star'"),
    (["star", "moon"], "circle", r"erases \['star', 'moon'\]"),
    (["a star in neon"], "a star", r"erases \['a star in neon'\]"),
  ],
)
def test_an_edit_of_something_else(erase, anchor, words, tmp_path):
  if erase:
    saved(tmp_path / "edit.safetensors", erase, anchor)
  given = built(study(), f"mine/star={tmp_path}/edit.safetensors")
  with pytest.raises(ValueError, match=words):
    given.given()


@pytest.mark.parametrize("file", ["", "guidance.json"])
def test_guidance_is_no_edit(file, tmp_path):
  made = Guidance("a star", method="negative_prompt")
  guidance.save(made, tmp_path / "guidance.json")
  given = built(study(), f"mine/star={tmp_path / file}")
  with pytest.raises(ValueError, match="is guidance, which changes no weight"):
    given.given()
  # An evaluation takes it, also one of one's own without a method's name.
  own = tmp_path / "own.json"
  guidance.save(Guidance("a star"), own)
  found = common.read_edits([str(tmp_path / file), str(own)])
  assert [*found] == ["NEGATIVE_PROMPT", "GUIDED"]
  with pytest.raises(ValueError, match="own.json is guidance, which changes"):
    common.read_edit(own)
  with pytest.raises(ValueError, match="no file .*gone.guidance.json"):
    common.read_edits([str(tmp_path / "gone/guidance.json")])
  # An edit that lies beside it is meant.
  edit = saved(tmp_path / "edit.safetensors")
  assert common.read_edit(tmp_path).method == edit.method


@pytest.mark.parametrize("name", resurgence.CONCEPTS)
def test_what_the_studies_erase_could_be_given(name, tmp_path):
  config = study(BLOCK | {"methods": ("uce",), "concepts": (name,)})
  concepts = built(config).erasures[f"uce/{name}"].concepts
  edit = Edit(np.eye(2), Fingerprint("text", "base"), "uce", concepts, {})
  save_edit(edit, tmp_path / "edit.safetensors")
  given = built(config, f"mine/{name}={tmp_path}")
  assert list(given.given()) == [f"mine/{name}"]


def test_the_study_tunes_what_was_given(monkeypatch, tmp_path):
  edit = saved(tmp_path / "edit.safetensors")
  study = stubbed(monkeypatch, tmp_path)(listed=["mine/star=edit"])
  study.given = {"mine/star": edit}
  rows = finish(study)
  assert rows["erased/mine/star/0"]["right"]["explicit"] == "0000"
  assert "mine/star/near/lora/none/0@4" in rows
  assert not any("failed" in row for row in rows.values())
  # It stays where it is.
  assert not (study.run.path / "edits").exists()
  assert study.edit_of(study.settings.cells[0]) is edit


def test_the_small_study_of_another_concept():
  given = built(finetune_resurgence_small.get_config("quill").to_dict())
  assert {cell.concept for cell in given.cells} == {"quill"}
  with pytest.raises(ValueError, match="'quil'.*did you mean 'quill'"):
    finetune_resurgence_small.get_config("quil")


def test_an_edited_text_encoder_reads_its_own_captions(monkeypatch, tmp_path):
  leaf = "text_encoder/token/embedding"
  edit = Edit(
    None, Fingerprint("model", "base"), "elsewhere",
    make_concepts("star", "circle"), {}, {leaf: np.zeros((2, 2), np.float32)},
  )  # fmt: skip
  # The cell computes its own drift; the rest is stubs.
  own = tuning.Tuning._drift
  study = stubbed(monkeypatch, tmp_path)(listed=["mine/star=edit"])
  monkeypatch.setattr(tuning.Tuning, "_drift", own)
  study.base["text_encoder"] = {"token": {"embedding": np.ones((2, 2))}}

  def token(params):
    return float(params["text_encoder"]["token"]["embedding"][0, 0])

  def phrases(sd, params, listed):
    shape = sd.context_shape[0] * len(listed), sd.context_shape[1]
    noise = np.random.default_rng(len(listed[0])).normal(size=shape)
    return 1 + token(params) + noise - noise.mean()

  read, encode = [], tuning.finetune.encode

  def reading(sd, params, *more):
    read.append(token(params))
    found = encode(sd, params, *more)
    said = phrases(sd, params, ["it"] * len(found["mean"]))
    return found | {"context": said.reshape(-1, *sd.context_shape)}

  contexts = []

  def gap(sd, base, erased, tuned, latents, both, key):
    contexts.append(tuple(round(states.mean(), 6) for states in both))
    return 1.0

  monkeypatch.setattr(tuning.finetune, "encode", reading)
  monkeypatch.setattr(tuning.finetune, "phrase_states", phrases)
  monkeypatch.setattr(tuning.drift, "noise_gap", gap)
  monkeypatch.setattr(tuning.drift, "edit_size", lambda *_: NO_CHANGE)
  monkeypatch.setattr(tuning.drift, "weight_drift", lambda *_: {"moved": None})
  study.given = {"mine/star": edit}
  rows = finish(study)
  assert [row["failed"] for row in rows.values() if "failed" in row] == []
  before = rows["mine/star/near/lora/none/0@0"]["predictors"]
  assert before["pull"] is None and before["relative_change"] == 0
  after = rows["mine/star/near/lora/none/0@4"]["drift"]
  assert after["moved"] is None and after["noise_gap"] == 1
  # The base reads 2, the erased model 1.
  assert set(contexts) == {(2.0, 1.0)}
  # Captions to tune on, by the erased text encoder; renders to probe with, by
  # the base's autoencoder.
  assert read[:2] == [0.0, 1.0]


@pytest.mark.e2e
@pytest.mark.slow
def test_an_erased_model_is_tuned_and_measured_from_the_command_line(tmp_path):
  (tmp_path / "config.py").write_text(small_study("mace", ("near",)))
  sd, base = stable_diffusion.load(shapes.model_folder())
  block = BLOCK | {"methods": ("uce",), "concepts": ("star",)}
  entry = built(study(block)).erasures["uce/star"]
  erase = erasures.bind(entry.method, entry.hparams)
  made = erase(sd, base, entry.concepts, jax.random.key(0))
  file = tmp_path / "edit.safetensors"
  save_edit(made, file)

  def started():
    return scripts.run(
      "resurgence", f"--workdir={tmp_path}/run", f"--edits=mine/star={file}",
      f"--config={tmp_path}/config.py",
    )  # fmt: skip

  result = started().finish()
  assert "1 of 1 cells measured, 0 failed" in result.stdout
  lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
  rows = {row["id"]: row for row in map(json.loads, lines)}
  assert "mine/star/near/full/none/0@2" in rows
  gone = rows["erased/mine/star/0"]["right"]["explicit"]
  assert gone.count("1") < rows["base/star/0"]["right"]["explicit"].count("1")
  # Another file under that name is another study.
  weaker = erase(sd, base, entry.concepts[:1], jax.random.key(0))
  save_edit(weaker, file)
  result = started()
  assert result.returncode and "mine/star" in result.stderr
  # So is one of another base.
  other = {**base, "unet": jax.tree.map(lambda x: 2 * x, base["unet"])}
  save_edit(erase(sd, other, entry.concepts, jax.random.key(0)), file)
  result = started()
  assert result.returncode and "was made from base" in result.stderr
