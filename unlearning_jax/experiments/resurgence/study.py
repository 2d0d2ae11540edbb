"""A study that is running: its rows, and what its cells share.

Whatever is finished is a row: a measurement, or why there is none. An erasure
is made once and read back. Prompts, tuning sets and latents are made once too.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from unlearning_jax import casting, erasures, metrics, sampling, sharding
from unlearning_jax.edits import Edit
from unlearning_jax.experiments import cells, common, erase, finetune
from unlearning_jax.experiments.resurgence import keys
from unlearning_jax.experiments.resurgence.keys import Cell
from unlearning_jax.experiments.resurgence.settings import Settings, erasure_of
from unlearning_jax.judges import Judge
from unlearning_jax.metrics import collapse, resurgence
from unlearning_jax.model import Model
from unlearning_jax.record import Recorder
from unlearning_jax.sampling import Request
from unlearning_jax.stable_diffusion import Params

Rows = Sequence[Mapping[str, Any]]
Measured = keys.Base | keys.Erased | keys.Point
T = TypeVar("T")


def own_mesh() -> sharding.Mesh:
  """A mesh of this process's devices; each process has cells of its own."""
  return sharding.make_mesh(devices=jax.local_devices())


@dataclasses.dataclass(eq=False)
class Study:
  """A study that is running.

  Attributes:
    settings: the settings of the study.
    run: the record.
    model: the base.
    judge: looks at the images.
    given: the edits of other runs, from `Settings.given`.
  """

  settings: Settings
  run: Recorder
  model: Model
  judge: Judge
  given: Mapping[str, Edit] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    self.sd, self.base = self.model.sd, self.model.params
    self.mesh = own_mesh()
    self.metrics = [metrics.load(name) for name in self.settings.metrics]
    run, algorithms = self.run, self.settings.algorithms
    # No closure holds the study, so its record is freed with it.
    self.store = cells.Rows[Any](
      run,
      lambda cell: str(cell.at(algorithms[cell.algorithm].num_steps)),
      lambda key: str(keys.Failure(key)),
      lambda cell: run.path / "cells" / cell.file,
    )
    self._timed = len(self.run.read_metrics())
    self._kept: dict[Hashable, Any] = {}

  @property
  def rows(self) -> Mapping[str, dict[str, Any]]:
    """All finished rows by id."""
    return self.store.rows

  def _algorithm(self, cell: Cell) -> finetune.Settings:
    return self.settings.algorithms[cell.algorithm]

  # --- What cells share ---

  def once(self, key: Hashable, make: Callable[[], T]) -> T:
    """The result of `make`, which is called once for each key."""
    if key not in self._kept:
      self._kept[key] = make()
    return self._kept[key]

  def set_of(self, cell: Cell) -> Any:
    """The classes that the cell is tuned on, a world's `TuningSet`."""
    chosen = self.settings
    return self.once(
      ("set", cell.concept, cell.tuning_set),
      lambda: chosen.world.tuning_set(
        self.sd,
        self.base,
        chosen.concepts[cell.concept].targets,
        cell.tuning_set,
        chosen.neighbors,
      ),
    )

  def tuning_of(self, cell: Cell) -> finetune.Settings:
    """The settings of the cell's fine-tuning."""
    chosen, own = self.set_of(cell), self._algorithm(cell)
    optimizer = own.optimizer
    if cell.tuning_set == "control":
      optimizer = dataclasses.replace(optimizer, learning_rate=0.0)
    return dataclasses.replace(
      own,
      seed=cell.seed,
      data=dataclasses.replace(
        own.data,
        seed=1 + cell.seed,
        only=chosen.only,
        without=chosen.without,
      ),
      allow_overlap=chosen.overlap,
      defense=dataclasses.replace(own.defense, kind=cell.defense),
      optimizer=optimizer,
    )

  def rows_of(self, concept: str, seed: int) -> Rows:
    """The rows that measure a concept; each seed has its own."""
    settings = self.settings
    return self.once(
      ("rows", concept, seed),
      lambda: settings.world.study_rows(
        settings.concepts[concept].targets,
        dataclasses.asdict(settings.counts),
        seed,
      ),
    )

  def tuned_rows_of(self, cell: Cell) -> Rows:
    """The rows that ask for what the cell is tuned on."""
    chosen, settings = self.set_of(cell), self.settings
    return settings.world.tuned_rows(
      chosen.head, chosen.names, settings.counts.tuned, cell.seed
    )

  def edit_of(self, cell: Cell) -> Edit:
    """The erasure that the cell starts from, made once and then read back."""
    name = erasure_of(cell)
    if name in self.given:
      return self.given[name]
    path = self.run.path / "edits" / f"{cell.edit.file}.safetensors"
    if path.exists():
      return common.read_edit(path)
    entry = self.settings.erasure(cell)
    if why := self.store.rows.get(str(keys.Failure(cell.edit))):
      raise ValueError(why["failed"])
    started = time.monotonic()
    method = erasures.bind(entry.method, entry.hparams)
    try:
      # Other processes are busy with other erasures.
      with sharding.alone():
        made = erase.made(path, self.model, method, entry.concepts, cell.seed)
    except self.store.own as error:
      self.store.fail(cell.edit, error)
      raise
    assert isinstance(made, Edit)  # The settings refuse methods that guide.
    self.time(cell.method, started)
    return made

  # --- Measuring ---

  def measure(
    self,
    key: Measured,
    params: Params,
    rows: Rows,
    beside: Sequence[keys.Base] = (),
    **more: Any,
  ) -> None:
    """Draws and judges rows; records which were right, group by group.

    Args:
      key: of the record.
      params: of the model that draws.
      rows: what is drawn.
      beside: the base's records of the same rows.
      more: what is recorded too.

    Raises:
      FloatingPointError: the pictures are none, and the base's are: what they
        do not show, nobody erased.
    """
    if str(key) in self.rows:
      return
    # Other cells start from the same erased model.
    if why := self._kept.get(("collapsed", key)):
      raise FloatingPointError(why)
    started = time.monotonic()
    right: dict[str, str] = {}
    looks: list[dict[str, float]] = []
    states = {metric.name: metric.init() for metric in self.metrics}
    done = 0
    for images in self._drawn(params, rows):
      part = self._judged(key, rows[done : done + len(images)], images)
      done += len(images)
      looks += collapse.pixels(images)
      for row in part:
        said = "01"[resurgence.outcome(row)]
        right[row["group"]] = right.get(row["group"], "") + said
      for metric in self.metrics:
        states[metric.name] = metric.update(states[metric.name], images, part)
    self.time("image", started, len(rows))
    kept: dict[str, Any] = {"metrics": states} if states else {}
    kept["looks"] = collapse.looks(looks)
    self._check_draws(key, kept["looks"], beside)
    self.store.record({"id": str(key), "right": right, **kept, **more})

  def _check_draws(
    self, key: Measured, own: Mapping[str, int], beside: Sequence[keys.Base]
  ):
    found = [self.rows[str(one)].get("looks") for one in beside]
    # Rows of an earlier version do not say.
    if not found or None in found:
      return
    base = {kind: sum(one[kind] for one in found if one) for kind in own}
    if why := collapse.no_pictures(base, own):
      said = f"{key}: the model collapsed: {'; '.join(why)}"
      self._kept["collapsed", key] = said
      raise FloatingPointError(said)

  def _drawn(self, params: Params, rows: Rows):
    multiple = sharding.local_rows_multiple(self.mesh)
    return sampling.draw(
      self.sd,
      casting.placed(self.sd, params, self.mesh),
      [Request(row["prompt"], row["seed"]) for row in rows],
      self.settings.sampling,
      batch_size=-(-self.settings.batch_size // multiple) * multiple,
      place=functools.partial(sharding.global_batch, self.mesh),
      fetch=sharding.local_rows,
    )

  def _judged(
    self, key: Measured, rows: Rows, images: np.ndarray
  ) -> list[dict[str, Any]]:
    """Rows as metrics read them, with what the judge sees."""
    of = {keys.Base: "base", keys.Erased: "erased"}.get(type(key), "")
    seed = key.seed if not isinstance(key, keys.Point) else key.cell.seed
    model = f"step {key.step}" if isinstance(key, keys.Point) else of
    seen = self.judge.decide(self.judge(images))
    return [
      {**row, "id": f"{seed}/{row['id']}", "model": model, "judged": labels}
      for row, labels in zip(rows, seen, strict=True)
    ]

  def time(self, what: str, started: float, count: int = 1):
    """Records the seconds since `started`, for later estimates of cost."""
    self._timed += 1
    seconds = time.monotonic() - started
    self.run.metrics(self._timed, what=what, seconds=seconds, count=count)
