"""Parameters that are there are read; how they would begin is not traced."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import errors
from flax.core import scope

from unlearning_jax import convert, models, shapes, stable_diffusion
from unlearning_jax.models import flax_layers
from unlearning_jax.models.vision import VisionConfig, VisionTransformer

X = np.linspace(-1, 1, 2 * 4 * 4 * 8, dtype=np.float32).reshape(2, 4, 4, 8)
LAYERS = [
  ("Conv", (6, (3, 3)), X),
  ("Dense", (6,), X),
  ("Embed", (9, 6), np.arange(9)),
  ("GroupNorm", (4,), X),
  ("LayerNorm", (), X),
]


def never(*_):
  raise AssertionError("a parameter that is there began anew")


@pytest.mark.parametrize("name, arguments, x", LAYERS)
def test_a_layer_is_flaxs(name, arguments, x):
  own = getattr(flax_layers, name)(*arguments)
  flaxs = getattr(nn, name)(*arguments)
  made, wanted = (one.init(jax.random.key(0), x) for one in (own, flaxs))
  jax.tree.map(np.testing.assert_array_equal, made, wanted)
  np.testing.assert_array_equal(own.apply(made, x), flaxs.apply(made, x))


def test_another_shape_is_refused_as_flax_does():
  made = flax_layers.Dense(6).init(jax.random.key(0), X)
  with pytest.raises(errors.ScopeParamShapeError, match='"kernel"'):
    flax_layers.Dense(7).apply(made, X)
  given = flax_layers.Dense(6, kernel_init=never).apply(made, X)
  np.testing.assert_array_equal(given, nn.Dense(6).apply(made, X))
  with pytest.raises(AssertionError, match="began anew"):
    nn.Dense(6, kernel_init=never).apply(made, X)


def test_shapes_are_those_of_what_would_be_drawn():
  configs = convert.load(shapes.model_folder()).configs
  unet = models.UNet2DCondition.from_config(configs["unet"])
  vae = models.AutoencoderKL.from_config(configs["vae"])
  text = models.ClipTextModel.from_config(configs["text_encoder"])
  vision = VisionTransformer(VisionConfig(hidden_size=8, num_attention_heads=2))
  for network, *inputs in (
    (unet, X, np.zeros(2), np.zeros((2, 1, 128), np.float32)),
    (vae, X[..., :3]),
    (text, np.zeros((1, 1), np.int32)),
    (vision, np.zeros((1, 224, 224, 3), np.float32)),
  ):
    wanted = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    for _ in range(2):
      found = models.parameter_shapes(network, *inputs)
      assert jax.tree.structure(found) == jax.tree.structure(wanted)
      assert jax.tree.leaves(found) == jax.tree.leaves(wanted)
      # Whoever reads them may change the tree.
      found.clear()
  found = models.parameter_shapes(flax_layers.Dense(6, kernel_init=never), X)
  assert found["kernel"].shape == (8, 6)


@pytest.mark.parametrize("kernels", ["exact", "fast"])
def test_no_network_of_a_model_traces_how_it_begins(kernels, monkeypatch):
  sd, params = stable_diffusion.load(shapes.model_folder(), kernels=kernels)
  monkeypatch.setattr(scope.Scope, "param", never)
  latents = np.zeros((1, *sd.latent_shape), np.float32)
  context = np.zeros((1, *sd.context_shape), np.float32)
  for network, name, arguments in (
    (sd.unet, "unet", (latents, np.zeros(1, np.int32), context)),
    (sd.text_encoder, "text_encoder", (np.zeros((1, 40), np.int32),)),
  ):
    jax.eval_shape(
      lambda network=network, name=name, arguments=arguments: models.apply(
        network, params[name], *arguments
      )
    )
  jax.eval_shape(lambda: stable_diffusion.decode(sd, params, latents))
