"""Where the adversarial tokens go, as one gather of a fixed shape.

A layout has an index for each of the l positions of the new prompt. An index
below l names a position of the padded prompt; one from l on names an
adversarial slot. So prompts of all lengths, and all ways to insert, share one
compiled program.

Positions count tokens, as in UnlearnDiffAtk's release. `mid_k` and the modes
like it can therefore split a word, and its pieces may then be tokenized in
another way.
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
  """The prompt leaves no room for the adversarial tokens and an end of text."""


def slots(mode: str, n: int, k: int) -> int:
  """How many of the `k` slots a prompt of `n` tokens uses."""
  return min(k, n // 3 + 1) if mode == "every_three" else k


def total(mode: str, n: int, k: int) -> int:
  """How many tokens a prompt of `n` tokens has with its slots."""
  return slots(mode, n, k) + (0 if mode == "replace" else n)


def layout(
  mode: str, n: int, k: int, length: int, prompt: str
) -> Int[np.ndarray, " l"]:
  """The gather that inserts up to `k` tokens into a prompt.

  Args:
    mode: where the slots go.
      `prefix_k`, `suffix_k`, `mid_k`: before the prompt, after it, halfway.
      `insert_k`: spread evenly.
      `per_k_words`: one before each of k - 1 groups of three tokens, and one
        before the rest.
      `every_three`: one before every three tokens, floor(n / 3) + 1 in all, as
        in P4D-K.
      `replace`: in place of the prompt, as in P4D-N.
    n: the prompt's tokens without start and end of text.
    k: the number of slots.
    length: l, the tokens that the text encoder reads, start and end included.
    prompt: the text, for the error message.

  Returns:
    Indices into [padded prompt, slots].

  Raises:
    PromptTooLong: n + k tokens leave no room for the end of text.
    ValueError: an unknown mode.
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
  # The rest is the prompt's end of text and its padding.
  rest = range(n + 1, n + 1 + length - 1 - len(body))
  return np.array([0, *body, *(min(i, length - 1) for i in rest)], np.int32)


def between(
  before: int, n: int, k: int, length: int, prompt: str
) -> Int[np.ndarray, " l"]:
  """Like `layout`, with the `k` slots after the first `before` tokens.

  Raises:
    PromptTooLong: n + k tokens leave no room for the end of text.
  """
  source = layout("prefix_k", n, k, length, prompt)
  body = [*range(1, before + 1), *range(length, length + k)]
  body += range(before + 1, n + 1)
  source[1 : n + k + 1] = body
  return source


def _body(mode: str, words: list[int], new: list[int]) -> list[int]:
  """Positions of the prompt and slots, in the new prompt's order."""
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
  """Inserts adversarial ids or embeddings into prompts.

  Args:
    ids: the prompts' ids or embeddings; numpy or traced.
    new: what the slots hold.
    source: layouts.
  """
  xp = ids.__array_namespace__()
  both = xp.concatenate([ids, new], axis=1)
  index = source.reshape(source.shape + (1,) * (ids.ndim - 2))
  return xp.take_along_axis(both, index, axis=1)
