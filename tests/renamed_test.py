"""Old names: refused with the new one where typed, translated where stored."""

import importlib
import json
import pathlib

import pytest
from ml_collections import ConfigDict
from unlearning_jax.configs import (
  erase_concept_ablation,
)
from unlearning_jax.launch import flags

import unlearning_jax as ul
from tests.support import scripts
from unlearning_jax import protocols, renamed, report, settings
from unlearning_jax.attacks import bind as bind_attack
from unlearning_jax.concepts import check_choice
from unlearning_jax.erasures import bind as bind_erasure
from unlearning_jax.experiments import attack, finetune, resurgence
from unlearning_jax.experiments import diagnose as diagnosing
from unlearning_jax.experiments import evaluate as evaluating
from unlearning_jax.experiments.cells import Folders
from unlearning_jax.record import Workdir, read_rows

ROOT = pathlib.Path(__file__).resolve().parents[1]
KEPT = ROOT / "benchmarks/results/resurgence_full"


def finished(folder, config, rows=(), summary=None):
  """A run's folder, as an earlier version left it."""
  folder.mkdir(parents=True, exist_ok=True)
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  for name, text in {
    "config.json": json.dumps(config), "results.jsonl": lines, "DONE": "",
    "summary.json": json.dumps(summary or {}),
  }.items():  # fmt: skip
    (folder / name).write_text(text)
  return folder


# --- Typed ---


@pytest.mark.parametrize("place", renamed.SETTINGS)
def test_an_old_setting_is_refused_and_the_new_one_named(place):
  for old, new in renamed.SETTINGS[place].items():
    assert renamed.now(old, ["x", new]) == new
    assert renamed.now(old, ["x"]) is None
  assert renamed.now("rows_per_group", ["rows_per_group"]) is None


BUILT = {
  "": (attack.Settings, "per_group grid table too_long words proxy others"),
  "diagnose": (diagnosing.Settings, "neutral"),
  "tuning": (finetune.Settings, "defence"),
  "defence": (finetune.settings.Defense, "k centre"),
  "study": (resurgence.Settings, "neighbours revival"),
  "block": (resurgence.settings.Block, "defences"),
  "sampling": (evaluating.Settings, "num_steps"),
  "pool": (attack.settings.Pool, "images"),
}


@pytest.mark.parametrize("cls, names", BUILT.values(), ids=BUILT)
def test_settings_name_the_new_key(cls, names):
  for old in names.split():
    with pytest.raises(ValueError) as error:
      settings.build(cls, {old: 1}, "common")
    new = {n for table in renamed.SETTINGS.values() for n in [table.get(old)]}
    wanted = (f"{old} is now {one}" for one in new)
    nested = (f"{{'{one}': 1}}?" for one in new)
    assert any(text in str(error.value) for text in (*wanted, *nested))


@pytest.mark.parametrize(
  "bound, method, old, new",
  [
    (bind_attack, "unlearn_diff_atk", "k", "num_tokens"),
    (bind_attack, "gcg", "k", "num_tokens"),
    (bind_erasure, "mace", "image_steps", "num_inference_steps"),
    (bind_erasure, "concept_ablation", "images", "num_images"),
    (bind_erasure, "concept_ablation", "regularization", "anchor_loss_weight"),
    (bind_erasure, "rece", "regulariser", "regularizer"),
  ],
)
def test_hyperparameters_name_the_new_key(bound, method, old, new):
  with pytest.raises(ValueError, match=f"hparams.{old}: {old} is now {new}"):
    bound(method, {old: 1})


def test_verbs_name_the_new_key():
  model = ul.load("shapes")
  for typed, new in (
    (lambda: ul.grid(model, "a star", num_steps=2), "num_inference_steps"),
    (lambda: model.generate(["a"], [0], num_steps=2), "num_inference_steps"),
    (lambda: ul.erase(model, "star", "rece", regulariser="zero"), "regulariz"),
    (lambda: ul.attack(model, "star", per_group=2), "rows_per_group"),
    (lambda: ul.attack(model, "star", hparams={"k": 2}), "num_tokens"),
    (
      lambda: ul.evaluate(model, protocol="shapes-star", per_group=2),
      "rows_per_group",
    ),
    (
      lambda: ul.evaluate(model, protocol="shapes-star~per_group=2"),
      "rows_per_group",
    ),
    (lambda: protocols.find("shapes-star~others=2"), "other_rows"),
    (lambda: protocols.find("shapes-star~num_steps=2"), "num_inference_steps"),
  ):
    with pytest.raises(ValueError, match=f"is now {new}"):
      typed()


@pytest.mark.parametrize(
  "config, key, new",
  [
    ("erase_uce:tiny", "per_group", "rows_per_group"),
    ("erase_uce:tiny", "sampling.num_steps", "num_inference_steps"),
    ("attack_gcg:tiny", "hparams.k", "num_tokens"),
    ("attack_gcg:tiny", "proxy", "diffusion_classifier"),
    ("attack_matrix_shapes:object", "common.too_long", "long_prompts"),
    ("attack_matrix_shapes:object", "attacks.uda", "unlearn_diff_atk"),
    ("finetune_lora:tiny", "defence", "defense"),
  ],
)
def test_a_flag_names_the_new_key(config, key, new, monkeypatch):
  monkeypatch.setattr(
    "sys.argv", ["x", f"--config={config}", f"--config.{key}=2"]
  )
  above, _, last = f"config.{key}".rpartition(".")
  said = rf"--{above}: key='{last}' .*; {last} is now {new}"
  with pytest.raises(ValueError, match=said):
    flags._ByName("config").parse(config)


def test_a_script_names_the_new_flag(tmp_path):
  done = scripts.Run(
    "erase", "--config=configs/erase_uce.py:tiny", "--config.per_group=2",
    f"--workdir={tmp_path / 'run'}",
  ).join()  # fmt: skip
  assert done.returncode and "per_group is now rows_per_group" in done.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("old, new", renamed.NAMES.items())
def test_a_name_is_refused_and_the_new_one_named(old, new):
  with pytest.raises(ValueError, match=f"{old} is now {new}"):
    check_choice("columns", old, [new, "random"])
  presets = {"memorisation": erase_concept_ablation}
  if old in presets:
    with pytest.raises(ValueError, match=f"{old} is now {new}"):
      presets[old].get_config(f"sd14,name=A,anchor=B,preset={old}")


@pytest.mark.parametrize("name", flags.shipped())
def test_no_config_has_an_old_name(name):
  module = importlib.import_module(f"unlearning_jax.configs.{name}")
  config = module.get_config()
  assert isinstance(config, ConfigDict)
  plain = json.loads(config.to_json_best_effort())
  # A config of today comes out as it is.
  assert renamed.config(plain) == plain


def test_fmn_s_images_are_no_count():
  plain = {"hparams": {"images": False}}
  assert renamed.config(plain) == plain


# --- Stored ---

OLD = {
  "title": "uda on uce, object", "per_group": 2, "others": 3, "grid": 1,
  "table": "", "too_long": "drop", "words": "", "neutral": "",
  "proxy": {"timesteps": 0}, "pool": {"images": 4},
  "sampling": {"num_steps": 5}, "target_sampling": {"num_steps": 6},
  "hparams": {"k": 3, "num_steps": 7}, "groups": ["explicit", "others"],
  "counts": {"words": 1, "others": 2}, "prompts": {"others": ["a dog"]},
  "protocol": "shapes-star~num_steps=2,others=3,per_group=2 abc",
  "defence": {"k": None, "centre": True}, "neighbours": 4, "revival": 0.3,
  "blocks": [{"defences": ["none"], "seeds": [0]}],
  "algorithms": {"lora": {"defence": {"centre": True}, "num_steps": 9}},
  "erasures": {"ablation/star": {"hparams": {
    "images": 8, "regularization": 1.0, "regulariser": "zero",
    "image_steps": 2}}},
}  # fmt: skip
NEW = {
  "title": "unlearn_diff_atk on uce, object", "rows_per_group": 2,
  "other_rows": 3, "grid_rows": 1, "prompt_table": "", "long_prompts": "drop",
  "new_words": "", "anchor": "", "diffusion_classifier": {"timesteps": 0},
  "pool": {"num_images": 4}, "sampling": {"num_inference_steps": 5},
  "target_sampling": {"num_inference_steps": 6},
  "hparams": {"num_tokens": 3, "num_steps": 7},
  "groups": ["explicit", "others"], "counts": {"words": 1, "others": 2},
  "prompts": {"others": ["a dog"]},
  "protocol":
    "shapes-star~num_inference_steps=2,other_rows=3,rows_per_group=2 abc",
  "defense": {"num_directions": None, "center": True}, "neighbors": 4,
  "revival_threshold": 0.3,
  "blocks": [{"defenses": ["none"], "seeds": [0]}],
  "algorithms": {"lora": {"defense": {"center": True}, "num_steps": 9}},
  "erasures": {"ablation/star": {"hparams": {
    "num_images": 8, "anchor_loss_weight": 1.0, "regularizer": "zero",
    "num_inference_steps": 2}}},
}  # fmt: skip


def test_a_stored_config_is_translated_and_goes_on(tmp_path):
  assert renamed.config(OLD) == NEW and renamed.config(NEW) == NEW
  folder = finished(tmp_path / "run", OLD, [{"id": 1}])
  assert Workdir(folder, NEW).done_ids() == {1}
  assert json.loads((folder / "config.json").read_text()) == OLD
  assert ul.open(folder).config == NEW
  with pytest.raises(ValueError, match="rows_per_group: 2 -> 9"):
    Workdir(folder, NEW | {"rows_per_group": 9})


def test_a_stored_study_is_the_config_of_today():
  """The kept one, but for what was added since."""
  stored = renamed.config(json.loads((KEPT / "config.json").read_text()))
  built = settings.build(resurgence.Settings, stored)
  assert built.revival_threshold == 0.3 and built.cells


def test_stored_rows_are_translated_and_not_rewritten(tmp_path):
  heads = {"stage": [0.5], "original": [0.1]}
  old = [
    {"id": "before/0", "stage": "before", "scores": heads},
    {"id": "UCE/0", "stage": "UCE"},
    {"id": 3, "blocks": [{"survived": True, "proxy": 0.5}], "proxy_calls": 9},
    {"id": 4, "original": {"neutral_error": 1.0}, "victim": {"gap": 2.0}},
    {"id": 5, "predictors": {"overlap_centred": 0.5}},
    {"id": 6, "victim": "0123"},
  ]
  new = [
    {"id": "before/0", "model": "base", "scores": heads},
    {"id": "UCE/0", "model": "UCE"},
    {
      "id": 3, "blocks": [{"roundtrip": True, "diffusion_classifier": 0.5}],
      "diffusion_classifier_calls": 9,
    },
    {"id": 4, "base": {"anchor_error": 1.0}, "victim": {"gap": 2.0}},
    {"id": 5, "predictors": {"overlap_centered": 0.5}},
    {"id": 6, "victim": "0123"},
  ]  # fmt: skip
  folder = finished(tmp_path / "run", {}, old)
  assert read_rows(folder) == new
  assert list(map(renamed.row, new)) == new
  lines = (folder / "results.jsonl").read_text().splitlines()
  assert list(map(json.loads, lines)) == old


def test_stored_inputs_bind_a_resume(tmp_path):
  run = Workdir(tmp_path, {})
  names = {"table": "a", "protocol shapes-star~per_group=2": "b"}
  run.record_provenance(devices={}, inputs=names)
  new = {"prompt_table": "a", "protocol shapes-star~rows_per_group=2": "b"}
  run.check_inputs(new)
  with pytest.raises(ValueError, match="inputs.prompt_table: 'a' -> 'c'"):
    run.check_inputs(new | {"prompt_table": "c"})


def test_a_stored_evaluation_makes_its_page(tmp_path):
  rate = {
    "name": "object/star/explicit", "value": 0.5, "low": 0.1, "high": 0.9,
    "k": 1, "n": 2,
  }  # fmt: skip
  summary = {
    "title": "Old", "stages": ["before", "UCE"],
    "erased": [{"head": "object", "class": "star"}],
    "measures": {"before": [rate], "UCE": [rate]},
    "estimates": [{
      "name": "x", "stage": "before", "value": 1.0, "low": None, "high": None,
      "k": None, "n": 2,
    }],
  }  # fmt: skip
  folder = finished(tmp_path / "run", {}, summary=summary)
  assert report.results_csv(folder).splitlines() == [
    "model,head,class,group,value,low,high,k,n",
    "base,object,star,explicit,0.5,0.1,0.9,1,2",
    "UCE,object,star,explicit,0.5,0.1,0.9,1,2",
    "base,x,,,1.0,,,,2",
  ]
  assert "star" in report.render_report(folder)
  known = ul.open(folder).summary
  assert known["models"] == ["base", "UCE"] and renamed.summary(known) == known


def test_a_stored_attack_has_its_rates_by_their_names():
  listed = [{"name": name, "value": 0.5} for name in ("asr", *renamed.NUMBERS)]
  found = renamed.summary({"measures": listed, "control": {"measures": listed}})
  names = ["asr", *renamed.NUMBERS.values()]
  for one in (found, found["control"]):
    assert [m["name"] for m in one["measures"]] == names
  assert renamed.summary(found) == found


def test_a_cell_of_an_old_name_is_found(tmp_path):
  store, cell = Folders[str](tmp_path), "object/uce/unlearn_diff_atk"
  assert store.folder(cell) == tmp_path / cell
  old = finished(tmp_path / "object/uce/uda", {})
  assert store.folder(cell) == old and store.ended(cell)
  (tmp_path / cell).mkdir()
  assert store.folder(cell) == tmp_path / cell


def test_a_protocol_keeps_its_hash_and_its_seeds():
  for name, one in protocols.shipped().items():
    assert one.hash == protocols.frozen()[name]
  small = protocols.find("shapes-star~rows_per_group=2,num_inference_steps=3")
  # Of `shapes-star~num_steps=3,per_group=2`, before the renames.
  assert small.hash == (
    "77eb524dc325dd8e0cd3868df4a567ee5372d6c40e973d8ff1f455994ce23f18"
  )
