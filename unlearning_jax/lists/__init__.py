"""Lists of phrases: the published ones by name, others from a text file.

A file has one phrase a line. Empty lines and lines that begin with "#" are
skipped.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from unlearning_jax import durable
from unlearning_jax.concepts import CONCEPT_SETS, check_choice, same_phrase

_FOLDER = pathlib.Path(__file__).parent


def names() -> tuple[str, ...]:
  """The published lists that come with the package."""
  files = (path.stem for path in _FOLDER.glob("*.txt"))
  return tuple(sorted({*CONCEPT_SETS, *files}))


def load(
  name: str | os.PathLike[str], *, repeats: bool = False
) -> tuple[str, ...]:
  """The phrases of a list, in order.

  Args:
    name: one of `names()`, or the path of a file that ends in .txt.
    repeats: whether a phrase may occur twice, as among captions.

  Raises:
    ValueError: the name is unknown, with the nearest; there is no such file; it
      is not UTF-8, or holds no phrase, or one phrase twice.
  """
  if name in CONCEPT_SETS:
    return CONCEPT_SETS[str(name)]
  path = pathlib.Path(name)
  if path.suffix != ".txt":
    check_choice("list", str(name), names())
    path = _FOLDER / f"{name}.txt"
  try:
    durable.check_plain(path)
    text = path.read_text(encoding="utf-8-sig")
  except OSError as error:
    raise ValueError(f"list {str(name)!r}: {error}") from error
  except UnicodeDecodeError as error:
    raise ValueError(f"{path}: no text in UTF-8: {error}") from error
  # Not splitlines: a phrase may hold other breaks, such as U+2028.
  lines = (line.strip() for line in text.split("\n"))
  phrases = tuple(line for line in lines if line and not line.startswith("#"))
  if not phrases:
    raise ValueError(f"{path}: holds no phrase")
  seen: set[str] = set()
  for phrase in phrases:
    if not repeats and same_phrase(phrase) in seen:
      raise ValueError(f"{path}: {phrase!r} is there twice")
    seen.add(same_phrase(phrase))
  return phrases


def sample(phrases: Sequence[str], count: int, *, seed: int) -> tuple[str, ...]:
  """`count` random phrases, in their own order.

  Raises:
    ValueError: there are fewer phrases.
  """
  if not 1 <= count <= len(phrases):
    raise ValueError(f"count={count}; allowed: 1 to {len(phrases)}")
  drawn = np.random.default_rng(seed).permutation(len(phrases))[:count]
  return tuple(str(phrases[i]) for i in sorted(drawn))
