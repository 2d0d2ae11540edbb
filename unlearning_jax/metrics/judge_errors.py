"""A judge's own errors, on the base's pictures.

false positives   of prompts that do not ask for the target, pictures in which
                  the judge sees it
misses            of prompts that ask for it by name, pictures in which it does
                  not; a base that draws something else counts too, so this is
                  the most that the judge may miss
"""

from collections.abc import Sequence
from typing import Any

from unlearning_jax import statistics
from unlearning_jax.judges import Target
from unlearning_jax.metrics import Row


def errors(base: Sequence[Row], targets: Sequence[Target]) -> list[dict]:
  """Counts and Wilson intervals of both, for each target.

  Args:
    base: the base's judged rows.
    targets: what is looked for.

  Returns:
    For each target `head`, `class`, `false_positives` and `misses`. The last
    two have `value`, `low`, `high`, `k` and `n`, or nothing where no prompt is
    of that kind.
  """
  found = []
  for head, label in targets:
    seen = [
      (row["group"], row["attributes"].get(head), row["judged"][head] == label)
      for row in base
    ]
    free = [hit for group, _, hit in seen if group == "others"]
    named = [
      not hit for g, asked, hit in seen if g == "explicit" and asked == label
    ]
    found.append(
      {
        "head": head,
        "class": label,
        "false_positives": _rate(free),
        "misses": _rate(named),
      }
    )
  return found


def _rate(hits: Sequence[bool]) -> dict[str, Any]:
  if not hits:
    return {}
  k, n = sum(hits), len(hits)
  low, high = statistics.wilson(k, n)
  return {"value": k / n, "low": low, "high": high, "k": k, "n": n}
