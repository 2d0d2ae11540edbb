"""Where the adversarial tokens go, as one gather of a fixed shape.

A layout says for every position of the new prompt where it comes from: from 0
to l - 1 a position of the padded prompt, from l on an adversarial slot. The
prompt's length and the way of insertion are then data, not shapes.

Cuts are counted in tokens, as published: `mid_k` and the like can fall inside
a word, whose pieces then do not come back from the text as they were.
"""

from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from unlearning_jax.concepts import check_choice

MODES = (
  "prefix_k",
  "suffix_k",
  "mid_k",
  "insert_k",
  "per_k_words",
  "every_three",
  "replace",
)


class PromptTooLong(ValueError):
  """A prompt that leaves no room for the adversarial tokens and an end."""


def slots(mode: str, n: int, k: int) -> int:
  """How many of at most `k` slots a prompt of `n` tokens uses."""
  return min(k, n // 3 + 1) if mode == "every_three" else k


def total(mode: str, n: int, k: int) -> int:
  """Tokens of a prompt of `n` with its slots."""
  return slots(mode, n, k) + (0 if mode == "replace" else n)


def layout(
  mode: str, n: int, k: int, length: int, prompt: str
) -> Int[np.ndarray, " l"]:
  """The gather that inserts up to `k` tokens into a prompt.

  Args:
    mode: `prefix_k`, `suffix_k`, `mid_k` (halfway), `insert_k` (evenly
      spread), `per_k_words` (one before each of k - 1 groups of three tokens
      and one before the rest), `every_three` (one before every three tokens,
      floor(n / 3) + 1 in all: P4D-K) or `replace` (the prompt is dropped:
      P4D-N).
    n: the prompt's tokens, start and end not counted.
    k: slots.
    length: of the text encoder, start and end counted.
    prompt: for the message.

  Returns:
    Indices into [padded prompt, slots].

  Raises:
    PromptTooLong: n + k tokens leave no room for the end of text.
    ValueError: unknown mode.
  """
  check_choice("insertion", mode, MODES)
  used, kept = slots(mode, n, k), 0 if mode == "replace" else n
  if total(mode, n, k) > length - 2:
    raise PromptTooLong(
      f"prompt {prompt!r} has {n} tokens, insertion={mode!r} adds {used}; "
      f"allowed together: {length - 2}. Shorten it or take a smaller k"
    )
  words = list(range(1, kept + 1))
  new = list(range(length, length + used))
  body = _body(mode, words, new)
  # Whatever follows is the prompt's own end and padding.
  rest = range(n + 1, n + 1 + length - 1 - len(body))
  return np.array([0, *body, *(min(i, length - 1) for i in rest)], np.int32)


def between(
  before: int, n: int, k: int, length: int, prompt: str
) -> Int[np.ndarray, " l"]:
  """The gather that puts `k` slots after the first `before` of `n` tokens.

  Raises:
    PromptTooLong: as `layout`.
  """
  source = layout("prefix_k", n, k, length, prompt)
  body = [*range(1, before + 1), *range(length, length + k)]
  body += range(before + 1, n + 1)
  source[1 : n + k + 1] = body
  return source


def _body(mode: str, words: list[int], new: list[int]) -> list[int]:
  """Prompt positions and slots in the order of the new prompt."""
  n, k = len(words), len(new)
  if mode == "suffix_k":
    return words + new
  if mode == "mid_k":
    return words[: n // 2] + new + words[n // 2 :]
  if mode == "insert_k":
    size = n // (k + 1)
    cuts = [words[size * i : size * (i + 1)] for i in range(k)]
    spread = [i for cut, slot in zip(cuts, new, strict=True)
              for i in (*cut, slot)]  # fmt: skip
    return spread + words[size * k :]
  if mode in ("per_k_words", "every_three"):
    mixed = []
    for i, slot in enumerate(new[:-1]):
      mixed += [slot, *words[3 * i : 3 * (i + 1)]]
    return [*mixed, *new[-1:], *words[3 * max(k - 1, 0) :]]
  return new + words


def splice(
  ids: Shaped[Any, "b l ..."],
  new: Shaped[Any, "b k ..."],
  source: Int[Any, "b l"],
) -> Any:
  """Prompts with the adversarial tokens put in; host or traced arrays."""
  xp = ids.__array_namespace__()
  both = xp.concatenate([ids, new], axis=1)
  index = source.reshape(source.shape + (1,) * (ids.ndim - 2))
  return xp.take_along_axis(both, index, axis=1)
