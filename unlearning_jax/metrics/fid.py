"""Frechet Inception distance: do pictures look like photographs as a crowd?

  |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

of the means and covariances of Inception's features. A number's name carries
its stack and its count, as `fid/t2i/10000`, because a distance falls with the
count and changes with the resize: others do not compare.
"""

from collections.abc import Sequence
from functools import partial

from unlearning_jax import metrics
from unlearning_jax.concepts import check_choice
from unlearning_jax.metrics import (
  Estimate,
  Images,
  Row,
  features,
  moments,
  references,
)
from unlearning_jax.metrics.features import Features
from unlearning_jax.metrics.moments import Gaussian, State
from unlearning_jax.metrics.references import BASE, Reference

NEEDS = features.NEEDS
VERBS = ("evaluate", "measure")
_FEW = ("refuse", "allow")


def metric(
  stack: str = "t2i",
  reference: str = "",
  reference_stack: str = "",
  reference_count: int = 0,
  count: int = 0,
  few: str = "refuse",
  network: str = features.NETWORK,
  judges_dir: str = "",
) -> metrics.Metric:
  """FID of each model's pictures to a reference.

  Args:
    stack: how pictures are resized: t2i, clean, pytorch-fid, torch-fidelity.
    reference: a folder of photographs, an `.npz`, or base.
    reference_stack: of an `.npz` that does not say it.
    reference_count: pictures that the reference must be made of; 0 for any.
    count: pictures that each model must draw; 0 for any.
    few: `allow` for a number from no more pictures than there are features,
      which is then called rank-deficient.
    network: inception-2015, or `package.module:name` of your own `Features`.
    judges_dir: the folder of weights; "" for the environment's.

  Raises:
    ValueError: a file is missing, or the reference does not fit.
  """
  compared = Reference("fid", reference, reference_stack, reference_count)
  return made(
    "fid", compared, features.load("fid", network, stack, judges_dir),
    count, few,
  )  # fmt: skip


def made(
  name: str, reference: Reference, of: Features, count: int, few: str
) -> metrics.Metric:
  """The metric of that name.

  Args:
    name: fid or fid-to-base.
    reference: what is compared with.
    of: turns pictures into features.
    count: pictures that each model must draw; 0 for any.
    few: refuse or allow.

  Raises:
    ValueError: the reference does not fit.
  """
  check_choice(f"metric {name}: few", few, _FEW)
  held = reference.check(of)
  return metrics.Metric(
    name, dict, partial(_update, of), moments.merge,
    partial(_compute, name, reference, of, count, few),
    verbs=VERBS, needs=reference.needs,
    identity=f"{of.identity}, reference {held}",
  )  # fmt: skip


def _update(of: Features, state: State, images: Images, rows: Sequence[Row]):
  return moments.add(state, of(images), rows)


def _compute(
  name: str, reference: Reference, of: Features, count: int, few: str,
  state: State,
) -> list[Estimate]:  # fmt: skip
  found = []
  for model, sums in sorted(state.items()):
    if reference.is_base and model == BASE:
      continue
    n = int(sums["n"])
    other = _other(reference, of, state)
    why = _refused(reference, other, n, count, of.width, few)
    scant = min(n, other.n if other else n) <= of.width
    kind = f"{name}-rank-deficient" if scant and few == "allow" else name
    value, method = None, "none: one distance of two sets"
    if other:
      method += f", to {other.n} pictures of {reference.place}"
    if other and not why:
      value = moments.frechet(moments.gaussian(sums), other)
    found.append(
      Estimate(
        f"{kind}/{of.name}/{n}",
        value,
        n=n,
        unit="distance",
        method=method,
        failed=why,
        model=model,
      )
    )
  count = sum(int(sums["n"]) for sums in state.values())
  return found or [references.nothing(f"{name}/{of.name}", count)]


def _other(reference: Reference, of: Features, state: State) -> Gaussian | None:
  if not reference.is_base:
    return reference.gaussian(of)
  return moments.gaussian(state[BASE]) if BASE in state else None


def _refused(
  reference: Reference, other: Gaussian | None, n: int, count: int, width: int,
  few: str,
) -> str:  # fmt: skip
  """Why there is no number; "" where there is one."""
  if other is None:
    return "the base drew nothing to compare with"
  if reference.is_base and other.n != n:
    return f"the base drew {other.n} pictures, and this model {n}"
  if count and n != count:
    return f"{n} pictures, and {count} are wanted: others do not compare"
  least = min(n, other.n)
  if least < 2:
    return f"{least} picture: two have a covariance at the least"
  if least <= width and few == "refuse":
    return (
      f"{least} pictures: the covariance of {width} features needs more than "
      f"{width}; few=allow computes a number of that name"
    )
  return ""
