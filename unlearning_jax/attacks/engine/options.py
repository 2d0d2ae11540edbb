"""How an attack's rows share the machine."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from unlearning_jax import sharding
from unlearning_jax.attacks.engine.rows import Request, Row
from unlearning_jax.attacks.engine.victim import Pool


class Proxy(Protocol):
  """Says how promising prompts are, as `metrics.diffusion_classifier`."""

  timesteps: int

  def __call__(
    self, rows: Sequence[Row], requests: Sequence[Request]
  ) -> Sequence[float]:
    """A share of each request, 1 at best."""
    ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Options:
  """How rows share the machine, and what an attack may use.

  Attributes:
    lanes: rows side by side, rounded up to what the mesh divides.
    mesh: of this process's own devices; processes share nothing.
    mode: of the vocabulary.
    pool: images that all rows learn from, if the attack does.
    proxy: scores prompts before an image is made. Those below the threshold
      get none, but for a row's last: a row's success can only be missed so.
    threshold: of the proxy.
    long_prompts: `drop` counts prompts that leave no room as failures, with
      their reason; `error` refuses the table; `truncate` cuts them.
  """

  lanes: int
  mesh: sharding.Mesh
  mode: str = "roundtrip"
  pool: Pool | None = None
  proxy: Proxy | None = None
  threshold: float = 0.5
  long_prompts: str = "drop"
