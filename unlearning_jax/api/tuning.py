"""Innocent fine-tuning from Python."""

import dataclasses
import functools
import importlib
import os
from typing import Any

from unlearning_jax import extensions, settings
from unlearning_jax.api import given as given_
from unlearning_jax.api.runs import Path, opener
from unlearning_jax.concepts import check_choice
from unlearning_jax.edits import load_edit
from unlearning_jax.experiments import finetune as experiment
from unlearning_jax.experiments import returned
from unlearning_jax.finetune import TRAINABLE
from unlearning_jax.model import Model


def finetune(
  model: Model,
  data: Path = "shapes:near",
  train: str = "lora",
  *,
  steps: int = 100,
  out: Path | None = None,
  **changes: Any,
) -> Model:
  """Tunes a model, erased or not, on captioned images.

  Args:
    model: what is tuned.
    data: a folder with captions, or a CSV of them; or `<world>:<kind>`, renders
      of an embedded world that do not show what was erased: `near` and `far`,
      classes whose names are nearest or farthest; `in`, others of its kind;
      `out`, pictures of another kind; `all`, whatever there is.
    train: what trains, as in the shipped configs: `lora` of rank 4, `full`, ...
    steps: how many.
    out: a folder that keeps the run; None keeps it in memory.
    **changes: other settings of `experiments.finetune.Settings`, by their
      names, as `batch_size`.

  Returns:
    The tuned model: the base with an edit that holds erasure and tuning.

  Raises:
    ValueError: an unknown set, setting or part, with the nearest; captions that
      say what was erased.
  """
  model = given_.model("finetune: model", model)
  if not isinstance(data, str | os.PathLike):
    raise ValueError(f"data={data!r}: give a folder, or 'shapes:near'")
  data = os.fspath(data)
  check_choice("train", train, TRAINABLE)
  name = "lora" if train == "lora" else "full"
  module = importlib.import_module(f"unlearning_jax.configs.finetune_{name}")
  world, colon, kind = data.partition(":")
  size = "tiny" if model.source in extensions.worlds() else "sd14"
  values = module.get_config(size).to_dict()
  if colon and world in extensions.worlds():
    chosen = {"source": world, **_chosen(model, world, kind)}
  else:
    found = dataclasses.asdict(experiment.data_of(data, model))
    chosen = {k: found[k] for k in ("source", "path", "only", "without")}
  values["data"] |= chosen
  values |= {
    "model": model.source, "train": train, "num_steps": steps,
    "checkpoints": (steps,),
  }  # fmt: skip
  given = settings.build(experiment.Settings, settings.changed(values, changes))
  # Opened by the experiment once all is checked; held until its edit is read.
  opened = functools.cache(opener(out, given))
  found = experiment.run(given, opened, model)
  return dataclasses.replace(model, edit=load_edit(found[steps]))


def _chosen(model: Model, name: str, kind: str) -> dict[str, str]:
  """`only` and `without` of a kind of set, for what the model erased."""
  world = extensions.world(name)
  check_choice("data", kind, ("all", *world.SETS))
  erased = returned.erased_classes(model)
  targets = [{"task": world.task_of(n), "name": n} for n in erased]
  if not targets:
    if kind != "all":
      raise ValueError(
        f"data={name}:{kind}: is of what was erased, and the model erases no "
        f"class of {name}; take data='{name}:all'"
      )
    return {"only": "", "without": ""}
  if kind == "all":
    found = world.tuning_set(model.sd, model.params, targets, "in", 4)
    return {"only": "", "without": found.without}
  found = world.tuning_set(model.sd, model.params, targets, kind, 4)
  return {"only": found.only, "without": found.without}
