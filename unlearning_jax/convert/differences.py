"""Measures what differs between a model and its base, a tensor at a time.

Tensors stay in their files until they are compared, so that two models of four
gigabytes need some hundred megabytes.
"""

import dataclasses
import os
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping

import numpy as np

from unlearning_jax.convert import parts, reader, sources

_KEYS_AND_VALUES = re.compile(r"attn2\.to_[kv]\.weight$")
# The rank of a change is counted in so many of its layers, the largest first.
_RANKED = 8
# The share of a change that its rank must hold.
_HELD = 0.99
# Numbers that are compared at once.
_PIECE = 1 << 21


@dataclasses.dataclass(frozen=True)
class Difference:
  """What differs from a base in one component.

  Attributes:
    part: `unet`, `text_encoder` or `vae`.
    changed: names of the tensors that differ.
    tensors: how many the component has.
    largest: the largest difference of a number.
    mean: the mean difference over the tensors that differ.
    relative: |change| / |base| over the same.
    ranks: of the most changed matrices, the directions that hold 99 % of the
      change, and how many there could be.
    unlike: names of tensors that only one of the two has, or in another shape.
    rounded: how many more are equal but for one's half precision.
  """

  part: str
  changed: tuple[str, ...]
  tensors: int
  largest: float
  mean: float
  relative: float
  ranks: tuple[tuple[int, int], ...]
  unlike: tuple[str, ...] = ()
  rounded: int = 0

  def __str__(self) -> str:
    """One line."""
    text = (
      f"{self.part}: {len(self.changed)} of {self.tensors} tensors differ, by "
      f"{self.largest:.3g} at most and {self.mean:.3g} in the mean, "
      f"{self.relative:.2%} of their size"
    )
    if self.ranks:
      found = sorted({rank for rank, _ in self.ranks})
      full = max(full for _, full in self.ranks)
      span = " to ".join(map(str, {found[0]: 0, found[-1]: 0}))
      text += f"; of rank {span}, where {full} is full"
    if self.rounded:
      text += f"; {self.rounded} more differ by the rounding of half precision"
    if self.unlike:
      text += (
        f"; {len(self.unlike)} more are missing, extra or of another shape, as "
        f"{', '.join(self.unlike[:3])}"
      )
    return text


def measured(
  place: pathlib.Path, base: str | os.PathLike[str], ema: bool | None
) -> tuple[Difference, ...]:
  """What differs between a file or folder and its base, by component.

  Args:
    place: the file or folder.
    base: the base's folder or hub id.
    ema: as in `compvis.from_compvis`.

  Raises:
    ValueError: as `sources.load`.
  """
  read = reader.read_lazily
  known = sources.load(base, read=read)
  with warnings.catch_warnings():
    # What differs is said below, nothing too.
    warnings.simplefilter("ignore", UserWarning)
    new = sources.load(place, known, ema=ema, read=read)
  new = parts.without_new_words(new, known)
  found = []
  for part, old in known.states.items():
    one = _difference(part, old, new.states[part])
    found += [one] if one else []
  return tuple(found)


def _difference(
  part: str, old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]
) -> Difference | None:
  """What differs in a component, a tensor at a time; None for nothing."""
  total, changed, squares, rounded = _Sums(), [], {}, 0
  unlike = sorted(old.keys() ^ new.keys())
  for name, value in old.items():
    other = new.get(name)
    if other is value or other is None:
      continue
    if other.shape != value.shape:
      unlike.append(name)
      continue
    own = _compared(value, other)
    if own is None:
      rounded += 1
    if not (own and own.largest):
      continue
    changed.append(name)
    if value.ndim in (2, 4):
      squares[name] = own.squares
    total = total.plus(own)
  if not (changed or unlike or rounded):
    return None
  most = sorted(squares, key=lambda name: -squares[name])[:_RANKED]
  ranks = tuple(_rank(old[name], new[name]) for name in most)
  return Difference(
    part, tuple(changed), len(old), total.largest,
    total.sizes / max(total.count, 1), total.relative, ranks, tuple(unlike),
    rounded,
  )  # fmt: skip


def _compared(old: np.ndarray, new: np.ndarray) -> "_Sums | None":
  """The sums of one tensor; None if they differ by rounding alone."""
  old, new = np.asarray(old), np.asarray(new)
  found = _Sums()
  for one, two in _pieces(old, new):
    found.add(one, two)
  return None if found.largest and _is_rounding(old, new) else found


@dataclasses.dataclass
class _Sums:
  """Sums over the numbers of tensors and over their changes."""

  largest: float = 0.0
  sizes: float = 0.0
  squares: float = 0.0
  of_base: float = 0.0
  count: int = 0

  def add(self, old: np.ndarray, new: np.ndarray):
    """Adds a piece of a tensor."""
    change = new - old
    self.largest = max(self.largest, float(np.abs(change).max(initial=0)))
    self.sizes += float(np.abs(change).sum(dtype=np.float64))
    self.squares += float(np.sum(np.square(change, dtype=np.float64)))
    self.of_base += float(np.sum(np.square(old, dtype=np.float64)))
    self.count += old.size

  def plus(self, other: "_Sums") -> "_Sums":
    """The sums over both."""
    return _Sums(
      max(self.largest, other.largest), self.sizes + other.sizes,
      self.squares + other.squares, self.of_base + other.of_base,
      self.count + other.count,
    )  # fmt: skip

  @property
  def relative(self) -> float:
    """|change| / |base|."""
    if self.of_base:
      return float(np.sqrt(self.squares / self.of_base))
    return float("inf" if self.squares else 0)


def _is_rounding(old: np.ndarray, new: np.ndarray) -> bool:
  """Whether one is the other as a type of half precision holds it."""
  # A number that is too large for the type becomes infinite, and unequal.
  with np.errstate(over="ignore"):
    return any(
      all(
        np.array_equal(one.astype(half).astype(np.float32), two)
        for one, two in _pieces(first, second)
      )
      for half in ("float16", "bfloat16")
      for first, second in ((old, new), (new, old))
    ) or any(_are_halves(*both) for both in ((old, new), (new, old)))


def _are_halves(one: np.ndarray, two: np.ndarray) -> bool:
  """Whether float16 holds one, bfloat16 the other, a step of it apart at most.

  So are two halves of one model, which were both rounded from float32.
  """
  return all(
    np.array_equal(a.astype("float16").astype(np.float32), a)
    and np.array_equal(b.astype("bfloat16").astype(np.float32), b)
    and bool(np.all(np.abs(a - b) <= np.abs(b) / 128))
    for a, b in _pieces(one, two)
  )


def _pieces(
  old: np.ndarray, new: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Rows of two tensors, few enough that work on them takes little memory."""
  old, new = np.atleast_1d(np.asarray(old)), np.atleast_1d(np.asarray(new))
  rows = max(1, _PIECE * len(old) // max(old.size, 1))
  for i in range(0, len(old), rows):
    yield old[i : i + rows], new[i : i + rows]


def _rank(old: np.ndarray, new: np.ndarray) -> tuple[int, int]:
  """How many directions hold 99 % of a change, and how many there could be."""
  long, wide = len(old), old.size // len(old)
  side = min(long, wide)
  one, two = (np.asarray(x).reshape(long, wide) for x in (old, new))
  if wide > long:
    one, two = one.T, two.T
  gram = np.zeros((side, side))
  for here, there in _pieces(one, two):
    change = (there - here).astype(np.float64)
    gram += change.T @ change
  values = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)
  held = np.cumsum(values) / values.sum()
  return int(np.argmax(held >= _HELD)) + 1, side


def looks_like(found: Mapping[str, Difference]) -> str:
  """Which methods change such components and layers; "" for none typical."""
  # A model of another architecture is none that a method made of the base.
  if any(one.unlike for one in found.values()):
    return ""
  found = {part: one for part, one in found.items() if one.changed}
  if set(found) == {"text_encoder"}:
    return "AdvUnlearn: the text encoder alone is changed"
  if set(found) != {"unet"}:
    return "a fine-tuning of several components" if found else ""
  unet = found["unet"]
  if all(_KEYS_AND_VALUES.search(name) for name in unet.changed):
    low = all(4 * rank <= full for rank, full in unet.ranks)
    if low:
      return (
        "a closed form (UCE, RECE, TIME, MACE): the text's keys and values "
        "alone, of low rank"
      )
    return (
      "Concept Ablation or Custom Diffusion: the text's keys and values alone, "
      "of full rank"
    )
  if all("attn2." in name for name in unet.changed):
    return "ESD-x: the cross-attention alone"
  if not any("attn2." in name for name in unet.changed):
    return "ESD-u: all but the cross-attention"
  return "a training of the whole UNet (SalUn, EraseDiff, a fine-tuning)"
