"""Which token ids an attack may use, and what is left of them as text.

An attack optimises ids, an image is made from text: ids are decoded, and the
text is tokenized again. CLIP's tokenizer is no bijection, so the prompt that
is drawn need not be the one that was optimised. Ids that end a word and come
back alone as themselves cannot merge with what follows: prompts made of them
survive.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from unlearning_jax.concepts import check_choice

MODES = ("roundtrip", "full")
WORD_END = "</w>"


def attack_ids(tokenizer: Any, mode: str) -> Int[np.ndarray, " v"]:
  """The ids an attack may choose from, rising.

  Args:
    tokenizer: the model's.
    mode: `roundtrip`, those that survive decode and encode; or `full`, every
      id, the start and the end of text too, as the published attacks do.

  Raises:
    ValueError: an unknown mode, or a tokenizer of which no id survives.
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


def to_text(tokenizer: Any, ids: Sequence[int] | Int[np.ndarray, " l"]) -> str:
  """The text of a padded prompt.

  The first id, the start of text, is dropped, and the end of text wherever it
  is; a start of text inside the prompt becomes the letters of its name, as in
  the published attacks.
  """
  end = tokenizer.eos_token_id
  return tokenizer.decode([int(i) for i in ids[1:] if i != end])


def shortened(tokenizer: Any, text: str, length: int) -> str:
  """The text itself, or as much of its start as has `length` tokens."""
  ids, kept = tokenizer(text)["input_ids"], length
  while len(ids) > length:
    # Decoded and encoded, fewer tokens can become more again.
    text, kept = tokenizer.decode(ids[1 : kept - 1]), kept - 1
    ids = tokenizer(text)["input_ids"]
  return text


def reencode(
  tokenizer: Any, text: str, length: int
) -> tuple[str, Int[np.ndarray, " l"]]:
  """The ids that an image of `text` is made from, and the text they stand for.

  Args:
    tokenizer: the model's.
    text: from `to_text`.
    length: of the text encoder.

  Returns:
    The text, cut where it has more tokens, and its padded ids.
  """
  text = shortened(tokenizer, text, length)
  ids = tokenizer(text)["input_ids"]
  pad = [tokenizer.pad_token_id] * (length - len(ids))
  return text, np.array([*ids, *pad], np.int32)
