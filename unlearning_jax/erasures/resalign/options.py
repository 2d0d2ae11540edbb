"""ResAlign's hyperparameters."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unlearning_jax.concepts import check_choice
from unlearning_jax.erasures.resalign import lanes
from unlearning_jax.erasures.salun import sets
from unlearning_jax.settings import check_numbers

PRESETS = ("fixed", "paper_code")
HYPERGRADS = ("first_order", "neumann", "unrolled")
# The release's. Its fourth folder has the images of DreamBooth's prior.
LANES = (
  "sgd/1e-4/20/2", "sgd/1e-4/5/1+3", "sgd/1e-4/30/1", "adam/1e-4/5/1",
  "sgd/1e-4/5/2", "adam/1e-4/30/0", "sgd/1e-5/30/1", "sgd/1e-5/5/2",
  "sgd/1e-5/10/0", "sgd/1e-4/10/1", "adam/1e-5/10/2", "sgd/1e-5/30/2",
  "sgd/1e-6/20/2", "adam/1e-5/10/1", "adamw-full/1e-6/5/2",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hparams(sets.Drawing):
  """ResAlign's hyperparameters, and those of `sets.Drawing`.

  Attributes:
    preset: "fixed" or "paper_code".
    hypergrad: "first_order", "neumann" or "unrolled"; only "fixed" heeds it.
    lanes: the tunings, each "optimizer/learning rate/steps/set". The set "1+3"
      adds a prior set, and the optimizer "adamw-full" tunes the whole UNet. The
      phrases that remain are dealt out to the sets in turn.
    drawn: lanes of a step; only "paper_code" heeds it.
    tuning_batch: images in a step of a tuning; as many of a prior set.
    prior_weight: of the loss on a prior set.
    curvature_batch: images that the curvature is of; only "neumann" heeds it.
    gamma: of every lane; 0 takes a lane's steps times its learning rate, which
      is near the truth for "sgd" alone. Only "neumann" heeds it.
    terms: of the series that "neumann" sums. A lane whose terms grow takes the
      first one alone; the metric `dropped` is the share of such lanes.
    lanes_at_once: lanes that are computed together, to bound the memory; 0 for
      all. It changes no result but for rounding. Those that tune the whole UNet
      run one after the other, and on a CPU so do the gradients of L.
    resilience: beta.
    remain_weight: alpha at the beginning.
    last_remain_weight: alpha at the end; it nears it in the second half.
    rank: of the adapters.
    num_steps: training steps.
    learning_rate: AdamW's.
    cap: the longest gradient; in "paper_code" see `hypergrad.released`.
    batch_size: images of what remains in a step.
    concept_batch: images of the concept in a step, at most `batch_size`.
  """

  preset: str = "fixed"
  hypergrad: str = "neumann"
  lanes: tuple[str, ...] = LANES
  drawn: int = 3
  tuning_batch: int = 1
  prior_weight: float = 1.0
  curvature_batch: int = 4
  gamma: float = 0.0
  terms: int = 5
  lanes_at_once: int = 0
  resilience: float = 0.8
  remain_weight: float = 1.6
  last_remain_weight: float = 2.0
  rank: int = 4
  num_steps: int = 160
  learning_rate: float = 2e-4
  cap: float = 0.2
  batch_size: int = 4
  concept_batch: int = 1

  def __post_init__(self):
    super().__post_init__()
    check_choice("preset", self.preset, PRESETS)
    check_choice("hypergrad", self.hypergrad, HYPERGRADS)
    check_numbers(
      self,
      counts=(
        "drawn", "tuning_batch", "curvature_batch", "terms", "rank",
        "num_steps", "concept_batch",
      ),
      positive=("learning_rate", "cap"),
      from_zero=(
        "remain_weight", "last_remain_weight", "gamma", "prior_weight",
      ),
    )  # fmt: skip
    if not 0 <= self.resilience <= 1:
      raise ValueError(f"resilience={self.resilience}; allowed: 0 to 1")
    lanes.parse(self.lanes, every_kind=True)
    bounds = {"concept_batch": self.batch_size}
    if self.preset == "paper_code":
      bounds["drawn"] = len(self.lanes)
    for name, most in bounds.items():
      if (given := getattr(self, name)) > most:
        raise ValueError(f"{name}={given}; allowed: 1 to {most}")


def remain_weight(h: Hparams, step: Int[Array, ""] | int) -> Float[Array, ""]:
  """The weight alpha at a step, from 0: a sigmoid in the second half."""
  half = h.num_steps / 2
  progress = (step + 1 - half) / half
  share = jnp.where(progress < 0, 0, jax.nn.sigmoid(10 * (progress - 0.5)))
  return h.remain_weight + share * (h.last_remain_weight - h.remain_weight)
