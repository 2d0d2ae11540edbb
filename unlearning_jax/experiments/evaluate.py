"""Evaluate: several models on the same prompts, from the same noise, judged.

Base, erased, tuned and guided models are all `Model`s, the base first. A run
ends with its table and its page. Erasures end in the same comparison.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from unlearning_jax import (
  convert,
  durable,
  edits,
  judges,
  metrics,
  report,
  samplers,
  sampling,
  sharding,
  stable_diffusion,
)
from unlearning_jax.experiments import common
from unlearning_jax.experiments.tallies import Tallies
from unlearning_jax.judges import Judge
from unlearning_jax.metrics.accuracy import judge_rows
from unlearning_jax.model import Model
from unlearning_jax.record import Recorder, Workdir
from unlearning_jax.report import comparison
from unlearning_jax.settings import Output

Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(common.Drawn):
  """What is drawn of every model.

  Attributes:
    prompts: group -> prompts of one's own, of a model that no world knows. A
      group's name says what they ask for: `others` nothing that is looked for,
      a label of the targets that one, any other the first target.
    per_group: prompts of each target in each group, of a world.
    others: prompts that ask for none of them, of a world.
    protocol: name and hash of the protocol that these are, if any.
  """

  prompts: Output[Mapping[str, tuple[str, ...]]] = dataclasses.field(
    default_factory=dict
  )
  per_group: Output[int] = 0
  others: Output[int] = 0
  protocol: Output[str] = ""

  def __post_init__(self):
    super().__post_init__()
    for key in ("per_group", "others"):
      if getattr(self, key) < 0:
        raise ValueError(f"{key}={getattr(self, key)}: must not be negative")
    asked = any(self.prompts.values())
    if self.judge is None and not asked:
      raise ValueError("prompts: the config has neither a judge nor prompts")
    if common.world_of(self) is None and not asked:
      raise ValueError(
        f"prompts: model={self.model!r} is no embedded world, whose prompts "
        "are known; give some"
      )
    for name in self.metrics:
      metrics.load(name)
    judge, targets = common.load_judge(self), common.targets_of(self)
    for target in targets if judge else ():
      judge.find(target)


def run(settings: Settings, recorder: Recorder, models: Mapping[str, Model]):
  """The whole experiment; see `compare`.

  Args:
    settings: what to draw.
    recorder: keeps it; a record that was begun is gone on with.
    models: by the names that pages show, the base first.

  Returns:
    The document that the page renders.

  Raises:
    ValueError: a prompt that is too long, steps that the sampler cannot take,
      or a record of other models, another judge or other settings.
  """
  base = next(iter(models.values()))
  for model in models.values():
    check_fits(settings, model)
  inputs = {
    name: fingerprint(model, base) for name, model in [*models.items()][1:]
  }
  common.begin(recorder, settings, base.params, inputs=inputs)
  document = compare(recorder, settings, models)
  recorder.mark_done()
  return document


def fingerprint(model: Model, base: Model) -> str:
  """What a record knows a model by, beside the base it is compared with."""
  parts = []
  if model.params is not base.params:
    parts.append(convert.params_fingerprint(model.params))
  if model.edit is not None:
    parts.append(edits.edit_hash(model.edit))
  if model.guidance is not None:
    facts = durable.to_json(dataclasses.asdict(model.guidance), "guidance")
    parts.append(hashlib.sha256(facts.encode()).hexdigest())
  return " ".join(parts)


def compare(
  recorder: Recorder,
  settings: Settings,
  models: Mapping[str, Model],
  notes: Sequence[str] = (),
) -> dict[str, Any]:
  """Draws and judges every row under every model, and writes the page.

  Finished rows are not drawn again. Context maps are applied to the text
  states, so that such models share the base's weights.

  Args:
    recorder: keeps rows, images, table and page.
    settings: what to draw.
    models: by the names that pages show, the base first.
    notes: sentences for the page.

  Returns:
    The document that the page renders; nothing is written, and it is empty,
    where the settings ask for no rows.
  """
  judge, table = common.load_judge(settings), rows(settings)
  if not table:
    return {}
  base, stages = next(iter(models)), [*models]
  tallies = Tallies(recorder, _metrics(settings))
  done = recorder.done_ids()
  sharding.wait_for_all("rows listed")
  shown = _shown(table, settings.grid)
  total = len(table) * len(models)
  with recorder.progress("draw", total, done=len(done)) as bar:
    for stage, model in models.items():
      left = [row for row in table if f"{stage}/{row['id']}" not in done]
      for part, images in _drawn(settings, model, judge, left):
        tallies.update(images, [_of_model(r, stage, base) for r in part])
        for row, image in zip(part, images, strict=True):
          if row["id"] in shown:
            recorder.save_image(f"{row['id']}-{stage}", image)
          name = f"{stage}/{row['id']}"
          recorder.append_row({**row, "id": name, "stage": stage})
          bar.update()
  sharding.wait_for_all("rows drawn")
  found = recorder.rows()
  estimates = tallies.estimates([
    _of_model({**r, "id": r["id"].split("/", 1)[1]}, r["stage"], base)
    for r in found
  ])
  document = comparison.document(
    found, stages, common.targets_of(settings), shown, estimates,
    judge.describe if judge else None,
  )  # fmt: skip
  if settings.protocol:
    notes = [f"Protocol {settings.protocol}.", *notes]
  document |= {
    "title": settings.title,
    "notes": list(notes),
    "diagnostics": {
      stage: {"method": model.edit.method, **model.edit.diagnostics}
      for stage, model in models.items()
      if model.edit is not None
    },
  }
  recorder.save_summary(document)
  # What they read, the writer alone has surely written.
  if recorder.is_writer:
    recorder.write("report.html", report.render_report(recorder.path))
    recorder.write("results.csv", report.results_csv(recorder.path))
    # A notebook shows the document itself.
    if isinstance(recorder, Workdir):
      print(comparison.text_table(document, _heads(settings, judge)))
      print(f"report: {recorder.path / 'report.html'}")
  return document


def rejudged(found: Sequence[Mapping[str, Any]], judge: Judge) -> Rows:
  """Rows of a run with what the judge sees by other thresholds, undrawn.

  Args:
    found: rows of a record, with `scores`.
    judge: as it was, but for its thresholds.

  Raises:
    ValueError: a row without scores; other heads or labels than the judge's.
  """
  for row in found:
    if "scores" not in row:
      raise ValueError(f"row {row['id']!r} has no scores; draw it again")
  scores = {
    head: np.array([row["scores"][head] for row in found])
    for head in (found[0]["scores"] if found else ())
  }
  return judge_rows(found, scores, judge) if found else []


def rows(settings: Settings) -> Rows:
  """The rows to draw: prompts of one's own, or those of a world.

  Of a world's prompts a judge that is not its own keeps what it has a head for.
  """
  world, own = common.world_of(settings), any(settings.prompts.values())
  foreign = world is not None and settings.judge != world.NAME
  if settings.judge is None or world is None or (foreign and own):
    return _own_rows(settings)
  drawn = world.prompt_rows(
    [one for one in settings.targets if "task" in one],
    settings.per_group, settings.others, settings.seed,
  )  # fmt: skip
  if foreign:
    heads = judges.load(settings.judge).labels
    for row in drawn:
      asked = row["attributes"].items()
      row["attributes"] = {h: label for h, label in asked if h in heads}
  return drawn


def _own_rows(settings: Settings) -> Rows:
  targets = common.targets_of(settings) if settings.judge else []
  pairs = [
    (group, prompt)
    for group, prompts in settings.prompts.items()
    for prompt in prompts
  ]
  found = []
  for i, (group, prompt) in enumerate(pairs):
    asked = [t for t in targets if t.label == group] or targets[:1]
    if group == "others":
      asked = []
    found.append({
      "id": f"{i:05d}-{group}",
      "group": group,
      "prompt": prompt,
      "seed": settings.seed + i,
      "attributes": {t.head: t.label for t in asked},
      "unsafe": False,
    })
  return found


def check_fits(settings: Settings, model: Model, phrases: Sequence[str] = ()):
  """Finds what a model cannot do, before anything is written or compiled.

  Args:
    settings: what is to be drawn.
    model: who draws it.
    phrases: what else must be short enough to encode.

  Raises:
    ValueError: a phrase or prompt is too long, the number of steps is none
      that the sampler can take, or guidance that is left out at this scale.
  """
  options = settings.sampling
  samplers.make_sampler(model.sd.schedule, options.num_steps, options.sampler)
  spoken = [*phrases, *(row["prompt"] for row in rows(settings))]
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
  """What is computed: accuracy with a judge, what is seen with a foreign one."""
  world, found = common.world_of(settings), [*settings.metrics]
  if settings.judge is not None:
    known = world is not None and settings.judge == world.NAME
    found = ["accuracy", *([] if known else ["seen"]), *found]
  return found


def _heads(settings: Settings, judge: Judge | None) -> Sequence[str]:
  """The heads that a terminal's table has lines for."""
  world = common.world_of(settings)
  if world is not None and settings.judge == world.NAME:
    return world.heads()
  return list(judge.labels) if judge else []


def _drawn(
  settings: Settings, model: Model, judge: Judge | None, left: Rows
) -> Iterator[tuple[Rows, UInt8[np.ndarray, "n h w 3"]]]:
  """This process's share of rows, judged, with images, a batch at a time."""
  mesh = sharding.make_mesh()
  multiple = sharding.local_rows_multiple(mesh)
  mine, padding = _share(left)
  requests = [sampling.Request(row["prompt"], row["seed"]) for row in mine]
  batches = sampling.draw(
    model.sd,
    sharding.place(model.drawn_params, sharding.replicated(mesh)),
    requests,
    settings.sampling,
    # The next size that the devices can share evenly.
    batch_size=-(-settings.batch_size // multiple) * multiple,
    place=functools.partial(sharding.global_batch, mesh),
    fetch=sharding.local_rows,
    **model.drawing,
  )
  start, count = 0, len(mine) - padding
  for images in batches:
    part = [dict(row) for row in mine[start : start + len(images)]]
    start += len(images)
    real = len(part) - max(0, start - count)
    # Not a break: a process that left a batch out would leave the others
    # waiting in it.
    if real < 1:
      continue
    part, images = part[:real], images[:real]
    if judge is not None:
      scores = judge(images)
      part = judge_rows(part, scores, judge)
      for i, row in enumerate(part):
        row["scores"] = {head: s[i].tolist() for head, s in scores.items()}
    yield part, images


def _of_model(row: Mapping[str, Any], stage: str, base: str) -> dict[str, Any]:
  """A row as metrics have it; to them the base is `base`, by whatever name."""
  return {**row, "model": "base" if stage == base else stage}


def _share(left: Sequence[dict]) -> tuple[list[dict], int]:
  """This process's rows, and how many at their end are padding.

  Every process gets as many, or they would wait for each other for ever.
  """
  count = -(-len(left) // jax.process_count())
  mine = list(left[jax.process_index() * count :][:count])
  padding = count - len(mine)
  return mine + list(left[:1]) * padding, padding


def _shown(table: Sequence[Mapping[str, Any]], grid: int) -> set[str]:
  """Ids of the first `grid` rows of each group."""
  groups: dict[str, list[str]] = {}
  for row in table:
    groups.setdefault(row["group"], []).append(row["id"])
  return {i for ids in groups.values() for i in ids[:grid]}
