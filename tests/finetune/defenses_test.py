"""Defenses: what they promise, to rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.stable_diffusion_test import make_files
from unlearning_jax import finetune, sharding, stable_diffusion
from unlearning_jax.data import Batches
from unlearning_jax.finetune import defenses
from unlearning_jax.projections import cross_attention_kernels

pytestmark = pytest.mark.usefixtures("quickest_compiler")
STEPS = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  files = make_files(tmp_path_factory.mktemp("model"))
  return stable_diffusion.from_files(files)


def states(model, phrases):
  sd, params = model
  ids = stable_diffusion.tokenize(sd, phrases)
  context = stable_diffusion.encode_text(sd, params, ids)
  return np.asarray(context).reshape(-1, context.shape[-1])


def tuned(model, train="kv", basis=None, weight=None, weight_decay=0.5):
  sd, params = model
  images = np.random.default_rng(0).integers(0, 256, (8, 12, 8, 3), np.uint8)
  rows = finetune.encode_examples(sd, params, images, ["a b", "c"] * 4)
  part = finetune.partition(
    params, train, jax.random.key(0), rank=3, targets="attention"
  )
  # By default with so much weight decay that it would be seen.
  tx = finetune.optimizer(1e-2, STEPS, weight_decay=weight_decay, warmup=0)
  trained = part.trained
  if basis is not None:
    tx = optax.chain(tx, defenses.project(basis))
    if train == "lora":
      trained = defenses.outside(trained, basis)
  loss = functools.partial(finetune.diffusion_loss, sd, part.join)
  empty = stable_diffusion.encode_text(
    sd, params, stable_diffusion.tokenize(sd, [""])
  )
  frozen = {"params": part.frozen, "empty": empty}
  if weight is not None:
    loss = defenses.anchored(loss, part.join, weight)
    frozen["anchor"] = defenses.anchor(params, states(model, ["d e"]))
  state = finetune.train(
    finetune.init_state(trained, tx, ema=False),
    finetune.make_step(loss, tx, None),
    frozen,
    Batches(rows, 4),
    jax.random.key(1),
    mesh=sharding.make_mesh(devices=jax.devices()[:1]),
    num_steps=STEPS,
    watch=finetune.Watch(every=STEPS),
  )
  return part.join(jax.device_get(state.params), part.frozen)


def moved(model, after, rows):
  """|rows (kernel - kernel')| of the largest entry, over all projections."""
  before = cross_attention_kernels(model[1])
  return max(
    float(np.abs(np.float64(rows) @ (np.float64(k) - before[path])).max())
    for path, k in cross_attention_kernels(after).items()
  )


@pytest.mark.slow
@pytest.mark.parametrize("train", ["kv", "lora"])
def test_projected_tuning_keeps_what_erased_prompts_say(train, model):
  erased = states(model, ["d e"])
  basis = defenses.erased_basis(erased)
  np.testing.assert_allclose(basis.T @ basis, np.eye(len(basis.T)), atol=1e-12)
  kept, free = (tuned(model, train, b) for b in (basis, None))
  assert moved(model, kept, basis.T) < 1e-6
  assert moved(model, kept, erased) < 5e-6
  assert moved(model, free, erased) > 1e-2
  # It learns elsewhere.
  assert moved(model, kept, np.eye(len(basis))) > 1e-2


def test_a_basis_of_a_few_directions(model):
  erased, shared = states(model, ["d e", "d f"]), states(model, [""]).mean(0)
  whole, few = (defenses.erased_basis(erased, k) for k in (None, 2))
  np.testing.assert_allclose(whole @ (whole.T @ erased.T), erased.T, atol=1e-4)
  gram = np.float64(erased).T @ erased
  largest = np.linalg.eigvalsh(gram)[-2:]
  np.testing.assert_allclose(
    np.linalg.eigvalsh(few.T @ gram @ few), largest, rtol=1e-6
  )
  off = defenses.erased_basis(erased, None, shared)
  np.testing.assert_allclose(
    off @ (off.T @ (erased - shared).T), (erased - shared).T, atol=1e-4
  )
  sizes = np.linalg.svd(np.float64(erased), compute_uv=False) ** 2
  for energy in (0.5, 0.99, 1.0):
    basis = defenses.erased_basis(erased, energy=energy)
    k, held = basis.shape[1], np.cumsum(sizes) / sizes.sum()
    assert held[k - 1] >= energy - 1e-9 and (k == 1 or held[k - 2] < energy)
  with pytest.raises(ValueError, match="energy=1.5; allowed: above 0"):
    defenses.erased_basis(erased, energy=1.5)
  for k in (0, len(erased.T) + 1):
    with pytest.raises(ValueError, match=f"k={k}; allowed: 1 to"):
      defenses.erased_basis(erased, k)


def test_the_anchor_is_the_distance_of_what_is_said(model):
  params, rows = model[1], states(model, ["d e", "f"])
  part = finetune.partition(params, "kv")
  noise = np.random.default_rng(0)
  shifted = {
    k: v + 0.1 * noise.normal(size=v.shape).astype(np.float32)
    for k, v in part.trained.items()
  }

  def nothing(trained, frozen, batch, key):
    return jnp.zeros(()), {}

  total = defenses.anchored(nothing, part.join, 3.0)
  frozen = {"params": part.frozen, "anchor": defenses.anchor(params, rows)}
  value, metrics = total(shifted, frozen, {}, jax.random.key(0))
  wanted = sum(
    np.sum((np.float64(rows) @ (np.float64(v) - part.trained[k])) ** 2)
    for k, v in shifted.items()
  )
  assert abs(float(metrics["anchor"]) / wanted - 1) < 1e-5
  assert abs(float(value) / wanted / 3 - 1) < 1e-5
  assert total(part.trained, frozen, {}, jax.random.key(0))[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("train", ["kv", "lora"])
def test_anchored_tuning_moves_what_erased_prompts_say_less(train, model):
  erased = states(model, ["d e"])
  free, light, firm = (
    tuned(model, train, weight=weight, weight_decay=0.0)
    for weight in (None, 1e-3, 1.0)
  )
  assert moved(model, firm, erased) < 0.5 * moved(model, free, erased)
  assert moved(model, firm, erased) < moved(model, light, erased)
  # It learns elsewhere.
  everything = np.eye(len(erased.T))
  assert moved(model, firm, everything) > 0.3 * moved(model, free, everything)


def test_reassertion_says_again_what_was_said(model):
  params = model[1]
  erased, kept = states(model, ["d e"]), states(model, ["a b", "c"])
  rng = np.random.default_rng(0)
  part = finetune.partition(params, "kv")
  shifted = {
    path: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
    for path, leaf in part.trained.items()
  }
  after = part.join(shifted, part.frozen)
  before = moved(model, after, erased)
  back = defenses.reassert(after, params, erased, kept, preserve_scale=0.01)
  assert moved(model, back, erased) < 0.3 * before
  # Repeated on its own output it comes nearer still.
  again = defenses.reassert(back, params, erased, kept, preserve_scale=0.01)
  assert moved(model, again, erased) < moved(model, back, erased)
  # The gradient of the objective is zero there.
  tuned_kernels = cross_attention_kernels(after)
  for path, kernel in cross_attention_kernels(back).items():
    start, origin = (
      np.float64(k)
      for k in (
        tuned_kernels[path], cross_attention_kernels(params)[path],
      )
    )  # fmt: skip
    slope = erased.T @ (erased @ (np.float64(kernel) - origin))
    slope += 0.01 * kept.T @ (kept @ (kernel - start)) + 0.1 * (kernel - start)
    scale = np.abs(erased.T @ (erased @ (start - origin))).max()
    assert np.abs(slope).max() < 1e-5 * max(scale, 1)
  # What was erased may weigh more: the others then weigh less.
  plain, firm, light = (
    defenses.reassert(after, params, erased, kept, **scales)
    for scales in (
      {}, {"weight": 8.0}, {"preserve_scale": 1 / 8, "lamb": 0.1 / 8},
    )
  )  # fmt: skip
  assert moved(model, firm, erased) < moved(model, plain, erased)
  close = functools.partial(np.testing.assert_allclose, atol=1e-6)
  jax.tree.map(close, firm, light)
  same = defenses.reassert(params, params, erased, kept)
  assert moved(model, same, erased) == 0
  with pytest.raises(ValueError, match="lamb=-1"):
    defenses.reassert(after, params, erased, kept, lamb=-1)
