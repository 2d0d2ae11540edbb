"""MACE's adapters: the law of timesteps, masks, the loss, and training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import mace_cases
from unlearning_jax import lora, shapes, sharding, stable_diffusion
from unlearning_jax.concepts import Concept
from unlearning_jax.erasures.mace import images as image
from unlearning_jax.erasures.mace import masks as mask
from unlearning_jax.erasures.mace import suppress as suppress
from unlearning_jax.erasures.mace import text
from unlearning_jax.shapes import render, vocabulary

pytestmark = pytest.mark.usefixtures("quickest_compiler")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return mace_cases.world(tmp_path_factory.mktemp("tiny"))


# --- Timesteps ---


def test_focal_law():
  law = suppress.focal_law(1000)
  t = np.arange(1000)
  mean = float(law @ t)
  assert law.sum() == pytest.approx(1, abs=1e-12) and (law >= 0).all()
  assert mean == pytest.approx(300.00142, abs=1e-5)
  assert np.sqrt(law @ (t - mean) ** 2) == pytest.approx(68.182, abs=1e-3)
  assert law[200:401].sum() == pytest.approx(0.863873, abs=1e-6)
  assert law[:200].sum() == pytest.approx(0.068061, abs=1e-6)
  assert law[500:].sum() == pytest.approx(6.88e-4, abs=1e-6)
  assert law.argmax() == 300
  assert law.max() == pytest.approx(4.933093e-3, abs=1e-9)
  np.testing.assert_allclose(law[300:600], law[300:0:-1], rtol=1e-9)
  sigmoid = 1 / (1 + np.exp(-0.05 * (t - 200)))
  sigmoid -= 1 / (1 + np.exp(-0.05 * (t - 400)))
  assert sigmoid.sum() == pytest.approx(199.9991145720, abs=1e-9)


@pytest.mark.parametrize(
  "arguments, message",
  [
    ((400, 200, 0.05), "t1=400, t2=200; allowed: 0 <= t1 < t2 < 1000"),
    ((200, 1000, 0.05), "t2=1000"),
    ((200, 400, 0.0), "gamma=0.0; allowed: finite numbers above 0"),
  ],
)
def test_focal_law_that_cannot_be(arguments, message):
  with pytest.raises(ValueError, match=message):
    suppress.focal_law(1000, *arguments)


def test_draws_follow_the_law():
  law = suppress.focal_law(1000)
  plan = suppress.make_plan(jax.random.key(3), 8, 30, 100_000, 1, law)
  edges = np.array([0, 150, 200, 250, 300, 350, 400, 450, 1000])
  counts = np.histogram(plan.timesteps, edges)[0]
  expected = 1e5 * np.add.reduceat(law, edges[:-1])
  # 7 degrees of freedom: above 24.3 once in a thousand.
  assert np.sum((counts - expected) ** 2 / expected) < 24.3
  assert set(plan.prompts.ravel().tolist()) == set(range(30))
  rounds = plan.images.reshape(-1, 8)
  assert (np.sort(rounds, axis=1) == np.arange(8)).all()
  short = suppress.make_plan(jax.random.key(3), 8, 30, 50, 1, law)
  for one, other in zip(short, plan, strict=True):
    np.testing.assert_array_equal(one, other[:50])


# --- Masks ---


@pytest.mark.parametrize("resize", ["nearest", "area"])
def test_a_mask_keeps_a_cell_on_every_level(resize):
  spot = np.zeros((64, 64), bool)
  spot[37, 21] = True
  for side in (64, 32, 16, 8, 4, 1, 3):
    small = mask.layer_mask(spot, (side, side), resize).reshape(side, side)
    assert small.sum() == 1
    # Where the middle of the spot lies.
    assert small[int(37.5 * side / 64), int(21.5 * side / 64)]
  assert not mask.layer_mask(np.zeros((64, 64), bool), (8, 8), resize).any()
  assert mask.layer_mask(np.ones((64, 64), bool), (5, 7), resize).all()


def test_resizing():
  ramp = np.zeros((4, 8), bool)
  ramp[:, 3:] = True
  area = mask.layer_mask(ramp, (2, 4), "area").reshape(2, 4)
  # Half of the second cell is covered: that is enough.
  assert area[0].tolist() == [False, True, True, True]
  nearest = mask.layer_mask(ramp, (2, 4), "nearest").reshape(2, 4)
  assert nearest[0].tolist() == [False, False, True, True]


def test_segments_the_hot_part():
  heat = np.random.default_rng(0).random((32, 32)) * 0.2
  heat[10:20, 5:15] += 1
  heat[30, 30] = 1  # a speck
  found = mask.segment(heat)
  expected = np.zeros((32, 32), bool)
  expected[9:21, 5:15] = expected[10:20, 4:16] = True
  np.testing.assert_array_equal(found, expected)
  assert not mask.segment(np.ones((8, 8))).any()


def test_given_masks_that_are_not_usable():
  good = mace_cases.masks()
  assert mask.check_given(255 * good, good.shape, "a").dtype == bool
  blurred = good.copy()
  blurred[0, 0, 0] = 7
  for bad, message in (
    (good[:, 1:], r"allowed: \(3, 16, 16\), one mask"),
    (good[:2], r"shape \(2, 16, 16\); allowed: \(3, 16, 16\)"),
    (blurred, "hold 3 values; allowed: 0 and 1, or 0 and 255"),
    (
      good * np.array([1, 0, 1], np.uint8)[:, None, None],
      "the mask of image 1 is empty",
    ),
  ):
    with pytest.raises(ValueError, match=f"masks of 'a'.*{message}"):
      mask.check_given(bad, good.shape, "a")


@pytest.mark.parametrize(
  "source", ["attention", pytest.param("cfg_diff", marks=pytest.mark.slow)]
)
def test_masks_from_the_model_lie_on_the_concept(source):
  """Where the renderer drew it, in the only model that draws anything here.

  Objects stand in the middle, as a blind mask might, so pictures are moved by a
  quarter to one side. Intersection over union with the object there, and with
  where it were if moved to the other side: attention 0.39 and 0.15, cfg_diff
  0.36 and 0.21.
  """
  sd, params = stable_diffusion.load(shapes.model_folder())
  heads, here, there = vocabulary.HEADS, [], []
  for name in ("star", "house"):
    scenes = [
      vocabulary.Scene(
        "object", name, colour, heads["background"][i % 4], seed=i
      )
      for i, colour in enumerate(heads["colour"])
    ]
    pixels, drawn = map(np.stack, zip(*map(render.render, scenes), strict=True))
    words = text.encode_concept(
      sd, params, Concept(name, "circle"), ["a picture of a {}"],
      tokens="phrase", by_ends=False,
    )  # fmt: skip
    for side in (-8, 8):
      latents, _ = image.encode_images(
        sd, params, np.roll(pixels, side, axis=2), "vae"
      )
      found, again = (
        mask.find(
          sd, params, latents, words.states[0], words.anchors[0],
          words.phrases[0], jax.random.key(0), source,
        )
        for _ in range(2)
      )  # fmt: skip
      np.testing.assert_array_equal(found, again)
      for overlaps, moved in ((here, side), (there, -side)):
        for one, other in zip(found, np.roll(drawn, moved, 2), strict=True):
          other = mask.layer_mask(other, sd.latent_size, "area")
          one = one.reshape(-1)
          overlaps.append((one & other).sum() / (one | other).sum())
  assert np.mean(here) > 1.4 * np.mean(there)


# --- Loss ---


def probabilities(queries=9, batch=2, heads=3, tokens=6, seed=0):
  logits = np.random.default_rng(seed).normal(
    size=(batch, heads, queries, tokens)
  )
  return jax.nn.softmax(jnp.asarray(logits, jnp.float32), axis=-1)


def test_loss_values():
  weights = {"a": probabilities(9), "b": probabilities(4, seed=1)}
  ones = {q: jnp.ones((2, q), bool) for q in (4, 9)}
  half = {q: m.at[0, :2].set(False) for q, m in ones.items()}
  targets = jnp.array([[False, True, True] * 2, [True] * 6])
  for form in suppress.LOSS_FORMS:
    found = suppress.attention_loss(weights, half, targets, form)
    for row in range(2):
      total = 0.0
      for layer in weights.values():
        here = np.float64(layer[row])[:, np.asarray(half[layer.shape[2]][row])]
        square = np.sum(here[:, :, np.asarray(targets[row])] ** 2)
        total += square if form == "squared" else np.sqrt(square)
      assert found[row] == pytest.approx(total, rel=1e-5)
  # All tokens of uniform attention over six: heads * queries / 6.
  uniform = {"a": jnp.full((2, 3, 9, 6), 1 / 6)}
  every = suppress.attention_loss(
    uniform, ones, jnp.ones((2, 6), bool), "squared"
  )
  np.testing.assert_allclose(every, 3 * 9 / 6, rtol=1e-6)


@pytest.mark.parametrize("form", suppress.LOSS_FORMS)
def test_an_empty_mask_costs_nothing_and_pulls_nowhere(form):
  def loss(layer):
    nothing = {9: jnp.zeros((2, 9), bool)}
    every = jnp.ones((2, 6), bool)
    return suppress.attention_loss({"a": layer}, nothing, every, form).sum()

  value, slope = jax.value_and_grad(loss)(probabilities())
  assert value == 0 and not np.asarray(slope).any()


# --- Training ---


def trained(model, names, **changes):
  """Adapters on the unrefined model: what else there is cannot matter."""
  sd, params = model
  runs = []
  rng = np.random.default_rng(0)
  pool = {
    name: (rng.normal(size=(3, *sd.context_shape)), count)
    for name, count in (("a", 2), ("b", 4), ("c", 3))
  }
  for name in names:
    states, count = pool[name]
    own = np.random.default_rng(ord(name))
    mean = own.normal(size=(count, *sd.latent_shape))
    masks = [own.random(sd.latent_size) > 0.5 for _ in range(count)]
    targets = np.zeros((3, sd.context_shape[0]), bool)
    targets[:, 2:4] = True
    examples = suppress.Examples(
      mean, 0.1 * np.ones_like(mean), mask.for_layers(sd, masks, "area"),
      states, targets,
    )  # fmt: skip
    key = jax.random.key(ord(name))
    steps = {"a": 2, "b": 3, "c": 3}[name]
    law = suppress.focal_law(1000)
    plan = suppress.make_plan(key, count, 3, steps, 1, law)
    runs.append(suppress.Run(name, key, examples, plan, 1e-2))
  options = {"rank": 1, "form": "squared", "pack": 1, **changes}
  return suppress.train(sd, params, runs, **options)


@pytest.fixture(scope="module")
def alone(model):
  return trained(model, "a")


@pytest.mark.slow
def test_many_together_are_one_at_a_time(model, alone, monkeypatch):
  """Eight devices or one, in packs of two or alone: the same adapters."""
  together = trained(model, "abc")
  make_mesh = sharding.make_mesh
  with monkeypatch.context() as patch:
    one = make_mesh(devices=jax.devices()[:1])
    patch.setattr(sharding, "make_mesh", lambda: one)
    packed = trained(model, "abc", pack=2)
  assert [len(rows) for rows in together[1]] == [2, 3, 3]
  for i, other in ((0, alone), *((i, packed) for i in range(3))):
    j = 0 if other is alone else i
    np.testing.assert_allclose(together[1][i], other[1][j], rtol=1e-5)
    for path, factors in other[0][j].items():
      for side, leaf in factors.items():
        # Adam's first step divides tiny gradients by their own size.
        np.testing.assert_allclose(together[0][i][path][side], leaf, atol=2e-5)


@pytest.mark.slow
def test_a_step_is_no_longer_than_the_learning_rate(model, alone):
  """AdamW moves an entry by about the learning rate, at most, and decays."""
  (adapters,), _ = alone
  fresh = lora.init(model[1], jax.random.key(ord("a")), rank=1, targets="kv")
  assert mace_cases.untrained(adapters) == mace_cases.LAST
  for path, factors in adapters.items():
    assert np.abs(factors["up"]).max() <= 2 * 1e-2 * 1.01
    moved = np.abs(factors["down"] - fresh[path]["down"]).max()
    assert 0 < moved <= 2 * 1e-2 * (1 + 0.01 * 4) * 1.01


@pytest.mark.slow
def test_attention_falls(model):
  """On one image, one prompt and one timestep, only the noise is left."""
  sd, params = model
  rng = np.random.default_rng(0)
  mean = rng.normal(size=(1, *sd.latent_shape))
  targets = np.zeros((1, sd.context_shape[0]), bool)
  targets[:, 2:4] = True
  examples = suppress.Examples(
    mean,
    np.zeros_like(mean),
    mask.for_layers(sd, [np.ones(sd.latent_size, bool)], "area"),
    rng.normal(size=(1, *sd.context_shape)),
    targets,
  )
  law = np.eye(1000)[300]
  key = jax.random.key(0)
  plan = suppress.make_plan(key, 1, 1, 40, 1, law)
  run = suppress.Run("a", key, examples, plan, 3e-2)
  _, (losses,) = suppress.train(
    sd, params, [run], rank=1, form="squared", pack=1
  )
  assert losses[-5:].mean() < 0.5 * losses[:5].mean()


def test_a_loss_that_is_not_finite_is_named(model):
  sd, params = model
  broken = jax.tree.map(np.array, params)
  broken["unet"]["conv_in"]["kernel"][0, 0] = np.nan
  with pytest.raises(
    FloatingPointError, match="concept 'a': loss is nan at st"
  ):
    trained((sd, broken), "a")
