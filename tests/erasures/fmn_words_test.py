"""FMN's learnt words: where they stand, how they move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax import shapes, stable_diffusion
from unlearning_jax.erasures import fmn, in_turn
from unlearning_jax.erasures.fmn import words


@pytest.fixture(scope="module")
def model():
  return stable_diffusion.load(shapes.model_folder())


def tokens(sd, phrases):
  return [row[1:-1] for row in sd.tokenizer(phrases)["input_ids"]]


@pytest.mark.parametrize("template", ["a picture of a {}", "{} in a room"])
def test_a_name_spelt_in_words_is_the_name(template, model):
  """Embeddings of the concept's own tokens give its own text states."""
  sd, params = model
  phrase = "red star"
  (own,) = names = tokens(sd, [phrase])
  ids, first = words.slotted(sd, template, names, len(own))
  prompt = [template.format(phrase)]
  np.testing.assert_array_equal(ids, stable_diffusion.tokenize(sd, prompt))
  table = params["text_encoder"]["text_model"]["embeddings"]
  table = table["token_embedding"]["embedding"]
  start = words.first_words(table, names, len(own), jax.random.key(0))
  np.testing.assert_array_equal(start[0], np.asarray(table)[own])
  found = words.contexts(sd, params["text_encoder"], start, ids, first)
  wanted = stable_diffusion.encode_prompts(sd, params, prompt)
  np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_more_words_than_tokens_begin_at_random(model):
  sd, _ = model
  table = np.zeros((1000, 5), np.float32)
  start = words.first_words(table, [[3], [4, 5]], 3, jax.random.key(0))
  assert (start == 0).all(-1).tolist() == [
    [True, False, False], [True, True, False],
  ]  # fmt: skip
  ids, first = words.slotted(sd, "a {}", [[7], [8, 9]], 3)
  assert ids[:, first : first + 3].tolist() == [[7, 7, 7], [8, 9, 8]]
  with pytest.raises(ValueError, match="tokens, start and end included"):
    words.slotted(sd, "a {}", [[7]], 100)


def test_a_step_pulls_norms_as_the_release_does():
  """AdamW, then the norm's way to 0.4, in float64.

  `train_inversion` of SHI-Labs/Forget-Me-Not at a4a81e82.
  """
  rate, rng = 2e-3, np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 4))
  tx = words.pulled(rate)
  ours, m, v = jnp.asarray(x, jnp.float32), 0.0, 0.0
  state = tx.init(ours)
  for step in range(1, 4):
    g = rng.normal(size=x.shape)
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    down = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    x = x - rate * (down + 0.1 * x)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    x = x / norm * (norm + min(1, 100 * rate) * (0.4 - norm))
    updates, state = tx.update(jnp.asarray(g, jnp.float32), state, ours)
    ours += updates
  np.testing.assert_allclose(ours, x, rtol=1e-5)


@pytest.mark.slow
def test_words_are_learnt(model):
  sd, params = model
  names = tokens(sd, ["star"])
  prompts = words.slotted(sd, "a picture of a {}", names, 2)
  rng = np.random.default_rng(0)
  drawn = {
    "latents": rng.normal(size=(2, *sd.latent_shape)).astype("f4"),
    "pair": np.zeros(2, np.int32),
  }
  found = words.learn(
    sd, params, names, prompts, drawn, jax.random.key(0), in_turn,
    num_steps=20, learning_rate=5e-3, count=2,
  )  # fmt: skip
  # Half of the way at each step.
  assert found.shape == (1, 2, sd.context_shape[1])
  np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 0.4, atol=0.1)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"words": -1}, "words=-1; allowed: from 0"),
    ({"images": False}, "words=4 and images=False.*give words=0"),
  ],
)
def test_settings_that_cannot_be(options, message):
  with pytest.raises(ValueError, match=message):
    fmn.Hparams(**options)
