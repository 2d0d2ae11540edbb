"""What a training records on the way: metrics, progress, TensorBoard events."""

import time
from typing import Any

from unlearning_jax.record import Recorder, tracking
from unlearning_jax.record.progress import Progress


class TrainingLog:
  """A `Watch.on_metrics` for `finetune.train`, and a context manager around it.

  Args:
    run: the run's record.
    name: the label of the progress line; "" shows none.
    num_steps: the step at which training ends.
    done: steps taken before this start.
    tensorboard: True writes TensorBoard events too.

  Raises:
    ValueError: `tensorboard` is True and tensorboardX is not installed.
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
    self._run, self._done, self._started = run, done, time.monotonic()
    self._bar = (
      run.progress(name, num_steps, done=done)
      if name
      else Progress(name, num_steps, done=done, quiet=True)
    )
    self._events: Any = None
    if tensorboard and run.is_writer:
      path = str(run.path / "events")
      self._events = tracking.package(
        "tensorboardX", "tensorboard"
      ).SummaryWriter(path)

  def __call__(self, step: int, values: dict[str, float]):
    """Records, shows and plots the metrics of a step."""
    seconds = time.monotonic() - self._started
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
    # Closing the writer writes the events.
    if self._events:
      self._events.close()
