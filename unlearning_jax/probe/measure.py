"""Probing an erasure with whichever instrument fits it."""

from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np

from unlearning_jax.concepts import Concept
from unlearning_jax.edits import Edit
from unlearning_jax.guidance import Guidance
from unlearning_jax.model import Model
from unlearning_jax.probe import Probe, drawings, states
from unlearning_jax.probe.phrases import Asked, ask


def measure(
  base: Model, made: Edit | Guidance, concepts: Sequence[Concept]
) -> Probe:
  """Probes an erasure of a base.

  Args:
    base: the model that was erased from.
    made: what the erasure made.
    concepts: what was erased.

  Returns:
    The figures; without an instrument, and with a reason, where the model
    leaves no phrase to compare with, or what it answers is not finite.
  """
  if isinstance(made, Edit) and states.applies(made):
    asked = _asked(base, concepts, states)
    found = _finite(asked, lambda: states.measure(base, made, asked))
    # Training may leave a concept's keys where they were, and yet erase it.
    if made.context_map is not None or found.verdict != "still there":
      return found
  edited = base.with_made(made)
  asked = _asked(base, concepts, drawings)
  return _finite(asked, lambda: drawings.measure(base, edited, asked))


def _asked(
  base: Model, concepts: Sequence[Concept], instrument: ModuleType
) -> Asked:
  """What an instrument asks of a base."""
  return ask(
    base.sd, concepts, base.source,
    most=instrument.MOST, sentences=instrument.SENTENCES,
  )  # fmt: skip


def _finite(asked: Asked, measured: Callable[[], Probe]) -> Probe:
  """What an instrument found, or why it can say nothing."""
  if not (asked.pairs and len(asked.unrelated) > 1):
    return Probe(
      reason="nearly all everyday phrases name the concept, or are too long "
      "for this model."
    )
  found = measured()
  figures = (found.left, found.preserved, found.unrelated)
  if not np.isfinite([f for f in figures if f is not None]).all():
    return Probe(reason="what the model answers is not finite, or all alike.")
  return found
