"""Images side by side, evaluations, and how far a concept came back."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_jax import extensions, settings
from unlearning_jax.api import given as given_
from unlearning_jax.api.erasing import Subject
from unlearning_jax.api.results import Grid, Table, pivot
from unlearning_jax.api.runs import Path, opener, page
from unlearning_jax.experiments import common, drawing, published, returned
from unlearning_jax.experiments import evaluate as experiment
from unlearning_jax.model import Model, distinct
from unlearning_jax.report import comparison
from unlearning_jax.sampling import Sampling


def grid(
  models: Model | Sequence[Model],
  prompts: str | Sequence[str],
  seeds: Sequence[int] = (0,),
  **options: Any,
) -> Grid:
  """Draws every prompt and seed with every model.

  Args:
    models: one model, or several of one base.
    prompts: one prompt or several.
    seeds: seeds of the initial noise, which all models share.
    **options: of `sampling.generate`, as `num_inference_steps`. In an embedded
      world they default to the world's own, 15 steps at guidance 4; elsewhere
      to 50 steps at guidance 7.5.

  Raises:
    ValueError: models, prompts or seeds are missing, or a prompt is too long.
  """
  models = given_.models("grid: models", models)
  prompts = [prompts] if isinstance(prompts, str) else list(prompts)
  if isinstance(seeds, int):
    raise ValueError(f"grid: seeds={seeds}: must be a list; seeds=[{seeds}]")
  for what, listed in (("prompts", prompts), ("seeds", list(seeds))):
    if not listed:
      raise ValueError(f"grid: no {what}")
  asked = [(prompt, seed) for prompt in prompts for seed in seeds]
  names = unique(models)
  images = []
  for model in models:
    own = settings.plain(_sampling_of(model)) | options
    drawn = model.generate(*map(list, zip(*asked, strict=True)), **own)
    shape = (len(prompts), len(seeds), *drawn.shape[1:])
    images.append(drawn.reshape(shape))
  rows = tuple(
    {"model": name, "prompt": prompt, "seed": seed}
    for name in names
    for prompt, seed in asked
  )
  return Grid(
    f"{len(models)} models, {len(prompts)} prompts, seeds {list(seeds)}",
    ("model", "prompts"),
    tuple((name, ", ".join(prompts)) for name in names),
    rows,
    images=np.stack(images),
    names=tuple(names),
    prompts=tuple(prompts),
    seeds=tuple(seeds),
  )


def _sampling_of(model: Model) -> Sampling:
  """How a model's world draws; the defaults where no world knows the model."""
  if model.source in extensions.worlds():
    return extensions.world(model.source).SAMPLING
  return Sampling()


def unique(models: Sequence[Model]) -> list[str]:
  """A name for each model; `-2` marks the second model of a name."""
  return distinct(model.name for model in models)


def evaluate(
  model: Model | Sequence[Model],
  *,
  base: Model | None = None,
  protocol: str,
  prompts: Path = "",
  reference: Path = "",
  attack: Path | Sequence[Path] = (),
  utility: Path = "",
  judge: str | None = None,
  metrics: Sequence[str] = (),
  out: Path | None = None,
  **changes: Any,
) -> Table:
  """Draws a protocol's prompts by base and models, and judges the images.

  Args:
    model: one model or several.
    base: the base; None takes the model's own.
    protocol: a protocol's name, as `shapes-star`, of `ul.protocols()`.
    prompts: your table of prompts, for a published protocol.
    reference: photographs for FID, a folder or an `.npz`.
    attack: the folder of a finished attack on one of the models, or several;
      ASR comes from it.
    utility: the folder of an evaluation by udm-utility; FID and CLIP score come
      from it.
    judge: a judge to take instead of the protocol's, see `ul.judge`.
    metrics: more metrics, as `seen` or `package.module:name`.
    out: a folder that keeps the run; None keeps it in memory.
    **changes: other settings of the evaluation, as `rows_per_group`. With a
      change, a judge or metrics, the result no longer carries the protocol's
      name and hash.

  Returns:
    The numbers of base and models with their intervals; `rows` has each image.

  Raises:
    ValueError: a protocol, judge, metric or setting is unknown, or there is no
      model.
  """
  models = given_.models("evaluate: model", model)
  base = given_.model("evaluate: base", base or models[0]).base
  if isinstance(metrics, str):
    raise ValueError(
      f"evaluate: metrics={metrics!r}: must be a list; metrics=[{metrics!r}]"
    )
  values = published.config(
    protocol, prompts=os.fspath(prompts), reference=os.fspath(reference)
  )
  own = {"model": base.source} if values.get("published") else {}
  values |= own | given_.computing(base)
  attacks = [attack] if isinstance(attack, str | os.PathLike) else attack
  beside = published.Beside(
    tuple(os.fspath(one) for one in attacks), os.fspath(utility)
  )
  if judge is not None:
    changes["judge"] = judge
  if metrics:
    changes["metrics"] = (*values["metrics"], *metrics)
  # How many are drawn at once changes no number.
  free = settings.free(experiment.Settings)
  lost = {} if {*changes} <= {*free} else {"protocol": ""}
  values = settings.changed(values, lost | changes)
  given = settings.build(experiment.Settings, values)
  if not drawing.rows(given):
    raise ValueError(
      "evaluate: nothing to draw; give targets=[{'task': ..., 'name': ...}] "
      "with rows_per_group, or give other_rows"
    )
  named = _named(base, models)
  opened = opener(out, given)
  document = experiment.run(given, opened, named, beside)
  run = opened()
  return pivot(
    ". ".join([document["title"], *comparison.collapsed(document)]),
    _by_model(document),
    rows=tuple(run.rows()),
    summary=document,
    page=page(run.path),
  )


def _by_model(document: Mapping[str, Any]) -> dict[str, list[Any]]:
  """The numbers that the terminal shows; `summary` has all."""
  wanted = comparison.shown_names(document)
  found: dict[str, list[Any]] = {
    name: [one for one in numbers if one["name"] in wanted]
    for name, numbers in document["measures"].items()
  }
  for one in document.get("estimates", ()):
    found.setdefault(one["model"] or "all", []).append(one)
  return found


def _named(base: Model, models: Sequence[Model]) -> dict[str, Model]:
  """The base and the models by the names that pages show."""
  named = {comparison.BASE: base}
  for name, one in zip(unique(models), models, strict=True):
    # The base is drawn once; metrics call it `base`.
    if common.fingerprint(one, base):
      named[name.replace("base", "model")] = one
  return named


def resurgence(
  base: Model,
  erased: Model,
  tuned: Model | Sequence[Model],
  *,
  subject: Subject | str | None = None,
  prompts: int = 50,
  seed: int = 0,
  out: Path | None = None,
) -> Table:
  """How far tuning brought an erased concept back: R_norm, from 0 to 1.

  Args:
    base: the model before the erasure.
    erased: the model after it.
    tuned: one or several models that were tuned after it.
    subject: what was erased; None reads it from the erased model's edit.
    prompts: prompts that name it, and prompts of each other way to ask for it.
    seed: draws the prompts.
    out: a folder that keeps the run; None keeps it in memory.

  Raises:
    ValueError: no embedded world knows the model, or nothing was erased.
  """
  base = given_.model("resurgence: base", base)
  erased = given_.model("resurgence: erased", erased)
  tuned = given_.models("resurgence: tuned", tuned)
  name = subject.name if isinstance(subject, Subject) else subject
  given = returned.settings_of(erased, name, prompts, seed)
  names = unique(tuned)
  opened = opener(out, given)
  found = returned.run(
    given, opened, base, erased, dict(zip(names, tuned, strict=True))
  )
  by_model = {
    name: [one for one in found if one["model"] == name] for name in names
  }
  return pivot(
    f"R_norm of {', '.join(t['name'] for t in given.targets)}: 0 stayed away, "
    "1 is back as if never erased",
    by_model,
    rows=tuple(opened().rows()),
    summary={"estimates": found},
  )
