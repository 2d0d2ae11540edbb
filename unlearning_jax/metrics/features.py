"""Features of images, which FID and KID compare."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float

from unlearning_jax import extensions
from unlearning_jax.concepts import check_choice
from unlearning_jax.convert import quality, read_state_dict
from unlearning_jax.judges import networks, weights
from unlearning_jax.metrics import Images
from unlearning_jax.metrics.stacks import STACKS
from unlearning_jax.models.inception import WIDTH, Inception

NETWORK = "inception-2015"
NEEDS = (
  weights.File(
    "pt_inception-2015-12-05-6726825d.pth",
    "github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
    also="weights-inception-2015-12-05-6726825d.pth",
    of="metric",
  ),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
  """A network that turns images into vectors.

  Attributes:
    name: what the names of numbers carry, as the stack's.
    width: of a vector.
    embed: uint8 images to vectors.
    identity: changes with the weights and with what they see.
  """

  name: str
  width: int
  embed: Callable[[Images], Float[np.ndarray, "n d"]]
  identity: str
  # The last images and their vectors: FID and KID ask for the same.
  _last: list = dataclasses.field(default_factory=list, repr=False)

  def __call__(self, images: Images) -> Float[np.ndarray, "n d"]:
    """A vector for each image.

    Raises:
      ValueError: vectors of another shape, or with NaN or infinity.
    """
    if not (self._last and self._last[0] is images):
      found = np.asarray(self.embed(images))
      self._check(found, len(images))
      self._last[:] = [images, found]
    return self._last[1]

  def _check(self, found: np.ndarray, count: int):
    if found.shape != (count, self.width):
      raise ValueError(
        f"features {self.name}: {found.shape}; wanted {(count, self.width)}"
      )
    bad = int((~np.isfinite(found)).any(axis=1).sum())
    if bad:
      raise ValueError(
        f"features {self.name}: NaN or infinity for {bad} of {count} images; "
        "no distance can be computed with them"
      )


def load(
  metric: str, network: str, stack: str, judges_dir: str = ""
) -> Features:
  """The features of Inception, or your own.

  Args:
    metric: for messages.
    network: `inception-2015`, or `package.module:name` of a `Features`.
    stack: a key of `STACKS`; your own network sees images as they are.
    judges_dir: the folder of weights; "" for the environment's.

  Raises:
    ValueError: an unknown stack or network; the file is missing, or is another.
  """
  check_choice(f"metric {metric}: stack", stack, STACKS)
  own = extensions.named(f"metric {metric}: network", network, [NETWORK])
  if own is not None:
    if not isinstance(own, Features):
      raise ValueError(
        f"metric {metric}: network={network!r}: is {type(own).__name__}, not "
        "metrics.features.Features"
      )
    return own
  path = NEEDS[0].find(metric, judges_dir)
  return _inception(str(path), path.stat().st_mtime_ns, stack)


@functools.lru_cache(maxsize=2)
def _inception(path: str, changed: int, stack: str) -> Features:
  del changed
  params = quality.inception(read_state_dict(path), path)
  embed = networks.batched(Inception(), params, STACKS[stack])

  def exactly(images: Images) -> Float[np.ndarray, "n d"]:
    # Some accelerators multiply in fewer bits unless they are told not to.
    with jax.default_matmul_precision("highest"):
      return embed(images)

  digest = weights.digest([pathlib.Path(path)])
  return Features(stack, WIDTH, exactly, f"{NETWORK} {digest} {stack}")
