"""What pictures are compared with: a folder of photographs, or its statistics.

A file of statistics is an `.npz` with `mu` and `sigma`. Ours say too by which
network and stack, from how many pictures they were made, and may hold the
features, which KID needs. Others say none of it, so you do:

  fid~reference=coco.npz,reference_stack=pytorch-fid,reference_count=30000
"""

import dataclasses
import functools
import os
import pathlib
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from unlearning_jax import durable
from unlearning_jax.judges import folders, weights
from unlearning_jax.metrics import Estimate, moments
from unlearning_jax.metrics.features import Features
from unlearning_jax.metrics.moments import Gaussian

BASE = "base"
_BATCH = 32
_KEYS = ("mu", "sigma")
# Statistics are hardly smaller for being packed.
_MOST_PACKED = 3
# What numpy and zipfile raise of a damaged file.
_BROKEN = (
  ValueError, OSError, EOFError, LookupError, TypeError, SyntaxError,
  AttributeError, OverflowError, RuntimeError, struct.error,
  NotImplementedError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Reference:
  """What a metric compares with.

  Attributes:
    metric: the metric's name, for messages.
    place: a folder of images, an `.npz`, or `base`: what the base drew.
    stack: of a file that does not say it.
    count: pictures that it must be made of; 0 for any. A file that does not
      say it was made of so many.
  """

  metric: str
  place: str
  stack: str = ""
  count: int = 0

  @property
  def is_base(self) -> bool:
    """Whether the base's own pictures are the reference."""
    return self.place == BASE

  @property
  def needs(self) -> tuple[str, ...]:
    """What a metric with this reference cannot do without."""
    return (BASE,) if self.is_base else ()

  def check(self, features: Features, vectors: bool = False) -> str:
    """Checks what can be checked before anything is drawn.

    Args:
      features: which the pictures are turned into.
      vectors: whether they are wanted themselves, and not only their moments.

    Returns:
      What a record keeps of it.

    Raises:
      ValueError: there is no such reference; or it is of another network,
        stack or count, or holds no features where they are wanted.
    """
    if self.is_base:
      return BASE
    if not self.place:
      raise ValueError(
        f"metric {self.metric}: reference: name a folder of photographs, an "
        f".npz of their statistics, or {BASE} for what the base draws: "
        f"--metrics={self.metric}~reference=FOLDER"
      )
    if self._is_file:
      held = _read(self._what, self.place, _stamp(self.place), vectors)
      self._check_file(held, features, vectors)
      return weights.digest([pathlib.Path(self.place)])
    folders.check(self._what, self.place)
    self._check_count(len(folders.files(self.place)))
    return f"{self.place} {len(folders.files(self.place))} pictures"

  def gaussian(self, features: Features) -> Gaussian:
    """Its mean and covariance.

    Raises:
      ValueError: a picture of the folder cannot be used.
    """
    if not self._is_file:
      return _of_folder(self._what, self.place, features, _stamp(self.place))[0]
    held = _read(self._what, self.place, _stamp(self.place), False)
    return Gaussian(self._n(held), held["mu"], held["sigma"])

  def vectors(self, features: Features) -> Float[np.ndarray, "n d"]:
    """Its features; errors as `gaussian`."""
    if not self._is_file:
      return _of_folder(self._what, self.place, features, _stamp(self.place))[1]
    held = _read(self._what, self.place, _stamp(self.place), True)
    return held["features"]

  @property
  def _is_file(self) -> bool:
    return self.place.endswith(".npz")

  @property
  def _what(self) -> str:
    return f"metric {self.metric}: reference"

  def _n(self, held: Mapping[str, Any]) -> int:
    return int(held.get("n", self.count))

  def _check_count(self, n: int):
    if self.count and n != self.count:
      raise ValueError(
        f"{self._what}={self.place!r}: is of {n} pictures, and {self.count} "
        "are wanted: distances of different counts do not compare"
      )

  def _check_file(
    self, held: Mapping[str, Any], features: Features, vectors: bool
  ):
    said = f"{self._what}={self.place!r}"
    width = held["mu"].shape[-1]
    if width != features.width:
      raise ValueError(
        f"{said}: has {width} features, and {features.name} has "
        f"{features.width}: it is of another network"
      )
    if "identity" not in held and not (self.stack and self.count):
      raise ValueError(
        f"{said}: does not say how its pictures were resized, nor how many "
        "they were; say it: reference_stack="
        f"{features.name},reference_count=30000"
      )
    stack = str(held.get("stack", self.stack))
    if stack != features.name or self.stack not in ("", stack):
      raise ValueError(
        f"{said}: is of stack {stack!r}, and these pictures are of "
        f"{features.name!r}: their distance would mean nothing. Take "
        f"stack={stack}, or other statistics"
      )
    if str(held.get("identity", features.identity)) != features.identity:
      raise ValueError(
        f"{said}: is of other weights: {held['identity']}; wanted "
        f"{features.identity}"
      )
    self._check_count(self._n(held))
    if vectors and "features" not in held:
      raise ValueError(
        f"{said}: holds moments alone, and {self.metric} needs the features "
        "themselves; name the folder of pictures"
      )


def nothing(name: str, n: int) -> Estimate:
  """The estimate where there are only the base's own `n` pictures."""
  why = "no model but the base drew anything"
  return Estimate(name, None, n=n, method="none", failed=why)


def write(path: str | os.PathLike[str], folder: str, features: Features):
  """Writes the statistics and the features of a folder's pictures.

  Args:
    path: the `.npz`.
    folder: of pictures.
    features: which they are turned into.

  Raises:
    ValueError: there is no such folder, or a picture cannot be used.
  """
  folders.check("reference", folder)
  found, vectors = _of_folder("reference", folder, features, _stamp(folder))
  with durable.replacing(pathlib.Path(path)) as file:
    np.savez(
      file, mu=found.mean, sigma=found.covariance, n=found.n,
      stack=features.name, identity=features.identity, features=vectors,
    )  # fmt: skip


def _stamp(place: str) -> tuple[Any, ...]:
  """What changes when the reference's files do."""
  root = pathlib.Path(place)
  names = [] if root.is_file() else folders.files(place)
  paths = [root / name for name in names] or [root]
  there = (path for path in paths if path.exists())
  return tuple((str(path), path.stat().st_mtime_ns) for path in there)


@functools.lru_cache(maxsize=2)
def _read(
  what: str, place: str, stamp: Hashable, vectors: bool = False
) -> dict[str, Any]:
  """What a file holds; its features, 8 KB a picture, only where wanted."""
  del stamp
  if not pathlib.Path(place).is_file():
    raise ValueError(f"{what}={place!r}: no such file")
  try:
    _check_sizes(place)
    with np.load(place, allow_pickle=False) as file:
      keys = [k for k in file.files if vectors or k != "features"]
      held = {key: np.asarray(file[key]) for key in keys}
  except _BROKEN as error:
    raise ValueError(f"{what}={place!r}: not a readable .npz: {error}") from (
      error
    )
  shapes = {key: held[key].shape for key in _KEYS if key in held}
  width = (shapes.get("mu") or (0,))[-1]
  if held.get("n", np.int64(0)).dtype.kind not in "iu":
    raise ValueError(f"{what}={place!r}: n is no whole number")
  if shapes != {"mu": (width,), "sigma": (width, width)} or not width:
    raise ValueError(
      f"{what}={place!r}: wanted mu (d,) and sigma (d, d); has "
      f"{ {key: value.shape for key, value in held.items()} }"
    )
  for key in _KEYS:
    if held[key].dtype.kind not in "fiu":
      raise ValueError(f"{what}={place!r}: {key} is {held[key].dtype}")
    held[key] = held[key].astype(np.float64)
    if not np.isfinite(held[key]).all():
      raise ValueError(f"{what}={place!r}: {key} holds NaN or infinity")
  return held


def _check_sizes(place: str):
  """Refuses an archive that claims to hold far more than it can."""
  with zipfile.ZipFile(place) as archive:
    whole = sum(one.file_size for one in archive.infolist())
  if whole > _MOST_PACKED * os.path.getsize(place) + (1 << 26):
    raise ValueError(f"it claims {whole} bytes, unpacked")


@functools.lru_cache(maxsize=2)
def _of_folder(
  what: str, place: str, features: Features, stamp: Hashable
) -> tuple[Gaussian, Float[np.ndarray, "n d"]]:
  """Features lie in a temporary file, so that any number of them fits."""
  del stamp
  state, kind, refused = {}, np.dtype(np.float32), []
  with tempfile.TemporaryFile() as file:
    for _, read in folders.batches([place], folders.files(place), _BATCH):
      if isinstance(read, str):
        refused.append(read)
        continue
      found = features(read[0])
      kind = found.dtype
      file.write(found.tobytes())
      state = moments.add(state, found, [{"model": BASE} for _ in found])
    if refused:
      raise ValueError(
        f"{what}={place!r}: {len(refused)} of its files cannot be used; mend "
        "or remove them:\n  " + "\n  ".join(refused[:5])
      )
    file.flush()
    shape = (state[BASE]["n"], features.width)
    vectors = np.memmap(file, kind, "r", shape=shape)
  return moments.gaussian(state[BASE]), vectors
