"""What every erasure that maps text states must do: one row a method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contracts import erasures_test
from tests.contracts.erasures_test import MAPS, rows
from unlearning_jax import stable_diffusion as stable
from unlearning_jax.edits import apply_to_context, apply_to_params

pytestmark = erasures_test.pytestmark
models, model, made = (
  erasures_test.models, erasures_test.model, erasures_test.made,
)  # fmt: skip
# How near its anchor the concept must come, as a share of the way. RECE goes
# on to erase derived states, and on so narrow a model gives some of it back.
GAP = {"uce": 0.25, "rece": 0.75, "time": 0.25}


def states(model, edit, prompts):
  sd, params = model
  context = stable.encode_text(sd, params, stable.tokenize(sd, prompts))
  return np.asarray(
    context if edit is None else apply_to_context(edit, context)
  )


@rows(MAPS)
def test_the_concept_moves_to_its_anchor_and_preserved_ones_stay(
  name, row, model, made
):
  prompts = ["star", "circle", "moon"]
  before, after = (
    states(model, edit, prompts)[:, 1] for edit in (None, made(name, row))
  )
  # The last subject token of "star" now means what that of "circle" meant.
  gap = np.linalg.norm(after[0] - before[1])
  assert gap < GAP[name] * np.linalg.norm(before[0] - before[1])
  moved = np.linalg.norm(after - before, axis=1)
  assert moved[2] < 0.5 * moved[0]


@pytest.fixture(scope="module")
def predict(models):
  """What the UNet makes of the same noise, by parameters and text states."""
  sd, _ = models["uce"]
  noise = np.random.default_rng(0).normal(size=(2, *sd.latent_shape))
  return jax.jit(
    lambda params, context: stable.predict_noise(
      sd, params, jnp.float32(noise), jnp.array([900, 20]), context
    )
  )


@rows(MAPS)
def test_weights_and_text_states_are_the_same_edit(
  name, row, model, made, predict
):
  params, edit = model[1], made(name, row)
  context = states(model, None, ["a red star", "a house"])
  by_weights = np.asarray(predict(apply_to_params(edit, params), context))
  by_states = predict(params, apply_to_context(edit, context))
  base = np.asarray(predict(params, context))
  assert np.abs(by_weights - base).max() > 1e-3
  np.testing.assert_allclose(by_weights, by_states, atol=2e-5)
