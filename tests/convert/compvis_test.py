"""The single-file layout, against diffusers' own converter."""

import functools

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support import single_files, tiny_pipelines
from unlearning_jax import convert
from unlearning_jax.convert import compvis, names, originals, sd1


def _depths(name):
  unet, vae, text = tiny_pipelines.CONFIGS[name]
  return compvis.Depths(
    unet["layers_per_block"],
    len(vae["block_out_channels"]),
    text["num_hidden_layers"],
  )


def _assert_same(ours, theirs):
  assert set(ours) == set(theirs)
  for name, value in theirs.items():
    np.testing.assert_array_equal(ours[name], value, strict=True, err_msg=name)


@pytest.fixture(scope="module")
def oracle():
  pytest.importorskip("torch")
  return pytest.importorskip("diffusers.loaders.single_file_utils")


def _states(name):
  return {
    part: {k: v.numpy() for k, v in model.state_dict().items()}
    for part, model in tiny_pipelines.build(name).items()
  }


@pytest.mark.torch
@pytest.mark.parametrize("name", tiny_pipelines.CONFIGS)
def test_against_diffusers_converter(name, oracle):
  import torch

  unet, vae, _ = tiny_pipelines.CONFIGS[name]
  states, depths = _states(name), _depths(name)
  file = single_files.from_diffusers(
    states, depths.unet_layers_per_block, depths.vae_levels
  )
  tensors = {key: torch.tensor(value) for key, value in file.items()}
  levels = ("x",) * depths.vae_levels
  expected = {
    "unet": oracle.convert_ldm_unet_checkpoint(dict(tensors), unet),
    "vae": oracle.convert_ldm_vae_checkpoint(
      dict(tensors),
      vae | {"down_block_types": levels, "up_block_types": levels},
    ),
    "text_encoder": oracle.convert_ldm_clip_checkpoint(dict(tensors)),
  }
  expected = {
    part: {key: value.numpy() for key, value in found.items()}
    for part, found in expected.items()
  }
  parts = compvis.from_compvis(file, depths)
  assert set(parts) == set(expected)
  for part, found in parts.items():
    _assert_same(names.canonical(found, part), expected[part])
  # And the oracle agrees that the tests' own layout is the inverse.
  _assert_same(expected["unet"], states["unet"])
  _assert_same(expected["vae"], states["vae"])


@pytest.mark.torch
@pytest.mark.parametrize("name", tiny_pipelines.CONFIGS)
def test_the_layout_is_written_as_it_is_read(name, oracle):
  states, depths = _states(name), _depths(name)
  file = originals.to_original(states)
  theirs = single_files.from_diffusers(
    states, depths.unet_layers_per_block, depths.vae_levels
  )
  _assert_same(file, theirs)
  for part, found in compvis.from_compvis(file, depths).items():
    wanted = names.canonical(states[part], part)
    _assert_same(names.canonical(found, part), wanted)


def test_an_open_clip_is_written_as_it_is_read():
  # Its width tells Stable Diffusion 2.
  file = _open_clip(width=1024, layers=2)
  depths = compvis.Depths(2, 4, 1)
  text = compvis.from_compvis(file, depths)["text_encoder"]
  empty = {"conv_in.weight": np.ones(1, np.float32)}
  written = originals.to_original(
    {"text_encoder": text, "unet": empty, "vae": {}}
  )
  lost = {k for k in set(file) - set(written) if "resblocks.1." not in k}
  prefix = "cond_stage_model.model."
  assert lost == {f"{prefix}text_projection", f"{prefix}logit_scale"}
  for name, value in written.items():
    if name.startswith(prefix):
      np.testing.assert_array_equal(value, file[name], strict=True)


def _open_clip(width, layers):
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  prefix = "cond_stage_model.model."
  out = {
    "positional_embedding": draw(8, width),
    "token_embedding.weight": draw(20, width),
    "ln_final.weight": draw(width),
    "ln_final.bias": draw(width),
    "text_projection": draw(width, width),
    "logit_scale": draw(1),
  }
  for i in range(layers):
    block = f"transformer.resblocks.{i}."
    out |= {
      block + "ln_1.weight": draw(width),
      block + "ln_1.bias": draw(width),
      block + "ln_2.weight": draw(width),
      block + "ln_2.bias": draw(width),
      block + "attn.in_proj_weight": draw(3 * width, width),
      block + "attn.in_proj_bias": draw(3 * width),
      block + "attn.out_proj.weight": draw(width, width),
      block + "attn.out_proj.bias": draw(width),
      block + "mlp.c_fc.weight": draw(2 * width, width),
      block + "mlp.c_fc.bias": draw(2 * width),
      block + "mlp.c_proj.weight": draw(width, 2 * width),
      block + "mlp.c_proj.bias": draw(width),
    }
  return {prefix + key: value for key, value in out.items()}


@pytest.mark.torch
def test_open_clip_against_diffusers_converter(oracle):
  import torch

  file = _open_clip(width=6, layers=3)
  tensors = {key: torch.tensor(value) for key, value in file.items()}
  expected = oracle.convert_open_clip_checkpoint(object(), tensors)
  expected.pop("text_projection.weight", None)
  expected = {
    key: value.numpy()
    for key, value in expected.items()
    if ".layers.2." not in key
  }
  parts = compvis.from_compvis(file, compvis.Depths(2, 2, text_layers=2))
  assert list(parts) == ["text_encoder"]
  _assert_same(parts["text_encoder"], expected)


@functools.cache
def _sd1_names():
  return {
    part: {
      names.torch_name(key.key for key in path): len(leaf.shape)
      for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    for part, tree in convert.templates(sd1.CONFIGS).items()
  }


def _sd1_file():
  """Every name of a Stable Diffusion 1 file, its tensors empty."""
  states = {
    part: {k: np.zeros((0,) * axes, np.float32) for k, axes in found.items()}
    for part, found in _sd1_names().items()
  }
  return states, single_files.from_diffusers(states, 2, 4)


def test_every_name_of_stable_diffusion_1():
  states, file = _sd1_file()
  assert len(file) == 196 + 686 + 248
  # A few known by heart, so that two wrong tables cannot agree.
  for name in (
    "model.diffusion_model.input_blocks.11.0.out_layers.3.weight",
    "model.diffusion_model.input_blocks.6.0.op.weight",
    "model.diffusion_model.output_blocks.2.1.conv.weight",
    "model.diffusion_model.output_blocks.5.2.conv.weight",
    "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_k."
    "weight",
    "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight",
    "first_stage_model.encoder.mid.attn_1.proj_out.bias",
    "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.bias",
  ):
    assert name in file
  depths = compvis.Depths.from_configs(sd1.CONFIGS)
  parts = compvis.from_compvis(file, depths)
  for part, state in states.items():
    assert set(parts[part]) == set(state)


def test_what_training_leaves_in_the_file_is_dropped():
  _, file = _sd1_file()
  beside = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
    "posterior_variance", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar",
    "scale_factor", "model_ema.decay", "model_ema.num_updates",
    "first_stage_model.loss.perceptual_loss.lin0.model.1.weight",
    "cond_stage_model.logit_scale",
  )  # fmt: skip
  file |= {key: np.zeros(1, np.float32) for key in beside}
  depths = compvis.Depths.from_configs(sd1.CONFIGS)
  parts = compvis.from_compvis(file, depths)
  assert sum(map(len, parts.values())) == 196 + 686 + 248


@pytest.mark.parametrize(
  "key",
  [
    "model.diffusion_model.label_emb.0.0.weight",
    "first_stage_model.model_ema.decay",
    "cond_stage_model.model.visual.proj",
    "control_model.input_hint_block.0.weight",
    "betas2",
  ],
)
def test_unknown_key(key):
  _, file = _sd1_file()
  depths = compvis.Depths.from_configs(sd1.CONFIGS)
  with pytest.raises(ValueError, match=f"file.ckpt.*\n.*1 unknown: {key}"):
    compvis.from_compvis(file | {key: np.zeros(1)}, depths, source="file.ckpt")


# Averaged and trained weights.


def _averaged_file():
  _, file = _sd1_file()
  file = {key: np.ones(1, np.float32) for key in file}
  return single_files.with_averages(file, lambda value: value + 1)


@pytest.mark.parametrize("ema, expected", [(True, 2), (False, 1)])
def test_averaged_weights(ema, expected):
  depths = compvis.Depths.from_configs(sd1.CONFIGS)
  parts = compvis.from_compvis(_averaged_file(), depths, ema=ema)
  assert len(parts["unet"]) == 686
  assert {float(v[0]) for v in parts["unet"].values()} == {expected}
  assert {float(v[0]) for v in parts["vae"].values()} == {1}


@pytest.mark.torch
def test_averaged_weights_against_diffusers_converter(oracle):
  import torch

  states, depths = _states("sd1"), _depths("sd1")
  rng = np.random.default_rng(0)
  file = single_files.with_averages(
    single_files.from_diffusers(states, 2, 2),
    lambda value: rng.standard_normal(value.shape).astype(np.float32),
  )
  tensors = {key: torch.tensor(value) for key, value in file.items()}
  expected = oracle.convert_ldm_unet_checkpoint(
    tensors, tiny_pipelines.CONFIGS["sd1"][0], extract_ema=True
  )
  parts = compvis.from_compvis(file, depths, ema=True)
  _assert_same(parts["unet"], {k: v.numpy() for k, v in expected.items()})


def test_the_choice_between_them_is_the_callers():
  depths = compvis.Depths.from_configs(sd1.CONFIGS)
  file = _averaged_file()
  with pytest.raises(ValueError, match="holds averaged .*and trained.*choose"):
    compvis.from_compvis(file, depths)
  key = "model_ema.diffusion_modelout2weight"
  with pytest.raises(ValueError, match=f"1 missing: {key}"):
    compvis.from_compvis(
      {k: v for k, v in file.items() if k != key}, depths, ema=True
    )
  with pytest.raises(ValueError, match="1 unknown: model_ema.more"):
    compvis.from_compvis(file | {"model_ema.more": 1}, depths, ema=True)
  plain = {k: v for k, v in file.items() if not k.startswith("model_ema")}
  with pytest.raises(ValueError, match="ema=True, but it holds no averaged"):
    compvis.from_compvis(plain, depths, ema=True)
  assert compvis.from_compvis(plain, depths) == compvis.from_compvis(
    plain, depths, ema=False
  )


# Whole files.


def test_whole_file_without_configs_must_be_stable_diffusion_1(tmp_path):
  _, file = _sd1_file()
  wide = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
  file[compvis.UNET + wide] = np.zeros((320, 1024), np.float32)
  save_file(file, tmp_path / "sd2.safetensors")
  with pytest.raises(ValueError, match=r"sd2\.safetensors: is not a Stable"):
    convert.load(tmp_path / "sd2.safetensors")
  file[compvis.UNET + wide] = np.zeros((320, 768), np.float32)
  save_file(file, tmp_path / "sd1.safetensors")
  files = convert.load(tmp_path / "sd1.safetensors")
  assert files.tokenizer is None and files.configs == sd1.CONFIGS


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["sd1", "sd2"])
@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_whole_file_over_a_base_folder(name, ending, oracle, tmp_path):
  import torch

  base = tmp_path / "base"
  base.mkdir()
  tiny_pipelines.write(base, name)
  expected = convert.load_folder(base)
  depths = compvis.Depths.from_configs(expected.configs)
  file = single_files.from_diffusers(
    expected.states, depths.unet_layers_per_block, depths.vae_levels
  )
  path = tmp_path / f"model.{ending}"
  if ending == "ckpt":
    tensors = {key: torch.tensor(value) for key, value in file.items()}
    torch.save({"state_dict": tensors, "global_step": 7}, path)
  else:
    save_file({k: np.ascontiguousarray(v) for k, v in file.items()}, path)
  found = convert.load(path, base)
  assert convert.fingerprint(found.states) == convert.fingerprint(
    expected.states
  )
  assert found.tokenizer == base / "tokenizer"
  convert.to_params(found)
