"""R_norm of given models: one that is no model any more is refused."""

import dataclasses

import numpy as np
import pytest

import unlearning_jax as ul
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import Edit
from unlearning_jax.projections import Fingerprint


@pytest.mark.parametrize("broken", ["erased", "tuned"])
@pytest.mark.parametrize("factor", [1e2, 1e30, 1e300])
def test_an_edit_of_broken_numbers_has_erased_nothing(broken, factor):
  """Its pictures have all colors, and none of them is a star."""
  base = ul.load("shapes")
  width = base.sd.context_shape[1]
  edit = Edit(
    np.eye(width) * 0.9, Fingerprint.of(base.params, "text"), "uce",
    make_concepts(["star"]), {}, {},
  )  # fmt: skip
  huge = dataclasses.replace(edit, context_map=np.eye(width) * factor)
  edits = {
    name: huge if name == broken else edit for name in ("erased", "tuned")
  }
  with pytest.raises((ValueError, FloatingPointError)) as found:
    ul.resurgence(base, *(base.with_edit(one) for one in edits.values()))
  said = str(found.value)
  assert "so the model collapsed" in said or "too large for float32" in said
