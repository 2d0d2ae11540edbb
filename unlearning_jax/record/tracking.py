"""Further recorders: TensorBoard, and Weights & Biases without a network.

A tracker hears what a run records beside its folder: metrics, images, and at
the end the run's settings with its numbers. The record itself stays the
folder's, and a tracker changes none of it.
"""

import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from unlearning_jax.concepts import check_choice

Numbers = Mapping[str, float]


class Tracker(Protocol):
  """What hears of a run."""

  def metrics(self, step: int, values: Numbers) -> None:
    """The numbers of a step."""
    ...

  def image(self, name: str, array: np.ndarray) -> None:
    """An image, uint8 (h, w, 3) or (h, w)."""
    ...

  def end(self, values: Mapping[str, Any], figures: Numbers) -> None:
    """The run's settings and its final numbers; nothing follows."""
    ...


class TensorBoard:
  """Writes event files into `events/` of a run's folder.

  Args:
    folder: the run's.
    name: of the run, among others of TensorBoard's table of settings.
  """

  def __init__(self, folder: pathlib.Path, name: str):
    self._name = name
    events = package("tensorboardX")
    self._writer = events.SummaryWriter(str(folder / "events"))

  def metrics(self, step: int, values: Numbers):
    """Adds a scalar for each number."""
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)

  def image(self, name: str, array: np.ndarray):
    """Adds an image."""
    form = "HWC" if array.ndim == 3 else "HW"
    self._writer.add_image(name, array, dataformats=form)

  def end(self, values: Mapping[str, Any], figures: Numbers):
    """Adds the line of the table of settings, and closes the file."""
    plain = {
      key: value if isinstance(value, bool | int | float) else str(value)
      for key, value in values.items()
    }
    self._writer.add_hparams(plain, dict(figures), name=self._name)
    self._writer.close()


class WandB:
  """Writes an offline run into `wandb/` of a run's folder, for `wandb sync`.

  Args:
    folder: the run's.
    name: its id at Weights & Biases.
  """

  def __init__(self, folder: pathlib.Path, name: str):
    self._wandb = package("wandb")
    folder.mkdir(parents=True, exist_ok=True)
    self._run = self._wandb.init(
      project="unlearning_jax", id=name, name=name, dir=str(folder),
      mode="offline", reinit="create_new",
    )  # fmt: skip

  def metrics(self, step: int, values: Numbers):
    """Logs the numbers of a step."""
    self._run.log(dict(values), step=step)

  def image(self, name: str, array: np.ndarray):
    """Logs an image beside the last step."""
    self._run.log({name: self._wandb.Image(array)})

  def end(self, values: Mapping[str, Any], figures: Numbers):
    """Keeps settings and final numbers, and ends the run."""
    self._run.config.update(dict(values))
    self._run.summary.update(dict(figures))
    self._run.finish()


_TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB}
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def check(names: Sequence[str]):
  """Refuses trackers that there are not, before anything runs.

  Raises:
    ValueError: a name is unknown, or its package is not installed.
  """
  for name in names:
    check_choice("track", name, _TRACKERS)
    package(_PACKAGES[name])


def package(name: str, key: str = "track") -> Any:
  """A package of the extra `tracking`.

  Args:
    name: what is imported.
    key: the setting that asks for it, for messages.

  Raises:
    ValueError: it is not installed.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ValueError(
      f"{key}: {name} is not installed; pip install 'unlearning_jax[tracking]'"
    ) from error


class Tracked:
  """A recorder that tells trackers too.

  Args:
    record: the record, whose every attribute this has.
    trackers: those that hear of it.
  """

  def __init__(self, record: Any, trackers: Sequence[Tracker]):
    self._record, self._trackers = record, trackers

  def __getattr__(self, name: str) -> Any:
    return getattr(self._record, name)

  def metrics(self, step: int, **values: Any):
    """Records the numbers of a step, and tells them."""
    self._record.metrics(step, **values)
    plain = {k: float(v) for k, v in values.items() if np.ndim(v) == 0}
    for one in self._trackers:
      one.metrics(step, plain)

  def save_image(self, name: str, array: np.ndarray) -> str:
    """Keeps an image, and shows it."""
    path = self._record.save_image(name, array)
    for one in self._trackers:
      one.image(name, array)
    return path


def tracked(record: Any, names: Sequence[str]) -> tuple[Any, list[Tracker]]:
  """A record that tells the trackers of these names, and the trackers.

  Args:
    record: a `Recorder` with a folder.
    names: of `tensorboard` and `wandb`; () gives the record itself.
  """
  found: list[Tracker] = [
    _TRACKERS[name](record.path, record.path.name) for name in names
  ]
  return (Tracked(record, found) if found else record), found
