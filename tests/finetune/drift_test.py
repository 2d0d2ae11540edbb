"""Diagnostics of tuned weights: against what they must be at the two ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax.finetune import drift
from unlearning_jax.schedules import Schedule

KV, OTHER = "attn2/to_k/kernel", "conv/kernel"


def tree(key, values=True):
  rng = np.random.default_rng(key)
  leaves = {"conv": {"kernel": rng.normal(size=(3, 3))}}
  leaves["attn2"] = {"to_k": {"kernel": rng.normal(size=(4, 3))}}
  return {"unet": leaves}


def mixed(a, b, share):
  return jax.tree.map(lambda x, y: (1 - share) * x + share * y, a, b)


BASE, ERASED, OTHERS = tree(0), tree(1), tree(2)
STATES = np.random.default_rng(3).normal(size=(5, 4))


def test_the_way_back_is_counted_from_nought_to_one():
  for share in (0.0, 0.25, 1.0):
    found = drift.weight_drift(BASE, ERASED, mixed(ERASED, BASE, share), STATES)
    assert found["reversion"] == pytest.approx(share)
    assert found["reversion_prompt"] == pytest.approx(share)
    assert found["output_gap"] == pytest.approx(1 - share)
    assert found["moved"] == pytest.approx(share)


def test_drift_at_right_angles_reverts_nothing():
  change = ERASED["unet"]["conv"]["kernel"] - BASE["unet"]["conv"]["kernel"]
  step = np.random.default_rng(4).normal(size=change.shape)
  step -= np.vdot(step, change) / np.vdot(change, change) * change
  tuned = mixed(ERASED, ERASED, 0.0)
  tuned["unet"]["conv"]["kernel"] += step
  found = drift.weight_drift(BASE, ERASED, tuned, STATES)
  assert found["reversion"] == pytest.approx(0, abs=1e-12)
  assert found["moved"] > 0.1 and found["output_gap"] == pytest.approx(1)


def test_an_erasure_outside_keys_and_values():
  erased = mixed(BASE, BASE, 0.0)
  erased["unet"]["conv"] = ERASED["unet"]["conv"]
  found = drift.weight_drift(BASE, erased, BASE, STATES)
  assert found["reversion"] == pytest.approx(1)
  assert found["reversion_prompt"] is None and found["output_gap"] is None
  size = drift.edit_size(BASE, erased, STATES)
  assert size["key_value_share"] == 0 and size["prompt_change"] == 0
  assert drift.edit_size(BASE, ERASED, STATES)["prompt_change"] > 0.1


def test_an_erasure_outside_the_unet_has_no_way_back_in_it():
  found = drift.weight_drift(BASE, BASE, OTHERS, STATES)
  assert len(found) == 4 and not any(x is not None for x in found.values())


def test_overlap_is_one_with_itself_and_nought_at_right_angles():
  assert drift.overlap(STATES, STATES) == pytest.approx(1)
  assert drift.overlap(np.eye(4)[:2], np.eye(4)[2:]) == 0
  shared = np.ones(4)
  both = (np.eye(4)[:2] + shared, np.eye(4)[2:] + shared)
  assert drift.overlap(*both) > 0.5
  assert drift.overlap(*both, shared) == pytest.approx(0)


def test_pull_sees_where_the_loss_leads(monkeypatch):
  # A loss whose minimum is the base: its gradient leads straight back.
  def loss(sd, join, trained, frozen, batch, key):
    del sd, frozen, batch, key
    back = jax.tree.map(jnp.subtract, join(trained, {}), wanted)
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(back)), {}

  monkeypatch.setattr(drift, "diffusion_loss", loss)
  for number, (target, low, high) in enumerate(
    ((BASE, 0.999, 1.001), (mixed(ERASED, BASE, -1.0), -1.001, -0.999))
  ):
    wanted = target
    found = drift.pull(
      number, BASE, ERASED, {}, jnp.zeros(1), jax.random.key(0)
    )
    assert low < found < high


@dataclasses.dataclass(frozen=True)
class Model:
  schedule: Schedule


def test_noise_gap_is_nought_at_the_base_and_one_where_it_began(monkeypatch):
  def predict(sd, params, latents, t, context):
    scale = params["unet"]["conv"]["kernel"][0, 0] + context.mean()
    return scale * latents * (1 + t.reshape(-1, 1, 1, 1))

  monkeypatch.setattr(drift.stable_diffusion, "predict_noise", predict)
  latents = np.random.default_rng(0).normal(size=(6, 2, 2, 4))
  latents = jnp.asarray(latents, jnp.float32)
  sd = Model(Schedule.from_config({"_class_name": "DDIMScheduler"}))
  for share in (0.0, 0.25, 1.0):
    found = drift.noise_gap(
      sd, BASE, ERASED, mixed(ERASED, BASE, share), latents,
      (np.ones((6, 3, 4)), np.ones((6, 3, 4))), jax.random.key(0),
    )  # fmt: skip
    assert found == pytest.approx(1 - share, abs=1e-5)
  # An edit of the text encoder: the same UNet reads other states. Tuning by
  # half of what they changed brings half of the predictions back.
  scale = 0.5 * float(BASE["unet"]["conv"]["kernel"][0, 0])
  tuned = mixed(BASE, BASE, 0.0)
  kernel = np.array(tuned["unet"]["conv"]["kernel"])
  kernel[0, 0] -= scale
  tuned["unet"]["conv"]["kernel"] = kernel
  found = drift.noise_gap(
    sd, BASE, BASE, tuned, latents,
    (np.zeros((6, 3, 4)), np.full((6, 3, 4), 2 * scale)), jax.random.key(0),
  )  # fmt: skip
  assert found == pytest.approx(0.5, abs=1e-5)
