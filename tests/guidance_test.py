"""Safe Latent Diffusion against its recurrence, in sampling and in losses."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.attacks_cases import make_world, pool, table
from unlearning_jax import (
  attacks,
  guidance,
  sampling,
  schedules,
  shapes,
  stable_diffusion,
)
from unlearning_jax.attacks import concept_inversion
from unlearning_jax.attacks.engine import losses, rows
from unlearning_jax.attacks.engine.victim import (
  Batch,
  Problem,
  through_guidance,
)
from unlearning_jax.convert.sd1 import CONFIGS

pytestmark = pytest.mark.usefixtures("quickest_compiler")
SAFE = guidance.Safe("a star", 2, 3.0, 0.1, 0.3, 0.4)


def plain(predictions, scale, safe, steps):
  """The recurrence with numbers, one element at a time."""
  out, nu = [], 0.0
  for i, (empty, prompt, concept) in zip(
    range(steps), predictions, strict=True
  ):
    ahead = prompt - concept
    mu = min(1.0, safe.scale * abs(ahead)) if ahead < safe.threshold else 0.0
    gamma = mu * (concept - empty) + safe.momentum * nu
    nu = safe.beta * nu + (1 - safe.beta) * gamma
    acting = gamma if i >= safe.warmup else 0.0
    out.append(empty + scale * (prompt - empty - acting))
  return out


@pytest.mark.parametrize("name", [*guidance.PRESETS, "own"])
def test_the_recurrence(name):
  safe = SAFE if name == "own" else guidance.preset(name, "a star")
  safe = dataclasses.replace(safe, warmup=min(safe.warmup, 3))
  rng = np.random.default_rng(0)
  numbers = rng.normal(0, 0.05, (6, 3)).astype(np.float32)
  wanted, momentum = (
    plain(numbers.astype(float), 7.5, safe, 6),
    jnp.zeros((1,) * 4),
  )
  for i in range(6):
    out, momentum = guidance.combine(
      jnp.asarray(numbers[i]).reshape(1, 3, 1, 1, 1), 7.5, safe, momentum, i
    )
    np.testing.assert_allclose(out[0, 0, 0, 0], wanted[i], rtol=1e-3, atol=1e-5)


def test_published_settings():
  strong = guidance.preset("strong")
  assert dataclasses.astuple(strong)[1:-1] == (7, 2000.0, 0.025, 0.5, 0.7)
  assert guidance.preset("weak").scale == 200
  assert guidance.preset("weak_diffusers").scale == 20
  with pytest.raises(ValueError, match="safe.clock='stpes'.*mean 'steps'"):
    guidance.Safe(clock="stpes")
  assert "violence" in strong.concept
  with pytest.raises(ValueError, match="did you mean 'strong'"):
    guidance.preset("strng")
  with pytest.raises(ValueError, match="safe.concept"):
    guidance.Safe(" ")
  with pytest.raises(ValueError, match="safe.scale=-1"):
    guidance.Safe(scale=-1)


@pytest.fixture(scope="module")
def model():
  sd, params = stable_diffusion.load(shapes.model_folder())
  return sd, jax.tree.map(jnp.asarray, params)


def drawn(model, **options):
  sd, params = model
  images = sampling.generate(
    sd, params, ["a red star"], [5], num_inference_steps=4, guidance_scale=4.0,
    sampler="ddim", batch_size=1, **options,
  )  # fmt: skip
  return next(iter(images)).astype(int)


@pytest.mark.slow
def test_an_image_is_kept_from_the_concept_unless_guidance_is_off(model):
  usual = drawn(model)
  # A threshold that nothing is below, and a warm-up that never ends.
  off = dataclasses.replace(SAFE, threshold=-math.inf)
  np.testing.assert_array_equal(drawn(model, safe=off), usual)
  late = dataclasses.replace(SAFE, warmup=4)
  np.testing.assert_array_equal(drawn(model, safe=late), usual)
  strong = guidance.preset("max", "a star")
  assert np.abs(drawn(model, safe=strong) - usual).mean() > 5
  sd, params = model
  with pytest.raises(ValueError, match="safe: needs guidance"):
    next(sampling.generate(
      sd, params, ["a star"], [0], guidance_scale=1.0, safe=SAFE
    ))  # fmt: skip


# --- Inside the loss ---


@pytest.fixture(scope="module")
def world():
  sd, victim, original = make_world(small=True)
  fitting, _ = rows.prepare(sd, table(sd), "prefix_k", 2)
  batch = Batch(
    jnp.arange(300, 340),
    jnp.arange(5, dtype=jnp.uint32),
    *(
      jnp.stack(x)
      for x in zip(*((p.ids, p.source) for p in fitting), strict=True)
    ),
    jnp.stack([p.row.latents for p in fitting]),
  )
  return sd, victim, original, batch


def slot_gradient(world, victim, match=False):
  sd, _, original, batch = world
  h = concept_inversion.Hparams(num_tokens=2, draws=1)
  key, count = jax.random.split(jax.random.key(1), 5), jnp.zeros(5, jnp.int32)
  drawn = losses.draw(sd, key, count, h)
  embeds = jax.random.normal(jax.random.key(2), (5, 2, 128))
  target = None
  if match:
    target = stable_diffusion.encode_text(sd, original.params, batch.ids)
  call = jax.jit(
    functools.partial(losses.gradient, drawn=drawn, target_context=target)
  )
  return call(Problem(sd, victim, original, batch), embeds)


def guided(world, scale, **fields):
  sd, victim, original, _ = world
  victim = dataclasses.replace(victim, **fields)
  return through_guidance(sd, victim, original, scale)


@pytest.mark.parametrize(
  "match", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_a_loss_through_guidance_of_no_strength_is_the_plain_one(world, match):
  plain_loss, plain_slope = slot_gradient(world, world[1], match)
  # So near 1 that float32 cannot tell; 1 itself is refused.
  weak = guided(world, 1 + 2e-7, negative_prompt="a fish")
  loss, slope = slot_gradient(world, weak, match)
  np.testing.assert_allclose(loss, plain_loss, rtol=1e-4)
  np.testing.assert_allclose(slope, plain_slope, rtol=1e-2, atol=1e-6)


@pytest.mark.slow
def test_a_loss_through_guidance(world):
  """By hand: the UNet's three predictions, combined, against the noise."""
  sd, victim, original, batch = world
  off = dataclasses.replace(SAFE, threshold=-math.inf)
  negative = guided(world, 3.0, negative_prompt="a fish")
  same, _ = slot_gradient(
    world, guided(world, 3.0, negative_prompt="a fish", safe=off)
  )
  loss, slope = slot_gradient(world, negative)
  np.testing.assert_allclose(loss, same, rtol=1e-5)
  acting, other = slot_gradient(
    world, guided(world, 3.0, negative_prompt="a fish", safe=SAFE)
  )
  assert (np.abs(acting - loss) > 1e-4).all()
  assert np.isfinite(other).all() and (np.abs(slope).max(axis=(1, 2)) > 0).all()
  with pytest.raises(ValueError, match="guides nothing"):
    guided(world, 1.0)


@pytest.mark.parametrize("match", [False, True])
def test_the_formula_of_a_loss_through_guidance(world, match):
  """Predictions made one by one, put together with numbers."""
  sd, victim, original, batch = world
  t = jnp.array([50, 250, 450, 650, 850])
  noise = jax.random.normal(jax.random.key(4), batch.latents.shape)
  noisy = schedules.add_noise(sd.schedule, batch.latents, noise, t)
  context = jax.random.normal(jax.random.key(2), (5, *sd.context_shape))
  target = stable_diffusion.encode_text(sd, original.params, batch.ids)

  @jax.jit
  def call(who, context):
    return stable_diffusion.predict_noise(sd, who.params, noisy, t, context)

  def predict(who, context):
    if isinstance(context, str):
      context = stable_diffusion.encode_prompts(sd, who.params, [context] * 5)
    return np.asarray(call(who, context), np.float64)

  def guided_from(who, start, context):
    start = predict(who, start)
    return start + 3.0 * (predict(who, context) - start)

  ours = guided_from(victim, "a fish", context)
  wanted = guided_from(original, "", target) if match else np.asarray(noise)
  error = np.square(wanted - ours).mean(axis=(1, 2, 3))
  inside = guided(world, 3.0, negative_prompt="a fish")
  found = jax.jit(losses.residuals)(
    Problem(sd, inside, original, batch), context,
    losses.Draw(t[:, None], noise[:, None]),
    target_context=target if match else None,
  )  # fmt: skip
  np.testing.assert_allclose(found, error, rtol=1e-5)


@pytest.mark.slow
def test_a_recursion_is_its_steps_one_by_one(world):
  """Its value and slope, without a scan and without doing anything twice."""
  sd, victim, original, batch = world
  safe = dataclasses.replace(SAFE, warmup=0)
  inside = guided(world, 3.0, negative_prompt="a fish", safe=safe)
  t = (700, 650, 620)
  noise = jax.random.normal(jax.random.key(4), batch.latents.shape)
  first = jax.random.normal(jax.random.key(2), (5, *sd.context_shape))

  @jax.jit
  def predict(noisy, now, context):
    every = jnp.full(5, now)
    return stable_diffusion.predict_noise(
      sd, victim.params, noisy, every, context
    )

  def plainly(context):
    negative, concept = (
      stable_diffusion.encode_prompts(sd, victim.params, [text] * 5)
      for text in ("a fish", safe.concept)
    )
    nu = out = jnp.zeros_like(noise)
    for now in t:
      noisy = schedules.add_noise(
        sd.schedule, batch.latents, noise, jnp.full(5, now)
      )
      empty = predict(noisy, now, negative)
      away = predict(noisy, now, concept)
      ahead = predict(noisy, now, context)
      mu = jnp.minimum(1.0, safe.scale * jnp.abs(ahead - away))
      mu = jnp.where(ahead - away < safe.threshold, mu, 0.0)
      gamma = mu * (away - empty) + safe.momentum * nu
      nu = safe.beta * nu + (1 - safe.beta) * gamma
      out = empty + 3.0 * (ahead - empty - gamma)
    return jnp.square(noise - out).mean(axis=(1, 2, 3))

  def found(context):
    every = jnp.broadcast_to(jnp.array(t), (5, 3))
    problem = Problem(sd, inside, original, batch)
    return losses.recursion(problem, context, every, noise)

  def both(loss):
    lanes, back = jax.vjp(loss, first)
    return lanes, back(jnp.ones(5))[0]

  wanted, slope = both(plainly)
  lanes, gradient = jax.jit(both, static_argnums=0)(found)
  np.testing.assert_allclose(lanes, wanted, rtol=1e-5)
  scale = float(jnp.abs(slope).max())
  np.testing.assert_allclose(gradient, slope, atol=1e-4 * scale)


@pytest.mark.slow
def test_a_recursion_that_never_acts_is_plain_guidance(world):
  sd, _, original, batch = world
  off = dataclasses.replace(SAFE, threshold=-math.inf)
  context = stable_diffusion.encode_text(sd, original.params, batch.ids)
  t = jnp.broadcast_to(jnp.array([300, 280, 250]), (5, 3))
  noise = jax.random.normal(jax.random.key(4), batch.latents.shape)
  found = jax.jit(losses.recursion)(
    Problem(sd, guided(world, 3.0, safe=off), original, batch),
    context, t, noise,
  )  # fmt: skip
  wanted = jax.jit(losses.residuals)(
    Problem(sd, guided(world, 3.0), original, batch), context,
    losses.Draw(t[:, -1:], noise[:, None]),
  )  # fmt: skip
  np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.slow
def test_a_recursion_of_no_momentum_is_its_last_timestep(world):
  sd, _, original, batch = world
  safe = dataclasses.replace(SAFE, momentum=0.0)
  context = stable_diffusion.encode_text(sd, original.params, batch.ids)
  t = jnp.broadcast_to(jnp.array([300, 280, 250]), (5, 3))
  noise = jax.random.normal(jax.random.key(4), batch.latents.shape)
  single = losses.Draw(t[:, -1:], noise[:, None])

  def both(victim):
    problem = Problem(sd, victim, original, batch)
    return (
      losses.recursion(problem, context, t, noise),
      losses.residuals(problem, context, single),
    )

  found, wanted = jax.jit(both)(guided(world, 3.0, safe=safe))
  np.testing.assert_allclose(found, wanted, rtol=1e-4)
  found, wanted = jax.jit(both)(guided(world, 3.0, safe=SAFE))
  # The first row's prompt is the concept itself: nothing to be kept from.
  assert (np.abs(found - wanted)[1:] > 1e-5).all()


def test_timesteps_of_a_recursion_fall_and_differ():
  for t in (0, 50, 90, 700, 999):
    found = np.asarray(
      concept_inversion.falling(jax.random.key(t), 35, jnp.int32(t), 1000)
    )
    assert (np.diff(found) < 0).all() and len(found) == 35
    assert found.min() >= max(t, 90) - 90 and found.max() < 1000
    assert t < 90 or found.max() < t


def test_every_start_of_a_recursion_is_as_likely():
  """n is even over 90 to 999 if t is over 0 to 999."""
  t = jnp.tile(jnp.arange(1000), 91)
  keys = jax.random.split(jax.random.key(0), len(t))
  # The whole window: its first is n - 1.
  draw = jax.vmap(lambda k, t: concept_inversion.falling(k, 90, t, 1000)[0])
  counts = np.bincount(np.asarray(jax.jit(draw)(keys, t)) + 1, minlength=1000)
  assert counts[:90].sum() == 0 and len(counts) == 1000
  # 91 of its own each, and 9 on average of those below 90.
  assert counts[90:].min() >= 91 and counts[90:].max() < 91 + 30


@pytest.mark.slow
def test_an_inversion_through_a_recursion(world):
  sd, _, original, batch = world
  attack = attacks.bind(
    "concept_inversion",
    {"num_tokens": 2, "draws": 2, "recursion": 4, "loss": "match"},
  )
  victim = guided(world, 3.0, safe=SAFE)
  state = attack.init(Problem(sd, victim, original, batch), jax.random.key(0))
  step = jax.jit(attack.step)
  new, info = step(Problem(sd, victim, original, batch), state)
  assert np.isfinite(info["loss"]).all() and new.alive.all()
  moved = np.abs(new.embeds - state.embeds).max(axis=(1, 2))
  np.testing.assert_allclose(moved, attack.h.learning_rate, rtol=0.1)


def test_what_an_inversion_needs(world):
  sd, victim, original, batch = world
  for hparams, words in (
    ({"pool": "templates"}, "no images of the concept"),
    ({"recursion": 35}, "guidance.in_loss"),
  ):
    attack = attacks.bind("concept_inversion", hparams)
    with pytest.raises(ValueError, match=words):
      attack.init(Problem(sd, victim, original, batch), jax.random.key(0))
  attack = attacks.bind("concept_inversion", {"loss": "match"})
  with pytest.raises(ValueError, match="guidance.negative_prompt=''.*safe"):
    attack.init(
      Problem(sd, guided(world, 3.0), original, batch), jax.random.key(0)
    )
  for fields in ({"negative_prompt": "a star"}, {"safe": SAFE}):
    kept = guided(world, 3.0, **fields)
    attack.init(Problem(sd, kept, original, batch), jax.random.key(0))
  with pytest.raises(ValueError, match="recursion=1"):
    attacks.bind("concept_inversion", {"recursion": 1})
  short = schedules.Schedule.from_config(
    {**CONFIGS["scheduler"], "num_train_timesteps": 90}
  )
  attack = attacks.bind("concept_inversion", {"recursion": 35})
  kept = guided(world, 3.0, safe=SAFE)
  with pytest.raises(ValueError, match="the model has 90"):
    other = dataclasses.replace(sd, schedule=short)
    attack.init(Problem(other, kept, original, batch), jax.random.key(0))


@pytest.mark.slow
def test_a_pool_is_learnt_from_and_the_rows_images_are_not(world):
  sd, victim, original, batch = world
  h = {"num_tokens": 2, "draws": 2, "pool": "templates"}
  attack = attacks.bind("concept_inversion", h)
  step = jax.jit(attack.step)

  def after(latents, shift):
    images = pool(sd, attack)
    images = images._replace(latents=images.latents + shift)
    rows_ = batch._replace(pool=images, latents=latents)
    state = attack.init(Problem(sd, victim, original, rows_), jax.random.key(0))
    return np.asarray(
      step(Problem(sd, victim, original, rows_), state)[0].embeds
    )

  first = after(batch.latents, 0)
  np.testing.assert_array_equal(first, after(batch.latents + 1, 0))
  assert (np.abs(first - after(batch.latents, 0.5)).max(axis=(1, 2)) > 0).all()
