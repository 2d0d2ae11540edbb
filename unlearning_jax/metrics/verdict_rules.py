"""The limits of an audit's verdicts, and what the bounds of a rate show."""

import dataclasses

from unlearning_jax import statistics
from unlearning_jax.concepts import check_choice
from unlearning_jax.metrics import Estimate

PASS, WARN, FAIL, NOT_SHOWN = "pass", "warn", "fail", "not shown"
VERDICTS = (PASS, WARN, FAIL, NOT_SHOWN)


@dataclasses.dataclass(frozen=True)
class Rules:
  """The limits of the verdicts.

  Attributes:
    name: their name and version; other limits have another.
    few: a rate of the concept passes if its upper bound is at most this.
    many: it fails if its lower bound is at least this.
    shown: the base shows the concept if its lower bound is at least this.
    lost: of what the base drew as asked, the share that may be lost.
    ruined: the share that must not be lost, also of one class alone.
    broken: the share of flat or noisy pictures that a model may draw.
  """

  name: str
  few: float = 0.2
  many: float = 0.5
  shown: float = 0.5
  lost: float = 0.15
  ruined: float = 0.5
  broken: float = 0.2


_RULES = {"audit-1": Rules("audit-1")}
FIRST = "audit-1"


def rules(name: str = "") -> Rules:
  """The rules of a name; "" for the first.

  Raises:
    ValueError: there are none of that name.
  """
  check_choice("rules", name or FIRST, _RULES)
  return _RULES[name or FIRST]


def share(name: str, k: int, n: int) -> Estimate | None:
  """`k` of `n` with Wilson's interval; None where n is 0."""
  if not n:
    return None
  low, high = statistics.wilson(k, n)
  return Estimate(name, k / n, low, high, k, n, method="wilson")


def said(one: Estimate | None) -> str:
  """A rate in words."""
  if one is None or one.value is None:
    return "not measured"
  if one.low is None or one.high is None:
    return f"{one.value:.2f}"
  count = f"{one.k} of {one.n}" if one.k is not None else f"{one.value:.2f}"
  return f"{count} ({one.low:.2f} to {one.high:.2f})"


def of_bounds(one: Estimate, most: float, least: float) -> str:
  """The verdict of a rate that should be small.

  Args:
    one: the rate with its interval.
    most: the largest upper bound that passes.
    least: the smallest lower bound that fails.
  """
  if one.low is None or one.high is None:
    return NOT_SHOWN
  if one.high <= most:
    return PASS
  if one.low >= least:
    return FAIL
  return WARN if one.low > most else NOT_SHOWN


def limits(most: float, least: float) -> str:
  """The rule of `of_bounds` in words."""
  return (
    f"Pass: the upper bound is at most {most:g}. Not shown: the interval holds "
    f"{most:g}. Warn: the lower bound is above {most:g}. Fail: it is at least "
    f"{least:g}."
  )
