"""Checks, runs and reports a study of resurgence."""

import functools
import pathlib
import shutil
from collections.abc import Callable

from unlearning_jax import processes, stable_diffusion
from unlearning_jax.durable import JsonLines
from unlearning_jax.edits import check_base
from unlearning_jax.experiments import cells, common
from unlearning_jax.experiments.resurgence import keys, plan, summary, tuning
from unlearning_jax.experiments.resurgence.settings import Settings
from unlearning_jax.experiments.resurgence.study import Study, own_mesh
from unlearning_jax.judges import Target
from unlearning_jax.record import Recorder


def setup(
  settings: Settings, *, report: bool = False
) -> Callable[[Recorder], Study]:
  """Reads what a study starts from, and checks it before anything is written.

  Args:
    settings: the settings of the study.
    report: True if nothing will be run, so that any devices will do.

  Returns:
    A function that begins the study in a record.

  Raises:
    ValueError: an edit is of something else or of another base, devices cannot
      share a batch, the judge cannot see what was erased, or a phrase is too
      long.
  """
  given = settings.given()
  if not report:
    # A cell that failed because of its devices would never be tried again.
    settings.check_devices(own_mesh())
  model, judge = common.load_model(settings), common.load_judge(settings)
  assert judge is not None  # The settings refuse None.
  for edit in given.values():
    check_base(edit, model.params)
  entries = settings.erasures.values()
  phrases = [text for one in entries for pair in one.pairs for text in pair]
  stable_diffusion.tokenize(model.sd, phrases)
  for concept in settings.concepts:
    common.check_sees(judge, settings.targets_of(concept))
  return lambda record: Study(settings, record, model, judge, given)


def described(settings: Settings, folder: str) -> str:
  """The cells of a study and what it would cost, as text.

  Args:
    settings: the settings of the study.
    folder: the folder of a run whose measured rates are used, if there is one.
  """
  settings.given()
  size = plan.sizes(settings, common.load_model(settings))
  lines = JsonLines(pathlib.Path(folder) / "metrics.jsonl").read()
  return plan.described(settings, folder, lines, size)


def run(
  record: Recorder,
  begin: Callable[[Recorder], Study],
  *,
  report: bool = False,
) -> int:
  """Runs what is left of a study, and writes its page.

  Args:
    record: the record of the study.
    begin: from `setup`.
    report: True only writes the page of what there is.

  Returns:
    The number of cells that failed, or that the next start tries again.

  Raises:
    ValueError: the record is of another model, judge or edit.
  """
  study = begin(record)
  settings, wanted = study.settings, study.settings.cells
  common.begin(record, settings, study.base, study.given)
  _check_heads(study)
  steps = {k: len(a.checkpoints) for k, a in settings.algorithms.items()}
  points = sum(steps[cell.algorithm] for cell in wanted)
  done = sum(map(_is_point, study.rows))
  with record.progress("measure", points, done=done) as bar:
    study.store.note = lambda key: bar.update(_is_point(key), key)
    cells.run(
      study.store,
      # Cells that share a row go to one process, so that it is made once.
      [] if report else cells.share(wanted, lambda c: (c.concept, c.seed)),
      functools.partial(tuning.finish, study),
      pack=functools.partial(plan.packs, settings),
    )
  processes.wait_for_all("cells done")
  # A cell that the runtime failed, in whichever process, is left.
  left = study.store.left(wanted)
  if record.is_writer:
    summary.write(study)
  if not report and not left:
    # Checkpoints of cells that were killed after their last row.
    shutil.rmtree(record.path / "cells", ignore_errors=True)
    record.mark_done()
  elif record.is_done:
    # The page was written again.
    record.mark_done()
  failed = [cell for cell in wanted if study.store.why(cell)]
  return 0 if report else len({*left, *failed})


def _check_heads(study: Study):
  """Refuses a judge that cannot see what a prompt asks for, before any cell.

  Raises:
    ValueError: naming the judge and the class.
  """
  for concept, seed in {(c.concept, c.seed) for c in study.settings.cells}:
    for row in study.rows_of(concept, seed):
      study.judge.find(Target(row["head"], row["attributes"][row["head"]]))


def _is_point(name: str) -> bool:
  """Whether an id is that of a tuned model's row."""
  key = keys.parse(name)
  return isinstance(key, keys.Point) and key.step > 0
