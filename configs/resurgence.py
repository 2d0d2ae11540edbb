"""How the resurgence configs are put together."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from unlearning_jax.configs import common, finetune_full, finetune_lora

from unlearning_jax import extensions

# Seconds of one CPU core.
_RATES = {
  "uce": 1.0, "rece": 2.0, "mace": 150.0, "esd_x": 60.0, "esd_u": 60.0,
  "concept_ablation": 60.0, "lora": 0.15, "full": 0.18, "image": 0.05,
}  # fmt: skip
METHODS = ("uce", "rece", "mace", "esd_x", "esd_u", "concept_ablation")
# Variants of a method: what its config's hyperparameters are replaced by, and
# its anchor. Of the paper's two factors of an erasure: how firmly the rest is
# preserved, and what the erased is mapped to.
VARIANTS = {
  "mace_firm": ("mace", {"preserve_scale": 10.0, "fuse_scale": 10.0}, None),
  "mace_loose": ("mace", {"preserve_scale": 0.1, "fuse_scale": 0.1}, None),
  "mace_object": ("mace", {}, "circle"),
}
_ALGORITHMS = {"lora": finetune_lora, "full": finetune_full}
# Of DPM-Solver++. By name the base shows star, neon, Quill Estane and hazard in
# 49, 48, 50 and 50 of 50 images, and 158 of 160 others are right.
SAMPLER_STEPS = 8
# What a class means once several are erased; it is never among them.
_ANCHORS = ("circle", "Adra Belvoort")


def _first(head: str, name: str, count: int | None = None) -> tuple[str, ...]:
  """A class and those that follow it in its head, anchors left out."""
  named = extensions.world("shapes").concepts()[head]
  return (name, *(n for n in named if n not in (name, *_ANCHORS)))[:count]


# Concept of a study -> its task, and the classes that are erased together.
CONCEPTS = {
  "star": ("object", ("star",)),
  "neon": ("style", ("neon",)),
  "quill": ("identity", ("Quill Estane",)),
  "hazard": ("unsafe", ("hazard",)),
  "objects 5": ("object", _first("object", "star", 5)),
  "objects 10": ("object", _first("object", "star", 10)),
  "objects all": ("object", _first("object", "star")),
  "styles 5": ("style", _first("style", "neon", 5)),
  "styles all": ("style", _first("style", "neon")),
  "people 5": ("identity", _first("identity", "Quill Estane", 5)),
  "people 10": ("identity", _first("identity", "Quill Estane", 10)),
  "people all": ("identity", _first("identity", "Quill Estane")),
}


def study(
  blocks: Sequence[Mapping[str, Sequence[Any]]],
  steps: Sequence[int],
  counts: Mapping[str, int],
  batch_size: int = 32,
) -> ml_collections.ConfigDict:
  """The config of a study on the Shapes model.

  Args:
    blocks: each is crossed: `methods`, `concepts`, `sets`, `algorithms`,
      `defenses`, `seeds`.
    steps: of tuning, after which all is measured; the last ends it. Another
      one may follow the name of an algorithm, as "lora 300".
    counts: images of each group of prompts, see `metrics.resurgence`.
    batch_size: of tuning.
  """
  config = common.comparison("tiny")
  del config.targets, config.prompts, config.rows_per_group, config.other_rows
  config.title = "Does it stay gone?"
  config.blocks = tuple(dict(block) for block in blocks)
  config.counts = dict(counts)
  config.update_from_flattened_dict(
    {"sampling.num_inference_steps": SAMPLER_STEPS}
  )
  config.algorithms = {}
  for name in _used(blocks, "algorithms"):
    kind, _, long = name.partition(" ")
    tuning = _ALGORITHMS[kind].get_config("tiny")
    tuning.batch_size = batch_size
    tuning.checkpoints = tuple(steps) + ((int(long),) if long else ())
    tuning.num_steps = tuning.checkpoints[-1]
    del tuning.checkpoint_every
    # A rate that decays to zero by the last step would hide what is to come.
    tuning.optimizer.schedule = "constant"
    config.algorithms[name] = tuning
  config.concepts = {
    name: {"task": task, "names": names}
    for name in _used(blocks, "concepts")
    for task, names in [CONCEPTS[name]]
  }
  pairs = {
    (method, concept)
    for block in blocks
    for method in block["methods"]
    for concept in block["concepts"]
  }
  config.erasures = {
    f"{method}/{concept}": erasure(method, *CONCEPTS[concept])
    for method, concept in sorted(pairs)
  }
  # A tuning set is near or far by so many classes.
  config.neighbors = 4
  # LoRA runs of a method that are tuned in one program, each as if alone. A
  # GPU, or a TPU's devices, are filled by several; two cores are by one.
  config.pack = 1
  # Seconds of an erasure, a step, an image; what `--dry_run` counts with until
  # the run has measured its own.
  config.rates = dict(_RATES)
  for name in config.algorithms:
    config.rates[name] = _RATES[name.split(" ")[0]] * batch_size / 16
  for name, (method, *_) in VARIANTS.items():
    config.rates[name] = _RATES[method]
  config.revival_threshold = 0.3
  # The base must show a concept this often, or nothing can come back.
  config.floor = 0.5
  return config


def _used(blocks: Sequence[Mapping[str, Sequence[Any]]], axis: str):
  return dict.fromkeys(name for block in blocks for name in block[axis])


def erasure(method: str, task: str, names: Sequence[str]) -> dict[str, Any]:
  """One erasure of a study: `method`, `hparams`, and phrases to erase.

  Phrases and hyperparameters are those of the method's own config, but for
  what `VARIANTS` says.
  """
  method, changes, anchor = VARIANTS.get(method, (method, {}, None))
  name, _, part = method.partition("_") if "esd" in method else (method, "", "")
  module = importlib.import_module(f"unlearning_jax.configs.erase_{name}")
  made = module.get_config(f"tiny,task={task},name={'+'.join(names)}")
  hparams = made.hparams.to_dict()
  if part:
    hparams |= extensions.world("shapes").hparams("esd", task, part)
  hparams |= changes
  return {
    "method": made.method,
    "hparams": hparams,
    "task": made.concepts[0]["task"],
    "pairs": tuple(
      (c["erase"], c["anchor"] if anchor is None else anchor)
      for c in made.concepts
    ),
    "preserve": made.concepts[0]["preserve"],
  }
