"""Erasures that train, traced at the shapes of Stable Diffusion 1.4."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax import (
  erasures,
  finetune,
  lora,
  models,
  shapes,
  stable_diffusion,
)
from unlearning_jax.convert.sd1 import CONFIGS
from unlearning_jax.erasures import erasediff, fmn, resalign, salun, spm
from unlearning_jax.finetune.partition import merge_adapters

pytestmark = pytest.mark.slow
ROWS = 1
STATES = (ROWS, 77, 768)
LATENTS = np.zeros((ROWS, 64, 64, 4), np.float32)
PAIR = np.zeros(ROWS, np.int32)


@pytest.fixture(scope="module")
def model():
  """The networks without weights, and the shapes of these."""
  sd, _ = stable_diffusion.load(shapes.model_folder())
  unet = models.UNet2DCondition.from_config(CONFIGS["unet"])
  sd = dataclasses.replace(sd, unet=unet, latent_size=(64, 64))
  made = jax.eval_shape(
    unet.init, jax.random.key(0), LATENTS, PAIR, np.zeros(STATES, np.float32)
  )
  return sd, {"unet": made["params"]}


def parts(method, h, params):
  """What trains, what does not, and a batch."""
  states = {
    name: np.zeros(STATES, np.float32)
    for name in ("concept", "anchor", "remain", "student", "start", "empty")
  }
  if method == "spm":
    kernels = spm.adapted(params["unet"])
    made = jax.eval_shape(lambda key: spm.fresh(kernels, 1, key), KEY)
    frozen = {"params": finetune.partition(params, "full").trained}
    return made, frozen | {"contexts": states}, {"concept": PAIR}
  if method == "resalign":
    made = jax.eval_shape(
      lambda key: lora.init(params, key, rank=4, targets="attention"), KEY
    )
    frozen = finetune.partition(params, "full").trained
    frozen["lora/scale"] = np.float32(1)
    batch = {"forget": LATENTS, "remain": LATENTS, "step": PAIR}
    batch |= {"forget_pair": PAIR, "remain_pair": PAIR}
    images = {"latents": LATENTS, "pair": PAIR, "sizes": np.ones(3, int)}
    images["rows"] = np.zeros((3, 1), int)
    frozen = {"params": frozen, "contexts": states, "tuning": images}
    return made, frozen, batch
  part = finetune.partition(params, "full")
  frozen = {"params": part.frozen, "contexts": states}
  batch = {"forget": LATENTS, "remain": LATENTS}
  batch |= {"forget_pair": PAIR, "remain_pair": PAIR}
  if method == "salun":
    frozen["base"] = part.trained
    frozen["mask"] = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, bool), part.trained
    )
  if method == "fmn":
    frozen |= {"context": states["concept"], "marked": np.zeros((1, 77), bool)}
    batch = {"latents": LATENTS, "pair": PAIR}
  return part.trained, frozen, batch


KEY = jax.random.key(0)


@pytest.mark.parametrize("module", [salun, erasediff, fmn, spm, resalign])
def test_the_published_settings_trace_at_full_size(module, model):
  sd, params = model
  method = module.__name__.rpartition(".")[2]
  h = erasures.bind(method, {}).h
  join = () if method == "spm" else (finetune.partition(params, "full").join,)
  if method == "resalign":
    join = (merge_adapters,)
  loss, tx = module._training(sd, *join, h)
  trained, frozen, batch = parts(method, h, params)
  state = jax.eval_shape(tx.init, trained)
  value, metrics = jax.eval_shape(loss, trained, frozen, batch, KEY)
  assert value.shape == () and value.dtype == jnp.float32
  assert all(found.shape == () for found in metrics.values())
  assert len(jax.tree.leaves(state)) > 2 * len(jax.tree.leaves(trained))
