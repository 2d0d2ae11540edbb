"""What an erasure preserves where its author names nothing."""

import dataclasses
import warnings
from typing import Any

from unlearning_jax import concepts, erasures, extensions, lists
from unlearning_jax.concepts import Concept, Unsaid
from unlearning_jax.model import Model

# Hyperparameters that weigh preserved phrases beside `erase_scale`.
_WEIGHTS = ("preserve_scale", "uce_preserve_scale")


def supplied(
  model: Model, method: str, listed: tuple[Concept, ...]
) -> tuple[tuple[Concept, ...], dict[str, Any], str]:
  """Concepts that preserve something, its weight, and what was supplied.

  Nothing is supplied to a method that preserves no phrases, nor where any
  concept names what it preserves, be it `()`. A supplied list weighs as much as
  all erased phrases together: a long one would else keep the concept too.

  Args:
    model: its world knows a list; other models get a shipped one.
    method: the erasure.
    listed: what is erased.
  """
  known = {f.name for f in dataclasses.fields(erasures.module(method).Hparams)}
  if "preserve_scale" not in known or not all(
    isinstance(one.preserve, Unsaid) for one in listed
  ):
    return listed, {}, ""
  if model.source in extensions.worlds():
    name, held = model.source, extensions.world(model.source).held(listed)
  else:
    artists = {one.task for one in listed} == {"art"}
    name = "artists_1734" if artists else "everyday"
    held = concepts.without_erased(
      lists.load(name), [one.erase for one in listed]
    )
  note = (
    f"{len(held)} phrases that {name!r} supplies are preserved, as none were "
    "named; Concept(..., preserve=()) preserves none"
  )
  warnings.warn(f"erase: {note}", stacklevel=3)
  filled = tuple(dataclasses.replace(one, preserve=held) for one in listed)
  weighed = _WEIGHTS if "erase_scale" in known else ()
  weight = len(listed) / len(held)
  return filled, {k: weight for k in weighed if k in known}, note
