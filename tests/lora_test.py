"""Adapters: what they change, how they pack, and their file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from unlearning_jax import lora, shapes, stable_diffusion
from unlearning_jax.projections import cross_attention_kernels

KV = "attn2/to_k/kernel", "attn2/to_v/kernel"


@pytest.fixture(scope="module")
def model():
  return stable_diffusion.load(shapes.model_folder())


@pytest.fixture(scope="module")
def params(model):
  return model[1]


def filled(params, rank=3, targets="kv", seed=0):
  """Adapters as training would leave them: both factors filled."""
  rng = np.random.default_rng(seed)
  fresh = lora.init(params, jax.random.key(0), rank=rank, targets=targets)
  return jax.tree.map(
    lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32),
    fresh,
  )


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def changed(before, after):
  flat = [jax.tree_util.tree_leaves_with_path(tree) for tree in (before, after)]
  return [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for (path, old), (_, new) in zip(*flat, strict=True)
    if old is not new
  ]


def test_keys_are_those_of_the_closed_forms(params):
  adapters = lora.init(params, jax.random.key(0), rank=2)
  kernels = cross_attention_kernels(params)
  assert list(adapters) == list(kernels)
  for path, kernel in kernels.items():
    assert adapters[path]["down"].shape == (kernel.shape[0], 2)
    assert adapters[path]["up"].shape == (2, kernel.shape[1])


def test_fresh_adapters_change_nothing(params):
  adapters = lora.init(params, jax.random.key(0), rank=4, targets="attention")
  same(lora.merge(params, adapters), params)
  downs = np.concatenate([f["down"].ravel() for f in adapters.values()])
  assert abs(downs.std() * 4 - 1) < 0.02 and abs(downs.mean()) < 0.01
  other = lora.init(params, jax.random.key(1), rank=4, targets="attention")
  assert not any(
    np.array_equal(adapters[path]["down"], other[path]["down"])
    for path in adapters
  )


@pytest.mark.parametrize(
  "targets, per_block",
  [
    ("kv", 2),
    ("cross", 4),
    ("attention", 8),
    (("attn1/to_q", "ff/net_2"), 2),
    # As a flag says several.
    ("kv,attn1/to_q,ff/net_2", 4),
  ],
)
def test_targets(targets, per_block, params):
  blocks = len(cross_attention_kernels(params)) // 2
  adapters = lora.init(params, jax.random.key(0), rank=1, targets=targets)
  assert len(adapters) == per_block * blocks


def test_merge_changes_its_kernels_only(params):
  adapters = filled(params)
  merged = lora.merge(params, adapters, 0.5)
  assert changed(params, merged) == [f"unet/{path}" for path in adapters]
  before = cross_attention_kernels(params)
  for path, kernel in cross_attention_kernels(merged).items():
    down, up = (np.float64(adapters[path][n]) for n in ("down", "up"))
    wanted = np.float64(before[path]) + 0.5 * down @ up
    np.testing.assert_allclose(kernel, wanted, atol=1e-6)
  assert not np.array_equal(kernel, before[path])


def test_the_merged_model_acts_as_base_and_adapter(model):
  """W' c = W c + s up (down c), on one projection's own output."""
  sd, params = model
  adapters = filled(params)
  ids = stable_diffusion.tokenize(sd, ["a red star"])
  states = stable_diffusion.encode_text(sd, params, ids)[0]
  merged = cross_attention_kernels(lora.merge(params, adapters, 2))
  for path, kernel in cross_attention_kernels(params).items():
    factors = adapters[path]
    apart = states @ kernel + 2 * (states @ factors["down"]) @ factors["up"]
    np.testing.assert_allclose(states @ merged[path], apart, atol=2e-4)


def test_gradients_reach_the_factors(params):
  adapters = filled(params)
  path = next(iter(adapters))

  @jax.jit
  @jax.grad
  def gradient(adapters):
    merged = lora.merge(params, adapters, 0.5)
    return jnp.sum(closed_form_leaf(merged, path) ** 2) / 2

  found = gradient(adapters)
  merged = cross_attention_kernels(lora.merge(params, adapters, 0.5))[path]
  down, up = adapters[path]["down"], adapters[path]["up"]
  np.testing.assert_allclose(
    found[path]["down"], 0.5 * merged @ up.T, atol=1e-4
  )
  np.testing.assert_allclose(
    found[path]["up"], 0.5 * down.T @ merged, atol=1e-4
  )


def closed_form_leaf(params, path):
  for name in ("unet", *path.split("/")):
    params = params[name]
  return params


def test_padding_keeps_the_product_and_no_gradient_enters_it(params):
  adapters = filled(params, rank=2)
  padded = lora.pad(adapters, 5)
  assert {f["up"].shape[0] for f in padded.values()} == {5}
  same(lora.merge(params, padded), lora.merge(params, adapters))
  path = next(iter(adapters))

  def loss(adapters):
    return jnp.sum(closed_form_leaf(lora.merge(params, adapters), path) ** 2)

  narrow, wide = (jax.jit(jax.grad(loss))(a) for a in (adapters, padded))
  for name, factors in lora.pad(narrow, 5).items():
    for factor, wanted in factors.items():
      found = wide[name][factor]
      assert not np.asarray(found)[np.asarray(wanted) == 0].any()
      # A product over five columns may round otherwise than over two.
      np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_packed_runs_are_the_runs(params):
  runs = [filled(params, rank=r, seed=r) for r in (1, 3, 2)]
  packed = lora.stack(runs)
  scales = jnp.array([1.0, 0.5, 2.0])
  merged = jax.jit(
    jax.vmap(
      lambda a, s: closed_form_kv(lora.merge(params, a, s)), in_axes=(0, 0)
    )
  )(packed, scales)
  for i, run in enumerate(runs):
    alone = closed_form_kv(lora.merge(params, run, scales[i]))
    for path, kernel in alone.items():
      np.testing.assert_allclose(merged[path][i], kernel, atol=1e-6)


def closed_form_kv(params):
  return lora.target_kernels(params, "kv")


@pytest.mark.parametrize("targets", ["kv", "attention"])
def test_the_file_brings_back_what_was_saved(targets, params, tmp_path):
  adapters, file = filled(params, targets=targets), tmp_path / "a.safetensors"
  lora.save(file, adapters, scale=0.5)
  again = lora.load(file, params)
  same(lora.merge(params, again), lora.merge(params, adapters, 0.5))


def test_an_alpha_in_the_metadata_is_the_scale(params, tmp_path):
  adapters, file = filled(params, rank=4), tmp_path / "a.safetensors"
  lora.save(file, adapters)
  tensors = safetensors.numpy.load_file(file)
  for config, scale in (
    ({"unet.lora_alpha": 8, "unet.r": 4}, 2.0),
    ({"unet.lora_alpha": 8, "unet.r": 4, "unet.use_rslora": True}, 4.0),
    ({"lora_alpha": 4}, 1.0),
  ):
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    bare = {k.removeprefix("unet."): v for k, v in tensors.items()}
    safetensors.numpy.save_file(bare, file, metadata)
    merged = lora.merge(params, lora.load(file, params))
    same(merged, lora.merge(params, adapters, scale))


@pytest.mark.torch
def test_torch_diffusers_loads_the_file(model, tmp_path):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  pytest.importorskip("peft")
  sd, params = model
  adapters = filled(params, targets="attention")
  lora.save(tmp_path / "pytorch_lora_weights.safetensors", adapters, scale=0.5)
  pipe = diffusers.StableDiffusionPipeline.from_pretrained(
    shapes.model_folder(), safety_checker=None
  )
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(2, *sd.latent_shape)).astype(np.float32)
  context = rng.normal(size=(2, *sd.context_shape)).astype(np.float32)
  t = np.array([900, 20])

  def theirs():
    x = torch.tensor(noise.transpose(0, 3, 1, 2))
    with torch.no_grad():
      out = pipe.unet(x, torch.tensor(t), torch.tensor(context)).sample
    return out.numpy().transpose(0, 2, 3, 1)

  base = theirs()
  pipe.load_lora_weights(tmp_path)
  predict = jax.jit(
    lambda p: stable_diffusion.predict_noise(sd, p, noise, t, context)
  )
  ours = predict(lora.merge(params, adapters, 0.5))
  assert np.abs(theirs() - base).max() > 0.05
  np.testing.assert_allclose(ours, theirs(), atol=2e-5)


@pytest.mark.parametrize(
  "options, words",
  [
    ({"targets": "kvv"}, "kvv.*allowed: kv, cross, attention.*nearest.*kv"),
    ({"targets": ("attn2/to_kk",)}, "attn2/to_kk.*nearest.*attn2/to_k"),
    ({"targets": ()}, "nothing to adapt"),
    ({"targets": "proj_in"}, "not a matrix"),
    ({"rank": 0}, "rank=0; allowed: 1 to 64"),
    ({"rank": 65}, "rank=65; allowed: 1 to 64"),
  ],
)
def test_what_cannot_be_adapted(options, words, params):
  with pytest.raises(ValueError, match=words):
    lora.init(params, jax.random.key(0), **{"rank": 1, **options})


def test_adapters_that_do_not_fit(params):
  adapters = filled(params)
  path, factors = next(iter(adapters.items()))
  for wrong, words in (
    ({"nowhere/to_k/kernel": factors}, "no such kernel"),
    ({path: {"down": factors["down"]}}, "has \\['down'\\] only"),
    ({path: {**factors, "up": factors["up"][:, 1:]}}, "do not make a kernel"),
  ):
    with pytest.raises(ValueError, match=words):
      lora.merge(params, wrong)
  with pytest.raises(ValueError, match="rank=2.*already has 3"):
    lora.pad(adapters, 2)
  with pytest.raises(ValueError, match="same kernels"):
    lora.stack([adapters, {path: factors}])


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda t: t | {"unet.x.lora_A.weight": np.ones(2)}, "'unet.x.*fits no"),
    (lambda t: dict(list(t.items())[1:]), "only"),
    (lambda t: {k: v * np.nan for k, v in t.items()}, "NaN"),
    (lambda t: {k: v[:1] for k, v in t.items()}, "do not make a kernel"),
    (lambda t: {}, "holds no tensors"),
  ],
)
def test_files_that_do_not_fit(change, words, params, tmp_path):
  file = tmp_path / "a.safetensors"
  lora.save(file, filled(params))
  tensors = safetensors.numpy.load_file(file)
  safetensors.numpy.save_file(change(tensors), file)
  with pytest.raises(ValueError, match=words):
    lora.load(file, params)
  file.write_bytes(b"torn")
  with pytest.raises(ValueError, match="not a readable safetensors"):
    lora.load(file, params)
