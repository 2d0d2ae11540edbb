"""Tunes and measures the cells of a study, alone or in packs.

A cell that was interrupted goes on from its last checkpoint, if it has one. A
cell that fails leaves a row that says why. An error of the runtime, such as
memory or a lost device, leaves no row, and the next start tries the cell again.
"""

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from unlearning_jax import checkpoints, data, sharding
from unlearning_jax import finetune as loop
from unlearning_jax.edits import Edit, apply_to_params
from unlearning_jax.experiments import finetune, trust
from unlearning_jax.experiments.cells import failing
from unlearning_jax.experiments.resurgence import keys
from unlearning_jax.experiments.resurgence.keys import Cell
from unlearning_jax.experiments.resurgence.study import Rows, Study
from unlearning_jax.finetune import drift, packed
from unlearning_jax.finetune.partition import SUBSETS
from unlearning_jax.stable_diffusion import Params

# Rows of a tuning set that are read by the diagnostics before tuning.
_PROBES = 64
# Seconds between checkpoints of a cell. A checkpoint of a small model takes
# longer than the steps that it would save.
SAVE_AFTER = 60.0


def finish(study: Study, cells: Sequence[Cell]) -> None:
  """Runs cells to their end, or records why they failed.

  Args:
    cells: a cell, or a pack of cells to tune in one program.
  """
  tunings = []
  for cell in cells:
    with failing(study.store, cell):
      tunings.append(_begin(study, cell))
  # Cells that have done the same number of steps tune together.
  for _, alike in itertools.groupby(
    sorted(tunings, key=Tuning.step_done), Tuning.step_done
  ):
    _tune(study, list(alike))


def _begin(study: Study, cell: Cell) -> "Tuning":
  """Measures everything that comes before tuning."""
  rows = study.rows_of(cell.concept, cell.seed)
  tuned = study.tuned_rows_of(cell)
  study.measure(cell.base(), study.base, rows)
  _check_floor(study, cell.base())
  edit = study.edit_of(cell)
  erased = apply_to_params(edit, study.base)
  finetune.check_start(study.base, erased, str(cell))
  far = trust.size(edit, study.base)
  trust.check_near(f"{cell.edit}: the edit moves what it changes", far)
  study.measure(cell.erased(), erased, rows, [cell.base()])
  beside = cell.base(cell.tuning_set)
  study.measure(beside, study.base, tuned)
  study.measure(cell.erased(cell.tuning_set), erased, tuned, [beside])
  return Tuning(study, cell, edit, erased, [*rows, *tuned])


def _check_floor(study: Study, base: keys.Base):
  said, floor = study.rows[str(base)]["right"]["explicit"], study.settings.floor
  rate = said.count("1") / len(said)
  if rate < floor:
    raise ValueError(
      f"the base shows the concept in {rate:.2f} of the images that ask for "
      f"it, below floor={floor}: resurgence is undefined"
    )


@dataclasses.dataclass(eq=False)
class Tuning:
  """A cell that is being tuned.

  Attributes:
    study: the study.
    cell: the cell.
    edit: its erasure.
    erased: the parameters of the erased model, from which it starts.
    rows: the rows that are drawn at every checkpoint.
  """

  study: Study
  cell: Cell
  edit: Edit
  erased: Params
  rows: Rows

  def __post_init__(self):
    study, cell = self.study, self.cell
    self.own = study.tuning_of(cell)
    arrays = self._arrays()
    self.batches = data.Batches(arrays, self.own.batch_size, self.own.seed)
    self.part, self.step, self.state, self.frozen = finetune.prepare(
      study.sd, self.erased, self.edit, self.own, study.mesh
    )
    self.key = jax.random.key(self.own.seed + 1)
    # As the erased model reads them: an edit may be a text encoder.
    self.states = self._states(self.erased)
    if str(cell.at(0)) not in study.rows:
      before = self._predictors(arrays)
      study.store.record({"id": str(cell.at(0)), "predictors": before})
    # All processes must meet in a checkpoint, and in a study they never do.
    self._keeps = jax.process_count() == 1
    self._folder = study.run.path / "cells" / cell.file
    if self._keeps and checkpoints.latest_step(self._folder) is not None:
      self.state = checkpoints.restore(self._folder, self.state)
    self._saved = time.monotonic()

  def step_done(self) -> int:
    """Steps done before this start."""
    return int(self.state.step)

  def measure(self, now: int, state: loop.TrainState):
    """Draws and judges the model of a state; keeps the state if it is time."""
    study, own = self.study, self.own
    tuned = finetune.tuned_params(
      study.sd, self.erased, self.part, state, self.edit, own
    )
    moved = self._drift(tuned)
    what = f"{self.cell.at(now)}: tuning moved the UNet's weights"
    trust.check_near(what, self._far(tuned, moved["moved"]))
    beside = [self.cell.base(), self.cell.base(self.cell.tuning_set)]
    study.measure(self.cell.at(now), tuned, self.rows, beside, drift=moved)
    # After the row, so that a kill in between repeats steps but no row.
    late = time.monotonic() - self._saved >= SAVE_AFTER
    if self._keeps and late and now != own.num_steps:
      checkpoints.save(self._folder, now, state)
      self._saved = time.monotonic()

  def _arrays(self) -> Mapping[str, np.ndarray]:
    """The cell's images and captions as the loss reads them."""
    study, own = self.study, self.own
    # Keyed by the whole data: algorithms may differ in any field of it.
    listed = study.once(own.data, lambda: finetune.examples(own.data))
    words = study.settings.words_of(self.cell.concept)
    finetune.check_overlap(listed, self.edit, own.allow_overlap, words)
    # A text encoder that the edit changed reads captions in its own way.
    changed = any(map(SUBSETS["text_encoder"], self.edit.leaves))
    reader = self.cell.edit if changed else None
    return study.once(
      ("arrays", own.data, reader),
      lambda: finetune.encode(study.sd, self.erased, listed, own),
    )

  def _states(self, params: Params) -> np.ndarray:
    """The erased phrases' text states, as a model reads them, (n l, d)."""
    phrases = [concept.erase for concept in self.edit.concepts]
    return finetune.phrase_states(self.study.sd, params, phrases)

  def _predictors(
    self, arrays: Mapping[str, np.ndarray]
  ) -> dict[str, float | None]:
    """Measures of a cell before it is tuned."""
    study = self.study
    rows = np.arange(_PROBES) % len(arrays["mean"])
    probe: Any = data.taken(arrays, rows)
    said = arrays["context"].reshape(-1, self.states.shape[-1])
    shared = finetune.phrase_states(study.sd, self.erased, [""]).mean(0)
    size = drift.edit_size(study.base, self.erased, self.states)
    back = None
    if size["relative_change"]:
      back = drift.pull(
        study.sd, study.base, self.erased, probe, self.frozen["empty"],
        jax.random.key(self.cell.seed),
      )  # fmt: skip
    return {
      **size,
      "similarity": study.set_of(self.cell).similarity,
      "overlap": drift.overlap(said, self.states),
      "overlap_centered": drift.overlap(said, self.states, shared),
      "pull": back,
    }

  def _drift(self, tuned: Params) -> dict[str, float | None]:
    """How far weights moved, and how noise predictions on the concept did."""
    study = self.study
    read = study.once(
      ("states", self.edit.concepts), lambda: self._states(study.base)
    )
    before, after = (
      states.reshape(-1, *study.sd.context_shape)
      for states in (read, self.states)
    )
    shown = np.arange(_PROBES) % len(before)
    gap = drift.noise_gap(
      study.sd, study.base, self.erased, tuned,
      study.once(("latents", self.cell.concept), self._latents),
      (before[shown], after[shown]), jax.random.key(0),
    )  # fmt: skip
    found = drift.weight_drift(study.base, self.erased, tuned, self.states)
    return {**found, "noise_gap": gap}

  def _far(self, tuned: Params, moved: float | None) -> float:
    """How far tuning moved the UNet, relative to its weights."""
    if moved is None:
      return drift.edit_size(self.erased, tuned, self.states)["relative_change"]
    before = self.study.rows[str(self.cell.at(0))]["predictors"]
    # The one is relative to the edit, the other the edit to the weights.
    return moved * before["relative_change"]

  def _latents(self) -> Any:
    """Latents of renders of what was erased, the same in all cells."""
    study = self.study
    own = study.tuning_of(dataclasses.replace(self.cell, tuning_set="same"))
    # A fixed seed: whichever cell comes first draws them for all.
    chosen = dataclasses.replace(own.data, count=_PROBES, seed=1)
    shown = finetune.examples(chosen)
    return finetune.encode(study.sd, study.base, shown, own)["mean"][:, 0]


def _tune(study: Study, tunings: Sequence[Tuning]):
  """Trains cells that have done the same steps, and measures on the way."""
  first = tunings[0]
  own, clock = first.own, [time.monotonic(), first.step_done()]

  def reached(now: int, state: Any):
    if now not in own.checkpoints:
      return
    jax.block_until_ready(state)
    count = (now - clock[1]) * len(tunings)
    study.time(first.cell.algorithm, clock[0], count)
    if len(tunings) == 1:
      first.measure(now, state)
    else:
      _measure_pack(study, tunings, now, state)
    clock[:] = [time.monotonic(), now]

  layout = packed.layout if len(tunings) > 1 else None
  if len(tunings) == 1:
    state, frozen = first.state, first.frozen
    step, batches = first.step, first.batches
  else:
    state, step, frozen, batches = _packed(study, tunings)
  with failing(study.store, first.cell):
    loop.train(
      state,
      step,
      frozen,
      batches,
      first.key,
      mesh=study.mesh,
      num_steps=own.num_steps,
      watch=loop.Watch(
        every=own.num_steps, at=own.checkpoints, on_state=reached
      ),
      layout=layout,
    )


def _packed(study: Study, tunings: Sequence[Tuning]) -> tuple[Any, ...]:
  """State, step, frozen values and batches of several cells as one program."""
  # Each device gets whole runs; the last run is repeated to fill them.
  missing = -len(tunings) % sharding.local_rows_multiple(study.mesh)
  runs = [*tunings, *[tunings[-1]] * missing]
  return (
    packed.pack([run.state for run in runs]),
    packed.make_packed_step(tunings[0].step, study.mesh),
    packed.packed_frozen(
      [run.frozen for run in runs], [run.key for run in runs]
    ),
    packed.PackedBatches([run.batches for run in runs]),
  )


def _measure_pack(
  study: Study, tunings: Sequence[Tuning], now: int, state: packed.PackedState
):
  """Measures each run that has not failed by now."""
  for i, one in enumerate(tunings):
    if study.store.ended(one.cell):
      continue
    with failing(study.store, one.cell):
      mine = packed.unpack(state, i)
      if not state.alive[i]:
        raise FloatingPointError(
          f"training: loss or gradient not finite at step {int(mine.step) + 1}"
        )
      one.measure(now, mine)
