"""What a study of resurgence draws: prompts by group, each with its head."""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax.metrics.resurgence import ERASED
from unlearning_jax.shapes import captions, prompts

# How many more prompts are drawn than wanted, until enough are of one head.
_SPARE = 24


def study_rows(
  given: Sequence[Mapping[str, str]], counts: Mapping[str, int], seed: int
) -> list[dict[str, Any]]:
  """Rows as `prompts.prompt_rows` has them, with the `head` that is judged.

  Prompts of several targets take turns. `others` ask for another class of the
  targets' head; where what was erased is an attribute, for any content.

  Args:
    given: task and name of each class that was erased.
    counts: `explicit` prompts that name one; so many `words` of each other way
      to ask for one; `others`.
    seed: draws them.
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
  # A plain drawing needs no style to be asked for.
  return row["attributes"].get(head) not in (None, "plain")


def tuned_rows(
  head: str, names: Sequence[str], count: int, seed: int
) -> list[dict[str, Any]]:
  """Prompts for what a tuning set shows, class by class in turn."""
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
