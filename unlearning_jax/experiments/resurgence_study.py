"""A resurgence study under way: its rows, and what its cells share.

Whatever is finished is a row of the run: a measurement, or why there is none.
An erasure is made once and read back; so are prompts, images and latents.
"""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import jax

from unlearning_jax import erasures, sharding
from unlearning_jax.edits import Edit, load_edit, save_edit
from unlearning_jax.experiments import comparison, resurgence_plan
from unlearning_jax.experiments.resurgence_plan import Cell
from unlearning_jax.metrics import resurgence
from unlearning_jax.record.workdir import Workdir
from unlearning_jax.shapes import prompts as erasure
from unlearning_jax.shapes import study_rows, tuning_sets

# What a cell fails of for good: its own data or loss.
_FAILURES = (ValueError, FloatingPointError)
Rows = Sequence[Mapping[str, Any]]


def own_mesh() -> Any:
  """This process's devices: none shares arrays, each has its own cells."""
  return sharding.make_mesh(devices=jax.local_devices())


@dataclasses.dataclass(eq=False)
class Study:
  """A study under way.

  Attributes:
    run: its record.
    config: of `configs.resurgence`.
    sd: the model.
    base: its parameters.
    note: is told of every measurement that is done.
    given: erasures that are not made here, see `resurgence_plan.given`.
  """

  run: Workdir
  config: Any
  sd: Any
  base: Any
  note: Callable[[str], None] = lambda text: None
  given: Mapping[str, Edit] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    self.judge = comparison.load_judge(self.config)
    self.mesh = own_mesh()
    self.rows = {row["id"]: row for row in self.run.rows()}
    self._timed = len(self.run.read_metrics())
    self._kept: dict[Any, Any] = {}

  # --- What cells share ---

  def once(self, key: Any, make: Callable[[], Any]) -> Any:
    """What `make` gave when this key was first asked for."""
    if key not in self._kept:
      self._kept[key] = make()
    return self._kept[key]

  def set_of(self, cell: Cell) -> tuning_sets.TuningSet:
    """What the cell tunes on."""
    return self.once(
      ("set", cell.concept, cell.tuning_set),
      lambda: tuning_sets.tuning_set(
        self.sd,
        self.base,
        resurgence_plan.targets(self.config, cell.concept),
        cell.tuning_set,
        self.config.neighbours,
      ),
    )

  def tuning_config(self, cell: Cell) -> Any:
    """The cell's own config of fine-tuning."""
    chosen, config = self.set_of(cell), self.config
    own = config.algorithms[cell.algorithm].copy_and_resolve_references()
    own.seed, own.data.seed = cell.seed, 1 + cell.seed
    own.data.only, own.data.without = chosen.only, chosen.without
    own.allow_overlap = chosen.overlap
    own.defence.kind = cell.defence
    if cell.tuning_set == "control":
      own.optimizer.learning_rate = 0.0
    return own

  def rows_of(self, concept: str, seed: int) -> Rows:
    """Prompts that measure a concept; each seed has its own."""
    return self.once(
      ("rows", concept, seed),
      lambda: study_rows.study_rows(
        resurgence_plan.given_targets(self.config, concept),
        self.config.counts,
        seed,
      ),
    )

  def tuned_rows_of(self, cell: Cell) -> Rows:
    """Prompts for what the cell is tuned on."""
    chosen = self.set_of(cell)
    return study_rows.tuned_rows(
      chosen.head, chosen.names, self.config.counts.tuned, cell.seed
    )

  def edit_of(self, cell: Cell) -> Edit:
    """The erasure that the cell starts from: made once, then read back."""
    name = f"{cell.method}/{cell.concept}"
    if name in self.given:
      return self.given[name]
    path = self.run.path / "edits" / f"{_file(cell.erasure)}.safetensors"
    if path.exists():
      return load_edit(path)
    entry = self.config.erasures[name]
    phrases = resurgence_plan.concepts_of(entry)
    failed = f"edit/{cell.erasure}!"
    if failed in self.rows:
      raise ValueError(self.rows[failed]["failed"])
    started = time.monotonic()
    erase = erasures.bind(entry["method"], entry["hparams"])
    try:
      # The other processes are at other erasures.
      with sharding.alone():
        made = erase(self.sd, self.base, phrases, jax.random.key(cell.seed))
    except _FAILURES as error:
      self._fail(failed, error)
      raise
    if not isinstance(made, Edit):
      raise ValueError(f"{cell.erasure}: guidance changes no weight to tune")
    self.time(cell.method, started)
    save_edit(made, path)
    return made

  # --- Measuring ---

  def measure(self, key: str, params: Any, rows: Rows, **more: Any):
    """Draws and judges the rows, and records who was right, group by group."""
    if key in self.rows:
      return
    started = time.monotonic()
    multiple = sharding.local_rows_multiple(self.mesh)
    size = -(-self.config.batch_size // multiple) * multiple
    drawn = erasure.judged_images(
      self.sd,
      sharding.place(params, sharding.replicated(self.mesh)),
      rows,
      self.judge,
      batch_size=size,
      place=functools.partial(sharding.global_batch, self.mesh),
      fetch=sharding.local_rows,
      **self.config.sampling,
    )
    right: dict[str, str] = {}
    for row, _ in drawn:
      said = "01"[resurgence.outcome(row)]
      right[row["group"]] = right.get(row["group"], "") + said
    self.time("image", started, len(rows))
    self.record({"id": key, "right": right, **more})

  def record(self, row: Mapping[str, Any]):
    """Keeps a finished row."""
    self.run.append_row(row)
    self.rows[row["id"]] = dict(row)
    self.note(str(row["id"]))

  def time(self, what: str, started: float, count: int = 1):
    """Keeps what work of a kind took since a moment, for later estimates."""
    self._timed += 1
    seconds = time.monotonic() - started
    self.run.metrics(self._timed, what=what, seconds=seconds, count=count)

  @contextlib.contextmanager
  def failing(self, cell: Cell):
    """A cell fails alone: its row says of what, and the others go on."""
    try:
      yield
    except _FAILURES as error:
      self._fail(f"{cell.id}!", error)

  def _fail(self, key: str, error: Exception):
    text = f"{type(error).__name__}: {error}"
    self.record({"id": key, "failed": text[:500]})

  def ended(self, cell: Cell, rows: Container[str | int] | None = None) -> bool:
    """Whether rows of these names, or the study's, have all of a cell."""
    rows = self.rows if rows is None else rows
    last = self.config.algorithms[cell.algorithm].num_steps
    return f"{cell.id}@{last}" in rows or f"{cell.id}!" in rows

  def folder(self, cell: Cell) -> pathlib.Path:
    """Where a cell's checkpoints are, while it is not ended."""
    return self.run.path / "cells" / _file(cell.id)


def _file(name: str) -> str:
  return name.replace("/", "-").replace(" ", "_")
