"""UnlearnDiffAtk and P4D against the published code, over 20 updates.

tests/goldens/README.md says what was run. Both sides see the same tokens and
noises; the reference's projection is a bisection, ours is exact.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from unlearning_jax import shapes, stable_diffusion
from unlearning_jax.attacks import pez, unlearn_diff_atk
from unlearning_jax.attacks.engine import adam, insertion, losses, vocabulary
from unlearning_jax.attacks.engine.victim import Batch, Problem, Victim
from unlearning_jax.attacks.p4d import Hparams as P4dHparams
from unlearning_jax.projections import cross_attention_kernels

FILE = pathlib.Path(__file__).parents[1] / "goldens" / "attacks_reference.npz"
PUBLISHED = {"weight_decay": 0.1, "noise": "frozen", "blocks": 2}
PUBLISHED["iterations"] = 10


@pytest.fixture(scope="module")
def golden():
  return np.load(FILE)


def weakened():
  """The Shapes model, a victim that reads three quarters of it, itself."""
  sd, params = stable_diffusion.load(shapes.model_folder())
  params = jax.tree.map(jnp.asarray, params)
  leaves = traverse_util.flatten_dict(params["unet"], sep="/")
  for path, kernel in cross_attention_kernels(params).items():
    leaves[path] = kernel * 0.75
  unet = traverse_util.unflatten_dict(leaves, sep="/")
  return sd, Victim({**params, "unet": unet}), Victim(params)


@pytest.fixture(scope="module")
def models():
  return weakened()


def make_batch(sd, golden, k, mode):
  prompt = json.loads(str(golden["provenance"]))["prompt"]
  ids = stable_diffusion.tokenize(sd, [prompt])
  n = int((ids[0] == sd.tokenizer.eos_token_id).argmax()) - 1
  latents = np.random.default_rng(7).standard_normal((1, 8, 8, 8))
  return Batch(
    jnp.asarray(vocabulary.attack_ids(sd.tokenizer, "full")),
    jnp.zeros(1, jnp.uint32),
    jnp.asarray(ids),
    jnp.asarray(insertion.layout(mode, n, k, ids.shape[1], prompt))[None],
    jnp.asarray(latents.transpose(0, 2, 3, 1), jnp.float32),
  )


def draws():
  """The reference's timesteps and noises, in order."""
  rng = np.random.default_rng(11)
  for i in range(20):
    noise = rng.standard_normal((1, 8, 8, 8)).astype(np.float32)
    t = np.array([[losses.timestep_grid(1000, 2)[i // 10]]], np.int32)
    yield losses.Draw(jnp.asarray(t), noise.transpose(0, 2, 3, 1)[:, None])


def close(ours, theirs, rtol=1e-4):
  """Equal within `rtol` of the largest entry."""
  limit = rtol * np.abs(theirs).max()
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)


@pytest.mark.parametrize(
  "name, k, mode",
  [
    ("uda", 3, "prefix_k"),
    pytest.param("uda_insert", 4, "insert_k", marks=pytest.mark.slow),
  ],
)
def test_unlearn_diff_atk_is_the_published_one(name, k, mode, models, golden):
  sd, victim, original = models
  h = unlearn_diff_atk.Hparams(num_tokens=k, insertion=mode, **PUBLISHED)
  batch = make_batch(sd, golden, k, mode)
  key = jax.random.key(0)
  state = unlearn_diff_atk.init(Problem(sd, victim, original, batch), key, h)

  @jax.jit
  def update(victim, original, probs, moments, tokens, drawn):
    problem = Problem(sd, victim, original, batch)
    loss, gradient = unlearn_diff_atk.token_gradient(problem, tokens, drawn)
    probs, moments = unlearn_diff_atk.descend(probs, gradient, moments, h)
    return loss, gradient, probs, moments

  probs, moments, found, gradients = state.probs, state.moments, [], []
  for tokens, drawn in zip(golden[f"{name}/samples"], draws(), strict=True):
    loss, gradient, probs, moments = update(
      victim, original, probs, moments, tokens[None], drawn
    )
    found.append(float(loss[0]))
    gradients.append(gradient[0])
  np.testing.assert_allclose(found, golden[f"{name}/loss"], rtol=1e-4)
  close(gradients[0], golden[f"{name}/gradient_first"])
  close(gradients[-1], golden[f"{name}/gradient_last"])
  final = golden[f"{name}/final"]
  close(moments.mean[0], golden[f"{name}/mean"])
  close(moments.square[0], golden[f"{name}/square"])
  # Its bisection stops within 1e-5 of mu.
  np.testing.assert_allclose(probs[0], final, rtol=0, atol=2e-5)
  np.testing.assert_array_equal(probs[0].argmax(1), final.argmax(1))


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, k, mode, kind",
  [("p4d", 3, "prefix_k", P4dHparams), ("pez", 2, "mid_k", pez.Hparams)],
)
def test_hard_prompts_are_the_published_ones(
  name, k, mode, kind, models, golden
):
  sd, victim, original = models
  h = kind(num_tokens=k, insertion=mode, **PUBLISHED)
  assert (h.learning_rate, h.weight_decay, h.decay) == (0.01, 0.1, "coupled")
  batch = make_batch(sd, golden, k, mode)
  problem = Problem(sd, victim, original, batch)
  state = pez.init(problem, jax.random.key(0), h)
  tokens = golden[f"{name}/samples"]
  table = victim.params["text_encoder"]["text_model"]["embeddings"]
  embeds = table["token_embedding"]["embedding"][tokens]
  state = state._replace(tokens=jnp.asarray(tokens), embeds=embeds)
  rate = dataclasses.asdict(h)
  rate = {k: rate[k] for k in ("learning_rate", "weight_decay", "decay")}

  @jax.jit
  def update(victim, original, state, drawn):
    problem = Problem(sd, victim, original, batch)
    loss, gradient = pez.embedding_gradient(problem, state, drawn, h)
    embeds, moments = adam.update(state.embeds, gradient, state.moments, **rate)
    tokens = pez.nearest(victim, batch, embeds)
    new = state._replace(embeds=embeds, moments=moments, tokens=tokens)
    return loss, gradient, new

  found, gradients = [], []
  for drawn in draws():
    loss, gradient, state = update(victim, original, state, drawn)
    found.append(float(loss[0]))
    gradients.append(gradient[0])
  np.testing.assert_allclose(found, golden[f"{name}/loss"], rtol=1e-4)
  close(gradients[0], golden[f"{name}/gradient_first"])
  close(gradients[-1], golden[f"{name}/gradient_last"])
  close(state.moments.mean[0], golden[f"{name}/mean"])
  close(state.moments.square[0], golden[f"{name}/square"])
  close(state.embeds[0], golden[f"{name}/final"])


@pytest.mark.parametrize(
  "name, k, mode",
  [
    ("uda", 3, "prefix_k"),
    pytest.param("uda_insert", 4, "insert_k", marks=pytest.mark.slow),
  ],
)
def test_the_text_is_the_published_one(name, k, mode, models, golden):
  sd = models[0]
  batch = make_batch(sd, golden, k, mode)
  tokens = golden[f"{name}/final"].argmax(1)[None]
  new = insertion.splice(
    np.asarray(batch.ids), tokens, np.asarray(batch.source)
  )
  text = vocabulary.to_text(sd.tokenizer, new[0])
  assert text == str(golden[f"{name}/text"][-1])
