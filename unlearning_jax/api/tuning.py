"""Innocent fine-tuning from Python."""

import dataclasses
import importlib
import os
from typing import Any

from unlearning_jax import extensions, settings
from unlearning_jax.api import given as given_
from unlearning_jax.api.runs import Path, opener
from unlearning_jax.concepts import check_choice
from unlearning_jax.edits import load_edit
from unlearning_jax.experiments import finetune as experiment
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
  size = "tiny" if model.source in extensions.worlds() else "sd14"
  values = module.get_config(size).to_dict()
  values["data"] |= experiment.data_of(data, model)
  values |= {
    "model": model.source, "train": train, "num_steps": steps,
    "checkpoints": (steps,),
  }  # fmt: skip
  given = settings.build(experiment.Settings, settings.changed(values, changes))
  # Held until its edit is read: of memory the files go with it.
  opened = opener(out, given)
  found = experiment.run(given, opened, model)
  return dataclasses.replace(model, edit=load_edit(found[steps]))
