"""Builds the resurgence configs."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from unlearning_jax.configs import common, finetune_full, finetune_lora

from unlearning_jax import extensions

# Seconds on one CPU core.
_RATES = {
  "uce": 1.0, "rece": 2.0, "mace": 150.0, "esd_x": 60.0, "esd_u": 60.0,
  "concept_ablation": 60.0, "salun": 130.0, "advunlearn": 90.0,
  "resalign": 190.0, "erasediff": 120.0, "spm": 110.0, "fmn": 50.0,
  "meta_unlearning": 230.0, "lora": 0.15, "full": 0.18, "image": 0.05,
}  # fmt: skip
METHODS = ("uce", "rece", "mace", "esd_x", "esd_u", "concept_ablation")
# Variants of a method: changes of its hyperparameters, and its anchor. They
# vary the paper's two factors of an erasure: how firmly it preserves the rest,
# and what it maps the concept to.
VARIANTS = {
  "mace_firm": ("mace", {"preserve_scale": 10.0, "fuse_scale": 10.0}, None),
  "mace_loose": ("mace", {"preserve_scale": 0.1, "fuse_scale": 0.1}, None),
  "mace_object": ("mace", {}, "circle"),
}
_ALGORITHMS = {"lora": finetune_lora, "full": finetune_full}
# Steps of DPM-Solver++. Asked by name, the base shows star, neon, Quill Estane
# and hazard in 49, 48, 50 and 50 of 50 images, and 158 of 160 others are right.
SAMPLER_STEPS = 8
# Anchors where several classes are erased; they are never among these.
_ANCHORS = ("circle", "Adra Belvoort")


def _first(head: str, name: str, count: int | None = None) -> tuple[str, ...]:
  """A class and the next ones of its head, without the anchors."""
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
    blocks: `methods`, `concepts`, `sets`, `algorithms`, `defenses` and `seeds`
      of each; all combinations are cells.
    steps: training steps that are measured; the last ends the tuning. "lora
      300" as an algorithm's name adds step 300.
    counts: group of prompts -> images, see `metrics.resurgence`.
    batch_size: images in one training step.
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
    # A rate that decays to zero by the last step would hide later resurgence.
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
  # Classes in a near or far tuning set.
  config.neighbors = 4
  # LoRA runs of a method that one program tunes, each as if alone. A GPU or a
  # TPU has room for several; one run keeps two cores busy.
  config.pack = 1
  # Seconds of an erasure, a step, an image: `--dry_run` uses them until the run
  # has measured its own.
  config.rates = dict(_RATES)
  for name in config.algorithms:
    config.rates[name] = _RATES[name.split(" ")[0]] * batch_size / 16
  for name, (method, *_) in VARIANTS.items():
    config.rates[name] = _RATES[method]
  config.revival_threshold = 0.3
  # Where the base shows a concept less often, nothing can come back.
  config.floor = 0.5
  return config


def measured(blocks: Sequence[Mapping[str, Sequence[Any]]]):
  """A study with the prompts, images and steps of the whole one.

  Args:
    blocks: as of `study`.
  """
  counts = {"explicit": 70, "words": 12, "others": 24, "tuned": 12}
  config = study(blocks, steps=(5, 20, 100), counts=counts, batch_size=16)
  # Divides the 130 prompts of one measurement.
  config.batch_size = 26
  return config


def _used(blocks: Sequence[Mapping[str, Sequence[Any]]], axis: str):
  return dict.fromkeys(name for block in blocks for name in block[axis])


def erasure(method: str, task: str, names: Sequence[str]) -> dict[str, Any]:
  """One erasure of a study: `method`, `hparams`, and phrases to erase.

  They come from the method's config; `VARIANTS` may change them.
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
