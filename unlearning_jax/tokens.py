"""Checks phrases as tokens: whether they are too long, and which are equal."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from unlearning_jax.concepts import Concept, preserved_phrases


class Tokenizer(Protocol):
  """CLIP's tokenizer, as far as this package uses it."""

  bos_token_id: int
  eos_token_id: int
  pad_token_id: int

  def __call__(
    self, texts: str | list[str], /, **options: Any
  ) -> Mapping[str, Any]:
    """The tokens of a text or of several, under `input_ids`."""
    ...

  def __len__(self) -> int: ...  # noqa: D105

  def decode(self, ids: list[int], /) -> str:
    """The text of some tokens."""
    ...

  def convert_ids_to_tokens(self, ids: list[int], /) -> list[str]:
    """The names of some tokens."""
    ...


def fitting(
  tokenizer: Tokenizer,
  texts: Sequence[str],
  rows: Sequence[list[int]],
  length: int,
  *,
  truncate: bool = False,
) -> list[list[int]]:
  """Token rows of at most `length`, start and end included.

  Args:
    rows: the tokens of `texts`.
    length: the number of tokens that the text encoder reads.
    truncate: whether to cut what is too long, as the releases do silently; a
      warning says what is kept.

  Raises:
    ValueError: a prompt is too long, without `truncate`.
  """
  fit = []
  for text, row in zip(texts, rows, strict=True):
    if len(row) > length:
      long = (
        f"prompt {text!r} has {len(row)} tokens, start and end included; "
        f"allowed: {length}."
      )
      if not truncate:
        raise ValueError(f"{long} Shorten it")
      kept = row[: length - 1]
      warnings.warn(
        f"{long} Kept: {tokenizer.decode(kept[1:])!r}", stacklevel=3
      )
      row = [*kept, row[-1]]
    fit.append(row)
  return fit


def check_tokens(
  tokenizer: Tokenizer,
  concepts: Sequence[Concept],
  *,
  allow_conflict: bool = False,
  length: int | None = None,
) -> None:
  """Refuses phrases that differ as text but have the same tokens.

  Args:
    allow_conflict: whether a phrase may be both erased and preserved.
    length: compare phrases as cut to so many tokens; None for whole ones.

  Raises:
    ValueError: an erased phrase has no tokens, or those of its anchor, of
      another erased phrase, or of a preserved one.
  """
  held = preserved_phrases(concepts)
  texts = [c.erase for c in concepts] + [c.anchor for c in concepts]
  rows = tokenizer([*texts, *held], truncation=False, padding=False)
  erased, anchors, preserved = {}, [], []
  # The last token of a cut row is always the end of text.
  seen = slice(None if length is None else length - 1)
  for i, row in enumerate(tuple(row[seen]) for row in rows["input_ids"]):
    if i < len(concepts):
      if len(row) < 3:
        raise ValueError(
          f"{texts[i]!r} has no tokens: nothing to erase; give words that this "
          "model's tokenizer knows"
        )
      if row in erased:
        raise ValueError(
          f"{erased[row]!r} and {texts[i]!r} have the same tokens"
        )
      erased[row] = texts[i]
    else:
      (anchors if i < len(texts) else preserved).append(row)
  for concept, row in zip(concepts, anchors, strict=True):
    if erased.get(row) == concept.erase:
      raise ValueError(
        f"{concept.erase!r} and its anchor have the same tokens; give another "
        "anchor"
      )
  for phrase, row in zip(held, preserved, strict=True):
    if row in erased and not allow_conflict:
      raise ValueError(
        f"{phrase!r} is preserved, but has the tokens of {erased[row]!r}, "
        "which is erased; take it out of preserve"
      )
