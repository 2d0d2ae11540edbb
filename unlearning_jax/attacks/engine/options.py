"""How an attack's rows share the machine, and what they may use."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from unlearning_jax import sharding
from unlearning_jax.attacks.engine.rows import Request, Row
from unlearning_jax.attacks.engine.victim import Pool

# Token ids, one for each slot.
Words = tuple[int, ...]


class Proxy(Protocol):
  """Scores prompts without an image, as `metrics.diffusion_classifier`.

  Attributes:
    timesteps: UNet rows that one score costs.
  """

  timesteps: int

  def __call__(
    self, rows: Sequence[Row], requests: Sequence[Request]
  ) -> Sequence[float]:
    """One score a request; 1 is the best."""
    ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Options:
  """How rows share the machine, and what an attack may use.

  Attributes:
    lanes: rows side by side, rounded up to a multiple of the devices.
    mesh: this process's devices; processes attack their rows alone.
    mode: `roundtrip` or `full`, see `vocabulary`.
    pool: images that every row may learn from, or None.
    proxy: scores a prompt before its image is made. A prompt below `threshold`
      gets no image, unless it is the row's last. This can miss a success; it
      cannot invent one.
    threshold: the least score that earns an image.
    long_prompts: `drop` counts prompts that leave no room as failures, with the
      reason; `error` refuses the table; `truncate` cuts them.
    starts: words of other rows, which every row tries before its own search.
    search: False ends a row after its tries.
  """

  lanes: int
  mesh: sharding.Mesh
  mode: str = "roundtrip"
  pool: Pool | None = None
  proxy: Proxy | None = None
  threshold: float = 0.5
  long_prompts: str = "drop"
  starts: Sequence[Words] = ()
  search: bool = True
