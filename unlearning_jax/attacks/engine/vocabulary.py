"""Which token ids an attack may use, and what text they stand for.

An attack optimizes ids, but an image is drawn from text: the ids are decoded
and the text is tokenized again. CLIP's tokenizer is no bijection, so the drawn
prompt may differ from the optimized one. An id survives if it ends a word and
its own text is tokenized to it alone, because it cannot merge with what
follows.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from unlearning_jax.concepts import check_choice
from unlearning_jax.tokens import Tokenizer

MODES = ("roundtrip", "full")
WORD_END = "</w>"


def attack_ids(tokenizer: Tokenizer, mode: str) -> Int[np.ndarray, " v"]:
  """The ids that an attack may choose from, rising.

  Args:
    tokenizer: a CLIP tokenizer.
    mode: `roundtrip` for ids that survive decoding and encoding, or `full` for
      all ids, even start and end of text, as in the published attacks.

  Raises:
    ValueError: an unknown mode, or a tokenizer whose ids do not survive.
  """
  check_choice("vocabulary", mode, MODES)
  ids = np.arange(len(tokenizer), dtype=np.int32)
  if mode == "full":
    return ids
  tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
  final = [i for i, token in enumerate(tokens) if token.endswith(WORD_END)]
  again = tokenizer([tokenizer.decode([i]) for i in final])["input_ids"]
  kept = [i for i, row in zip(final, again, strict=True) if row[1:-1] == [i]]
  if not kept:
    raise ValueError(
      "vocabulary='roundtrip': no id of this tokenizer survives decode and "
      "encode; use 'full'"
    )
  return np.array(kept, np.int32)


def to_text(
  tokenizer: Tokenizer, ids: Sequence[int] | Int[np.ndarray, " l"]
) -> str:
  """The text of a padded prompt.

  The first id and every end of text are dropped. A start of text inside the
  prompt becomes the letters of its name, as in UnlearnDiffAtk's release.
  """
  end = tokenizer.eos_token_id
  return tokenizer.decode([int(i) for i in ids[1:] if i != end])


def shortened(tokenizer: Tokenizer, text: str, length: int) -> str:
  """The text, cut at its end until it has at most `length` tokens."""
  ids, kept = tokenizer(text)["input_ids"], length
  while len(ids) > length:
    # Decoding and encoding can make more tokens of fewer.
    text, kept = tokenizer.decode(ids[1 : kept - 1]), kept - 1
    ids = tokenizer(text)["input_ids"]
  return text


def reencode(
  tokenizer: Tokenizer, text: str, length: int
) -> tuple[str, Int[np.ndarray, " l"]]:
  """The text that an image is drawn from, and its ids.

  Args:
    tokenizer: a CLIP tokenizer.
    text: from `to_text`.
    length: the tokens that the text encoder reads.

  Returns:
    The text, cut to `length` tokens, and its padded ids.
  """
  text = shortened(tokenizer, text, length)
  ids = tokenizer(text)["input_ids"]
  pad = [tokenizer.pad_token_id] * (length - len(ids))
  return text, np.array([*ids, *pad], np.int32)
