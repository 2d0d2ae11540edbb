"""The fast forms are the exact ones, rounded in another order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unlearning_jax as ul
from unlearning_jax import shapes, stable_diffusion
from unlearning_jax.models import AutoencoderKL, UNet2DCondition, fast
from unlearning_jax.models.attention import dot_product_attention

UNET = {
  "in_channels": 4, "out_channels": 4, "block_out_channels": [8, 16],
  "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
  "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 8,
  "attention_head_dim": 2,
}  # fmt: skip
VAE = {
  "block_out_channels": [8, 16], "norm_num_groups": 4,
  "down_block_types": ["DownEncoderBlock2D"] * 2,
  "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip


def normal(seed, *shape):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def compare(call, *arguments):
  """Checks a function of kernels: its values, and its relative gradients."""

  def both(kernels, *arguments):
    def loss(*arguments):
      out = call(kernels, *arguments)
      return jnp.sum(jnp.sin(out)), out

    places = tuple(range(len(arguments)))
    (_, out), slopes = jax.value_and_grad(loss, places, has_aux=True)(
      *arguments
    )
    return out, slopes

  run = jax.jit(both, static_argnums=0)
  (exact, slopes), (quick, others) = (run(k, *arguments) for k in fast.KERNELS)
  assert np.abs(exact).max() > 0.1
  np.testing.assert_allclose(quick, exact, atol=1e-5)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(slopes))
  for one, other in zip(
    jax.tree.leaves(slopes), jax.tree.leaves(others), strict=True
  ):
    np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6 * largest)


def filled(shapes_):
  """Random parameters: an initialized network has zeros and ones."""
  leaves, tree = jax.tree.flatten(shapes_)
  return tree.unflatten(
    [
      normal(i, *leaf.shape) / max(np.prod(leaf.shape[:-1]), 4) ** 0.5
      for i, leaf in enumerate(leaves)
    ]
  )


@pytest.mark.slow
def test_unet_and_its_gradients():
  latents, context = normal(0, 2, 6, 8, 4), normal(1, 2, 5, 8)
  t = jnp.array([3, 700])
  nets = {k: UNet2DCondition.from_config(UNET, kernels=k) for k in fast.KERNELS}
  shapes_ = jax.eval_shape(
    nets["exact"].init, jax.random.key(0), latents, t, context
  )
  again = jax.eval_shape(
    nets["fast"].init, jax.random.key(0), latents, t, context
  )
  assert shapes_ == again

  def call(kernels, params, context):
    return nets[kernels].apply(params, latents, t, context)

  compare(call, filled(shapes_), context)


def test_the_derivative_of_a_gradient():
  """As the curvature of a loss needs it; it is compiled, not only traced."""
  x, kernel = normal(0, 1, 4, 4, 3), normal(1, 3, 3, 3, 2)

  def bent(convolve):
    slope = jax.grad(lambda x: jnp.sin(convolve(x, kernel)).sum())
    return jax.jit(lambda v: jax.jvp(slope, (x,), (v,))[1])(jnp.cos(x))

  wanted = bent(lambda x, k: fast._plain(x, k, ((1, 1), (1, 1))))
  np.testing.assert_allclose(bent(fast.conv3), wanted, atol=1e-5)
  assert np.isfinite(bent(fast.upsampled_conv3)).all()


def test_vae_and_its_gradients():
  images = normal(0, 1, 8, 12, 3)
  nets = {k: AutoencoderKL.from_config(VAE, kernels=k) for k in fast.KERNELS}
  shapes_ = jax.eval_shape(nets["exact"].init, jax.random.key(0), images)

  def call(kernels, params, images):
    return nets[kernels].apply(params, images)

  compare(call, filled(shapes_), images)


def test_attention_a_head_at_a_time():
  """300 queries are two chunks, of which one is filled up."""

  def call(kernels, *qkv):
    return dot_product_attention(
      *qkv, implementation="chunked", kernels=kernels
    )

  compare(
    call, normal(0, 2, 300, 3, 5), normal(1, 2, 7, 3, 5), normal(2, 2, 7, 3, 5)
  )


def test_chunks_bound_the_memory_of_a_gradient():
  x = jax.ShapeDtypeStruct((1, 2048, 2, 8), jnp.float32)

  def temporary(implementation):
    def loss(*qkv):
      return jnp.sum(
        dot_product_attention(
          *qkv, implementation=implementation, kernels="fast"
        )
        ** 2
      )

    compiled = jax.jit(jax.grad(loss)).lower(x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary("auto") < temporary("dense") / 4


def test_elsewhere_nothing_changes(monkeypatch):
  latents, context = jnp.zeros((1, 8, 8, 4)), jnp.zeros((1, 5, 8))

  def program(kernels):
    net = UNet2DCondition.from_config(UNET, kernels=kernels)
    key = jax.random.key(0)
    return str(jax.make_jaxpr(net.init)(key, latents, jnp.array([3]), context))

  assert program("fast") != program("exact")
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert program("fast") == program("exact")
  assert fast.computed_dtype(jnp.bfloat16, "fast") == jnp.bfloat16


def test_a_cpu_computes_bfloat16_in_float32():
  config = ul.load("shapes", dtype="bfloat16", kernels="fast").sd.unet.config
  assert config.dtype == jnp.float32
  config = ul.load("shapes", dtype="bfloat16").sd.unet.config
  assert config.dtype == jnp.bfloat16


@pytest.mark.slow
def test_pictures_are_one_gray_level_apart_and_compiled_once():
  draws = {}
  for kernels in fast.KERNELS:
    sd, params = stable_diffusion.load(shapes.model_folder(), kernels=kernels)
    texts = ["a red star on a gray background", "a blue moon"]
    states = stable_diffusion.encode_prompts(sd, params, [*texts, ""])
    before = stable_diffusion._sample._cache_size()
    for seed in (0, 1):
      images, _ = stable_diffusion.sample(
        sd, params, states[:2], states[2:], normal(seed, 2, *sd.latent_shape),
        num_inference_steps=15, guidance_scale=4.0,
      )  # fmt: skip
      draws[kernels, seed] = np.asarray(images, int)
    assert stable_diffusion._sample._cache_size() == before + 1
  for seed in (0, 1):
    exact, quick = draws["exact", seed], draws["fast", seed]
    assert exact.std() > 20
    assert np.abs(quick - exact).max() <= 1
