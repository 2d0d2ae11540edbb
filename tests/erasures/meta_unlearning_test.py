"""Meta-Unlearning: terms against algebra, wrapped methods, settings."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import flatten_util

from tests.erasures.resalign_gradients_test import differences, doubles
from tests.support import attacks_cases
from unlearning_jax import erasures, shapes
from unlearning_jax import stable_diffusion as stable
from unlearning_jax.concepts import make_concepts
from unlearning_jax.erasures import meta_unlearning as meta
from unlearning_jax.erasures.meta_unlearning import images, terms
from unlearning_jax.projections import leaves_of

__all__ = ["doubles"]
pytestmark = pytest.mark.usefixtures("quickest_compiler")
SIZE = 5
KEY = jax.random.key(0)
_RNG = np.random.default_rng(0)
_ROOTS = _RNG.normal(size=(3, SIZE, SIZE))
# L_set(u) = (u - b)^T A (u - b) / 2, for each set.
A, B = _ROOTS @ _ROOTS.transpose(0, 2, 1) / 5, _RNG.normal(size=(3, SIZE))
THETA = _RNG.normal(size=SIZE)


class Quadratics:
  """`Losses` whose gradients are known; `y` is in none of them."""

  def tuning(self, u, key, of, rows):
    off = u["x"] - jnp.asarray(B)[of]
    return 0.5 * off @ jnp.asarray(A)[of] @ off


class Noisy(Quadratics):
  def tuning(self, u, key, of, rows):
    noise = jax.random.normal(key, (SIZE,))
    return super().tuning(u, key, of, rows) + noise @ u["x"]


def slope(u, of):
  return A[of] @ (u - B[of])


def loss(u, of):
  return 0.5 * (u - B[of]) @ slope(u, of)


def made(theta=THETA, losses=Quadratics, key=KEY, **options):
  """Value, gradient and metrics at theta."""
  h = meta.Hparams(**options)
  at, unravel = flatten_util.ravel_pytree(
    {"x": jnp.asarray(theta), "y": jnp.ones(2)}
  )
  value, found, metrics = terms.meta_gradient(
    cast(Any, losses()), h, at, unravel, key
  )
  return value, unravel(found), metrics


WEIGHTS = dict(zip(meta.WEIGHTS, (0.3, 0.05, 0.7, 0.2, 0.11), strict=True))


@pytest.mark.parametrize(
  "how, lane", [("first_order", "sgd/0.125/0/0"), ("unrolled", "adam/0/3/0")]
)
def test_without_a_tuning_the_terms_collapse(how, lane):
  value, found, _ = made(lanes=(lane,), hypergrad=how, **WEIGHTS)
  wanted = (
    (0.3 - 0.11) * slope(THETA, 2)
    + (0.05 - 0.2) * slope(THETA, 1)
    - 0.7 * slope(THETA, 0)
  )
  np.testing.assert_allclose(found["x"], wanted, rtol=1e-12)
  parts = 0.19 * loss(THETA, 2) - 0.15 * loss(THETA, 1)
  np.testing.assert_allclose(value, parts - 0.7 * loss(THETA, 0), rtol=1e-12)


@pytest.mark.parametrize("how", meta.HYPERGRADS)
def test_one_step_of_tuning(how):
  value, found, metrics = made(
    lanes=("sgd/0.125/1/0",), hypergrad=how, **WEIGHTS
  )
  w = THETA - 0.125 * slope(THETA, 0)
  after = 0.7 * slope(w, 0) + 0.2 * slope(w, 1) + 0.11 * slope(w, 2)
  if how == "unrolled":
    after = (np.eye(SIZE) - 0.125 * A[0]) @ after
  before = 0.3 * slope(THETA, 2) + 0.05 * slope(THETA, 1)
  np.testing.assert_allclose(found["x"], before - after, rtol=1e-10)
  # What no loss reads stays, though Adam and decay see it.
  np.testing.assert_array_equal(found["y"], [0, 0])
  con, rel = slope(w, 0), slope(w, 1)
  lengths = np.linalg.norm(con), np.linalg.norm(rel)
  np.testing.assert_allclose(metrics["slope"], con @ con, rtol=1e-10)
  cosine = con @ rel / np.prod(lengths)
  np.testing.assert_allclose(metrics["cosine"], cosine, rtol=1e-10)
  np.testing.assert_allclose(metrics["tuned_concept"], loss(w, 0), rtol=1e-10)
  np.testing.assert_allclose(metrics["irrelevant"], loss(THETA, 2), rtol=1e-10)
  wanted = 0.3 * loss(THETA, 2) + 0.05 * loss(THETA, 1) - 0.7 * loss(w, 0)
  wanted -= 0.2 * loss(w, 1) + 0.11 * loss(w, 2)
  np.testing.assert_allclose(value, wanted, rtol=1e-10)


@pytest.mark.parametrize("lane", ["sgd/0.0625/4/0", "adam/0.0625/3/1"])
def test_the_unrolled_gradient_is_exact(lane):
  at = functools.partial(made, lanes=(lane,), hypergrad="unrolled", **WEIGHTS)
  _, found, _ = at()
  value = jax.jit(lambda theta: at(theta)[0])
  wanted = differences(lambda theta: np.array([value(theta)]), THETA)[0]
  np.testing.assert_allclose(found["x"], wanted, atol=1e-6)


def test_lanes_together_are_the_mean_of_lanes_alone():
  names = ("sgd/0.125/2/0", "adam/0.0625/3/1")
  _, together, _ = made(lanes=names, hypergrad="unrolled")
  alone = [made(lanes=(name,), hypergrad="unrolled")[1]["x"] for name in names]
  np.testing.assert_allclose(together["x"], np.mean(alone, 0), rtol=1e-12)


def test_fixed_sees_one_noise_at_both_ends_and_the_release_two():
  # At w that is theta, equal weights then cancel exactly.
  same = dict(zip(meta.WEIGHTS, (0.5, 0.5, 0.0, 0.5, 0.5), strict=True))
  options = same | {"lanes": ("sgd/0/0/0",), "losses": Noisy}
  assert not np.any(made(**options)[1]["x"])
  assert np.all(made(preset="reference", **options)[1]["x"])


def test_a_tuning_that_diverges_leaves_no_gradient():
  _, found, _ = made(lanes=("sgd/1e30/30/0", "sgd/0/0/0"))
  assert np.isnan(found["x"]).all()


def test_the_wrapped_methods_gradient_is_added(monkeypatch):
  monkeypatch.setattr(meta, "Losses", lambda *_: Quadratics())
  h = meta.Hparams(lanes=("sgd/0.125/1/0",))

  def erasing(trained, frozen, batch, key):
    return jnp.sum(frozen["params"] * trained["x"] ** 2), {"own": batch["own"]}

  frozen = {"erasure": {"params": jnp.arange(5.0)}, "meta": {}}
  at = {"x": jnp.asarray(THETA), "y": jnp.ones(2)}
  (value, metrics), found = jax.value_and_grad(
    functools.partial(meta._loss, cast(Any, None), erasing, h), has_aux=True
  )(at, frozen, {"own": 3.0}, KEY)
  own, terms_alone, _ = made(lanes=("sgd/0.125/1/0",))
  np.testing.assert_allclose(
    found["x"], 2 * np.arange(5) * THETA + terms_alone["x"], rtol=1e-12
  )
  np.testing.assert_allclose(value, np.arange(5) @ THETA**2 + own, rtol=1e-12)
  assert metrics["own"] == 3 and np.isfinite(metrics["erase"])


def test_a_mask_of_the_wrapped_method_holds_for_the_terms(monkeypatch):
  monkeypatch.setattr(meta, "Losses", lambda *_: Quadratics())
  h = meta.Hparams(lanes=("sgd/0.125/1/0",))
  kept = np.arange(SIZE) < 2
  base = {"x": jnp.asarray(B[1]), "y": jnp.zeros(2)}
  mask = {"x": jnp.asarray(kept), "y": jnp.ones(2, bool)}
  frozen = {
    "erasure": {"params": None, "mask": mask, "base": base}, "meta": {},
  }  # fmt: skip

  def found(theta):
    run = functools.partial(
      meta._loss, cast(Any, None), lambda *_: (0.0, {}), h
    )
    at = {"x": jnp.asarray(theta), "y": jnp.ones(2)}
    return jax.value_and_grad(run, has_aux=True)(at, frozen, {}, KEY)

  (value, _), gradient = found(THETA)
  # Entries that are masked out are the base's, whatever stands there.
  (other, _), same = found(np.where(kept, THETA, 7.0))
  np.testing.assert_allclose(value, other, rtol=1e-12)
  np.testing.assert_array_equal(gradient["x"], same["x"])
  whole = made(np.where(kept, THETA, B[1]), lanes=("sgd/0.125/1/0",))[1]["x"]
  np.testing.assert_allclose(gradient["x"], whole * kept, rtol=1e-12)


def test_more_images_weigh_more_in_the_release_alone():
  few, many = (
    {p: meta.Hparams(preset=p, num_images=n).weights for p in meta.PRESETS}
    for n in (30, 60)
  )
  assert few["fixed"] == many["fixed"] == (0.1, 0.01, 0.1, 0.1, 0.01)
  np.testing.assert_allclose(few["reference"], (0.3, 0.03, 0.03, 3, 3))
  np.testing.assert_allclose(many["reference"], 2 * np.array(few["reference"]))


@pytest.mark.parametrize(
  "options, words",
  [
    ({"preset": "paper"}, "preset='paper'.*fixed, reference"),
    ({"wrapped": "ecd"}, "wrapped='ecd'.*did you mean 'esd'"),
    ({"wrapped": "sld"}, "wrapped='sld' is not known; allowed: esd, conc"),
    ({"wrapped_hparams": ("train",)}, "'train' is no name=value"),
    ({"wrapped_hparams": ("trian='x'",)}, "wrapped_hparams.trian.*mean train"),
    ({"wrapped_hparams": ("edd.eta=1",)}, "did you mean 'esd'"),
    ({"wrapped_hparams": ("eta='x'",)}, "hparams.eta='x': must be float"),
    ({"wrapped_hparams": "train='x'"}, "wrapped_hparams=.*give a list"),
    (
      {"wrapped": "uce", "wrapped_hparams": ("truncate=True",)},
      "truncate=True is not taken over",
    ),
    ({"related": "a person"}, "related='a person'; give a list"),
    ({"related": (" ",)}, "none blank"),
    ({"hypergrad": "neumann"}, "allowed: first_order, unrolled"),
    ({"lanes": ("adam/1e-5/3",)}, "'adam/1e-5/3' is no optimizer/"),
    ({"lanes": ("adam/1e-5/3/3",)}, "there is no set 3; allowed: 0 for the"),
    ({"hold_related": -1.0}, "hold_related=-1.0; allowed: finite"),
    ({"break_related": float("nan")}, "break_related=nan"),
    (dict.fromkeys(meta.WEIGHTS[2:], 0.0), "give one of them, or .*method=esd"),
    ({"clip_norm": 0.0}, "clip_norm=0.0; allowed: finite numbers above 0"),
    ({"num_steps": 0}, "num_steps=0; allowed: whole numbers from 1"),
    ({"batch_size": 31}, "batch_size=31; allowed: 1 to num_images=30"),
  ],
)  # fmt: skip
def test_settings_that_cannot_be(options, words):
  with pytest.raises(ValueError, match=words):
    meta.Hparams(**options)


def test_the_phrases_of_the_sets():
  concepts = make_concepts(["star", "ring"], "circle", ["moon", "a house"])
  found = images.phrases(concepts)
  assert found == {
    "concept": ("star", "ring"), "related": ("circle",),
    "irrelevant": ("moon", "a house"),
  }  # fmt: skip
  found = images.phrases(concepts, ("moon",))
  assert (found["related"], found["irrelevant"]) == (("moon",), ("a house",))


@pytest.mark.parametrize(
  "anchor, preserve, related, words",
  [
    ("", ["moon"], (), r"nothing is related.*hparams.related=\('a person',\)"),
    ("circle", [], (), "preserve nothing but what is related"),
    ("circle", ["circle"], (), "preserve nothing but what is related"),
    ("circle", ["moon"], ("two stars",), "'two stars' names 'star'"),
    ("circle", ["a red star"], (), "'a red star' is preserved, but names"),
  ],
)
def test_phrases_that_cannot_be(anchor, preserve, related, words):
  concepts = make_concepts("star", anchor, preserve)
  with pytest.raises(ValueError, match=words):
    images.phrases(concepts, related)


@pytest.fixture(scope="module")
def narrow():
  _, params = stable.load(shapes.model_folder())
  sd, victim, _ = attacks_cases.make_world()
  return sd, {**params, "unet": jax.device_get(victim.params["unet"])}


META = [f"meta_{name}" for name in terms.SETS]
SHORT = ("num_inference_steps=2",)
OWN = {
  "esd": (*SHORT, "batch_size=2"),
  "concept_ablation": (*SHORT, "expand_prompts=False"),
  "salun": (*SHORT, "saliency='random'", "num_images=8"),
  "erasediff": (*SHORT, "num_images=8", "batch_size=2"),
}


@pytest.mark.parametrize("name", [*meta.TRAINED, *meta.CLOSED])
def test_every_method_is_wrapped(name, narrow):
  """Without a training: its loss is traced, its edit is of leaves set here."""
  sd, params = narrow
  seen = {}

  def collect(of, count, make):
    seen[of] = count
    if of not in ("anchors", "forget", "remain", *META):
      return [make(i) for i in range(count)]
    return [np.zeros((16, *sd.latent_shape), np.float32)] * count

  def trainer(loss, tx, trained, frozen, batches, key, **options):
    value, metrics = jax.eval_shape(loss, trained, frozen, batches[0], key)
    assert value.shape == () and {"erase", "slope", "cosine"} <= {*metrics}
    jax.eval_shape(tx.init, trained)
    assert all(path.startswith("unet/") for path in trained)
    seen["begin"], seen["steps"] = trained, options["num_steps"]
    return {path: leaf + 0.5 for path, leaf in trained.items()}

  h = meta.Hparams(
    wrapped=name, wrapped_hparams=OWN.get(name, ()), num_images=4, batch_size=2,
    num_steps=7,
  )  # fmt: skip
  edit = meta.erase(
    sd, params, make_concepts("star", "circle", ["moon"]), KEY, h,
    erasures.Hooks(collect=collect, trainer=trainer),
  )  # fmt: skip
  assert edit.method == f"meta_unlearning {name}" and edit.context_map is None
  assert {*META} <= {*seen}
  moved = max(
    float(np.abs(seen["begin"][path] - leaf).max())
    for path, leaf in leaves_of(params).items()
    if path in seen["begin"]
  )
  closed = name in meta.CLOSED
  assert bool(moved) == closed and (seen["steps"] == 7) == closed


def test_wrapped_hyperparameters_replace_the_papers():
  words = ("train=x", "esd.num_steps=3", "rece.rows='joint'")
  h = meta.Hparams(wrapped_hparams=words)
  own = h.bound.h
  assert (own.train, own.num_steps, own.eta) == ("x", 3, 3.0)
  assert dataclasses.replace(h, wrapped_hparams=()).bound.h.num_steps == 1500
  recipe = meta.Hparams(wrapped_recipe=words, wrapped_hparams=("num_steps=4",))
  assert (recipe.bound.h.train, recipe.bound.h.num_steps) == ("x", 4)
  closed = meta.Hparams(wrapped="rece", wrapped_hparams=words[1:])
  assert closed.bound.h.rows == "joint"
