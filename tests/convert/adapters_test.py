"""LoRA files of every layout, laid over the model that they adapt."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support import tiny_pipelines
from unlearning_jax import convert
from unlearning_jax.convert import ModelFiles

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
CONV = "down_blocks.0.resnets.0.conv1"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
CONFIG = "adapter_config.json"


def _base():
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  states = {
    "text_encoder": {f"{TEXT}.weight": draw(4, 4)},
    "unet": {
      f"{ATTENTION}.to_k.weight": draw(6, 3),
      f"{ATTENTION}.to_out.0.weight": draw(6, 6),
      f"{ATTENTION}.to_out.0.bias": draw(6),
      "down_blocks.0.attentions.0.proj_in.weight": draw(6, 6, 1, 1),
      f"{CONV}.weight": draw(6, 5, 3, 3),
    },
    "vae": {"encoder.conv_in.weight": draw(4, 3, 3, 3)},
  }
  return ModelFiles({}, states, None)


def _factors(*modules):
  """{module: (down, up)} of rank 2, for these modules of `_base`."""
  rng = np.random.default_rng(1)
  found = {}
  for module in modules:
    states = _base().states
    weight = (states["unet"] | states["text_encoder"])[f"{module}.weight"]
    out, *rest = weight.shape
    down = rng.standard_normal((2, *rest)).astype(np.float32)
    up = rng.standard_normal((out, 2, *(1,) * (len(rest) - 1)))
    found[module] = down, up.astype(np.float32)
  return found


def _assert_adapted(found, factors, scale=1.0):
  """Every weight is W + scale up down, those without factors the base's."""
  left = dict(factors)
  for part, old in _base().states.items():
    for name, value in old.items():
      wanted = np.float64(value)
      if pair := left.pop(name.removesuffix(".weight"), None):
        down, up = (np.float64(x) for x in pair)
        product = np.einsum("or,r...->o...", up.reshape(up.shape[:2]), down)
        wanted = wanted + scale * product.reshape(value.shape)
      np.testing.assert_allclose(found.states[part][name], wanted, atol=1e-5)
  assert not left


def _diffusers(module):
  part = "text_encoder" if module == TEXT else "unet"
  linear = "lora_linear_layer" if module == TEXT else "lora"
  return [f"{part}.{module}.{linear}.{x}.weight" for x in ("down", "up")]


def _processor(module):
  stem, _, name = module.removesuffix(".0").rpartition(".")
  return [f"{stem}.processor.{name}_lora.{x}.weight" for x in ("down", "up")]


def _peft(module):
  return [f"base_model.model.{module}.lora_{x}.weight" for x in "AB"]


def _kohya(module):
  stem = "lora_te_" if module == TEXT else "lora_unet_"
  stem += module.replace(".", "_")
  return [f"{stem}.lora_{x}.weight" for x in ("down", "up")]


ALL = (f"{ATTENTION}.to_k", f"{ATTENTION}.to_out.0", CONV, TEXT)


@pytest.mark.parametrize(
  "names, modules",
  [
    (_diffusers, ALL),
    (_processor, ALL[:2]),
    (_peft, (*ALL[:2], CONV)),
    (_kohya, ALL),
  ],
)
def test_every_layout_is_added_to_the_base(names, modules, tmp_path):
  factors, path = _factors(*modules), tmp_path / "lora.safetensors"
  tensors = {}
  for module, pair in factors.items():
    tensors |= dict(zip(names(module), pair, strict=True))
  # Alpha 4 over rank 2, said where the layout says it.
  scale = 1.0
  if names is _peft:
    scale = 2.0
    (tmp_path / CONFIG).write_text(json.dumps({"lora_alpha": 4, "r": 2}))
  if names is _kohya:
    scale = 2.0
    ends = [names(module)[0].partition(".")[0] for module in modules]
    tensors |= {f"{end}.alpha": np.array(4, "f4") for end in ends}
  save_file(tensors, path)
  _assert_adapted(convert.load(path, _base()), factors, scale)


def test_alpha_is_each_modules_own(tmp_path):
  factors, path = _factors(*ALL[:2]), tmp_path / "lora.safetensors"
  tensors = {}
  for module, pair in factors.items():
    tensors |= dict(zip(_kohya(module), pair, strict=True))
  first = ALL[0]
  alpha = _kohya(first)[0].replace("lora_down.weight", "alpha")
  save_file(tensors | {alpha: np.float32([1.0])}, path)
  down, up = factors[first]
  halved = factors | {first: (down, up / 2)}
  _assert_adapted(convert.load(path, _base()), halved)


KEYS = _diffusers(ALL[0])


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda t: t | {"unet.x.lora_A.weight": np.ones((2, 2), "f4")},
     "'unet.x.lora_A.weight' fits no unet or text_encoder weight"),
    (lambda t: t | {f"unet.{ATTENTION}.to_k.dora_scale": np.ones(7, "f4")},
     r"1 misshaped: .*dora_scale \(7,\)"),
    (lambda t: t | dict(zip(_kohya(ALL[0]), t.values(), strict=True)),
     r"given twice, as '\S+lora_down.weight' and 'unet"),
    (lambda t: {KEYS[0]: t[KEYS[0]]}, r"to_k.weight' has \['down'\] only"),
    # Of a model of another width, as Stable Diffusion 2 over 1.
    (lambda t: t | {KEYS[0]: np.ones((2, 5), "f4")},
     r"1 misshaped: .*to_k.weight \(6, 3\), down \(2, 5\), up \(6, 2\)"),
    (lambda t: t | {KEYS[1]: np.ones((6, 3), "f4")}, "1 misshaped"),
    (lambda t: t | {KEYS[1]: t[KEYS[1]] * np.nan}, "to_k.weight up' holds NaN"),
    (lambda t: t | {f"unet.{ATTENTION}.to_k.alpha": np.float32([1, 2])},
     "allowed: one number"),
    (lambda t: t | {f"unet.{ATTENTION}.to_k.alpha": np.array(np.inf, "f4")},
     "alpha inf"),
    (lambda t: dict(zip(_peft(ALL[0]), t.values(), strict=True)),
     f"{CONFIG}; put it beside"),
  ],
)  # fmt: skip
def test_a_lora_that_does_not_fit(change, words, tmp_path):
  tensors = dict(zip(KEYS, _factors(ALL[0])[ALL[0]], strict=True))
  path = tmp_path / "lora.safetensors"
  save_file(change(tensors), path)
  with pytest.raises(ValueError, match=words):
    convert.load(path, _base())


def test_a_key_that_means_two_weights(tmp_path):
  base, path = _base(), tmp_path / "lora.safetensors"
  twin = f"{ATTENTION}.to.k.weight"
  base.states["unet"][twin] = np.ones((6, 3), np.float32)
  pair = _factors(ALL[0])[ALL[0]]
  save_file(dict(zip(_kohya(ALL[0]), pair, strict=True)), path)
  with pytest.raises(ValueError, match=r"to_k\.lora_down.* fits .*to\.k"):
    convert.load(path, base)


def test_a_lora_has_no_averaged_weights(tmp_path):
  path = tmp_path / "lora.safetensors"
  save_file(dict(zip(KEYS, _factors(ALL[0])[ALL[0]], strict=True)), path)
  with pytest.raises(ValueError, match="ema=True, but its layout"):
    convert.load(path, _base(), ema=True)


# Against torch: files that diffusers and peft write, fused by diffusers.


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layout", ["diffusers", "kohya", "peft"])
def test_torchs_own_files_make_torchs_own_weights(layout, tmp_path):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  peft = pytest.importorskip("peft")
  folder = tmp_path / "base"
  folder.mkdir()
  tiny_pipelines.write(folder)
  pipe = diffusers.StableDiffusionPipeline.from_pretrained(
    folder, feature_extractor=None, safety_checker=None
  )
  torch.manual_seed(0)
  models = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
  targets = {
    "unet": ["to_q", "to_k", "to_out.0", "proj_in", "conv1"],
    "text_encoder": ["q_proj", "fc1"],
  }
  if layout == "peft":
    del models["text_encoder"]
  layers, configs = {}, {}
  for part, model in models.items():
    # Without gaussian weights the up factors are zero: nothing to compare.
    config = peft.LoraConfig(
      r=2, lora_alpha=6, target_modules=targets[part], init_lora_weights=False
    )
    peft.inject_adapter_in_model(config, model)
    layers[part] = peft.get_peft_model_state_dict(model)
    configs[part] = config.to_dict()
  path = tmp_path / "pytorch_lora_weights.safetensors"
  if layout == "peft":
    state = layers["unet"].items()
    tensors = {f"base_model.model.{k}": v.numpy() for k, v in state}
    save_file(tensors, path)
    peft.LoraConfig(**configs["unet"]).save_pretrained(tmp_path)
    assert (tmp_path / CONFIG).is_file()
  else:
    pipe.save_lora_weights(
      tmp_path,
      unet_lora_layers=layers["unet"],
      text_encoder_lora_layers=layers["text_encoder"],
      **{f"{part}_lora_adapter_metadata": c for part, c in configs.items()},
    )
  if layout == "kohya":
    convert_ = diffusers.utils.state_dict_utils.convert_state_dict_to_kohya
    tensors = {k: torch.tensor(v) for k, v in load_file(path).items()}
    state = convert_(tensors).items()
    tensors = {k: np.array(v.numpy()) for k, v in state}
    # It writes alpha = rank, whatever the model's was.
    tensors |= {k: np.array(6, "f4") for k in tensors if k.endswith(".alpha")}
    save_file(tensors, path)
  found = convert.load(path, folder)
  base = convert.load(folder)
  for part, model in models.items():
    for module in model.modules():
      if hasattr(module, "lora_A"):
        module.merge()
    own = model.state_dict()
    weights = {k.replace(".base_layer.", "."): v for k, v in own.items()}
    weights = convert.names.canonical(
      {k: v.numpy() for k, v in weights.items() if ".lora_" not in k}, part
    )
    assert set(weights) == set(base.states[part])
    moved = 0
    for name, value in weights.items():
      np.testing.assert_allclose(found.states[part][name], value, atol=1e-6)
      moved += not np.array_equal(value, base.states[part][name])
    assert moved >= len(layers[part]) // 2
