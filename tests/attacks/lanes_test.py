"""The pieces of the attacks against closed forms and plain lists."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax import attacks, schedules, shapes, stable_diffusion
from unlearning_jax.attacks import unlearn_diff_atk
from unlearning_jax.attacks.engine import (
  adam,
  insertion,
  losses,
  simplex,
  vocabulary,
)


@pytest.fixture(scope="module")
def sd():
  return stable_diffusion.load(shapes.model_folder())[0]


@pytest.fixture(scope="module")
def tokenizer(sd):
  return sd.tokenizer


# --- Simplex ---


def oracle(x):
  """The projection by 200 halvings in float64."""
  x = x.astype(np.float64)
  low, high = x.min() - 1, x.max()
  for _ in range(200):
    middle = (low + high) / 2
    if np.maximum(x - middle, 0).sum() > 1:
      low = middle
    else:
      high = middle
  return np.maximum(x - high, 0)


@pytest.mark.parametrize("size", [1, 2, 8, 1024, 49408])
@pytest.mark.parametrize("scale", [1e-5, 1e-2, 1.0, 30.0])
def test_the_projection_is_exact(size, scale):
  rng = np.random.default_rng(size)
  x = np.float32(1 / size) + rng.normal(0, scale, (3, size)).astype("float32")
  p = np.asarray(jax.jit(simplex.project)(x))
  wanted = np.stack([oracle(row) for row in x])
  np.testing.assert_allclose(p, wanted, atol=2e-6)
  np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
  assert (p >= 0).all()


def test_the_projection_keeps_what_is_there_order_and_ties():
  x = jnp.array([[0.2, 0.5, 0.3], [3.0, 3.0, 1.0], [0.4, 0.4, 0.4]])
  p = simplex.project(x)
  third = 1 / 3
  wanted = [[0.2, 0.5, 0.3], [0.5, 0.5, 0.0], [third] * 3]
  np.testing.assert_allclose(p, wanted, atol=1e-6)
  np.testing.assert_allclose(simplex.project(p), p, atol=1e-6)
  np.testing.assert_allclose(simplex.project(x + 1e3), p, atol=1e-4)


def test_constant_gradients_with_decay_end_at_the_known_point():
  """Projected gradient descent on <g, p> + l/2 |p|^2 gives Proj(-g / l)."""
  g = np.random.default_rng(0).normal(size=50).astype(np.float32) * 0.05
  p = jax.lax.fori_loop(
    0,
    3_000,
    lambda _, p: simplex.project(p - 0.1 * (g + 0.1 * p)),
    jnp.full(50, 1 / 50),
  )
  np.testing.assert_allclose(p, oracle(-g / 0.1), atol=1e-5)


# --- Adam ---


@pytest.mark.parametrize("decay", adam.DECAYS)
def test_adam_is_the_textbook_s(decay):
  rng = np.random.default_rng(1)
  gradients = rng.normal(size=(200, 2, 5)) * 1e-3
  x = rng.normal(size=(2, 5))
  ours, moments = jnp.asarray(x, jnp.float32), None
  moments = adam.start(ours)
  mean = square = np.zeros_like(x)
  step = jax.jit(
    lambda *args: adam.update(
      *args, learning_rate=0.01, weight_decay=0.1, decay=decay
    )
  )
  for i, g in enumerate(gradients, 1):
    ours, moments = step(ours, jnp.asarray(g, jnp.float32), moments)
    if decay == "coupled":
      g = g + 0.1 * x
    else:
      x = x * (1 - 0.001)
    mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
    m, v = mean / (1 - 0.9**i), square / (1 - 0.999**i)
    x = x - 0.01 * m / (np.sqrt(v) + 1e-8)
  np.testing.assert_allclose(ours, x, rtol=1e-4, atol=1e-5)


def test_a_lane_that_starts_later_goes_the_same_way():
  g = jnp.ones((2, 3)) * jnp.array([[1.0], [1.0]])
  x = jnp.zeros((2, 3))
  rate = {"learning_rate": 0.1, "weight_decay": 0.0, "decay": "coupled"}
  late = adam.start(x)
  once, _ = adam.update(x, g, late, **rate)
  old = late._replace(count=jnp.array([7, 0], jnp.int32))
  mixed, _ = adam.update(x, g, old, **rate)
  np.testing.assert_array_equal(mixed[1], once[1])
  assert (mixed[0] != once[0]).all()


# --- Insertion ---


def plain(mode, words, new):
  """The published layouts, with lists."""
  n, k = len(words), len(new)
  if mode == "prefix_k":
    return new + words
  if mode == "suffix_k":
    return words + new
  if mode == "replace":
    return new
  if mode == "mid_k":
    return words[: n // 2] + new + words[n // 2 :]
  if mode == "insert_k":
    size, out = n // (k + 1), []
    for i in range(k):
      out += words[size * i : size * (i + 1)] + [new[i]]
    return out + words[size * k :]
  out = []
  for i in range(k - 1):
    out += [new[i]] + words[3 * i : 3 * i + 3]
  return out + [new[-1]] + words[3 * (k - 1) :]


@pytest.mark.parametrize("length", [12, 77])
@pytest.mark.parametrize("mode", insertion.MODES)
def test_every_layout_for_every_length(mode, length):
  bos, eos = -1, -2
  for n in range(length - 1):
    for k in range(1, 9):
      words = list(range(100, 100 + n))
      used = insertion.slots(mode, n, k)
      kept = 0 if mode == "replace" else n
      if kept + used > length - 2:
        with pytest.raises(insertion.PromptTooLong, match="a long one"):
          insertion.layout(mode, n, k, length, "a long one")
        continue
      ids = np.array([bos, *words] + [eos] * (length - n - 1))[None]
      new = np.arange(k)[None]
      source = insertion.layout(mode, n, k, length, "")[None]
      found = insertion.splice(ids, new, source)[0].tolist()
      body = plain(mode, words, list(range(used)))
      assert found == [bos, *body] + [eos] * (length - 1 - len(body))


@pytest.mark.parametrize("n, used", [(0, 1), (2, 1), (3, 2), (8, 3), (9, 4)])
def test_p4d_k_puts_a_token_before_every_three(n, used):
  source = insertion.layout("every_three", n, 16, 77, "")
  slots = np.flatnonzero(source >= 77)
  np.testing.assert_array_equal(slots, 1 + 4 * np.arange(used))


def test_an_unknown_insertion_is_named():
  with pytest.raises(ValueError, match="did you mean 'prefix_k'"):
    insertion.layout("prefix", 3, 2, 77, "")


# --- Vocabulary ---


def test_prompts_of_surviving_ids_survive(tokenizer):
  ids = vocabulary.attack_ids(tokenizer, "roundtrip")
  assert len(ids) == 414 and (np.diff(ids) > 0).all()
  rng = np.random.default_rng(0)
  # A slot inside a word would break it in two: names are several tokens long.
  outside = ("prefix_k", "suffix_k", "replace")
  for prompt, modes in (
    ("a red star on a house", insertion.MODES),
    ("a portrait of Quill Estane, in the reactor room", outside),
  ):
    words = tokenizer(prompt)["input_ids"][1:-1]
    for i in range(200):
      new = rng.choice(ids, 5).tolist()
      mode = modes[i % len(modes)]
      row = np.array([[1022, *words] + [1023] * (39 - len(words))])
      source = insertion.layout(mode, len(words), 5, 40, prompt)
      row = insertion.splice(row, np.array([new]), source[None])[0]
      text = vocabulary.to_text(tokenizer, row)
      same, again = vocabulary.reencode(tokenizer, text, 40)
      assert same == text and (again == row).all()


def test_some_prompts_of_all_ids_do_not(tokenizer):
  ids = vocabulary.attack_ids(tokenizer, "full")
  assert len(ids) == len(tokenizer)
  rng, survived = np.random.default_rng(0), 0
  for _ in range(200):
    row = np.array([1022, *rng.choice(ids, 5), 320, 659] + [1023] * 32)
    text = vocabulary.to_text(tokenizer, row)
    again = vocabulary.reencode(tokenizer, text, 40)[1]
    survived += bool((again == row).all())
  assert 0 < survived < 150


def test_a_text_that_grows_is_cut(tokenizer):
  text, ids = vocabulary.reencode(tokenizer, "star " * 50, 40)
  assert ids.shape == (40,) and ids[-1] == tokenizer.eos_token_id
  assert (ids == tokenizer.eos_token_id).sum() == 1
  assert text.split() == ["star"] * 38


# --- Draws ---


def test_the_timestep_grid_is_the_published_one():
  assert losses.timestep_grid(1000, 50) == list(range(10, 1000, 20))


@pytest.mark.parametrize(
  "timesteps, noise",
  [
    pytest.param(
      timesteps,
      noise,
      marks=[]
      if (timesteps == "random") == (noise == "fresh")
      else pytest.mark.slow,
    )
    for timesteps in losses.TIMESTEPS
    for noise in losses.NOISES
  ],
)
def test_draws(timesteps, noise, sd):
  h = unlearn_diff_atk.Hparams(
    blocks=5, iterations=4, timesteps=timesteps, noise=noise, draws=4
  )
  key = jax.random.split(jax.random.key(0), 2)
  drawn = jax.jit(
    jax.vmap(
      lambda i: losses.draw(sd, key, jnp.full(2, i, jnp.int32), h)
    )
  )(jnp.arange(20))  # fmt: skip
  t = np.asarray(drawn.t)
  same = np.asarray(drawn.noise[0] == drawn.noise[4]).all()
  assert same == (noise == "frozen")
  assert not np.asarray(drawn.noise[0] == drawn.noise[1]).any()
  assert not np.asarray(drawn.noise[0, 0] == drawn.noise[0, 1]).any()
  if timesteps == "sequential":
    wanted = np.repeat([100, 300, 500, 700, 900], 4)
    assert (t == wanted[:, None, None]).all()
  else:
    assert len(np.unique(t)) > 100 and t.min() >= 0 and t.max() < 1000
  if timesteps == "stratified":
    assert (t // 250 == np.arange(4)).all()


# --- Choosing a method ---


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"blocks": 1001}, "blocks=1001: timesteps='sequential'.*has 1000"),
    (
      {"timesteps": "stratified", "draws": 1001},
      "draws=1001: timesteps='stratified'.*has 1000",
    ),
    ({"iterations": 0}, "iterations=0"),
    ({"timesteps": "sequentially"}, "did you mean 'sequential'"),
  ],
)
def test_more_parts_than_timesteps(changes, words, sd):
  with pytest.raises(ValueError, match=words):
    losses.check(losses.Budget(**changes), "denoise", sd.schedule)
  losses.check(losses.Budget(timesteps="random", blocks=1001), "denoise",
               sd.schedule)  # fmt: skip


@pytest.mark.parametrize("timesteps", losses.TIMESTEPS)
def test_a_model_of_another_number_of_timesteps(timesteps, sd):
  schedule = dataclasses.replace(sd.schedule, num_train_timesteps=40)
  other = dataclasses.replace(sd, schedule=schedule)
  h = losses.Budget(blocks=4, iterations=1, timesteps=timesteps, draws=4)
  losses.check(h, "denoise", schedule)
  keys = jax.random.split(jax.random.key(0), 50)
  seen = [losses.draw(other, keys, jnp.full(50, i), h).t for i in range(4)]
  seen = np.concatenate(seen)
  if timesteps == "sequential":
    assert np.unique(seen).tolist() == [5, 15, 25, 35]
  else:
    assert set(seen.flatten().tolist()) == set(range(40))
  noisy = schedules.add_noise(
    schedule, jnp.ones((2, 1, 1, 1)), jnp.ones((2, 1, 1, 1)), jnp.array([0, 39])
  )
  assert np.isfinite(noisy).all()


def test_methods_and_hyperparameters_are_checked():
  assert {"unlearn_diff_atk", "p4d", "pez", "controls"} <= {*attacks.methods()}
  assert "shared" not in attacks.methods()
  with pytest.raises(ValueError, match="did you mean 'p4d'"):
    attacks.bind("p4", {})
  with pytest.raises(ValueError, match="did you mean weight_decay"):
    attacks.bind("pez", {"weight_dekay": 0.1})
  with pytest.raises(ValueError, match="iterations=2"):
    attacks.bind("controls", {"iterations": 2})
  assert attacks.bind("p4d", {"num_tokens": 3}).h.loss == "match"
  assert attacks.bind("controls", {"kind": "none"}).h.blocks == 0
  assert attacks.bind("controls", {"kind": "seed"}).reseed
