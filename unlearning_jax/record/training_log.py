"""What a training run says as it goes: rows, a progress line, TensorBoard."""

import importlib
import time
from typing import Any

from unlearning_jax.record import Recorder


class TrainingLog:
  """The `on_metrics` of `finetune.train`; a context manager around it.

  Args:
    run: the run's record.
    name: of the progress line.
    num_steps: where training ends.
    done: steps taken before this start.
    tensorboard: write events too.

  Raises:
    ValueError: events are wanted and their package is not installed.
  """

  def __init__(
    self,
    run: Recorder,
    name: str,
    num_steps: int,
    done: int,
    *,
    tensorboard: bool = False,
  ):
    self._run, self._done, self._started = run, done, time.time()
    self._bar = run.progress(name, num_steps, done=done)
    self._events: Any = None
    if tensorboard and run.is_writer:
      path = str(run.path / "events")
      self._events = events_package().SummaryWriter(path)

  def __call__(self, step: int, values: dict[str, float]):
    """Records, shows and plots what a step measured."""
    seconds = time.time() - self._started
    self._run.metrics(step, seconds=seconds, **values)
    note = "  ".join(f"{name} {value:.3g}" for name, value in values.items())
    self._bar.update(step - self._done, note)
    self._done = step
    for name, value in values.items() if self._events else ():
      self._events.add_scalar(f"train/{name}", value, step)

  def __enter__(self) -> "TrainingLog":
    return self

  def __exit__(self, *error: object):
    self._bar.__exit__(*error)
    # Events are written when their writer is closed.
    if self._events:
      self._events.close()


def events_package() -> Any:
  """What writes TensorBoard events.

  Raises:
    ValueError: it is not installed.
  """
  try:
    return importlib.import_module("tensorboardX")
  except ImportError as error:
    raise ValueError(
      "tensorboard=True: pip install 'unlearning_jax[tracking]'"
    ) from error
