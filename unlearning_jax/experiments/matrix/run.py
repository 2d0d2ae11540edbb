"""Runs a matrix of attacks: erases victims, runs cells, writes the table.

A cell is a folder, `<task>/<victim>/<attack>`, as `launch.attack` leaves it.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import jax

from unlearning_jax import (
  attacks,
  casting,
  checking,
  durable,
  erasures,
  processes,
  sharding,
)
from unlearning_jax.attacks import Victim
from unlearning_jax.attacks.engine.rows import Row
from unlearning_jax.edits import (
  Edit,
  apply_to_params,
  check_base,
)
from unlearning_jax.experiments import (
  attack,
  cells,
  common,
  erase,
  hooks,
)
from unlearning_jax.experiments.attack import check as checks
from unlearning_jax.experiments.attack import control as controls
from unlearning_jax.experiments.attack import rows, victims
from unlearning_jax.experiments.attack import summary as summaries
from unlearning_jax.experiments.common import Made
from unlearning_jax.experiments.matrix import summary
from unlearning_jax.experiments.matrix.settings import (
  BASE,
  Cell,
  Erased,
  Settings,
)
from unlearning_jax.guidance import Guidance
from unlearning_jax.record import binding, read_rows, seal

Given = Mapping[Erased, Edit]


def read_given(settings: Settings, items: Sequence[str]) -> dict[Erased, Edit]:
  """Reads victims that other runs made.

  Args:
    settings: the settings of the matrix.
    items: `<task>/<name>=<path>` each.

  Raises:
    ValueError: an item has another form, repeats a victim, or names no file.
  """
  listed = common.read_items(items, "<task>/<name>")
  paths = {Erased(*names): path for names, path in listed.items()}
  settings.check_given(paths)
  return {one: common.read_edit(path) for one, path in paths.items()}


def run(settings: Settings, root: pathlib.Path, given: Given) -> int:
  """Checks, erases, attacks cell by cell, and summarizes after each.

  Args:
    settings: the settings of the matrix.
    root: the folder of the matrix.
    given: victims that other runs made, from `read_given`.

  Returns:
    The number of this process's cells that failed, or that the next start
    tries again.

  Raises:
    ValueError: a column would fail in every cell, an edit has another base, or
      another matrix runs in the folder.
  """
  matrix = Matrix(settings, root, given)
  checking.passed(settings)
  matrix.open()
  made = [Erased(t, m) for t in settings.tasks for m in settings.erasures]
  first = jax.process_index() == 0
  cells.run(
    cells.Folders[Erased](root, common.EDIT),
    made if first else [],
    matrix.erase,
  )
  if first:
    matrix.seal(made)
  processes.wait_for_all("erased")
  mine, store = cells.share(matrix.cells), matrix.store
  cells.run(
    store,
    mine,
    matrix.run,
    # The page takes seconds, so it is written only after news.
    after=matrix.conclude if first else lambda: None,
  )
  processes.wait_for_all("attacked")
  if first:
    matrix.seal_targets()
    print(matrix.conclude())
  return sum(one in store.failed or not store.ended(one) for one in mine)


class Matrix:
  """The cells and what they share: a model, target images, judged prompts.

  Args:
    settings: the settings of the matrix.
    root: the folder of the matrix.
    given: victims that other runs made.

  Raises:
    ValueError: as `run`.
  """

  def __init__(self, settings: Settings, root: pathlib.Path, given: Given):
    self.settings, self.root, self._given = settings, root, given
    self.cells = settings.cells(given)
    self.store = cells.Folders[Cell](root, check=self._check_done)
    host = common.load_model(settings.attack(self.cells[0]))
    for edit in given.values():
      check_base(edit, host.params)
    # Each process runs cells of its own, so processes share no array.
    self._mesh = sharding.make_mesh(devices=jax.local_devices())
    params = casting.placed(host.sd, host.params, self._mesh)
    # What edits and fingerprints read, and what networks compute with.
    self._host, self._base = host, dataclasses.replace(host, params=params)
    self._table = functools.cache(self._targeted)
    self._check()

  def open(self):
    """Keeps the folder for this run.

    Raises:
      BusyError: another matrix writes in it.
      DamagedError: a target image is not what was drawn; so in every process.
    """
    for task in self.settings.tasks:
      seal.check(self._targets(task))
    if jax.process_index() == 0:
      binding.writable(self.root)
      self._lock = durable.lock(self.root / ".lock", self.root)
      durable.sweep(self.root, ".*")
    processes.wait_for_all("folder opened")

  def _check(self):
    """Refuses a column that would fail in every cell, and names it."""
    every = (
      rows.notes(self.settings.attack(cell), self._base.sd)
      for cell in self.cells
    )
    common.say([*dict.fromkeys(note for notes in every for note in notes)])
    for cell in self.cells:
      if cell.victim == BASE:
        own = self.settings.attack(cell)
        try:
          checks.fits(self._setup(own, {}), rows.listed(own))
        except ValueError as error:
          raise ValueError(f"{cell}: {error}") from error

  def conclude(self) -> str:
    """Writes the table of the cells so far; returns it for the terminal."""
    return summary.conclude(self.settings, self.store, self.cells)

  def erase(self, some: Sequence[Erased]):
    """Makes the edit of a victim.

    Raises:
      ValueError: the erasure refuses the task.
    """
    (one,) = some
    path = self._edit_file(one)
    path.parent.mkdir(parents=True, exist_ok=True)
    erase.made(
      path,
      self._host,
      erasures.bind(one.victim, self.settings.erasures[one.victim]),
      self.settings.tasks[one.task].concepts,
      self.settings.common["seed"],
      hooks.keeping(path.parent, True),
    )
    seal.put(path.parent)

  def seal(self, every: Sequence[Erased]):
    """Seals the victims of a start that was killed before it did."""
    for one in every:
      folder = self._edit_file(one).parent
      if _is_made(folder) and not (folder / seal.NAME).exists():
        seal.put(folder)

  def seal_targets(self):
    """Seals the target images, and draws those again that were deleted."""
    for task in self.settings.tasks:
      folder = self._targets(task)
      drawn = {path.name for path in folder.glob("*.png")}
      # The folder is there once a cell of the task has begun.
      if folder.is_dir() and drawn != {*seal.entries(folder / seal.NAME)}:
        self._table(task)
        seal.put(folder, "*.png")

  def run(self, some: Sequence[Cell]):
    """Runs a cell to its end.

    Raises:
      ValueError: its folder holds another run, or its edit is missing.
    """
    (cell,) = some
    own, edits = self.settings.attack(cell), self._edits(cell)
    listed = rows.listed(own)
    record = common.workdir(
      str(self.store.folder(cell)), self.settings.config(cell),
      attack.Settings, alone=True,
    )  # fmt: skip
    inputs = rows.hashes(own, listed)
    common.begin(record, own, self._host.params, edits, inputs)
    table, setup = self._table(cell.task), self._setup(own, edits)
    check = checks.checker(record, setup, listed)
    for other in self._others(cell):
      folder = self.store.folder(other)
      records = read_rows(folder)
      check = checks.remembering(check, records, f"../{folder.name}")
    done = record.done_ids()
    left = [row for row in table if row.id not in done]
    label = f"{self.cells.index(cell) + 1}/{len(self.cells)} {cell}"
    with record.progress(label, len(table), done=len(done)) as bar:
      for row in attack.attacked(
        record, setup, left, check, lanes=min(own.lanes, len(table))
      ):
        bar.update(note=row["status"])
    control, beside = controls.Control(), self.settings.control_of(cell)
    if beside != cell and self.store.ended(beside):
      control = controls.finished(str(self.store.folder(beside)))
    targets, notes = self._targets(cell.task), rows.notes(own, setup.sd)
    summaries.conclude(record, setup, control, targets, notes)
    record.mark_done()

  def _setup(
    self, own: attack.Settings, edits: Mapping[str, Made]
  ) -> victims.Setup:
    host, there = self._host, self._base.params
    victim = Victim(host.params)
    for made in edits.values():
      if isinstance(made, Guidance):
        victim = Victim.of(host.with_guidance(made))
        continue
      # Put into the weights, so that one program serves every victim.
      victim = Victim(apply_to_params(made, host.params))
    name = victims.fingerprint(victim, dict(edits))
    victim = victims.place(host.sd, victim, host.params, there, self._mesh)
    judge, (target,) = common.load_judge(own), common.targets_of(own)
    return victims.Setup(
      given=own, attack=attacks.bind(own.method, own.hparams), base=self._base,
      victim=victim, original=Victim(there), mesh=self._mesh, edits=edits,
      judge=judge, target=target, name=name,
    )  # fmt: skip

  def _check_done(self, cell: Cell):
    """Refuses a finished cell of another config or other inputs."""
    own = self.settings.attack(cell)
    record = common.workdir(
      str(self.store.folder(cell)), self.settings.config(cell),
      attack.Settings, alone=True,
    )  # fmt: skip
    hashes = {
      name: common.made_hash(one) for name, one in self._edits(cell).items()
    }
    inputs = rows.hashes(own, rows.listed(own))
    record.check_inputs({**hashes, **inputs}, common.NEWER)

  def _others(self, cell: Cell) -> Iterator[Cell]:
    """Yields an ended cell of the same victim; its rows judge the prompts."""
    for name in self.settings.columns:
      other = dataclasses.replace(cell, attack=name)
      if other != cell and self.store.ended(other):
        yield other
        return

  def _edits(self, cell: Cell) -> dict[str, Made]:
    one = Erased(cell.task, cell.victim)
    if cell.victim == BASE:
      return {}
    if one in self._given:
      return {str(one): self._given[one]}
    folder = self._edit_file(one).parent
    if not _is_made(folder):
      raise ValueError(f"{one}: no edit in {folder}; its erasure has failed")
    return {str(one): common.read_made(folder)}

  def _edit_file(self, one: Erased) -> pathlib.Path:
    return self.root / one.task / one.victim / common.EDIT

  def _targets(self, task: str) -> pathlib.Path:
    return self.root / task / "targets"

  def _targeted(self, task: str) -> list[Row]:
    """A task's rows with their target images, which all cells share."""
    own = self.settings.attack(Cell(task, BASE, self.settings.columns[0]))
    return rows.targeted(
      self._base, rows.listed(own), own, self._mesh, self._targets(task)
    )


def _is_made(folder: pathlib.Path) -> bool:
  return any((folder / n).exists() for n in (common.EDIT, common.GUIDANCE))
