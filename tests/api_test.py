"""What `import unlearning_jax as ul` shows, without drawing an image."""

import ast
import dataclasses
import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
from unlearning_jax.launch import main

import unlearning_jax as ul
from unlearning_jax import settings
from unlearning_jax.api import attacking, erasing, given, results, runs
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import Edit, Fingerprint, save_edit
from unlearning_jax.experiments import attack as attack_experiment
from unlearning_jax.guidance import Guidance
from unlearning_jax.probe import Probe
from unlearning_jax.record import Memory

CHEAP = """
import sys, time
start = time.process_time()
import unlearning_jax as ul
assert time.process_time() - start < 0.2, time.process_time() - start
assert not {"jax", "numpy", "transformers"} & sys.modules.keys()
names = dir(ul)
assert {"load", "erase", "attack", "concepts", "finetune"} <= set(names)
from unlearning_jax import attacks, concepts
assert concepts.Concept is ul.Concept and attacks.bind
assert "unlearn_diff_atk" in ul.attacks()
assert "star" in ul.concepts("shapes")["object"]
import unlearning_jax.finetune
assert callable(ul.finetune) and unlearning_jax.finetune.train
"""


def test_the_package_is_imported_lazily_and_its_names_are_both():
  done = subprocess.run(
    [sys.executable, "-c", CHEAP], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


def test_everything_shown_is_there_and_documented():
  for name in dir(ul):
    if name != "__version__":
      found = getattr(importlib.import_module("unlearning_jax.api"), name)
      assert found.__doc__, name
  with pytest.raises(AttributeError, match="no attribute 'erasee'"):
    ul.erasee  # noqa: B018


def test_what_there_is():
  assert {"uce", "rece", "esd"} <= set(ul.methods())
  assert "shapes-star" in ul.protocols()
  assert ul.concepts("shapes")["object"][:1] == ("circle",)
  assert "artists_1734" in ul.concepts()
  assert ul.judge("shapes").name and ul.metric("r_norm").name == "r_norm"
  assert ul.protocol("shapes-star~rows_per_group=2").rows_per_group == 2
  with pytest.raises(ValueError, match="did you mean 'shapes-star'"):
    ul.protocol("shapes-sta")


@pytest.fixture(scope="module")
def model():
  return ul.load("shapes")


def test_a_concept_says_what_was_filled_in(model):
  star = ul.concept(model, "star")
  assert star.target == {"task": "object", "name": "star"}
  assert len(star.concepts[0].preserve) == 237
  assert "'star' -> 'circle'" in repr(star) and "filled in by shapes" in repr(
    star
  )
  own = ul.concept(model, "star", anchor="heart", preserve=["moon"])
  assert {c.anchor for c in own.concepts} == {"heart"}
  assert own.concepts[0].preserve == ("moon",)
  with pytest.raises(ValueError, match="did you mean 'star'"):
    ul.concept(model, "sta")


def test_a_concept_that_no_world_knows_has_no_judge(model):
  other = dataclasses.replace(model, source="my/sd14")
  church = ul.concept(other, "Church", preserve="artists_1734")
  assert len(church.concepts[0].preserve) > 1700
  with pytest.raises(ValueError, match="no embedded world knows it"):
    _ = church.target


def test_the_scripts_recipe_is_the_notebooks(model, monkeypatch):
  """Concepts and hyperparameters equal those of the shipped configs."""
  asked = []

  def made(path, model, erasure, phrases, seed, hooks, strict):
    asked.append((erasure, phrases, seed))
    raise KeyboardInterrupt

  monkeypatch.setattr(erasing.experiment, "made", made)
  for method in ("uce", "rece", "esd", "mace"):
    with pytest.raises(KeyboardInterrupt):
      ul.erase(model, "star", method)
    config = importlib.import_module(f"unlearning_jax.configs.erase_{method}")
    given = config.get_config("tiny,task=object,name=star").to_dict()
    bound, phrases, seed = asked[-1]
    listed = erasing.experiment.wanted(given["concepts"])
    assert (tuple(phrases), seed) == (listed, given["seed"])
    script = erasing.erasures.bind(method, given["hparams"])
    assert dataclasses.asdict(bound) == dataclasses.asdict(script)


def test_what_was_erased_is_not_erased_again(model):
  guided = model.with_guidance(Guidance("star", method="negative"))
  with pytest.raises(ValueError, match="erased already.*from model.base"):
    ul.erase(guided, "star")
  with pytest.raises(ValueError, match="did you mean 'rece'"):
    ul.erase(model, "star", method="recee")


def test_an_exported_model_is_no_base_to_erase_from(model, tmp_path):
  """As the script says of the same folder; it has no `edit` any more."""
  path, leaf = "unet/conv_out/bias", model.params["unet"]["conv_out"]["bias"]
  edit = Edit(
    None, Fingerprint.of(model.params), "esd", make_concepts("star", "circle"),
    {}, {path: np.asarray(leaf) + 1},
  )  # fmt: skip
  model.with_edit(edit).save(tmp_path / "folder", format="folder")
  exported = ul.load(tmp_path / "folder")
  assert exported.edit is None
  said = str(ul.inspect(tmp_path / "folder"))
  assert "esd erased star" in said and "draw, attack: --config" in said
  given = {"model": "shapes", "method": "uce", "targets": ()}
  given |= {"concepts": ({"erase": "moon", "anchor": ""},), "edit_only": True}
  whole = settings.build(erasing.experiment.Settings, given)
  for erase in (
    lambda: ul.erase(exported, "moon"),
    lambda: erasing.experiment.run(whole, Memory, exported),
  ):
    with pytest.raises(ValueError, match=r"esd \(erased star\).*joint edit"):
      erase()


def test_what_was_tuned_has_no_probe_of_its_own(model, monkeypatch, tmp_path):
  """That of the erased model says nothing of it."""
  leaf = model.params["unet"]["conv_out"]["bias"]
  edit = Edit(
    None, Fingerprint.of(model.params), "esd+lora@2",
    make_concepts("star", "circle"), {},
    {"unet/conv_out/bias": np.asarray(leaf) + 1},
  )  # fmt: skip
  save_edit(edit, tmp_path / "2.safetensors")
  monkeypatch.setattr(
    "unlearning_jax.experiments.finetune.run",
    lambda *_: {2: tmp_path / "2.safetensors"},
  )
  known = Probe("drawings", 0.1, None, 0.1, (2, 0, 8))
  erased = dataclasses.replace(model.with_edit(edit), probe=known)
  tuned = ul.finetune(erased, steps=2)
  assert tuned.name == "ESD+LORA@2" and tuned.probe is None


def test_an_attacks_settings_are_the_scripts(model):
  star = ul.concept(model, "star")
  given = attacking.configured(
    model, star, "unlearn_diff_atk", 100, {"iterations": 25}, {"seed": 3}
  )
  config = importlib.import_module(
    "unlearning_jax.configs.attack_unlearn_diff_atk"
  ).get_config("tiny,task=object,name=star")
  config.hparams.iterations, config.seed = 25, 3
  script = settings.build(attack_experiment.Settings, config.to_dict())
  assert given == script
  with pytest.raises(ValueError, match="did you mean rows_per_group"):
    attacking.configured(model, star, "gcg", 1, {}, {"per_grup": 3})
  with pytest.raises(ValueError, match="control='randm'.*'random'"):
    ul.attack(model, star, control="randm")


def test_results_show_themselves():
  table = results.pivot(
    "R <norm>",
    {
      "a": [{"name": "x", "value": 0.5, "low": 0.25, "high": 1.0}],
      "b": [
        {"name": "x", "value": None, "failed": "no rows"},
        {"name": "y", "value": 2.0},
      ],
    },
    rows=({"id": 1},),
  )
  assert repr(table).splitlines() == [
    "R <norm>",
    "   a                  b",
    "x  0.50 [0.25, 1.00]  – (no rows)",
    "y                     2.00",
  ]
  assert "R &lt;norm&gt;" in table._repr_html_() and table.rows == ({"id": 1},)


def test_pandas_is_asked_for_when_it_is_needed(monkeypatch):
  monkeypatch.setitem(sys.modules, "pandas", None)
  with pytest.raises(ImportError, match="pip install pandas, or use .rows"):
    results.Table("t", ("a",), ()).to_pandas()


def test_a_grid_holds_its_images():
  grid = results.Grid(
    "g", ("model", "prompts"), (("base", "a"),),
    images=np.zeros((1, 1, 2, 4, 4, 3), np.uint8),
    names=("base",), prompts=("a <b>",), seeds=(0, 1),
  )  # fmt: skip
  assert grid._repr_html_().count("<img") == 2
  assert "a &lt;b&gt;" in grid._repr_html_()


def test_a_finished_run_is_opened(tmp_path):
  with pytest.raises(ValueError, match="no config.json"):
    ul.open(tmp_path)
  (tmp_path / "config.json").write_text('{"title": "Mine", "model": "shapes"}')
  with pytest.raises(ValueError, match="has not ended"):
    ul.open(tmp_path)
  (tmp_path / "DONE").touch()
  (tmp_path / "results.jsonl").write_text('{"id": "a"}\n')
  measures = {"base": [{"name": "x", "value": 1.0, "low": 0.5, "high": 1}]}
  (tmp_path / "summary.json").write_text(json.dumps({"measures": measures}))
  run = ul.open(tmp_path)
  assert run.rows == ({"id": "a"},) and run.config["model"] == "shapes"
  assert repr(run).splitlines()[:2] == ["Mine", "   base"]
  with pytest.raises(ValueError, match="made no edit"):
    _ = run.model
  (tmp_path / "config.json").write_text('{"title": true}')
  with pytest.raises(ValueError, match=f"{tmp_path.name}: 'True' stands where"):
    ul.open(tmp_path)


def test_a_verb_keeps_its_run_where_it_is_told(tmp_path):
  given = erasing.Settings(
    model="shapes", method="uce", hparams={}, concepts=()
  )
  run = runs.opener(tmp_path / "run", given)()
  assert json.loads((run.path / "config.json").read_text())["method"] == "uce"
  assert runs.page(run.path) == ""


def test_how_a_model_computes_stands_in_the_record():
  model = ul.load("shapes", kernels="fast")
  assert given.computing(model) == {"kernels": "fast"}
  half = ul.load("shapes", dtype="bfloat16", attention="dense")
  named = {"kernels": "exact", "dtype": "bfloat16", "attention": "dense"}
  assert given.computing(half) == named
  star = ul.concept(model, "star")
  values = attacking.configured(model, star, "pez", 1, {}, {})
  assert values.kernels == "fast"


def test_no_verb_hides_a_script():
  """Whoever reads `ul.attack` finds `unlearning-jax attack`."""
  assert {"erase", "attack", "finetune", "evaluate", "resurgence"} <= set(
    main.verbs()
  )
  assert ast.parse(CHEAP)
