"""Every network against torch's, random weights, on unlike configs."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax import convert, models
from unlearning_jax.models.unet import timestep_embedding, timestep_frequencies

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

TOLERANCE = 1e-5
# torch's own bfloat16 deviates from its float32 by as much.
HALF_TOLERANCE = 5e-2
CROSS, PLAIN = "CrossAttn", ""


@dataclasses.dataclass(frozen=True)
class Case:
  """One Stable Diffusion: levels by width, and whatever is unusual about it."""

  widths: tuple[int, ...]
  attends: tuple[str, ...]
  latents: tuple[int, int]
  unet: dict
  vae: dict
  text: dict
  images: tuple[int, int] = (16, 24)


CASES = {
  "odd_latents": Case(
    (24, 40, 56), (CROSS, CROSS, PLAIN), (9, 7),
    {"attention_head_dim": 4, "layers_per_block": 2, "norm_num_groups": 8},
    {"block_out_channels": (16, 24), "layers_per_block": 2},
    {"hidden_size": 20, "num_attention_heads": 5, "eos_token_id": 2},
    images=(19, 14),
  ),
  "one_level": Case(
    (128,), (CROSS,), (10, 10),
    {"attention_head_dim": 2, "layers_per_block": 1, "norm_eps": 1e-3},
    {"block_out_channels": (8,), "layers_per_block": 3},
    {"hidden_size": 24, "num_attention_heads": 2, "layer_norm_eps": 1e-3},
    images=(7, 9),
  ),
  "plain_first": Case(
    (16, 48, 32), (PLAIN, CROSS, CROSS), (5, 11),
    {"attention_head_dim": 8, "layers_per_block": 1, "norm_num_groups": 4},
    {"block_out_channels": (8, 24, 16)},
    {"hidden_size": 40, "num_attention_heads": 4, "num_hidden_layers": 3},
  ),
  "sd2": Case(
    (32, 64, 64), (CROSS, CROSS, PLAIN), (8, 8),
    {
      "attention_head_dim": (1, 2, 4),
      "layers_per_block": 2,
      "use_linear_projection": True,
      "upcast_attention": True,
    },
    {"block_out_channels": (16, 32, 32), "layers_per_block": 2},
    {"hidden_size": 32, "num_attention_heads": 2, "hidden_act": "gelu"},
  ),
  "eight_channels": Case(
    (32, 32), (CROSS, CROSS), (6, 10),
    {
      "attention_head_dim": 2,
      "layers_per_block": 3,
      "in_channels": 8,
      "out_channels": 8,
      "flip_sin_to_cos": False,
      "freq_shift": 1,
    },
    {
      "block_out_channels": (8, 16),
      "latent_channels": 8,
      "use_quant_conv": False,
      "use_post_quant_conv": False,
      "mid_block_add_attention": False,
    },
    {"hidden_size": 16, "num_attention_heads": 1, "num_hidden_layers": 1},
  ),
  "published_width": Case(
    (320, 64), (CROSS, PLAIN), (4, 4),
    {"attention_head_dim": 8, "layers_per_block": 1},
    {"block_out_channels": (32, 64), "norm_num_groups": 32},
    {"hidden_size": 48, "num_attention_heads": 12},
  ),
}  # fmt: skip


def torch_networks(case):
  """The three torch networks, every tensor random."""
  torch.manual_seed(0)
  levels = len(case.vae["block_out_channels"])
  text = transformers.CLIPTextConfig(
    **{
      "vocab_size": 60,
      "max_position_embeddings": 12,
      "intermediate_size": 3 * case.text["hidden_size"],
      "num_hidden_layers": 2,
      "bos_token_id": 57,
      "eos_token_id": 58,
      # Wide enough that attention and activations are far from linear.
      "initializer_factor": 4.0,
      **case.text,
    }
  )
  networks = {
    "text_encoder": transformers.CLIPTextModel(text),
    "unet": diffusers.UNet2DConditionModel(
      block_out_channels=case.widths,
      down_block_types=[f"{a}DownBlock2D" for a in case.attends],
      up_block_types=[f"{a}UpBlock2D" for a in case.attends[::-1]],
      cross_attention_dim=case.text["hidden_size"],
      **case.unet,
    ),
    "vae": diffusers.AutoencoderKL(
      down_block_types=("DownEncoderBlock2D",) * levels,
      up_block_types=("UpDecoderBlock2D",) * levels,
      **{"norm_num_groups": 4, **case.vae},
    ),
  }
  for network in networks.values():
    network.eval().requires_grad_(False)
    for parameter in network.parameters():
      if parameter.ndim == 1:
        # Norms start as ones and zeros: make every tensor tell its place.
        parameter += 0.3 * torch.randn_like(parameter)
  return networks


def inputs(case):
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 56, (3, 12))
  # Padded with the end token, ending at once, padded with something else.
  ids[0, 5:], ids[1, 1:], ids[2, 7] = 58, 58, 58

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  latent = case.unet.get("in_channels", 4)
  return {
    "ids": ids.astype(np.int32),
    "latents": normal(2, *case.latents, latent),
    # The largest step turns an error in a frequency into the largest angle.
    "timesteps": np.array([999, 3], np.int32),
    "context": normal(2, 12, case.text["hidden_size"]),
    "images": np.tanh(normal(2, *case.images, 3)),
  }


def to_torch(array):
  return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def to_numpy(tensor):
  return np.moveaxis(tensor.numpy(), 1, -1)


def torch_outputs(networks, given):
  text = networks["text_encoder"](torch.from_numpy(given["ids"]).long())
  prediction = networks["unet"](
    to_torch(given["latents"]),
    torch.from_numpy(given["timesteps"]),
    torch.from_numpy(given["context"]),
  )
  vae = networks["vae"]
  posterior = vae.encode(to_torch(given["images"])).latent_dist
  return {
    "states": text.last_hidden_state.numpy(),
    "pooled": text.pooler_output.numpy(),
    "prediction": to_numpy(prediction.sample),
    "mean": to_numpy(posterior.mean),
    "logvar": to_numpy(posterior.logvar),
    "decoded": to_numpy(vae.decode(to_torch(given["latents"])).sample),
  }


def our_networks(networks, dtype):
  """Our networks and parameters, through the configs a folder would hold."""
  configs = {
    part: dict(network.config)
    for part, network in networks.items()
    if part != "text_encoder"
  }
  configs["text_encoder"] = networks["text_encoder"].config.to_dict()
  states = {
    part: {k: v.numpy() for k, v in network.state_dict().items()}
    for part, network in networks.items()
  }
  params = convert.to_params(convert.ModelFiles(configs, states, None))
  classes = {
    "text_encoder": models.ClipTextModel,
    "unet": models.UNet2DCondition,
    "vae": models.AutoencoderKL,
  }
  return {
    part: cls.from_config(configs[part], dtype=dtype)
    for part, cls in classes.items()
  }, params


def our_outputs(networks, params, given):
  @jax.jit
  def run(params, given):
    def apply(part, *arguments, **options):
      variables = {"params": params[part]}
      return networks[part].apply(variables, *arguments, **options)

    states, pooled = apply("text_encoder", given["ids"])
    mean, logvar = apply("vae", given["images"], method="encode")
    return {
      "states": states,
      "pooled": pooled,
      "prediction": apply(
        "unet", given["latents"], given["timesteps"], given["context"]
      ),
      "mean": mean,
      "logvar": logvar,
      "decoded": apply("vae", given["latents"], method="decode"),
    }

  return run(params, given)


def errors(ours, theirs):
  """Largest deviation of each output, relative to its largest value."""
  assert ours.keys() == theirs.keys()
  out = {}
  for name, value in theirs.items():
    assert ours[name].shape == value.shape, name
    assert ours[name].dtype == np.float32, name
    deviation = np.abs(np.asarray(ours[name]) - value).max()
    out[name] = float(deviation / np.abs(value).max())
  return out


@functools.cache
def pair(name):
  """torch's networks, what goes in, and what they make of it."""
  case = CASES[name]
  networks, given = torch_networks(case), inputs(case)
  return networks, given, torch_outputs(networks, given)


# Two that differ most from the rest are compared by default.
@pytest.mark.parametrize(
  "name",
  [
    pytest.param(n, marks=[pytest.mark.slow] * (n not in ("sd2", "one_level")))
    for n in CASES
  ],
)
def test_float32_equals_torch(name):
  networks, given, expected = pair(name)
  ours = our_outputs(*our_networks(networks, jnp.float32), given)
  found = errors(ours, expected)
  print(found)
  assert max(found.values()) < TOLERANCE, found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["odd_latents", "sd2"])
def test_bfloat16_stays_near_float32(name):
  networks, given, expected = pair(name)
  ours = our_outputs(*our_networks(networks, jnp.bfloat16), given)
  found = errors(ours, expected)
  print(found)
  # Not exact either: then it would have been computed in float32.
  assert 1e-3 < min(found.values()), found
  assert max(found.values()) < HALF_TOLERANCE, found


def nearest_exp(exponent):
  """The float32 nearest to exp; torch's own differs between processors."""
  return torch.from_numpy(np.exp(exponent.double().numpy()).astype(np.float32))


@pytest.mark.parametrize("width", [32, 64, 320])
def test_timestep_embedding_equals_torch(width, monkeypatch):
  steps = np.arange(1000)
  monkeypatch.setattr(torch, "exp", nearest_exp)
  theirs = diffusers.models.embeddings.get_timestep_embedding(
    torch.from_numpy(steps), width, True, 0
  )
  ours = timestep_embedding(jnp.asarray(steps), width, True, 0)
  # One unit in the last place of a frequency would be 3e-5.
  assert np.abs(np.asarray(ours) - theirs.numpy()).max() < 1e-6


@pytest.mark.parametrize("half", [16, 32, 160])
def test_frequencies_are_torchs_to_one_unit_in_the_last_place(half):
  exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32) / half
  theirs = torch.exp(exponent).numpy().view(np.int32)
  ours = timestep_frequencies(half, 0).view(np.int32)
  assert np.abs(ours - theirs).max() <= 1
