"""Attention: the chunked form is the dense one, and the softmax is float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from unlearning_jax import models, shapes, stable_diffusion
from unlearning_jax.models import attention
from unlearning_jax.models.attention import dot_product_attention


def normal(seed, *shape, scale=1.0, dtype=np.float32):
  values = scale * np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, dtype)


def qkv(queries=13, keys=7, dtype=np.float32, scale=2.0):
  return (
    normal(0, 2, queries, 3, 5, scale=scale, dtype=dtype),
    normal(1, 2, keys, 3, 5, scale=scale, dtype=dtype),
    normal(2, 2, keys, 3, 5, dtype=dtype),
  )


def reference(query, key, value):
  """softmax(Q K^T / sqrt(c)) V in float64."""
  q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
  scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum("bhqk,bkhd->bqhd", weights, v)


@pytest.mark.parametrize(
  "implementation, chunk",
  [
    ("dense", 512),
    ("auto", 512),
    ("chunked", 1),
    ("chunked", 4),  # does not divide the 13 queries
    ("chunked", 13),
    ("chunked", 512),  # larger than all of them
  ],
)
def test_every_implementation_is_softmax_attention(implementation, chunk):
  arguments = qkv()
  out = jax.jit(
    lambda *a: dot_product_attention(
      *a, implementation=implementation, chunk=chunk
    )
  )(*arguments)
  np.testing.assert_allclose(out, reference(*arguments), atol=3e-6)


@pytest.mark.parametrize("chunk", [4, 13])
def test_chunked_gradients_are_the_dense_ones(chunk):
  arguments, weights = qkv(), normal(3, 2, 13, 3, 5)

  def gradients(implementation):
    def loss(*a):
      out = dot_product_attention(
        *a, implementation=implementation, chunk=chunk
      )
      return jnp.sum(weights * out**2)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arguments)

  for dense, chunked in zip(
    gradients("dense"), gradients("chunked"), strict=True
  ):
    assert np.abs(dense).max() > 0.1
    np.testing.assert_allclose(chunked, dense, atol=1e-5)


@pytest.mark.parametrize("implementation", ["dense", "chunked"])
def test_softmax_is_float32_in_bfloat16_attention(implementation):
  # Scores 192, 192.5 and 193: bfloat16 knows only whole numbers there.
  query = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
  offsets = jnp.array([[0.0], [1.0], [2.0]], jnp.bfloat16)
  keys = jnp.concatenate(
    [jnp.full((3, 3), 128.0, jnp.bfloat16), offsets], axis=1
  )
  value = jnp.eye(3, dtype=jnp.bfloat16)
  out = dot_product_attention(
    query, keys[None, :, None], value[None, :, None],
    implementation=implementation,
  )  # fmt: skip
  assert out.dtype == jnp.bfloat16
  expected = jax.nn.softmax(jnp.array([0.0, 0.5, 1.0]))
  np.testing.assert_allclose(out[0, 0, 0].astype(float), expected, atol=4e-3)


def test_auto_chunks_where_the_scores_are_large(monkeypatch):
  chunked = []
  monkeypatch.setattr(
    attention,
    "_chunked",
    lambda query, key, value, chunk: chunked.append(chunk) or query,
  )
  text, small, medium, large = (
    jnp.zeros((1, n, 1, 1)) for n in (77, 256, 1024, 4096)
  )
  jax.eval_shape(dot_product_attention, large, text, text)
  jax.eval_shape(dot_product_attention, small, small, small)
  assert not chunked
  jax.eval_shape(dot_product_attention, medium, medium, medium)
  jax.eval_shape(dot_product_attention, large, large, large)
  assert chunked == [512, 512]


def test_chunks_bound_the_memory_of_a_gradient():
  x = jax.ShapeDtypeStruct((1, 2048, 2, 8), jnp.float32)

  def temporary(implementation):
    def loss(query, key, value):
      out = dot_product_attention(
        query, key, value, implementation=implementation, chunk=128
      )
      return jnp.sum(out**2)

    compiled = jax.jit(jax.grad(loss)).lower(x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary("chunked") < temporary("dense") / 4


def test_unknown_implementation():
  with pytest.raises(ValueError, match="'flash' is unknown.*dense.*chunked"):
    dot_product_attention(*qkv(), implementation="flash")


def test_cudnn_gets_our_arguments(monkeypatch):
  """Its call with the same function's other implementation: layout, scale."""
  asked, library = [], jax.nn.dot_product_attention

  def instead(*a, implementation):
    asked.append(implementation)
    return library(*a, implementation="xla")

  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
  # It takes no odd number of tokens.
  for queries, keys, times in ((12, 7, 0), (13, 8, 0), (12, 8, 1)):
    arguments = qkv(queries, keys, dtype=jnp.float16)
    out = dot_product_attention(*arguments, implementation="cudnn")
    assert asked == ["cudnn"] * times and out.dtype == jnp.float16
    np.testing.assert_allclose(out, reference(*arguments), atol=4e-3)


@pytest.mark.parametrize(
  "dtype, message",
  [
    (jnp.float32, "'cudnn' does not compute in float32: set dtype=bfloat16"),
    (jnp.bfloat16, "'cudnn' needs an NVIDIA GPU.*on 'cpu': set attention="),
  ],
)
def test_where_cudnn_is_refused(dtype, message):
  with pytest.raises(ValueError, match=message):
    dot_product_attention(*qkv(dtype=dtype), implementation="cudnn")


@pytest.fixture(scope="module")
def unet():
  return stable_diffusion.load(shapes.model_folder())


@pytest.mark.parametrize(
  "implementation", ["dense", pytest.param("chunked", marks=pytest.mark.slow)]
)
def test_probabilities_of_cross_attention(unet, implementation):
  sd, params = unet
  config = dataclasses.replace(sd.unet.config, attention=implementation)
  net, params = models.UNet2DCondition(config), params["unet"]
  arguments = (
    normal(0, 2, *sd.latent_shape),
    jnp.array([900, 20]),
    normal(1, 2, *sd.context_shape),
  )
  out, found = jax.jit(functools.partial(models.apply_with_attention, net))(
    params, *arguments
  )
  plain = jax.jit(functools.partial(models.apply, net))(params, *arguments)
  np.testing.assert_allclose(out, plain, atol=2e-5)
  kernels = traverse_util.flatten_dict(params, sep="/")
  layers = [
    k.removesuffix("/to_k/kernel") for k in kernels if "attn2/to_k" in k
  ]
  assert sorted(found) == sorted(layers)
  tokens, heads = sd.context_shape[0], config.heads[0]
  for weights in found.values():
    assert weights.dtype == jnp.float32
    assert weights.shape[:2] == (2, heads) and weights.shape[3] == tokens
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
  # Levels of 8 x 8 and 4 x 4 latents, and nothing between.
  assert {w.shape[2] for w in found.values()} == {64, 16}


def test_capturing_leaves_no_trace(unet):
  sd, params = unet
  arguments = (
    jnp.zeros((1, *sd.latent_shape)),
    jnp.zeros(1, jnp.int32),
    jnp.zeros((1, *sd.context_shape)),
  )
  made = jax.eval_shape(sd.unet.init, jax.random.key(0), *arguments)
  assert set(made) == {"params"}
  assert jax.tree.structure(made["params"]) == jax.tree.structure(
    params["unet"]
  )
