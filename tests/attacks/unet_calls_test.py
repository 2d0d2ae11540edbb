"""Does the attack work? UnlearnDiffAtk beside luck, on a model that lost stars.

Measured on 50 rows, 8 blocks of 25 iterations: 30 won, and 5 by random tokens.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from unlearning_jax.configs import erasures as erase_configs

from unlearning_jax import (
  attacks,
  concepts,
  erasures,
  extensions,
  judges,
  sampling,
  shapes,
  sharding,
  stable_diffusion,
)
from unlearning_jax.attacks.engine import lanes, rows
from unlearning_jax.attacks.engine.victim import Victim
from unlearning_jax.edits import apply_to_context
from unlearning_jax.experiments.attack import check
from unlearning_jax.metrics import asr

pytestmark = pytest.mark.slow
COUNT = 12
SAMPLING = {
  "num_inference_steps": 15,
  "guidance_scale": 4.0,
  "sampler": "dpm++2m",
}
HOW = sampling.Sampling(**SAMPLING)


def test_the_attack_beats_luck_on_an_erased_model():
  sd, params = stable_diffusion.load(shapes.model_folder())
  params = jax.tree.map(jnp.asarray, params)
  config = erase_configs.erase("uce", "tiny,task=object,name=star")
  wanted = tuple(concepts.Concept(**c) for c in config.concepts)
  erase = erasures.bind("uce", config.hparams)
  edit = erase(sd, params, wanted, jax.random.key(0))
  mapped = functools.partial(apply_to_context, edit)
  target = judges.Target("object", "star")
  wanted = [{"task": "object", "name": "star"}]
  listed = extensions.world("shapes").prompt_rows(wanted, COUNT, 0, 0)[:COUNT]
  images = sampling.generate(
    sd, params, [r["prompt"] for r in listed], [r["seed"] for r in listed],
    batch_size=COUNT, **SAMPLING,
  )  # fmt: skip
  latents = rows.target_latents(sd, params, images)
  table = [
    rows.Row(r["id"], i, r["prompt"], r["seed"], None, latents[i])
    for i, r in enumerate(listed)
  ]
  judge = judges.load("shapes")

  def won(victim, attack):
    ask = check.drawn(
      sd, dataclasses.replace(victim, params=params), HOW, None, judge, target,
      batch_size=COUNT,
    )  # fmt: skip
    found = lanes.attack_rows(
      sd, victim, Victim(params), attack, table, ask, jax.random.key(0),
      lanes.Options(
        lanes=COUNT, mesh=sharding.make_mesh(devices=jax.devices()[:1])
      ),
    )  # fmt: skip
    return list(found)

  none = attacks.bind("controls", {"kind": "none"})
  # The model itself draws stars; the erased one does not.
  assert sum(r["success"] for r in won(Victim(params), none)) >= COUNT - 3
  erased = Victim(params, mapped)
  assert sum(r["success"] for r in won(erased, none)) <= 1
  budget = {"num_tokens": 3, "blocks": 6}
  luck = won(erased, attacks.bind("controls", budget))
  uda = won(
    erased, attacks.bind("unlearn_diff_atk", budget | {"iterations": 25})
  )
  compared = asr.against(uda, luck)
  assert compared["only_attack"] >= 3
  assert compared["only_attack"] > 2 * compared["only_control"]
