"""The work of a resurgence study: erase once, tune many, measure each step.

Whatever is finished is a row of the run; a cell that is interrupted goes on
from its last checkpoint, if it had come far enough for one, and one that fails
leaves a row that says why. What the runtime fails of, memory or a lost device,
leaves none: the next start tries that cell again.
"""

import dataclasses
import functools
import pathlib
import shutil
import time
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from launch.shared import comparison, resurgence_plan, tuning, tuning_sets
from launch.shared.resurgence_plan import Cell
from unlearning_jax import (
  checkpoints,
  closed_form,
  data,
  erasures,
  finetune,
  sharding,
)
from unlearning_jax.evaluators import erasure, resurgence
from unlearning_jax.finetune import drift
from unlearning_jax.shapes import captions
from unlearning_jax.workdir import Workdir

# Rows of a tuning set that the diagnostics before tuning read.
_PROBES = 64
# Seconds of a cell that may have to be run again. A checkpoint of a small model
# takes longer than the steps that it would save.
SAVE_AFTER = 60.0
# What a cell fails of for good: its own data or loss.
_FAILURES = (ValueError, FloatingPointError)
Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(eq=False)
class Study:
  """A study under way.

  Attributes:
    run: its record.
    config: of `configs.resurgence`.
    sd: the model.
    base: its parameters.
    note: is told of every measurement that is done.
  """

  run: Workdir
  config: Any
  sd: Any
  base: Any
  note: Callable[[str], None] = lambda text: None

  def __post_init__(self):
    self.judge = comparison.load_judge(self.config)
    # Processes share no array: each works off its own cells.
    self.mesh = sharding.make_mesh(devices=jax.local_devices())
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
      lambda: resurgence.prompt_rows(
        resurgence_plan.targets(self.config, concept),
        resurgence.Counts(**self.config.counts),
        seed,
      ),
    )

  def tuned_rows_of(self, cell: Cell) -> Rows:
    """Prompts for what the cell is tuned on."""
    chosen = self.set_of(cell)
    return resurgence.tuned_rows(
      chosen.head, chosen.names, self.config.counts.tuned, cell.seed
    )

  def edit_of(self, cell: Cell) -> closed_form.Edit:
    """The erasure that the cell starts from: made once, then read back."""
    path = self.run.path / "edits" / f"{_file(cell.erasure)}.safetensors"
    if path.exists():
      return closed_form.load_edit(path)
    entry = self.config.erasures[f"{cell.method}/{cell.concept}"]
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
    if not isinstance(made, closed_form.Edit):
      made = closed_form.edit_between(
        self.base, made, method=cell.method, concepts=phrases, diagnostics={}
      )
    self._time(cell.method, started)
    closed_form.save_edit(made, path)
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
    self._time("image", started, len(rows))
    self.record({"id": key, "right": right, **more})

  def record(self, row: Mapping[str, Any]):
    """Keeps a finished row."""
    self.run.append_row(row)
    self.rows[row["id"]] = dict(row)
    self.note(str(row["id"]))

  def _fail(self, key: str, error: Exception):
    text = f"{type(error).__name__}: {error}"
    self.record({"id": key, "failed": text[:500]})

  def _time(self, what: str, started: float, count: int = 1):
    self._timed += 1
    seconds = time.monotonic() - started
    self.run.metrics(self._timed, what=what, seconds=seconds, count=count)

  # --- A cell ---

  def finish(self, cell: Cell) -> None:
    """Runs a cell to its end, or records why it cannot."""
    folder = self.run.path / "cells" / _file(cell.id)
    if not ended(self.config, self.rows, cell):
      try:
        self._finish(cell, folder)
      # A cell fails alone: its row says why, and the others go on.
      except _FAILURES as error:
        self._fail(f"{cell.id}!", error)
      except jax.errors.JaxRuntimeError as error:
        why = str(error)  # Alone: with it go the frames, and what they hold.
        logging.warning("%s: the next start tries again: %s", cell.id, why)
        return
    shutil.rmtree(folder, ignore_errors=True)

  def _finish(self, cell: Cell, folder: pathlib.Path):
    base = f"base/{cell.concept}/{cell.seed}"
    rows, tuned = (
      self.rows_of(cell.concept, cell.seed),
      self.tuned_rows_of(cell),
    )
    self.measure(base, self.base, rows)
    self._check_floor(base)
    edit = self.edit_of(cell)
    erased = closed_form.apply_to_params(edit, self.base)
    tuning.check_start(self.base, erased, cell.id)
    self.measure(f"erased/{cell.erasure}", erased, rows)
    chosen = cell.tuning_set
    self.measure(f"{base}/{chosen}", self.base, tuned)
    self.measure(f"erased/{cell.erasure}/{chosen}", erased, tuned)
    self._tune(cell, folder, edit, erased, [*rows, *tuned])

  def _check_floor(self, base: str):
    said = self.rows[base]["right"]["explicit"]
    rate = said.count("1") / len(said)
    if rate < self.config.floor:
      raise ValueError(
        f"the base shows the concept in {rate:.2f} of the images that ask for "
        f"it, below floor={self.config.floor}: resurgence is undefined"
      )

  def _tune(
    self,
    cell: Cell,
    folder: pathlib.Path,
    edit: closed_form.Edit,
    erased: Any,
    rows: Rows,
  ):
    own = self.tuning_config(cell)
    arrays = self._arrays(cell, own, edit)
    part, step, state, frozen = tuning.prepare(
      self.sd, erased, edit, own, self.mesh
    )
    states = tuning.phrase_states(
      self.sd, self.base, [c.erase for c in edit.concepts]
    )
    if f"{cell.id}@0" not in self.rows:
      before = self._predictors(cell, erased, arrays, states, frozen["empty"])
      self.record({"id": f"{cell.id}@0", "predictors": before})
    # All processes of a run meet in a checkpoint; in a study they never do.
    keeps = jax.process_count() == 1
    if keeps and checkpoints.latest_step(folder) is not None:
      state = checkpoints.restore(folder, state)
    saved = time.monotonic()
    clock = [saved, int(state.step)]

    def on_state(now: int, state: finetune.TrainState):
      nonlocal saved
      if now not in own.checkpoints:
        return
      jax.block_until_ready(state)
      self._time(cell.algorithm, clock[0], now - clock[1])
      tuned = tuning.tuned_params(self.sd, erased, part, state, edit, own)
      self.measure(
        f"{cell.id}@{now}", tuned, rows,
        drift=self._drift(cell, erased, tuned, states),
      )  # fmt: skip
      # After the row: a kill in between repeats the steps, not the row.
      late = time.monotonic() - saved >= SAVE_AFTER
      if keeps and late and now != own.num_steps:
        checkpoints.save(folder, now, state)
        saved = time.monotonic()
      clock[:] = [time.monotonic(), now]

    finetune.train(
      state,
      step,
      frozen,
      data.Batches(arrays, own.batch_size, own.seed),
      jax.random.key(own.seed + 1),
      mesh=self.mesh,
      num_steps=own.num_steps,
      every=own.num_steps,
      at=own.checkpoints,
      on_metrics=lambda now, values: None,
      on_state=on_state,
    )

  def _arrays(
    self, cell: Cell, own: Any, edit: closed_form.Edit
  ) -> Mapping[str, np.ndarray]:
    """The cell's images and captions as the loss reads them."""
    key = (own.data.only, own.data.without, own.data.seed)
    listed = self.once(("examples", key), lambda: tuning.examples(own))
    words = [
      word
      for target in resurgence_plan.targets(self.config, cell.concept)
      for group in ("explicit", "synonyms")
      for word in captions.phrases(target.task, target.name)[group]
    ]
    tuning.check_overlap(listed, edit, own.allow_overlap, words)
    return self.once(
      ("arrays", key), lambda: tuning.encode(self.sd, self.base, listed, own)
    )

  # --- Diagnostics ---

  def _predictors(
    self, cell: Cell, erased: Any, arrays: Any, states: Any, empty: Any
  ) -> dict[str, float]:
    """What is known of a cell before it is tuned."""
    rows = np.arange(_PROBES) % len(arrays["mean"])
    probe = {name: array[rows] for name, array in arrays.items()}
    key = jax.random.key(cell.seed)
    said = arrays["context"].reshape(-1, states.shape[-1])
    shared = tuning.phrase_states(self.sd, self.base, [""]).mean(0)
    return {
      **drift.edit_size(self.base, erased, states),
      "similarity": self.set_of(cell).similarity,
      "overlap": drift.overlap(said, states),
      "overlap_centred": drift.overlap(said, states, shared),
      "pull": drift.pull(self.sd, self.base, erased, probe, empty, key),
    }

  def _drift(
    self, cell: Cell, erased: Any, tuned: Any, states: Any
  ) -> dict[str, float | None]:
    """Where the weights went, and what they say of pictures of the concept."""
    phrases = states.reshape(-1, *self.sd.context_shape)
    gap = drift.noise_gap(
      self.sd, self.base, erased, tuned,
      self.once(("latents", cell.concept), lambda: self._latents(cell)),
      phrases[np.arange(_PROBES) % len(phrases)],
      jax.random.key(0),
    )  # fmt: skip
    found = drift.weight_drift(self.base, erased, tuned, states)
    return {**found, "noise_gap": gap}

  def _latents(self, cell: Cell) -> np.ndarray:
    """Latents of renders of what was erased, the same in all cells."""
    own = self.tuning_config(dataclasses.replace(cell, tuning_set="same"))
    # Not the cell's seed: whichever cell comes first draws them for all.
    own.data.count, own.data.seed = _PROBES, 1
    shown = tuning.examples(own)
    return tuning.encode(self.sd, self.base, shown, own)["mean"][:, 0]


def ended(config: Any, rows: Container[str | int], cell: Cell) -> bool:
  """Whether rows of these names have all that comes of a cell."""
  last = config.algorithms[cell.algorithm].num_steps
  return f"{cell.id}@{last}" in rows or f"{cell.id}!" in rows


def _file(name: str) -> str:
  return name.replace("/", "-").replace(" ", "_")
