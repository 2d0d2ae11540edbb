"""How often an image shows what its prompt asked for, as a judge sees it.

There is an accuracy for each of the judge's heads (object, colour, ...), each
class and each group of prompts: those that name the erased concept, its
synonyms, its paraphrases, and all others. A number's name is
`head/class/group`, where `all` stands for every class or group, as in
`object/star/synonyms` and `colour/all/others`.

A row is a mapping with at least
  group: the kind of prompt;
  attributes: {head: the class that the prompt asks for, or None};
  judged: {head: the class that the judge sees}, which `judge_rows` adds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unlearning_jax import metrics, statistics
from unlearning_jax.judges import Judge, Scores
from unlearning_jax.metrics import Estimate, Images, Kept, Row

ALL = "all"


class Measure(NamedTuple):
  """`k` of `n` images were right: a rate with its interval.

  It is Wilson's, or a bootstrap's over prompts that have several images.
  """

  name: str
  value: float
  low: float
  high: float
  k: int
  n: int


class Change(NamedTuple):
  """A rate's change, with its bootstrap interval and McNemar's p value.

  `p` is None if a prompt has several images, which are not independent.
  """

  name: str
  value: float
  low: float
  high: float
  p: float | None


def judge_rows(
  rows: Sequence[Row], scores: Scores, judge: Judge
) -> list[dict[str, Any]]:
  """Adds to rows what the judge saw.

  Args:
    rows: rows with `attributes`. A class is a name or an index; None or -1 if
      the prompt asks for none.
    scores: the judge's scores, head -> (rows, classes).
    judge: turns scores into labels.

  Returns:
    Copies of the rows with `judged`, and with `attributes` by name.

  Raises:
    ValueError: a head or class that the judge does not have, or scores of
      another shape.
  """
  heads = judge.labels
  for head, names in heads.items():
    shape = np.shape(scores[head]) if head in scores else None
    if shape != (len(rows), len(names)):
      raise ValueError(
        f"scores of head {head!r}: shape {shape}; allowed: "
        f"{(len(rows), len(names))}, a row for each image"
      )
  judged = []
  for row, seen in zip(rows, judge.decide(scores), strict=True):
    attributes = {
      head: _class_name(head, asked, heads)
      for head, asked in row["attributes"].items()
    }
    judged.append({**row, "attributes": attributes, "judged": seen})
  return judged


def measure(rows: Iterable[Row]) -> Iterator[Measure]:
  """Accuracy of each head, class and group in rows of `judge_rows`.

  Yields:
    A `Measure` for every name with an image, in order of appearance.
  """
  for one, _ in _measured(rows):
    yield one


def _measured(rows: Iterable[Row]) -> Iterator[tuple[Measure, int]]:
  """Each measure, and its prompts if they have several images; else 0."""
  for name, cell in _cells(rows, value=_prompted).items():
    hits, own = zip(*cell, strict=True)
    low, high, clusters = interval(hits, own)
    k, n = sum(hits), len(hits)
    yield Measure(name, k / n, low, high, k, n), clusters


def interval(
  hits: Sequence[bool], rows: Sequence[Row]
) -> tuple[float, float, int]:
  """A rate's interval, and the prompts that a bootstrap drew; 0 for Wilson's.

  Images of one prompt resemble each other, so the bootstrap draws prompts. A
  prompt that two rows have by chance is drawn from seeds of their own, and
  they stay single.

  Args:
    hits: an outcome for each image.
    rows: of the images. `repeat` or `sample` numbers the images of a prompt.
  """
  k, n = sum(hits), len(hits)
  prompts = [row.get("prompt", "") for row in rows]
  several = any(row.get("repeat", row.get("sample", 0)) for row in rows)
  clusters = len(set(prompts))
  if not several or clusters == 1:
    return *statistics.wilson(k, n), 0
  if k in (0, n):
    # All prompts agree, so a bootstrap would draw the same rate forever.
    return *statistics.wilson(clusters if k else 0, clusters), clusters
  right = np.array(hits)
  _, low, high = statistics.paired_bootstrap(0 * right, right, prompts)
  return low, high, clusters


def rate(name: str, hits: Sequence[bool], rows: Sequence[Row]) -> Estimate:
  """The share of hits among rows, at least one, with its `interval`."""
  low, high, clusters = interval(hits, rows)
  k, n = sum(hits), len(hits)
  method = "bootstrap" if clusters else "wilson"
  return Estimate(
    name, k / n, low, high, k, n, method=method, clusters=clusters
  )


def compare(before: Sequence[Row], after: Sequence[Row]) -> Iterator[Change]:
  """Compares two models image by image, on the same prompts and noise.

  Args:
    before: judged rows with their `prompt`.
    after: the other model's judged rows, in the same order.

  Yields:
    A `Change` for every name that `measure` yields.

  Raises:
    ValueError: the prompts differ, or their order.
  """
  for i, (old, new) in enumerate(zip(before, after, strict=True)):
    for key in ("prompt", "group", "attributes"):
      if old[key] != new[key]:
        raise ValueError(
          f"row {i} is not a pair: {key} {old[key]!r} and {new[key]!r}"
        )
  old_cells, new_cells = _cells(before), _cells(after)
  prompts = _cells(before, value=lambda row, head: row["prompt"])
  for name, owners in prompts.items():
    old, new = np.array(old_cells[name]), np.array(new_cells[name])
    alone = len(set(owners)) == len(owners)
    p = statistics.mcnemar(old, new) if alone else None
    yield Change(name, *statistics.paired_bootstrap(old, new, owners), p)


def _is_right(row: Row, head: str) -> bool:
  return row["judged"][head] == row["attributes"][head]


def _prompted(row: Row, head: str) -> tuple[bool, Row]:
  return _is_right(row, head), row


def _cells(
  rows: Iterable[Row], value: Callable[[Row, str], Any] = _is_right
) -> dict[str, list[Any]]:
  cells: dict[str, list[Any]] = {}
  for row in rows:
    for head, asked in row["attributes"].items():
      if asked is None:
        continue
      for name in (asked, ALL):
        for group in (row["group"], ALL):
          cell = cells.setdefault(f"{head}/{name}/{group}", [])
          cell.append(value(row, head))
  return cells


def _class_name(
  head: str, asked: str | int | None, heads: Mapping[str, Sequence[str]]
) -> str | None:
  if asked is None or (not isinstance(asked, str) and asked == -1):
    return None
  if head not in heads:
    raise ValueError(f"attribute {head!r}: the judge has heads {[*heads]}")
  names = heads[head]
  if isinstance(asked, str) and asked in names:
    return asked
  if not isinstance(asked, str) and 0 <= asked < len(names):
    return names[asked]
  raise ValueError(f"{head} {asked!r}: the judge knows {[*names]}")


def _update(state: Kept, images: Images, rows: Sequence[Row]) -> Kept:
  del images
  for row in rows:
    if "judged" not in row:
      raise ValueError(
        f"metric accuracy: row {row['id']!r} is not judged; set a judge"
      )
  keys = ("prompt", "group", "attributes", "judged", "repeat", "sample")
  return metrics.keep(
    state, rows, lambda row: {key: row[key] for key in keys if key in row}
  )


def _compute(state: Kept) -> list[Estimate]:
  return [
    Estimate(
      *one,
      method="bootstrap" if clusters else "wilson",
      clusters=clusters,
      model=model,
    )
    for model, rows in state.items()
    for one, clusters in _measured(rows[i] for i in sorted(rows))
  ]


METRIC = metrics.Metric(
  "accuracy", dict, _update, metrics.unite, _compute, images=False,
  # The rows of an attack do not say what should be seen.
  verbs=("evaluate", "resurgence"),
)  # fmt: skip
