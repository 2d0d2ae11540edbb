"""Diffusion Classifier: its grid, its race, its share as an attack's proxy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.attacks_cases import make_world, table
from unlearning_jax import attacks, schedules, sharding, stable_diffusion
from unlearning_jax.attacks.engine import lanes, rows
from unlearning_jax.metrics import diffusion_classifier as dc

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def world():
  sd, victim, original = make_world()
  contexts = stable_diffusion.encode_prompts(
    sd, victim.params, ["a star", "a circle", "a red fish", "two", "a house"]
  )
  latents = jax.random.normal(jax.random.key(0), sd.latent_shape)
  return sd, victim, original, contexts, latents


def test_the_grid_and_the_stages_are_the_published_ones():
  np.testing.assert_array_equal(dc.grid(1000, 500), np.arange(1, 1000, 2))
  np.testing.assert_array_equal(dc.grid(1000, 4), [125, 375, 625, 875])
  first = dc.grid(1000, 500)[dc.stage_indices(500, 50)]
  np.testing.assert_array_equal(first, np.arange(11, 1000, 20))
  np.testing.assert_array_equal(dc.stage_indices(500, 500), np.arange(500))
  with pytest.raises(ValueError, match="timesteps=1001"):
    dc.grid(1000, 1001)


def by_hand(world, count, criterion="l2"):
  """Every prompt at every timestep, as the definition has it."""
  sd, victim, _, contexts, latents = world
  found = np.zeros((len(contexts), count))
  call = jax.jit(
    lambda x, t, c: stable_diffusion.predict_noise(sd, victim.params, x, t, c)
  )
  for i, t in enumerate(dc.grid(1000, count)):
    noise = jax.random.normal(jax.random.fold_in(KEY, i), sd.latent_shape)
    t = jnp.array([t])
    noisy = schedules.add_noise(sd.schedule, latents[None], noise[None], t)
    for p, context in enumerate(contexts):
      error = np.asarray(noise - call(noisy, t, context[None])[0], np.float64)
      error = np.abs(error) if criterion == "l1" else error**2
      found[p, i] = error.mean()
  return found


def classify(world, contexts=None, **options):
  sd, victim, _, every, latents = world
  contexts = every if contexts is None else contexts
  return dc.classify(
    sd, victim, latents, contexts, key=KEY, batch_size=10, **options
  )


@pytest.mark.parametrize("criterion", dc.CRITERIA)
def test_one_stage_is_the_least_mean_error_of_all(criterion, world):
  errors = by_hand(world, 4, criterion)
  found = classify(world, stages=((4, 1),), criterion=criterion)
  np.testing.assert_allclose(found.errors, errors.mean(1), rtol=1e-4)
  assert found.index == errors.mean(1).argmin()
  np.testing.assert_array_equal(found.counts, 4)


def test_the_race_leaves_prompts_behind(world):
  errors = by_hand(world, 8)
  early = dc.stage_indices(8, 2)
  kept = np.sort(np.argsort(errors[:, early].mean(1), kind="stable")[:2])
  found = classify(world, stages=((2, 2), (8, 1)))
  assert found.index == kept[errors[kept].mean(1).argmin()]
  counts = np.full(5, 2)
  counts[kept] = 8
  np.testing.assert_array_equal(found.counts, counts)
  # Another order of the prompts is the same race.
  order = np.array([4, 2, 0, 3, 1])
  again = classify(world, world[3][order], stages=((2, 2), (8, 1)))
  assert order[again.index] == found.index
  np.testing.assert_allclose(again.errors, found.errors[order], rtol=1e-4)


def test_shared_noise_makes_differences_surer(world):
  """The spread of E(a) - E(b) with one noise for both, and with two."""
  errors = by_hand(world, 8)
  same = (errors[0] - errors[1]).std()
  apart = (errors[0] - np.roll(errors[1], 1)).std()
  assert same < apart / 2


@pytest.mark.parametrize("stages", [(), ((4, 0),), ((0, 1),), ((8, 2), (4, 1))])
def test_stages_that_cannot_be_run(stages, world):
  with pytest.raises(ValueError, match="stages="):
    classify(world, stages=stages)
  with pytest.raises(ValueError, match="criterion='l3'"):
    classify(world, stages=((2, 1),), criterion="l3")


# --- As a proxy ---


def test_the_share_is_0_for_the_prompt_itself_and_1_for_the_original(world):
  sd, victim, original, _, _ = world
  listed = table(sd)[:2]
  own = [row.request(row.prompt) for row in listed]
  proxy = dc.Proxy(sd, victim, original, 4, KEY, batch_size=8)
  np.testing.assert_allclose(proxy(listed, own), 0, atol=1e-5)
  # As seen by the original itself nothing was erased.
  proxy = dc.Proxy(sd, original, original, 4, KEY, batch_size=8)
  assert proxy(listed, own) == [1.0, 1.0]


class Stub:
  """Shares that are told beforehand, by how often a row was asked about."""

  timesteps = 5

  def __init__(self, shares):
    self.shares, self.asked = shares, {}

  def __call__(self, rows_, requests):
    out = []
    for row, request in zip(rows_, requests, strict=True):
      assert row.prompt in request.prompt
      turn = self.asked[row.id] = self.asked.get(row.id, -1) + 1
      out.append(self.shares[turn])
    return out


def test_a_poor_prompt_gets_no_image_but_the_last_does(world):
  sd, victim, original, _, _ = world
  seen = []

  def check(requests):
    seen.extend(requests)
    return [rows.Verdict(False, 0.25) for _ in requests]

  attack = attacks.bind("controls", {"num_tokens": 2, "blocks": 4})
  found = lanes.attack_rows(
    sd, victim, original, attack, table(sd)[:2], check, KEY,
    lanes.Options(
      lanes=2, mesh=sharding.make_mesh(devices=jax.devices()[:1]),
      proxy=Stub([0.1, 0.7, 0.4, 0.2]), threshold=0.5,
    ),
  )  # fmt: skip
  for record in found:
    assert record["status"] == "failure" and record["images"] == 3
    assert [b["diffusion_classifier"] for b in record["blocks"]] == [
      0.1,
      0.7,
      0.4,
      0.2,
    ]
    assert ["score" in b for b in record["blocks"]] == [
      False, True, False, True,
    ]  # fmt: skip
    # Once for the row's two ends, then for each prompt.
    assert record["diffusion_classifier_calls"] == 5 * (3 + 1 + 1 + 1)
  assert len(seen) == 2 * 3
