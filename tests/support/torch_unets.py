"""A tiny UNet here and in torch, float64, to compare an erasure's gradients."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.support import tiny_pipelines
from unlearning_jax import stable_diffusion
from unlearning_jax.convert import torch_name
from unlearning_jax.projections import leaves_of


@dataclasses.dataclass(frozen=True)
class Case:
  """Both models, and arrays for two rows.

  `images` are four of latents' shape, `states` four of text states'.
  """

  sd: Any
  params: Any
  unet: Any
  schedule: Any
  images: np.ndarray
  states: np.ndarray
  t: np.ndarray

  @property
  def mse(self):
    import torch

    return torch.nn.functional.mse_loss

  def tensor(self, array):
    import torch

    return torch.tensor(array, dtype=torch.float64)

  def cat(self, tensors):
    import torch

    return torch.cat(tensors)

  def noised(self, latents, noise):
    import torch

    return self.schedule.add_noise(latents, noise, torch.tensor(self.t))

  def predict(self, noisy, context):
    import torch

    return self.unet(noisy, torch.tensor(self.t), context).sample


def both(folder) -> Case:
  """Writes a pipeline into `folder`, and reads it twice."""
  pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  tiny_pipelines.write(folder, "one_level")
  sd, params = stable_diffusion.load(folder)
  unet = diffusers.UNet2DConditionModel.from_pretrained(
    folder, subfolder="unet"
  ).double()
  schedule = diffusers.DDPMScheduler.from_pretrained(
    folder, subfolder="scheduler"
  )
  rng = np.random.default_rng(0)
  images = rng.normal(size=(4, 2, *sd.latent_shape)).astype("f4")
  states = rng.normal(size=(4, 2, *sd.context_shape)).astype("f4")
  return Case(sd, params, unet, schedule, images, states, np.array([900, 20]))


def torch_path(path):
  """A leaf's name in torch's UNet, by its path among our parameters."""
  return torch_name(path.removeprefix("unet/").split("/"))


def close(ours, unet):
  """Holds our gradient to torch's: the error's norm is at most 1e-5 of it.

  Weights that torch's loss does not reach must have none here either.
  """
  found, off, size = leaves_of(ours), 0.0, 0.0
  names = {torch_path(path): path for path in found}
  for name, leaf in unet.named_parameters():
    gradient = np.asarray(found[names[name]], np.float64)
    if leaf.grad is None:
      assert not gradient.any(), name
      continue
    wanted = leaf.grad.numpy()
    wanted = wanted.transpose(2, 3, 1, 0) if wanted.ndim == 4 else wanted.T
    off += np.sum((gradient - wanted) ** 2)
    size += np.sum(wanted**2)
  assert 0 < off < 1e-10 * size
