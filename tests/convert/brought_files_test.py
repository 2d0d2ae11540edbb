"""Files as the field's tools write them, laid over the shipped tiny model."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support import single_files
from unlearning_jax import convert
from unlearning_jax.convert import compvis, families, inspection, torch_files
from unlearning_jax.shapes import world

FC1 = "mlp.fc1.weight"
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


@pytest.fixture(scope="module")
def base():
  return convert.load(world.model_folder())


@pytest.fixture(scope="module")
def unet(base):
  """The UNet with other keys and values of the text."""
  return {
    name: value * np.float32(1.5) if "attn2.to_k" in name else value
    for name, value in base.states["unet"].items()
  }


def _assert_read(path, base, part, wanted, **options):
  found = convert.load(path, base, **options)
  for name, value in (base.states[part] | wanted).items():
    np.testing.assert_array_equal(found.states[part][name], value)
  for other in base.states.keys() - {part}:
    assert found.states[other] is base.states[other]
  return found


def _original(base, unet, prefix="model.diffusion_model."):
  layers = base.configs["unet"]["layers_per_block"]
  names = single_files.unet_names(unet, layers)
  return {prefix + names[name]: value for name, value in unet.items()}


@pytest.mark.parametrize(
  "prefix",
  [
    "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "unet._orig_mod.",
    "model._orig_mod.unet.", "_fsdp_wrapped_module._orig_mod.",
  ],
)  # fmt: skip
def test_a_compiled_or_distributed_module(prefix, base, unet, tmp_path):
  path = tmp_path / "unet.pt"
  torch_files.write_torch(
    path, {prefix + k: v for k, v in unet.items()}, "float32"
  )
  _assert_read(path, base, "unet", unet)


def test_blocks_that_were_compiled_one_by_one(base, unet, tmp_path):
  path = tmp_path / "unet.safetensors"
  save_file(
    {k.replace("attn2.", "attn2._orig_mod."): v for k, v in unet.items()}, path
  )
  _assert_read(path, base, "unet", unet)


@pytest.mark.torch
def test_a_text_encoder_that_is_saved_under_two_names(base, tmp_path):
  # AdvUnlearn's module has the CLIP model, and the parts of it once more.
  torch = pytest.importorskip("torch")
  wanted = {
    name: value + 1 if name.endswith(FC1) else value
    for name, value in base.states["text_encoder"].items()
  }
  state = {}
  for name, value in wanted.items():
    tensor = torch.tensor(value)
    state["text_encoder." + name] = tensor
    own = name.removeprefix("text_model.")
    state[own.replace("embeddings.", "embedding.", 1)] = tensor
  path = tmp_path / "text_encoder.pt"
  torch.save(state, path)
  _assert_read(path, base, "text_encoder", wanted)
  name = next(name for name in state if name.startswith("encoder."))
  state[name] = state[name] + 1
  torch.save(state, path)
  with pytest.raises(ValueError, match="given twice, as .*, and they differ"):
    convert.load(path, base)


def test_a_whole_clip_gives_its_text_encoder(base, tmp_path):
  # As Safe-CLIP is published.
  wanted = {
    name: value + 1 if name.endswith(FC1) else value
    for name, value in base.states["text_encoder"].items()
  }
  beside = {
    "vision_model.encoder.layers.0.mlp.fc1.weight": np.ones((2, 2), "f4"),
    "visual_projection.weight": np.ones((2, 2), "f4"),
    "text_projection.weight": np.ones((2, 2), "f4"),
    "logit_scale": np.ones((), "f4"),
  }
  path = tmp_path / "model.safetensors"
  save_file(wanted | beside, path)
  _assert_read(path, base, "text_encoder", wanted)


def test_the_first_bytes_decide_and_not_the_ending(base, unet, tmp_path):
  path = tmp_path / "model.ckpt"
  save_file(_original(base, unet), path)
  _assert_read(path, base, "unet", unet)
  torch_files.write_torch(path.with_suffix(".safetensors"), unet, "float32")
  _assert_read(path.with_suffix(".safetensors"), base, "unet", unet)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_a_mark_of_velocity(prefix, base, unet, tmp_path):
  state = _original(base, unet, prefix)
  path = tmp_path / "sd21.safetensors"
  save_file(state | {"v_pred": np.zeros(0, "f4")}, path)
  with pytest.raises(ValueError, match="predicts velocity, and the base pred"):
    convert.load(path, base)
  scheduler = base.configs["scheduler"] | {"prediction_type": "v_prediction"}
  configs = base.configs | {"scheduler": scheduler}
  _assert_read(path, dataclasses.replace(base, configs=configs), "unet", unet)
  save_file(state | {"ztsnr": np.zeros(0, "f4")}, path)
  with pytest.raises(ValueError, match="trained up to noise alone"):
    convert.load(path, base)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_vae_with_the_state_of_its_training(averaged, base, tmp_path):
  levels = len(base.configs["vae"]["block_out_channels"])
  vae = {k: v * np.float32(1.5) for k, v in base.states["vae"].items()}
  state = {}
  for name, own in single_files.vae_names(vae, levels).items():
    value = vae[name]
    if ".attentions." in name and value.ndim == 2:
      value = value[:, :, None, None]
    state[own] = value
    if averaged:
      state["model_ema." + own.replace(".", "")] = value * 2
  state |= {
    "model_ema.decay": np.array(0.9, "f4"), "loss.logvar": np.array(0, "f4"),
    "model_ema.num_updates": np.array(7, "i4"),
  }  # fmt: skip
  path = tmp_path / "vae.pt"
  save_file(state, path)
  if not averaged:
    _assert_read(path, base, "vae", vae)
    return
  with pytest.raises(ValueError, match="averaged .* and trained"):
    convert.load(path, base)
  _assert_read(path, base, "vae", vae, ema=False)
  twice = {k: v * np.float32(2) for k, v in vae.items()}
  _assert_read(path, base, "vae", twice, ema=True)


# Custom Diffusion and what descends from it.


@pytest.mark.torch
@pytest.mark.parametrize("container", ["diffusers", "original"])
def test_deltas_with_the_vectors_of_new_words(container, base, unet, tmp_path):
  torch = pytest.importorskip("torch")
  moved = {k: v for k, v in unet.items() if "attn2.to_k" in k}
  word = torch.randn(128)
  path = tmp_path / "delta.bin"
  if container == "diffusers":
    tensors = {k: torch.tensor(v) for k, v in moved.items()}
    torch.save({"unet": tensors, "modifier_token": {"<new1>": word}}, path)
  else:
    tensors = {
      k: torch.tensor(v)
      for k, v in _original(base, unet).items()
      if "attn2.to_k" in k
    }
    torch.save({"state_dict": tensors | {"embed": word[None]}}, path)
  _assert_read(path, base, "unet", moved)


def test_processors_of_custom_diffusion_in_diffusers(base, unet, tmp_path):
  moved = {k: v for k, v in unet.items() if "attn2.to_k" in k}
  path = tmp_path / "pytorch_custom_diffusion_weights.safetensors"
  save_file(
    {
      k.replace("to_k", "processor.to_k_custom_diffusion"): v
      for k, v in moved.items()
    },
    path,
  )
  # The folder of the training is enough.
  _assert_read(tmp_path, base, "unet", moved)


# Folders of a training.


def test_a_checkpoint_of_a_training(base, unet, tmp_path):
  folder = tmp_path / "run" / "checkpoint-500"
  for name in ("unet", "unet_ema"):
    (folder / name).mkdir(parents=True)
    save_file(unet, folder / name / "diffusion_pytorch_model.safetensors")
  (folder / "optimizer.bin").write_bytes(b"x")
  with pytest.raises(ValueError, match=r"trained and averaged.*500/unet_ema"):
    convert.load(folder, base)
  _assert_read(folder / "unet_ema", base, "unet", unet)
  (folder / "unet_ema").rename(tmp_path / "away")
  _assert_read(folder, base, "unet", unet)
  with pytest.raises(ValueError, match=r"its last step is \S+checkpoint-500"):
    convert.load(tmp_path / "run", base)
  # Without a base it is a model without its index.
  with pytest.raises(ValueError, match=r"model_index\.json: no such file"):
    convert.load(folder)


@pytest.mark.parametrize("tool", ["diffusers", "peft"])
def test_the_folder_of_a_lora(tool, base, tmp_path):
  name = f"{BLOCK}.to_k"
  rng = np.random.default_rng(0)
  weight = base.states["unet"][f"{name}.weight"]
  down = rng.standard_normal((2, weight.shape[1])).astype("f4")
  up = rng.standard_normal((len(weight), 2)).astype("f4")
  prefix, stem = {
    "diffusers": ("unet.", "pytorch_lora_weights"),
    "peft": ("base_model.model.", "adapter_model"),
  }[tool]
  save_file(
    {
      f"{prefix}{name}.lora_A.weight": down,
      f"{prefix}{name}.lora_B.weight": up,
    },
    tmp_path / f"{stem}.safetensors",
  )
  (tmp_path / "README.md").write_text("trained")
  # accelerate writes the whole state of a training beside it.
  save_file({"unet": down}, tmp_path / "model.safetensors")
  config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
  (tmp_path / "adapter_config.json").write_text(json.dumps(config))
  found = convert.load(tmp_path, base).states["unet"][f"{name}.weight"]
  np.testing.assert_allclose(found, weight + up @ down, atol=1e-5)


# What nothing here can hold is called by its name.


WORD = np.ones((1, 128), "f4")


@pytest.mark.parametrize(
  "state, said",
  [
    ({"<star>": WORD[0]}, "a learnt word"),
    ({"emb_params": WORD}, "a learnt word"),
    ({"string_to_token.*": WORD[0], "string_to_param.*": WORD},
     "a learnt word .*new_word"),
    ({"down_blocks.0.attentions.0.down.weight": WORD,
      "down_blocks.0.attentions.0.up.bias": WORD[0]},
     "an adapter with an activation .*not linear"),
    ({"control_model.input_blocks.0.0.weight": WORD}, "a ControlNet"),
    ({"lora_controlnet": WORD[0, :0]}, "a ControlNet"),
    ({"down_blocks.0.motion_modules.0.norm.weight": WORD}, "a motion module"),
    ({"ip_adapter.1.to_k_ip.weight": WORD}, "an IP-Adapter"),
    ({"concept_embeds": WORD, "special_care_embeds": WORD}, "a safety checker"),
    ({"lora_unet_mid_block_attentions_0_proj_in.oft_blocks": WORD},
     r"an adapter of a kind .*not supported"),
    ({"unet:0:up": WORD, "unet:0:down": WORD}, "a LoRA of lora_diffusion, wh"),
    ({"encoder.layers.1.conv.0.weight": WORD}, "a tiny VAE"),
    ({"1.weight": WORD, "3.conv.0.weight": WORD}, "a tiny VAE"),
  ],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_kinds_that_are_refused_by_name(state, said, ending, base, tmp_path):
  path = tmp_path / f"brought.{ending}"
  save_file(state, path)
  for over in (base, None):
    with pytest.raises(ValueError, match=rf"brought\.{ending}: is {said}"):
      convert.load(path, over)


@pytest.mark.torch
def test_a_word_as_textual_inversion_saves_it(base, tmp_path):
  torch = pytest.importorskip("torch")
  vectors = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(1, 9))})
  path = tmp_path / "embeddings.pt"
  words = {"string_to_token": {"*": torch.tensor(265)}}
  torch.save(words | {"string_to_param": vectors}, path)
  with pytest.raises(ValueError, match=r"gs\.pt: is a learnt word .*new_word"):
    convert.load(path, base)
  # A module among weights is still refused.
  torch.save({"w": torch.ones(2), "string_to_param": vectors}, path)
  with pytest.raises(ValueError, match="ParameterDict object, not a tensor"):
    convert.load(path, base)


def test_open_clips_own_text_encoder(base, tmp_path, caplog):
  """OpenAI's and open_clip's files, with the half that encodes images."""
  wanted, file = {}, {"visual.conv1.weight": np.ones((2, 2), "f4")}
  names = {new: old for old, new in compvis.OPEN_CLIP_NAMES.items()}
  parts = {new: old for old, new in compvis.OPEN_CLIP_PARTS.items()}
  packed = {}
  for name, value in base.states["text_encoder"].items():
    wanted[name] = value + np.float32(0.5)
    plain = name.removeprefix("text_model.")
    if plain in names:
      file[names[plain]] = wanted[name]
      continue
    _, _, layer, *rest, leaf = plain.split(".")
    block, module = f"transformer.resblocks.{layer}", ".".join(rest)
    if module in parts:
      file[f"{block}.{parts[module]}.{leaf}"] = wanted[name]
    else:
      key = f"{block}.attn.in_proj_{leaf}"
      packed.setdefault(key, {})[module[-6]] = wanted[name]
  file |= {
    key: np.concatenate([three[part] for part in "qkv"])
    for key, three in packed.items()
  }
  path = tmp_path / "open_clip_pytorch_model.bin"
  torch_files.write_torch(path, file, "float32")
  found = _assert_read(path, base, "text_encoder", wanted)
  assert found is not base and "an encoder of images" in caplog.text


def test_words_that_are_bundled_with_a_lora(base, tmp_path, caplog):
  name = f"{BLOCK}.to_k.weight"
  weight = base.states["unet"][name]
  stem = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
  up, down = (
    np.ones((len(weight), 1), "f4"),
    np.ones((1, weight.shape[1]), "f4"),
  )
  path = tmp_path / "lora.safetensors"
  state = {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
  save_file(state | {"bundle_emb.sun.emb_params": WORD}, path)
  assert inspection.inspect(path).kind.name == "lora"
  found = convert.load(path, base).states["unet"][name]
  np.testing.assert_array_equal(found, weight + 1)
  assert "new words (sun)" in caplog.text


def test_an_edit_of_ours_is_no_weights(base, tmp_path):
  path = tmp_path / "edit.safetensors"
  save_file({"context_map": np.eye(3)}, path, {"format": families.EDIT_FORMAT})
  said = rf"is an edit of this .*export --edit={path} --model='<its base>' "
  with pytest.raises(ValueError, match=said):
    convert.load(path, base)


def test_an_error_of_a_loader_says_what_the_file_is(base, unet, tmp_path):
  path = tmp_path / "unet.safetensors"
  name = f"{BLOCK}.to_k.weight"
  save_file({name: np.ones((3, 3), "f4")}, path)
  said = r"1 misshaped: [\s\S]*unet\.safetensors is a part of a UNet"
  with pytest.raises(ValueError, match=said):
    convert.load(path, base)
  with pytest.raises(
    ValueError, match="holds part of a model .a part of a UNet in dif"
  ):
    convert.load(path)


# Edits that are none.


def test_averaged_weights_that_are_the_bases(base, unet, tmp_path):
  # Code of SalUn's lineage edits the trained weights and not their averages.
  state = _original(base, unet)
  for name, value in _original(base, base.states["unet"]).items():
    state["model_ema." + name.removeprefix("model.").replace(".", "")] = value
  path = tmp_path / "erased.ckpt"
  save_file(state, path)
  _assert_read(path, base, "unet", unet, ema=False)
  with pytest.warns(
    UserWarning, match="no tensor differs.*read those with --no"
  ):
    convert.load(path, base, ema=True)
  whole = single_files.from_diffusers(
    base.states,
    base.configs["unet"]["layers_per_block"],
    len(base.configs["vae"]["block_out_channels"]),
  )
  save_file(whole | state, path)
  for over in (base, world.model_folder()):
    with pytest.warns(UserWarning, match="no tensor differs from the base's"):
      convert.load(path, over, ema=True)
