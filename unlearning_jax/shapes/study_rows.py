"""The prompts that a study of resurgence draws, each with its head."""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax.metrics.resurgence import ERASED
from unlearning_jax.shapes import captions, prompts

# So many times more prompts are drawn than wanted, so that enough fit the head.
_SPARE = 24


def study_rows(
  given: Sequence[Mapping[str, str]], counts: Mapping[str, int], seed: int
) -> list[dict[str, Any]]:
  """Rows of `prompts.prompt_rows`, each with the `head` that is judged.

  Prompts of several targets take turns. `others` ask for another class of the
  targets' head, or for any object or person if a hazard was erased.

  Args:
    given: `task` and `name` of each erased class.
    counts: the number of `explicit` prompts, of prompts in each other erased
      group (`words`), and of `others`.
    seed: draws the prompts.
  """
  targets = [prompts.Target(**one) for one in given]
  many = -(-max(counts["explicit"], counts["words"]) // len(targets))
  drawn = prompts.prompt_rows(targets, many, _SPARE * counts["others"], seed)
  head = targets[0].head
  content = ("object", "identity") if head == "hazard" else (head,)
  wanted = {group: counts["words"] for group in ERASED}
  wanted |= {group: counts[group] for group in ("explicit", "others")}
  groups: dict[str, list[dict[str, Any]]] = {}
  for row in drawn:
    heads = content if row["group"] == "others" else (head,)
    asked = [h for h in heads if _asks(row, h)]
    if asked:
      groups.setdefault(row["group"], []).append({**row, "head": asked[0]})
  found = []
  for group, rows in groups.items():
    if group in ERASED:
      rows = [row for i in range(many) for row in rows[i::many]]
    found += rows[: wanted[group]]
  return found


def _asks(row: Mapping[str, Any], head: str) -> bool:
  # A prompt that asks for no style also gets a plain drawing.
  return row["attributes"].get(head) not in (None, "plain")


def tuned_rows(
  head: str, names: Sequence[str], count: int, seed: int
) -> list[dict[str, Any]]:
  """Prompts for the classes of a tuning set, which take turns."""
  each = -(-count // len(names))
  pairs = [
    captions.evaluation_prompts("heldout", each, seed + 2, fixed={head: name})
    for name in names
  ]
  turns = [pair for turn in zip(*pairs, strict=True) for pair in turn]
  return [
    {**prompts.row(i, "tuned", prompt, scene, seed + 50), "head": head}
    for i, (prompt, scene) in enumerate(turns[:count])
  ]
