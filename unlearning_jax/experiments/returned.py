"""How far an erased concept came back in given models: the R_norm of each.

A study of resurgence erases and tunes by itself. Here the models are given.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unlearning_jax import extensions
from unlearning_jax.experiments import common, drawing, trust
from unlearning_jax.experiments.drawing import Settings
from unlearning_jax.experiments.evaluate import check_fits
from unlearning_jax.metrics import collapse, r_norm
from unlearning_jax.model import Model
from unlearning_jax.record import Recorder


def settings_of(
  erased: Model, name: str | None, prompts: int, seed: int
) -> Settings:
  """The settings that measure an erased model in its own world.

  Args:
    erased: the erased model; its edit or guidance says what was erased.
    name: the class that was erased; None reads it from the model.
    prompts: the number of prompts for each way to ask for the class.
    seed: draws the prompts.

  Raises:
    ValueError: no embedded world knows the model, the model erases no class of
      its world, or `prompts` is below 1.
  """
  if not isinstance(prompts, int) or prompts < 1:
    raise ValueError(f"prompts={prompts!r}: must be at least 1, whole")
  if erased.source not in extensions.worlds():
    raise ValueError(
      f"resurgence: model={erased.source!r} is no embedded world "
      f"({', '.join(extensions.worlds())}), whose prompts and judge are known"
    )
  world = extensions.world(erased.source)
  found = world.erased_by(erased.edit or erased.guidance)
  if name:
    found = [{"task": world.task_of(name), "name": name}]
  if not found:
    raise ValueError(
      "resurgence: the model's edit erases no class of its world; say which: "
      "subject='star'"
    )
  return Settings(
    model=erased.source,
    judge=world.NAME,
    targets=tuple(found),
    seed=seed,
    rows_per_group=prompts,
    other_rows=prompts,
    sampling=world.SAMPLING,
  )


def run(
  given: Settings,
  open_record: Callable[[], Recorder],
  base: Model,
  erased: Model,
  tuned: Mapping[str, Model],
) -> list[dict[str, Any]]:
  """Draws and judges the same prompts under every model.

  Args:
    given: what is drawn, from `settings_of`.
    open_record: opens the record once everything has been checked. Rows that it
      holds are not drawn again.
    base: the model before the erasure.
    erased: the model after it.
    tuned: name -> a model that was tuned after the erasure.

  Returns:
    The estimates of each tuned model and group of prompts, as plain values.

  Raises:
    ValueError: a model cannot draw the prompts, or the record is of other
      models.
    FloatingPointError: an edit is so large that its model collapsed.
  """
  models = {r_norm.BASE: base, r_norm.GONE: erased, **tuned}
  for name, one in models.items():
    check_fits(given, one)
    if one.edit is not None:
      far = trust.size(one.edit, one.params)
      trust.check_near(f"resurgence: {name}: the edit moves its base", far)
  inputs = {name: common.fingerprint(one, base) for name, one in models.items()}
  recorder = open_record()
  common.begin(recorder, given, base.params, inputs=inputs)
  world = extensions.world(given.model)
  counts = {
    "explicit": given.rows_per_group,
    "words": given.other_rows,
    "others": 1,
  }
  listed = world.study_rows(given.targets, counts, given.seed)
  rows = [row for row in listed if row["group"] != "others"]
  for name, part, images in drawing.every(recorder, given, models, rows):
    for row, look in zip(part, collapse.pixels(images), strict=True):
      own = {"id": f"{name}/{row['id']}", "model": name, "pixels": look}
      recorder.append_row({**row, **own})
  found = [
    {**row, "id": row["id"].partition("/")[2]} for row in recorder.rows()
  ]
  metric = r_norm.METRIC
  state = metric.update(metric.init(), np.zeros((0, 1, 1, 3), np.uint8), found)
  estimates = [dataclasses.asdict(one) for one in metric.compute(state)]
  recorder.save_summary({"estimates": estimates})
  recorder.mark_done()
  return estimates
