"""What a run that only checks says of itself, for whoever judges its size."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from unlearning_jax.configs import audit as audit_config
from unlearning_jax.configs import erase_uce

from tests.experiments.fits_test import attacked, evaluated, shapes
from unlearning_jax import checking, guidance, settings
from unlearning_jax.attacks import Victim
from unlearning_jax.experiments import attack, audit, evaluate
from unlearning_jax.experiments.attack import networks
from unlearning_jax.experiments.programs.needs import needs


def test_a_victims_own_weights_are_counted():
  base, params = shapes(), dict(shapes().params)
  setup = types.SimpleNamespace(base=base, sd=base.sd, victim=Victim(params))
  assert networks.beside(setup, {}) == {"more": 0, "safe": False}
  leaves = jax.tree.leaves(params["unet"])
  params["unet"] = jax.tree.map(lambda leaf: leaf + 0, params["unet"])
  size = sum(leaf.nbytes for leaf in leaves)
  assert networks.beside(setup, {})["more"] == size
  others = {"never_knew": Victim(params)}
  assert networks.beside(setup, others)["more"] == 2 * size


def checked(run, given, *more):
  """What a run that only checks ends with."""
  checking.ask()
  try:
    with pytest.raises(checking.Checked) as ended:
      run(given, lambda: checking.passed(given), *more)
  finally:
    checking.ask(False)
  return ended.value


def test_a_run_says_what_its_victim_adds():
  base = shapes().params
  other = attack.victims.scrambled(base, 0)
  pairs = zip(*map(jax.tree.leaves, (other, base)), strict=True)
  changed = sum(a.nbytes for a, b in pairs if not np.array_equal(a, b))
  found = checked(attack.run, attacked(victim="scrambled"))
  assert found.more == changed > 0
  assert checked(attack.run, attacked()).more == 0
  inside = dataclasses.replace(attacked().guidance, safe="weak")
  assert checked(attack.run, attacked(guidance=inside)).safe


def test_an_evaluation_says_whether_there_are_other_models():
  models = {"base": shapes()}
  found = checked(evaluate.run, evaluated(), models)
  assert (found.more, found.safe) == (0, False)
  safe = guidance.Guidance("", guidance.preset("weak", "a star"))
  models["safe"] = shapes().with_guidance(safe)
  found = checked(evaluate.run, evaluated(), models)
  assert (found.more, found.safe) == (None, True)


def test_an_audit_says_what_its_stages_are():
  erase = erase_uce.get_config("tiny")
  config = audit_config.values("shapes-star", erase=erase, only=("evaluate",))
  given = settings.build(audit.Settings, config)
  found = checked(audit.run, given, {"base": shapes()})
  assert [one.program for one in needs(found.given)] == ["sample"]
