"""Evaluate: several models draw the same prompts from the same noise.

A base, erased, tuned and guided model are all `Model`s; the base comes first. A
judge looks at the images. A run ends with its table and its page. An erasure
ends with the same comparison of before and after.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from jaxtyping import UInt8

from unlearning_jax import (
  checking,
  metrics,
  processes,
  report,
  samplers,
  stable_diffusion,
)
from unlearning_jax.experiments import common, drawing, published, trust
from unlearning_jax.experiments.attack.victims import laid_over
from unlearning_jax.experiments.drawing import Rows, Settings
from unlearning_jax.experiments.published import Beside as Beside
from unlearning_jax.experiments.tallies import Tallies
from unlearning_jax.judges import Judge, Target
from unlearning_jax.metrics import collapse
from unlearning_jax.metrics.accuracy import judge_rows
from unlearning_jax.model import Model
from unlearning_jax.record import Recorder
from unlearning_jax.report import comparison


def config(
  given: Mapping[str, Any] | None,
  protocol: str | None = None,
  judge: str | None = None,
  more: Sequence[str] = (),
  **given_to_it: Any,
) -> dict[str, Any]:
  """The plain settings of a config or of a protocol.

  Args:
    given: a config's values; None where `protocol` is given.
    protocol: a protocol's name; None where `given` is given.
    judge: a judge to take instead of the config's; None keeps the config's.
    more: metrics to compute besides the config's.
    **given_to_it: what a protocol is given, see `published.config`.

  Raises:
    ValueError: both or neither are given; a protocol comes with a judge or
      metrics.
  """
  if (given is None) == (protocol is None):
    raise ValueError("--config, --protocol: give one of them")
  if protocol is not None:
    if judge or more:
      raise ValueError(
        "--judge, --metrics: --protocol fixes both; take --config instead, or "
        f"name another protocol: --protocol={protocol}~judge={judge or '...'}"
      )
    return published.config(protocol, **given_to_it)
  for flag in (name for name, value in given_to_it.items() if value):
    raise ValueError(f"--{flag}: belongs to --protocol, not to --config")
  found = dict(given or {})
  if judge:
    found["judge"] = judge
  if more:
    found["metrics"] = (*found.get("metrics", ()), *more)
  return found


def read_models(
  settings: Settings,
  paths: Sequence[str] = (),
  erased: Sequence[str] = (),
) -> dict[str, Model]:
  """The base as `base`, and a model for each edit or guidance by its method.

  Args:
    settings: names the base.
    paths: edits and guidances of ours.
    erased: models that others erased something from, or parts of one that are
      laid over the base; each has the name of its file.

  Raises:
    ValueError: a model or an edit cannot be read, or an edit has another base.
  """
  made = common.read_edits(paths)
  base = common.load_model(settings)
  models = {comparison.BASE: base} | {
    name: base.with_made(one) for name, one in made.items()
  }
  for path in erased:
    given = pathlib.Path(path)
    name = given.name if given.is_dir() else given.stem
    # Files of images are named after it.
    name = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "erased"
    # `before` is what files and rows call the base.
    taken = name in models or name == comparison.key(comparison.BASE)
    name += f"-{len(models)}" if taken else ""
    params, _ = laid_over(path, base, "--erased")
    models[name] = dataclasses.replace(base, params=params, source=path)
  return models


def run(
  settings: Settings,
  open_record: Callable[[], Recorder],
  models: Mapping[str, Model],
  beside: Beside = published.NOTHING,
) -> dict[str, Any]:
  """The whole experiment: checks, then `compare`.

  Args:
    settings: what is drawn, and who judges it.
    open_record: opens the record once everything has been checked. A record
      that holds rows is continued.
    models: the models by the names that pages show, the base first.
    beside: finished runs whose numbers a published protocol's row holds.

  Returns:
    The document that the page shows.

  Raises:
    ValueError: a prompt is too long, the sampler cannot take the steps, a run
      beside does not fit, or the record is of other models, another judge or
      other settings.
  """
  base = next(iter(models.values()))
  for model in models.values():
    check_fits(settings, model)
  published.check_beside(settings, models, drawing.rows(settings), beside)
  inputs = {
    name: common.fingerprint(model, base)
    for name, model in [*models.items()][1:]
  }
  if settings.protocol:
    name, _, digest = settings.protocol.partition(" ")
    inputs[f"protocol {name}"] = digest
  notes = [
    *published.notes(settings, base.sd, drawing.rows(settings)),
    *trust.elsewhere(models, settings.targets, common.world_of(settings)),
  ]
  made_of = {n: metrics.load(n).identity for n in settings.metrics}
  inputs |= {f"metric {n}": one for n, one in made_of.items() if one}
  # The next model is placed while the last one still draws.
  checking.about(
    more=0 if len(models) == 1 else None,
    safe=any(model.drawing["safe"] for model in models.values()),
  )
  recorder = open_record()
  common.say(notes)
  common.begin(recorder, settings, base.params, inputs=inputs)
  document = compare(recorder, settings, models, notes, beside=beside)
  recorder.mark_done()
  return document


def compare(
  recorder: Recorder,
  settings: Settings,
  models: Mapping[str, Model],
  notes: Sequence[str] = (),
  facts: Mapping[str, Any] = {},
  beside: Beside = published.NOTHING,
) -> dict[str, Any]:
  """Draws and judges every row under every model, and writes the page.

  Finished rows are not drawn again. Context maps change the text states only,
  so their models share the base's weights.

  Args:
    recorder: keeps rows, images, table and page.
    settings: what is drawn, and who judges it.
    models: the models by the names that pages show, the base first.
    notes: sentences for the page.
    facts: what else the summary shall hold.
    beside: as `run`.

  Returns:
    The document that the page shows. It is empty, and nothing is written, where
    the settings ask for no rows.
  """
  table = drawing.rows(settings)
  if not table:
    return {}
  judge = common.load_judge(settings)
  base, names = next(iter(models)), [*models]
  targets = common.targets_of(settings)
  seen = functools.partial(_of_model, base=base, targets=targets)
  tallies = Tallies(recorder, _metrics(settings))
  shown = _shown(table, settings.grid_rows)
  drawn = drawing.every(recorder, settings, models, table, comparison.key)
  _keep(recorder, tallies, drawn, seen, shown)
  found = recorder.rows()
  rows = [
    seen({**r, "id": r["id"].split("/", 1)[1]}, r["model"]) for r in found
  ]
  estimates = tallies.estimates(rows)
  estimates |= published.estimates(settings, models, found, estimates, beside)
  notes = [*notes, *published.definitions(settings)]
  document = comparison.document(
    found, names, targets, shown, estimates,
    judge.describe if judge else None,
  )  # fmt: skip
  if settings.protocol:
    document["protocol"] = settings.protocol
    name, _, digest = settings.protocol.partition(" ")
    notes = [f"Protocol {name} {digest[:12]}.", *notes]
  document |= {
    **trust.facts(rows, judge, targets, estimates),
    **facts,
    "title": settings.title,
    "heads": _heads(settings, judge),
    "notes": list(notes),
    "diagnostics": {
      name: {"method": made.method, **getattr(made, "diagnostics", {})}
      for name, model in models.items()
      for made in (model.edit, model.guidance)
      if made is not None
    },
  }
  recorder.save_summary(document)
  # Only the writer has surely written what the page reads.
  if recorder.is_writer:
    recorder.write("report.html", report.render_report(recorder.path))
    recorder.write("results.csv", report.results_csv(recorder.path))
  return document


def _keep(
  recorder: Recorder,
  tallies: Tallies,
  drawn: Iterable[tuple[str, Rows, UInt8[np.ndarray, "n h w 3"]]],
  seen: Callable[[Mapping[str, Any], str], dict[str, Any]],
  shown: Collection[str],
):
  """Counts what is drawn, and records each row after its image and count."""
  with futures.ThreadPoolExecutor() as pool:
    for name, part, images in drawn:
      key = comparison.key(name)
      tallies.update(images, [seen(r, name) for r in part], save=False)
      kept = [i for i, row in enumerate(part) if row["id"] in shown]
      files = [f"{part[i]['id']}-{key}" for i in kept]
      list(pool.map(recorder.save_image, files, images[kept]))
      looks = zip(part, collapse.pixels(images), strict=True)
      tallies.record(
        [
          {**row, "id": f"{key}/{row['id']}", "model": name, "pixels": look}
          for row, look in looks
        ]
      )
  tallies.record([], now=True)
  processes.wait_for_all("rows kept")


def rejudged(found: Sequence[Mapping[str, Any]], judge: Judge) -> Rows:
  """Applies a judge's new thresholds to recorded scores; nothing is drawn.

  Args:
    found: rows of a record, with `scores`.
    judge: the judge of that record, with other thresholds.

  Raises:
    ValueError: a row has no scores, or the judge has other heads or labels.
  """
  for row in found:
    if "scores" not in row:
      raise ValueError(f"row {row['id']!r} has no scores; draw it again")
  scores = {
    head: np.array([row["scores"][head] for row in found])
    for head in (found[0]["scores"] if found else ())
  }
  return judge_rows(found, scores, judge) if found else []


def check_fits(settings: Settings, model: Model, phrases: Sequence[str] = ()):
  """Refuses what a model cannot draw, before anything is written or compiled.

  Args:
    settings: what is to be drawn.
    model: the model that is to draw it.
    phrases: more phrases that must be short enough to encode.

  Raises:
    ValueError: a phrase or prompt is too long, the sampler cannot take that
      number of steps, or guidance would not act at this guidance_scale.
  """
  options, rows = settings.sampling, drawing.rows(settings)
  samplers.make_sampler(
    model.sd.schedule, options.num_inference_steps, options.sampler
  )
  published.check(settings, model, rows)
  spoken = [
    *phrases, *(row["prompt"] for row in rows if not row.get("truncate"))
  ]  # fmt: skip
  if model.guidance is not None:
    if options.guidance_scale <= 1:
      raise ValueError(
        f"sampling.guidance_scale={options.guidance_scale}: {model.name} acts "
        "by guidance; take more than 1"
      )
    safe = model.guidance.safe
    spoken += [model.guidance.negative_prompt, safe.concept if safe else ""]
  stable_diffusion.tokenize(model.sd, spoken)


def _metrics(settings: Settings) -> list[str]:
  """The metrics to compute: a judge adds `accuracy`, one of no world `seen`."""
  world, found = common.world_of(settings), [*settings.metrics]
  if settings.judge is not None:
    known = world is not None and settings.judge == world.NAME
    found = ["accuracy", *([] if known else ["seen"]), *found]
  return found


def _heads(settings: Settings, judge: Judge | None) -> list[str]:
  """The heads that the terminal's table shows."""
  world = common.world_of(settings)
  if world is not None and settings.judge == world.NAME:
    return list(world.heads())
  return list(judge.labels) if judge else []


def _of_model(
  row: Mapping[str, Any], model: str, base: str, targets: Sequence[Target]
) -> dict[str, Any]:
  """A row as metrics read it: they call the base `base`, whatever its name."""
  return {
    **row,
    "model": "base" if model == base else model,
    "targets": [[*target] for target in targets],
  }


def _shown(table: Sequence[Mapping[str, Any]], grid: int) -> set[str]:
  """The ids of the first `grid` rows of each group."""
  groups: dict[str, list[str]] = {}
  for row in table:
    groups.setdefault(row["group"], []).append(row["id"])
  return {i for ids in groups.values() for i in ids[:grid]}
