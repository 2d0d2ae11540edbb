"""What a matrix of attacks is of: its cells, and what it refuses."""

import math
from typing import Any

import pytest
from unlearning_jax.configs import (
  attack_ablation_shapes,
  attack_controls,
  attack_matrix_shapes,
)

from unlearning_jax import settings
from unlearning_jax.experiments import attack
from unlearning_jax.experiments.attack import rows
from unlearning_jax.experiments.matrix import (
  Cell,
  Erased,
  Settings,
  read_given,
)
from unlearning_jax.shapes import vocabulary


def listed(config):
  return rows.listed(settings.build(attack.Settings, config.to_dict()))


def make_config(tasks="object+unsafe") -> Any:
  return attack_matrix_shapes.get_config(tasks)


def built(config) -> Settings:
  return settings.build(Settings, config.to_dict())


def test_every_cell_is_named_once():
  found = built(make_config()).cells([Erased("object", "esd")])
  assert len(set(found)) == len(found) == 6 * (4 + 3)
  # What the others build on comes first.
  assert {cell.attack for cell in found[:7]} == {"none"}
  assert {cell.attack for cell in found[7:14]} == {"random"}
  assert Cell("object", "esd", "unlearn_diff_atk") in found
  assert Cell("unsafe", "esd", "unlearn_diff_atk") not in found


def test_a_cell_has_the_budget_of_all_and_its_own_settings():
  given = built(make_config())
  uda = given.attack(Cell("unsafe", "uce", "unlearn_diff_atk"))
  assert uda.method == "unlearn_diff_atk"
  h = uda.hparams
  wanted = {"blocks": 9, "iterations": 25, "num_tokens": 5, "weight_decay": 0.0}
  assert h.items() >= wanted.items()
  assert uda.targets == ({"task": "unsafe", "name": "hazard"},)
  cce = given.attack(Cell("object", "uce", "concept_inversion"))
  assert (cce.hparams["blocks"], cce.hparams["num_tokens"]) == (9, 1)
  assert uda.rows_per_group == 100


def test_rows_share_words_only_if_those_of_the_control_do():
  plain = make_config("object").to_dict()
  changes = {"sharing.wave": 4, "sharing.tries": 4}
  plain["attacks"]["unlearn_diff_atk"]["changes"] = changes
  with pytest.raises(ValueError, match="unlearn_diff_atk: has .*'random' .*=0"):
    settings.build(Settings, plain)
  plain["attacks"]["lucky"] = plain["attacks"]["random"] | {"changes": changes}
  plain["attacks"]["unlearn_diff_atk"]["control"] = "lucky"
  plain["columns"] = (*plain["columns"], "lucky")
  own = settings.build(Settings, plain).attack(Cell("object", "uce", "lucky"))
  assert (own.sharing.wave, own.sharing.tries) == (4, 4)


@pytest.mark.parametrize("task", ["identity", "object", "style", "unsafe"])
def test_every_task_has_a_hundred_rows(task):
  own = built(make_config(task)).attack(Cell(task, "base", "none"))
  found = rows.listed(own)
  assert len(found) == own.rows_per_group == 100
  for key in ("id", "number", "seed"):
    assert len({row[key] for row in found}) == 100


@pytest.mark.parametrize(
  "task, words",
  [("identity", "Quill Estane"), ("object", "star"), ("style", "neon"),
   ("unsafe", "warning tape")],
)  # fmt: skip
def test_clean_prompts_are_as_many_of_the_same_head(task, words):
  argument = f"tiny,task={task},preset="
  config = attack_controls.get_config(argument + "clean+random")
  assert config.hparams.kind == "random"
  clean = listed(config)
  assert len(clean) == config.rows_per_group == 100
  assert not any(words in row["prompt"] for row in clean)
  people = [identity.name for identity in vocabulary.IDENTITIES]
  if task == "identity":
    assert all(any(p in row["prompt"] for p in people) for row in clean)
  # Those that ask for it keep their names, numbers and seeds beside them.
  asked = listed(attack_controls.get_config(argument + "random"))
  config.groups = ("explicit", "others")
  assert listed(config) == asked + clean


def test_the_ablation_spends_the_same_on_every_choice():
  given = built(attack_ablation_shapes.get_config())
  own = {
    name: given.attack(Cell("object", "uce", name)) for name in given.columns
  }
  spent = {
    math.prod(c.hparams[key] for key in ("blocks", "iterations", "draws"))
    for c in own.values()
    if c.method == "unlearn_diff_atk"
  }
  assert spent == {9 * 25}
  fixed = own["fixed"]
  reference = {"vocabulary": "full", "noise": "frozen", "weight_decay": 0.1}
  for name, changed in {
    "coupled": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decay": "decoupled"},
    "full": {"vocabulary": "full"},
    "stratified": {"timesteps": "stratified", "draws": 5, "iterations": 5},
    "random_t": {"timesteps": "random"},
    "frozen": {"noise": "frozen"},
    "reference": reference,
  }.items():
    wanted = {"vocabulary": "roundtrip", **fixed.hparams, **changed}
    found = {"vocabulary": own[name].vocabulary, **own[name].hparams}
    assert found == wanted, name
    full = wanted["vocabulary"] == "full"
    beside = given.control_of(Cell("object", "uce", name))
    assert beside.attack == ("random_full" if full else "random")
  assert given.columns[:2] == ("none", "random")
  assert own["random"].vocabulary == "roundtrip"
  assert own["random_full"].vocabulary == "full"


@pytest.mark.parametrize(
  "change, edits, words",
  [
    ({"control": "randm"}, [], "randm.*'random'"),
    (
      {"columns": ("none", "unlearn_diff_at")},
      [],
      "unlearn_diff_at'.*'unlearn_diff_atk'",
    ),
    ({}, ["objekt/esd=a"], "objekt.*'object'"),
    ({}, ["object/uce=a"], "'object/uce' is not a new"),
    ({}, ["object=a"], "is not a new <task>/<name>"),
    ({"common": {"judge": None}}, [], "common.judge=None"),
    ({"common": {"victim": "a.pt"}}, [], "common.victim='a.pt'"),
    (
      {"common": {"guidance": {"safe": "max"}}},
      [],
      "common.guidance.safe='max'.*launch.attack",
    ),
    (
      {"common": {"diffusion_classifier": {"timesteps": 5}}},
      [],
      "common.diffusion_classifier.timesteps=5",
    ),
    (
      {"common": {"long_prompts": "cut"}},
      [],
      "long_prompts='cut'",
    ),
    (
      {"attacks": {"concept_inversion": {"hparams": {"pool": "own"}}}},
      [],
      "attacks.concept_inversion.hparams.pool='own': .*launch.attack",
    ),
    (
      {"tasks": {"object": {"hparams": {"num_tokens": 0}}}},
      [],
      "hparams.num_tokens=0",
    ),
    (
      {"attacks": {"unlearn_diff_atk": {"control": "luck"}}},
      [],
      "attacks.unlearn_diff_atk.control='luck'",
    ),
  ],
)
def test_a_matrix_that_cannot_be(change, edits, words):
  config = make_config()
  config.update(change)
  with pytest.raises(ValueError, match=words):
    read_given(built(config), edits)


def test_a_hyperparameter_that_is_none():
  config = make_config()
  config.attacks.unlearn_diff_atk.hparams.iteration = 3
  with pytest.raises((TypeError, ValueError), match="did you mean iterations"):
    built(config)
