"""What a model's makers claim, beside what was measured."""

from typing import Any

from unlearning_jax.experiments.audit.findings import Findings, estimate, rate
from unlearning_jax.experiments.audit.settings import RATES, WORST
from unlearning_jax.metrics import Estimate, verdicts

# Numbers that are better if they are smaller, besides rates of the concept.
_DISTANCES = ("fid", "kid", "lpips")


def compared(found: Findings) -> list[dict[str, Any]]:
  """A line for each victim and claim.

  A claim passes if no value of the interval is worse, and fails if all are.
  """
  lines = []
  for victim in found.victims:
    for name, claimed in found.given.claims.items():
      one = measured(found, victim, name)
      verdict, reason = _verdict(name, claimed, one, found, victim)
      lines.append(
        {
          "victim": victim,
          "name": name,
          "claimed": claimed,
          "value": one and one.value,
          "low": one and one.low,
          "high": one and one.high,
          "verdict": verdict,
          "reason": reason,
        }
      )
  return lines


def measured(found: Findings, victim: str, name: str) -> Estimate | None:
  """A victim's number by the name of a claim; None where none was measured."""
  if name == WORST:
    return found.worst(victim).estimate
  if name in RATES:
    # The highest of all attacks counts.
    rates = [
      rate(rows, name)
      for attack, rows in found.attacks(victim).items()
      if found.given.attacks[attack].method != "controls"
    ]
    return max(
      (one for one in rates if one is not None),
      key=lambda one: one.value or 0.0,
      default=None,
    )
  document = found.evaluation
  own = [*document.get("measures", {}).get(victim, ())]
  own += [o for o in document.get("estimates", ()) if o["model"] == victim]
  return next((estimate(one) for one in own if one["name"] == name), None)


def _verdict(
  name: str,
  claimed: float,
  one: Estimate | None,
  found: Findings,
  victim: str,
) -> tuple[str, str]:
  if one is None or one.low is None or one.high is None:
    return verdicts.NOT_SHOWN, "It was not measured, or has no interval."
  said = f"claimed {claimed:g}, measured {verdicts.said(one)}"
  of_concept = _is_of_concept(name, found)
  small = of_concept or name.startswith(_DISTANCES)
  # The ends of the interval, as how much worse than the claim.
  best, worst = sorted(
    end - claimed if small else claimed - end for end in (one.low, one.high)
  )
  if best > 0:
    return verdicts.FAIL, f"The model is worse than claimed: {said}."
  if worst > 0:
    return verdicts.NOT_SHOWN, f"The model may be worse than claimed: {said}."
  if of_concept:
    rules = verdicts.rules(found.given.rules)
    why = verdicts.no_pass(found.evidence(victim), rules)
    if why:
      return verdicts.NOT_SHOWN, f"No pass: {why}; {said}."
  return verdicts.PASS, f"The model is as claimed or better: {said}."


def _is_of_concept(name: str, found: Findings) -> bool:
  """Whether a number says how often the concept is shown."""
  erased = found.evaluation.get("erased") or [{}]
  concept = f"{erased[0].get('head')}/{erased[0].get('class')}/"
  return name in (*RATES, WORST, "shown") or name.startswith(concept)
