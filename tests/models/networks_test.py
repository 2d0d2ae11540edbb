"""What a model's own config may ask for, and what is refused by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax.convert.sd1 import CONFIGS
from unlearning_jax.experiments.programs.build import make_sd, shapes, weights
from unlearning_jax.models import (
  AutoencoderKL,
  ClipTextModel,
  UNet2DCondition,
  fast,
)
from unlearning_jax.models.layers import group_norm, layer_norm
from unlearning_jax.stable_diffusion import predict_noise

MODELS = {
  "text_encoder": ClipTextModel,
  "unet": UNet2DCondition,
  "vae": AutoencoderKL,
}


def build(part, overrides=None, **changes):
  return MODELS[part].from_config(CONFIGS[part] | changes, **(overrides or {}))


@pytest.mark.parametrize("part", MODELS)
def test_equal_configs_are_one_static_argument(part):
  one, other = build(part), build(part)
  assert one == other and hash(one) == hash(other)
  assert one != build(part, {"dtype": jnp.bfloat16})


@pytest.mark.parametrize("part", MODELS)
def test_the_files_dtype_is_not_the_computations(part):
  stored = {"dtype": "float16", "torch_dtype": "float16"}
  assert build(part, **stored).config.dtype == jnp.float32
  half = build(part, {"dtype": jnp.bfloat16}, **stored)
  assert half.config.dtype == jnp.bfloat16


def test_heads_are_given_for_all_levels_or_each():
  assert build("unet").config.heads == (8, 8, 8, 8)
  each = build("unet", attention_head_dim=[5, 10, 20, 20])
  assert each.config.heads == (5, 10, 20, 20)


@pytest.mark.parametrize(
  "part, changes, message",
  [
    ("unet", {"act_fn": "gelu"}, "act_fn='gelu'.*'silu'"),
    ("unet", {"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
    ("unet", {"addition_embed_type": "text"}, "addition_embed_type='text'"),
    ("unet", {"some_new_option": 3}, "some_new_option=3.*None or False"),
    (
      "unet",
      {"layers_per_block": [1, 2, 2, 2]},
      "layers_per_block=.*a whole number",
    ),
    ("unet", {"attention_head_dim": [5, 10]}, "has 2 entries.* 4"),
    ("unet", {"block_out_channels": [320, 640]}, "has 4 entries.* 2"),
    (
      "unet",
      {"down_block_types": ["AttnDownBlock2D"] * 4},
      "'AttnDownBlock2D'; allowed: CrossAttnDownBlock2D, DownBlock2D",
    ),
    ("vae", {"up_block_types": ["UpBlock2D"] * 4}, "'UpDecoderBlock2D'"),
    ("vae", {"act_fn": "relu"}, "act_fn='relu'.*'silu'"),
    ("vae", {"scaling_factor": float("nan")}, "scaling_factor='nan'"),
    ("vae", {"scaling_factor": 0.0}, "scaling_factor=0.0; allowed: numbers"),
    ("vae", {"scaling_factor": 1e-300}, "scaling_factor=1e-300; allowed"),
    ("text_encoder", {"hidden_act": "relu"}, "'relu'.*quick_gelu, gelu"),
    ("text_encoder", {"rope": True}, "rope=True"),
  ],
)
def test_what_is_not_supported_is_named(part, changes, message):
  with pytest.raises(ValueError, match=message):
    build(part, **changes)


def test_unknown_attention_implementation():
  with pytest.raises(ValueError, match="attention='flash'.*auto, dense"):
    build("unet", {"attention": "flash"})


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_unknown_kernels(part):
  with pytest.raises(ValueError, match="kernels='quick'.*exact, fast"):
    build(part, {"kernels": "quick"})


@pytest.mark.parametrize(
  "norm",
  [group_norm("n", 2, 1e-5), fast.GroupNorm(2, 1e-5), layer_norm("n")],
)
def test_norms_are_exact_far_from_zero_and_float32(norm):
  """E[x^2] - E[x]^2 in float32 would lose all digits at mean 3000."""
  x = 3000 + np.random.default_rng(0).normal(size=(1, 4, 4, 8))
  x = x.astype(np.float32)
  out, variables = jax.jit(norm.init_with_output)(jax.random.key(0), x)
  axes = (-1,) if isinstance(norm, nn.LayerNorm) else (1, 2, 4)
  rows = (
    np.float64(x) if len(axes) == 1 else np.float64(x).reshape(1, 4, 4, 2, 4)
  )
  centred = rows - rows.mean(axes, keepdims=True)
  exact = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + 1e-5)
  np.testing.assert_allclose(out, exact.reshape(x.shape), atol=2e-3)
  half = jax.jit(norm.apply)(variables, x.astype(jnp.bfloat16))
  assert half.dtype == np.float32


def test_embeddings_may_replace_the_token_table():
  model = build(
    "text_encoder", vocab_size=20, hidden_size=16, intermediate_size=32,
    num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=8,
  )  # fmt: skip
  ids = jnp.array([[3, 7, 19, 1], [5, 19, 19, 19]])
  variables = jax.jit(model.init)(jax.random.key(0), ids)
  embeddings = variables["params"]["text_model"]["embeddings"]
  table = embeddings["token_embedding"]["embedding"]
  apply = jax.jit(model.apply)
  by_ids, by_rows = apply(variables, ids), apply(variables, ids, table[ids])
  for one, other in zip(by_ids, by_rows, strict=True):
    np.testing.assert_array_equal(one, other)
  # The text ends at its highest id: positions 2 and 1.
  states, pooled = by_ids
  np.testing.assert_array_equal(
    pooled, states[jnp.arange(2), jnp.array([2, 1])]
  )


def text_loss(context, params, sd):
  latents = jax.random.normal(jax.random.key(1), (1, *sd.latent_shape))
  out = predict_noise(sd, params, latents, jnp.array([500]), context)
  return jnp.square(out).sum()


def test_a_lean_gradient_is_the_same():
  context = jax.random.normal(jax.random.key(0), (1, 77, 24))
  plain, lean = (
    make_sd("tiny", "float32", "auto", lean=lean) for lean in (False, True)
  )
  params = weights(shapes(plain))
  slope = jax.jit(jax.grad(text_loss), static_argnums=2)
  one, other = slope(context, params, plain), slope(context, params, lean)
  assert np.abs(one - other).max() < 1e-5 * np.abs(one).max()


def test_a_lean_gradient_keeps_little():
  """Of Stable Diffusion's activations, at full size and from shapes alone."""
  kept = []
  for lean in (False, True):
    sd = make_sd("sd14", "bfloat16", "auto", lean=lean)

    def pull(context, params, sd=sd):
      return jax.vjp(lambda c: text_loss(c, params, sd), context)[1]

    context = jax.ShapeDtypeStruct((1, *sd.context_shape), jnp.float32)
    leaves = jax.tree.leaves(jax.eval_shape(pull, context, shapes(sd)))
    # All but weights, which are led by their own sizes, those of 1 x 1 by two
    # ones.
    rows = [x for x in leaves if x.shape[:1] == (1,) and x.shape[1] > 1]
    kept.append(sum(x.size * x.dtype.itemsize for x in rows))
  # 0.25 of 1.62 GiB.
  assert kept[1] < 0.17 * kept[0]
