"""Innocent fine-tuning from Python."""

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
    model: the model to tune.
    data: a folder or a CSV with captions; `tfds:` and a prepared dataset's
      folder; or `<world>:<set>`, renders of an embedded world that do not show
      what was erased. Sets are `near` and `far` (classes whose names are
      nearest or farthest), `in` (others of its kind), `out` (pictures of
      another kind) and `all`.
    train: what trains, such as `lora` (of rank 4) or `full`.
    steps: the number of steps.
    out: a folder that keeps the run; None keeps it in memory.
    **changes: fields of `experiments.finetune.Settings` that differ, as
      `batch_size`.

  Returns:
    The base with an edit that holds both the erasure and the tuning.

  Raises:
    ValueError: a set, setting or part is unknown, or a caption names what was
      erased.
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
    "checkpoints": (steps,), **given_.computing(model),
  }  # fmt: skip
  given = settings.build(experiment.Settings, settings.changed(values, changes))
  # A record in memory takes its files with it, so it is held until they are
  # read.
  opened = opener(out, given)
  found = experiment.run(given, opened, model)
  # Without the probe, which is of the model before.
  return model.with_edit(load_edit(found[steps]))
