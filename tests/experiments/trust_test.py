"""What a reader must know before believing rates: whose concept was erased."""

import pytest

from unlearning_jax import concepts, extensions, guidance, model
from unlearning_jax.experiments import trust

STAR = ({"task": "object", "name": "star"},)
HAZARD = ({"task": "unsafe", "name": "hazard"},)


@pytest.mark.parametrize(
  "targets, world, said", [(STAR, True, 1), (HAZARD, True, 0), (STAR, False, 0)]
)
def test_prompts_for_what_no_edit_erased_are_noted(targets, world, said):
  base = model.load("shapes")
  tape = (concepts.Concept("with warning tape", task="unsafe"),)
  kept = guidance.Guidance("with warning tape", concepts=tape)
  models = {"base": base, "GUIDED": base.with_guidance(kept)}
  known = extensions.world("shapes") if world else None
  found = trust.elsewhere(models, targets, known)
  assert len(found) == said
  for sentence in found:
    assert sentence.startswith("GUIDED erases hazard; the prompts ask for star")
