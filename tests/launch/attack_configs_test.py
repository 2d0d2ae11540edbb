"""Every preset of every attack, and the published ones have their numbers."""

import importlib

import pytest

from unlearning_jax import settings
from unlearning_jax.experiments import attack
from unlearning_jax.experiments.attack import victims

# Module -> preset -> what it gives, keys as in the config or its `hparams`.
_UDA = {
  "learning_rate": 0.01, "blocks": 50, "iterations": 40, "criterion": "l2",
  "timesteps": "sequential", "draws": 1, "insertion": "prefix_k",
  "num_tokens": 3,
}  # fmt: skip
_P4D = {
  "blocks": 60, "iterations": 50, "learning_rate": 0.1, "weight_decay": 0.1,
  "decay": "decoupled", "timesteps": "random", "draws": 1, "loss": "match",
}  # fmt: skip
# 5000 updates of 4 x 4 images at 0.005 each.
_INVERSION = {
  "blocks": 1, "iterations": 5000, "draws": 16, "learning_rate": 0.08,
  "weight_decay": 0.01, "decay": "decoupled", "timesteps": "random",
  "num_tokens": 1,
  "recursion": 0,
}  # fmt: skip
_ROUND = {"blocks": 1, "iterations": 3000, "population": 200}
_ROUND |= {"crossover": 0.5, "mutation": 0.25, "insertion": "replace"}
_TINA = {"steps": 50, "updates": 25, "learning_rate": 1e-3}
_ETAS = {"etas": (1.0, 1.17, 1.34, 1.51, 1.68, 1.85)}
PRESETS = {
  "unlearn_diff_atk": {
    "": _UDA | {"weight_decay": 0.0, "noise": "fresh"},
    "fixed": _UDA | {"weight_decay": 0.0, "vocabulary": "roundtrip"},
    "reference": _UDA
    | {"weight_decay": 0.1, "decay": "coupled", "noise": "frozen"}
    | {"vocabulary": "full", "long_prompts": "drop"},
    "coupled": _UDA | {"weight_decay": 0.1, "decay": "coupled"},
    "decoupled": _UDA | {"weight_decay": 0.1, "decay": "decoupled"},
    "no_decay": _UDA | {"weight_decay": 0.0},
    "full": _UDA | {"vocabulary": "full"},
    "roundtrip": _UDA | {"vocabulary": "roundtrip"},
    "sequential": _UDA,
    "stratified": _UDA
    | {"timesteps": "stratified", "draws": 4, "iterations": 10},
    "random": _UDA | {"timesteps": "random"},
    "frozen": _UDA | {"noise": "frozen"},
    "fresh": _UDA | {"noise": "fresh"},
    "l1": _UDA | {"criterion": "l1"},
    "fewer": _UDA
    | {"weight_decay": 0.0, "sharing.wave": 4, "sharing.tries": 4},
    "reference+stratified": {"weight_decay": 0.1, "draws": 4},
  },
  "p4d": {
    "": _UDA | {"weight_decay": 0.1, "decay": "coupled", "loss": "match"},
    "unlearn_diff_atk": _UDA
    | {"weight_decay": 0.1, "decay": "coupled", "loss": "match"},
    "n": _P4D | {"num_tokens": 16, "insertion": "replace"},
    # No prompt of 75 tokens has more places.
    "k": _P4D | {"num_tokens": 25, "insertion": "every_three"},
  },
  "pez": {
    "": _UDA | {"weight_decay": 0.1, "decay": "coupled", "loss": "denoise"},
  },
  "concept_inversion": {
    "": {"pool": "", "loss": "denoise", "num_tokens": 1},
    "concept": _INVERSION
    | {"pool": "templates", "loss": "denoise", "pool.num_images": 25},
    "i2p": _INVERSION | {"pool": "own", "loss": "denoise"},
    "textual_inversion": {
      "blocks": 1, "iterations": 3000, "draws": 4, "learning_rate": 2e-3,
      "pool": "templates", "loss": "denoise", "weight_decay": 0.01,
    },
    "negative": _INVERSION
    | {"loss": "match", "guidance.in_loss": True, "guidance.safe": ""},
    "concept+negative": _INVERSION | {"pool": "templates", "loss": "match"},
    "sld": _INVERSION
    | {"iterations": 1000, "draws": 4, "learning_rate": 0.02, "recursion": 35}
    | {"loss": "match", "guidance.in_loss": True, "guidance.safe": "max"},
    "i2p+sld": {"pool": "own", "iterations": 1000, "draws": 4, "blocks": 1},
  },
  "gcg": {
    "": {"iterations": 10, "loss": "denoise"},
    "denoise": {"loss": "denoise"},
    "match": {"loss": "match"},
    "feature": {"loss": "feature", "pairs": ()},
    "fitness": {"loss": "fitness", "eta": 3.0},
    "published+fitness": {
      "loss": "fitness", "num_tokens": 20, "candidates": 512,
    },
    "published": {
      "num_tokens": 20, "top": 256, "candidates": 512, "blocks": 1,
      "iterations": 1000,
      "loss": "feature", "insertion": "replace",
    },
  },
  "ring_a_bell": {
    "": {"num_tokens": 16, "elitism": True, "insertion": "replace"},
    "reference": _ROUND
    | {"elitism": False, "vocabulary": "full", "num_tokens": 16},
    "nudity": _ROUND | {"eta": 3.0, "num_tokens": 16},
    "violence": _ROUND | {"eta": 5.5, "num_tokens": 38},
    "violence_77": _ROUND | {"eta": 5.0, "num_tokens": 75},
    "art": _ROUND | {"eta": 0.9, "num_tokens": 16},
    "violence+reference": _ROUND
    | {"eta": 5.5, "num_tokens": 38, "elitism": False},
  },
  "noise_probe": {
    "": _ETAS | {"scales": (1.0,), "steps": 50},
    "paper": _ETAS | {"scales": (1.0,), "steps": 50},
    "reference": _ETAS | {"scales": (1.0, 1.02, 1.03, 1.04), "steps": 50},
  },
  "completion_probe": {
    "": {"base_steps": (5,), "steps": 50},
    "paper": {"base_steps": (5,), "steps": 50},
    "reference": {"base_steps": (1, 2, 3), "steps": 50},
  },
  "inversion_probe": {
    "": _TINA | {"energy": 0.0, "start": 0.0},
    "tina": _TINA | {"energy": 0.0, "start": 0.0, "solver": "adamw"},
    "tina_plus": _TINA | {"energy": 1.0, "start": 0.1, "margin": 10.0},
    "fixed_point": {"solver": "fixed_point", "steps": 50},
  },
  "rab_soft": {"": {"etas": (0.5, 1.0, 2.0, 3.0)}},
  "new_word": {"": {}},
  "controls": {
    "": {
      "kind": "random", "blocks": 50, "num_tokens": 3,
      "insertion": "prefix_k",
    },
    "random": {"kind": "random", "blocks": 50, "vocabulary": "roundtrip"},
    "seed": {"kind": "seed", "blocks": 50},
    "none": {"kind": "none"},
    "clean": {"kind": "none", "groups": ("others",)},
    "reference": {"kind": "random", "blocks": 40, "vocabulary": "full"},
    "fewer": {
      "kind": "random", "blocks": 50, "sharing.wave": 4, "sharing.tries": 4,
    },
    "seed+reference": {"kind": "seed", "blocks": 40},
  },
}  # fmt: skip
PROBES = ("noise_probe", "completion_probe", "inversion_probe")
TABLE = [
  pytest.param(size, method, preset, id=f"{size}-{method}-{preset}")
  for size in ("tiny", "sd14")
  for method, presets in PRESETS.items()
  for preset in presets
]


def config(size, method, preset, task="object"):
  module = importlib.import_module(f"unlearning_jax.configs.attack_{method}")
  return module.get_config(f"{size},task={task},preset={preset}")


@pytest.mark.parametrize("size, method, preset", TABLE)
def test_a_preset_is_accepted_and_has_its_numbers(size, method, preset):
  found = config(size, method, preset)
  if size != "tiny":
    found.prompt_table = "prompts.csv"
    found.pool.concept = "a church"
  if method in PROBES:
    found.never_knew = "none"
  given = settings.build(attack.Settings, found.to_dict())
  if method != "new_word":
    victims.bind(given)
  flat = _flat(found)
  for key, wanted in PRESETS[method][preset].items():
    assert flat[key] == wanted, key
  if size == "sd14":
    # As the published images are drawn.
    assert (
      flat["sampling.sampler"] == "lms"
      and found.sampling.num_inference_steps == 50
    )
    assert found.sampling.guidance_scale == 7.5


def _flat(found):
  """The config's values by dotted key, the attack's own without a prefix."""
  flat = dict(found.items())
  for key, item in found.items():
    if hasattr(item, "items"):
      flat |= {f"{key}.{name}": value for name, value in item.items()}
  return flat | dict(found.hparams)


def test_the_table_has_every_preset():
  for method, presets in PRESETS.items():
    module = importlib.import_module(f"unlearning_jax.configs.attack_{method}")
    assert set(getattr(module, "_PRESETS", ())) <= set(presets), method


def test_a_released_choice_at_full_size_alone():
  found = config("sd14", "unlearn_diff_atk", "reference")
  assert found.max_tokens == 60 and found.target_sampling.to_dict() == {
    "num_inference_steps": 25, "guidance_scale": 7.5, "sampler": "lms",
  }  # fmt: skip
  for size, preset in (("tiny", "reference"), ("sd14", "fixed")):
    keys = config(size, "unlearn_diff_atk", preset).keys()
    assert not {"max_tokens", "target_sampling"} & set(keys)


@pytest.mark.parametrize(
  "task, count, initial",
  [("object", 25, ""), ("style", 20, "art"), ("identity", 2, "")],
)
def test_captions_of_a_concept_at_full_size_alone(task, count, initial):
  for preset in ("concept", "textual_inversion", "concept+sld"):
    found = config("sd14", "concept_inversion", preset, task)
    assert len(set(found.pool.templates)) == count
    assert found.hparams.initial == initial
    found.pool.concept, found.prompt_table = "x", "prompts.csv"
    settings.build(attack.Settings, found.to_dict())
  for size, preset in (("tiny", "concept"), ("sd14", "")):
    found = config(size, "concept_inversion", preset, task)
    assert len(found.pool.templates) == 3 and found.hparams.initial == ""


@pytest.mark.parametrize(
  "task, k", [("object", 3), ("style", 3), ("identity", 3), ("unsafe", 5)]
)
def test_a_task_has_its_published_number_of_tokens(task, k):
  for method in ("unlearn_diff_atk", "p4d", "controls"):
    assert config("sd14", method, "", task).hparams.num_tokens == k
