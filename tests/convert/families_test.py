"""Models of other families are refused by name, before weights are read."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import unlearning_jax as ul
from unlearning_jax import convert
from unlearning_jax.shapes import world

XL, SD3, FLUX = "Stable Diffusion XL", "Stable Diffusion 3", "FLUX"
SUPPORTED = "supported is Stable Diffusion 1.x and 2.x"


def _write(path, **values):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(values))


@pytest.mark.parametrize(
  "kind, family",
  [
    ("StableDiffusionXLPipeline", XL),
    ("StableDiffusionXLImg2ImgPipeline", XL),
    ("FlaxStableDiffusionXLPipeline", XL),
    ("StableDiffusion3Pipeline", SD3),
    ("FluxPipeline", FLUX),
    ("FluxFillPipeline", FLUX),
  ],
)
def test_folders_by_their_pipeline(kind, family, tmp_path):
  _write(tmp_path / "model_index.json", _class_name=kind)
  for load in (convert.load, ul.load):
    with pytest.raises(ValueError, match=f"'{kind}' is {family}; {SUPPORTED}"):
      load(tmp_path)


@pytest.mark.parametrize(
  "file, config, family",
  [
    ("unet/config.json", {"addition_embed_type": "text_time"}, XL),
    ("config.json", {"addition_embed_type": "text_time"}, XL),
    ("transformer/config.json", {"_class_name": "SD3Transformer2DModel"}, SD3),
    ("config.json", {"_class_name": "SD3Transformer2DModel"}, SD3),
    (
      "transformer/config.json",
      {"_class_name": "FluxTransformer2DModel"},
      FLUX,
    ),
  ],
)
def test_folders_without_an_index(file, config, family, tmp_path):
  _write(tmp_path / file, **config)
  with pytest.raises(ValueError, match=f"{file}: .* is {family}; {SUPPORTED}"):
    convert.load(tmp_path)


def test_a_transformer_of_no_known_family(tmp_path):
  _write(tmp_path / "model_index.json", _class_name="PixArtSigmaPipeline")
  _write(tmp_path / "transformer/config.json", _class_name="PixArt")
  with pytest.raises(ValueError, match=f"a diffusion transformer; {SUPPORTED}"):
    convert.load(tmp_path)


@pytest.mark.parametrize(
  "name, family",
  [
    (
      "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
      XL,
    ),
    ("add_embedding.linear_1.weight", XL),
    ("unet.add_embedding.linear_1.weight", XL),
    ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", XL),
    ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", XL),
    (
      "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_k"
      ".lora_up.weight",
      XL,
    ),
    ("model.diffusion_model.joint_blocks.0.context_block.mlp.fc1.bias", SD3),
    ("transformer_blocks.0.attn.add_k_proj.weight", SD3),
    ("transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight", SD3),
    ("double_blocks.0.img_attn.qkv.weight", FLUX),
    ("model.diffusion_model.single_blocks.0.linear1.weight", FLUX),
    ("single_transformer_blocks.0.attn.to_q.weight", FLUX),
    ("lora_unet_double_blocks_0_img_attn_proj.lora_up.weight", FLUX),
  ],
)
def test_files_by_their_tensors(name, family, tmp_path):
  file = tmp_path / "x.safetensors"
  # The telltale name is not the first.
  save_file({"a.weight": np.zeros(1), name: np.zeros(1)}, file)
  base = world.model_folder()
  for load in (convert.load, lambda path: convert.load(path, base), ul.load):
    with pytest.raises(ValueError, match=f"is of {family}; {SUPPORTED}") as got:
      load(file)
    assert name in str(got.value) and str(file) in str(got.value)


def test_a_hub_model_is_refused_before_its_weights(tmp_path, monkeypatch):
  import huggingface_hub

  asked = []

  def snapshot_download(name, revision, allow_patterns):
    asked.extend(allow_patterns)
    _write(
      tmp_path / "model_index.json", _class_name="StableDiffusionXLPipeline"
    )
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  with pytest.raises(ValueError, match=f"is {XL}; {SUPPORTED}"):
    convert.load("owner/an-xl-model")
  assert not [pattern for pattern in asked if "safetensors" in pattern]


def test_our_own_files_pass(tmp_path):
  files = convert.load(world.model_folder())
  convert.save_part(tmp_path / "unet.safetensors", files, "unet")
  with pytest.warns(UserWarning, match="no tensor differs from the base's"):
    convert.load(tmp_path / "unet.safetensors", files)
