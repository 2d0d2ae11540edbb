"""How far an erased concept came back in given models: R_norm of each.

The study of resurgence erases and tunes by itself; here the models are given.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from unlearning_jax import extensions, protocols
from unlearning_jax.experiments import common, drawing
from unlearning_jax.experiments.drawing import Settings
from unlearning_jax.experiments.evaluate import fingerprint
from unlearning_jax.metrics import r_norm
from unlearning_jax.model import Model
from unlearning_jax.record import Recorder
from unlearning_jax.sampling import Sampling


def settings_of(
  erased: Model, name: str | None, prompts: int, seed: int
) -> Settings:
  """The settings of a comparison in an erased model's own world.

  Args:
    erased: says what was erased, if `name` does not.
    name: the class of the world.
    prompts: of each way to ask for it.
    seed: draws them.

  Raises:
    ValueError: no embedded world knows the model; it erases none of its
      classes; no prompts.
  """
  if not isinstance(prompts, int) or prompts < 1:
    raise ValueError(f"prompts={prompts!r}: must be at least 1, whole")
  if erased.source not in extensions.worlds():
    raise ValueError(
      f"resurgence: model={erased.source!r} is no embedded world "
      f"({', '.join(extensions.worlds())}), whose prompts and judge are known"
    )
  world = extensions.world(erased.source)
  found = [name] if name else erased_classes(erased)
  if not found:
    raise ValueError(
      "resurgence: the model's edit erases no class of its world; say which: "
      "subject='star'"
    )
  return Settings(
    model=erased.source,
    judge=world.NAME,
    targets=tuple({"task": world.task_of(n), "name": n} for n in found),
    seed=seed,
    rows_per_group=prompts,
    other_rows=prompts,
    sampling=sampling_of(erased),
  )


def sampling_of(model: Model) -> Sampling:
  """How the protocols of a model's world draw; the defaults without a world."""
  listed = protocols.shipped().values()
  found = [one.sampling for one in listed if one.model == model.source]
  return found[0] if found else Sampling()


def erased_classes(model: Model) -> list[str]:
  """The classes of its world that a model's edit or guidance erased."""
  made = model.edit or model.guidance
  said = {c.erase for c in made.concepts} if made else set()
  world = extensions.world(model.source)
  return [
    name
    for names in world.concepts().values()
    for name in names
    if said and said >= {c.erase for c in world.concept(name, "mace")}
  ]


def run(
  given: Settings,
  recorder: Recorder,
  base: Model,
  erased: Model,
  tuned: Mapping[str, Model],
) -> list[dict[str, Any]]:
  """Draws and judges the same prompts by every model.

  Args:
    given: what to draw.
    recorder: keeps the rows; finished ones are not drawn again.
    base: before the erasure.
    erased: after it.
    tuned: models that were tuned after it, by name.

  Returns:
    The estimates, by model and group of prompts, as plain values.

  Raises:
    ValueError: the record is of other models.
  """
  models = {r_norm.BASE: base, r_norm.GONE: erased, **tuned}
  inputs = {name: fingerprint(one, base) for name, one in models.items()}
  common.begin(recorder, given, base.params, inputs=inputs)
  judge, world = common.load_judge(given), extensions.world(given.model)
  counts = {
    "explicit": given.rows_per_group,
    "words": given.other_rows,
    "others": 1,
  }
  listed = world.study_rows(given.targets, counts, given.seed)
  rows = [row for row in listed if row["group"] != "others"]
  done = recorder.done_ids()
  total = len(rows) * len(models)
  with recorder.progress("draw", total, done=len(done)) as bar:
    for name, model in models.items():
      left = [row for row in rows if f"{name}/{row['id']}" not in done]
      for part, _ in drawing.judged(given, model, judge, left):
        for row in part:
          own = {"id": f"{name}/{row['id']}", "model": name}
          recorder.append_row({**row, **own})
          bar.update()
  found = [
    {**row, "id": row["id"].partition("/")[2]} for row in recorder.rows()
  ]
  metric = r_norm.METRIC
  state = metric.update(metric.init(), np.zeros((0, 1, 1, 3), np.uint8), found)
  estimates = [dataclasses.asdict(one) for one in metric.compute(state)]
  recorder.save_summary({"estimates": estimates})
  recorder.mark_done()
  return estimates
