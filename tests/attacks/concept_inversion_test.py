"""Concept Inversion against the published code, over 20 updates.

tests/goldens/README.md says what was run. Both sides see the same timesteps and
noises: four draws of one image to an update.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.attacks.parity_test import close, make_batch, weakened
from tests.support.attacks_cases import make_world
from unlearning_jax.attacks import concept_inversion
from unlearning_jax.attacks.engine import adam, losses
from unlearning_jax.attacks.engine.victim import Problem

pytestmark = pytest.mark.usefixtures("quickest_compiler")
FILE = pathlib.Path(__file__).parents[1] / "goldens" / "attacks_inversion.npz"


@pytest.fixture(scope="module")
def golden():
  return np.load(FILE)


def draws(golden):
  """The reference's timesteps and noises, in order."""
  rng = np.random.default_rng(13)
  for t in golden["t"]:
    noise = rng.standard_normal((4, 8, 8, 8)).astype(np.float32)
    assert (rng.integers(0, 1000, (4,)) == t).all()
    yield losses.Draw(jnp.asarray(t)[None], noise.transpose(0, 2, 3, 1)[None])


@pytest.mark.slow
def test_a_learnt_word_is_the_published_one(golden):
  sd, victim, original = weakened()
  settings = json.loads(str(golden["provenance"]))
  h = concept_inversion.Hparams(initial=settings["initial"])
  assert (h.learning_rate, h.weight_decay, h.decay) == (0.08, 0.01, "decoupled")
  batch = make_batch(sd, golden, h.num_tokens, h.insertion)
  key = jax.random.key(0)
  state = concept_inversion.init(Problem(sd, victim, original, batch), key, h)

  @jax.jit
  def update(victim, original, embeds, moments, drawn):
    (loss,), gradient = concept_inversion.slope(
      Problem(sd, victim, original, batch), embeds, drawn, state.key, h
    )
    embeds, moments = adam.update(
      embeds, gradient, moments, learning_rate=h.learning_rate,
      weight_decay=h.weight_decay, decay=h.decay,
    )  # fmt: skip
    return loss, gradient, embeds, moments

  embeds, moments, found, gradients = state.embeds, state.moments, [], []
  for drawn in draws(golden):
    loss, gradient, embeds, moments = update(
      victim, original, embeds, moments, drawn
    )
    found.append(float(loss))
    gradients.append(gradient[0, 0])
  np.testing.assert_allclose(found, golden["loss"], rtol=1e-4)
  close(gradients[0], golden["gradient_first"])
  close(gradients[-1], golden["gradient_last"])
  close(moments.mean[0, 0], golden["mean"])
  close(moments.square[0, 0], golden["square"])
  close(embeds[0, 0], golden["final"])


@pytest.mark.slow
def test_draws_take_turns(golden):
  """Their mean is that of all at once, and takes the memory of one."""
  sd, victim, original = make_world(small=True)
  h = concept_inversion.Hparams()
  batch = make_batch(sd, golden, h.num_tokens, h.insertion)
  embeds = jnp.full((1, 1, sd.context_shape[1]), 0.01)
  problem = Problem(sd, victim, original, batch)

  def at_once(embeds, drawn):
    return jax.value_and_grad(
      lambda e: losses.of_embeddings(problem, e, drawn).sum()
    )(embeds)

  def in_turn(embeds, drawn):
    return losses.gradient(problem, embeds, drawn)

  def learnt(embeds, drawn):
    key = jax.random.split(jax.random.key(0), 1)
    return concept_inversion.slope(problem, embeds, drawn, key, h)

  def compiled(function, draws):
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((1, draws, 8, 8, 8)).astype(np.float32)
    t = jnp.arange(draws)[None] * 50
    drawn = losses.Draw(t, jnp.asarray(noise))
    program = jax.jit(function).lower(embeds, drawn).compile()
    size = program.memory_analysis().temp_size_in_bytes
    return program(embeds, drawn), size

  (loss, gradient), large = compiled(at_once, 8)
  for function in (in_turn, learnt):
    (found, slope), size = compiled(function, 8)
    np.testing.assert_allclose(found, [loss], rtol=1e-5)
    close(slope, gradient)
    assert size < large / 3
