"""Folders as judges are published, with random weights: small, or full size.

torch and transformers write them, so that names and layouts are theirs.
"""

import json
import pathlib
import pickle
import shutil

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "unlearning_jax/shapes/assets/model/tokenizer"
CLIP_FOLDERS = {"b32": "clip-vit-base-patch32", "l14": "clip-vit-large-patch14"}


def _tower(width, layers, heads, **more):
  return {
    "hidden_size": width,
    "intermediate_size": 4 * width,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    **more,
  }


# Width of the vectors, text tower, image tower; of OpenAI's as published.
CLIP_SIZES = {
  "small": (
    24,
    _tower(32, 2, 4),
    _tower(48, 3, 4, patch_size=16, image_size=64),
  ),
  "b32": (
    512,
    _tower(512, 12, 8),
    _tower(768, 12, 12, patch_size=32, image_size=224),
  ),
  "l14": (
    768,
    _tower(768, 12, 12),
    _tower(1024, 24, 16, patch_size=14, image_size=224),
  ),
}


def clip(folder, tower, size="small", **vision):
  """Writes an OpenAI CLIP's folder; returns torch's model."""
  import torch
  import transformers

  vocabulary = json.loads((TOKENIZER / "vocab.json").read_text())
  width, text, image = CLIP_SIZES[size]
  text = text | {"vocab_size": len(vocabulary)}
  # The end of the text, as OpenAI's folders have it: the highest id.
  text |= {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
  config = transformers.CLIPConfig(
    text_config=text, vision_config=image | vision, projection_dim=width
  )
  torch.manual_seed(0)
  model = transformers.CLIPModel(config).eval()
  with torch.no_grad():
    for name, value in model.named_parameters():
      # Biases and norms start as zeros and ones, which would test nothing.
      if value.ndim == 1:
        value.add_(0.1 * torch.randn_like(value))
      elif "embedding" in name:
        value.add_(0.5 * torch.randn_like(value))
    model.logit_scale.fill_(np.log(30.0))
  path = folder / CLIP_FOLDERS[tower]
  model.save_pretrained(path)
  for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
    shutil.copy(TOKENIZER / name, path / name)
  return model


def q16(folder, width=24):
  """Writes two vectors as Q16 does; returns them."""
  vectors = np.random.default_rng(1).normal(size=(2, width))
  (folder / "q16").mkdir()
  with open(folder / "q16/prompts.p", "wb") as file:
    pickle.dump(vectors.astype(np.float16), file)
  return vectors.astype(np.float16)


def _stirred(model):
  """Random biases, norms and averages, which start as zeros and ones."""
  import torch

  with torch.no_grad():
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
      if value.is_floating_point() and (value.ndim == 1 or "embed" in name):
        value.add_(0.3 * torch.rand_like(value))
  return model.eval()


# Width, layers and heads; whose heads have 64 channels each, as in all of them.
VIT_SIZES = {"small": (128, 2), "base": (768, 12), "large": (1024, 24)}


def vit(classes, size="small", epsilon=1e-12):
  """transformers' ViT with random weights."""
  import torch
  import transformers

  width, layers = VIT_SIZES[size]
  side = 32 if size == "small" else 224
  torch.manual_seed(classes)
  config = transformers.ViTConfig(
    **_tower(width, layers, width // 64),
    image_size=side,
    patch_size=16,
    num_labels=classes,
    layer_norm_eps=epsilon,
  )
  return _stirred(transformers.ViTForImageClassification(config))


def timm_state(model):
  """The tensors of transformers' ViT, under timm's names."""
  given = {k.removeprefix("vit."): v for k, v in model.state_dict().items()}
  found = {
    "cls_token": given["embeddings.cls_token"],
    "pos_embed": given["embeddings.position_embeddings"],
  }
  for leaf in ("weight", "bias"):
    patches = "embeddings.patch_embeddings.projection"
    found[f"patch_embed.proj.{leaf}"] = given[f"{patches}.{leaf}"]
    found[f"norm.{leaf}"] = given[f"layernorm.{leaf}"]
    found[f"head.{leaf}"] = given[f"classifier.{leaf}"]
    for i in range(model.config.num_hidden_layers):
      layer = {
        k.removeprefix(f"layers.{i}."): v
        for k, v in given.items()
        if k.startswith(f"layers.{i}.")
      }
      heads = [layer[f"attention.{n}_proj.{leaf}"] for n in "qkv"]
      for name, value in {
        "attn.qkv": _stacked(heads),
        "attn.proj": layer[f"attention.o_proj.{leaf}"],
        "mlp.fc1": layer[f"mlp.fc1.{leaf}"],
        "mlp.fc2": layer[f"mlp.fc2.{leaf}"],
        "norm1": layer[f"layernorm_before.{leaf}"],
        "norm2": layer[f"layernorm_after.{leaf}"],
      }.items():
        found[f"blocks.{i}.{name}.{leaf}"] = value
  return found


def _stacked(parts):
  import torch

  return torch.cat(parts)


# Depths, widths, stem.
RESNET_SIZES = {
  "small": ((1, 2, 1, 1), (16, 24, 32, 40), 8),
  "50": ((3, 4, 6, 3), (256, 512, 1024, 2048), 64),
}


def resnet(size="small", classes=1000, **changes):
  """transformers' ResNet with random weights."""
  import torch
  import transformers

  depths, widths, stem = RESNET_SIZES[size]
  torch.manual_seed(3)
  config = transformers.ResNetConfig(
    embedding_size=stem, hidden_sizes=list(widths), depths=list(depths),
    num_labels=classes, **changes,
  )  # fmt: skip
  return _stirred(transformers.ResNetForImageClassification(config))


def torchvision_state(model):
  """The tensors of transformers' ResNet, under torchvision's names."""
  parts = {"convolution": 0, "normalization": 1}
  found = {}
  for name, value in model.state_dict().items():
    words = name.removeprefix("resnet.").split(".")
    part = parts.get(words[-2], "")
    if words[0] == "embedder":
      new = "bn1" if part else "conv1"
    elif words[0] == "classifier":
      new = "fc"
    elif words[5] == "shortcut":
      new = f"layer{int(words[2]) + 1}.{words[4]}.downsample.{part}"
    else:
      kind = "bn" if part else "conv"
      new = f"layer{int(words[2]) + 1}.{words[4]}.{kind}{int(words[6]) + 1}"
    found[f"{new}.{words[-1]}"] = value
  return found


def processor(folder, **changes):
  """Writes a `preprocessor_config.json`, a ViT's unless changed."""
  given = {
    "size": {"height": 32, "width": 32}, "resample": 2,
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
  }  # fmt: skip
  path = folder / "preprocessor_config.json"
  path.write_text(json.dumps(given | changes))


# What microsoft/resnet-50 has, in the older spelling of the size.
CONVNEXT = {
  "size": 224, "crop_pct": 0.875, "resample": 3,
  "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip


def classifiers(folder):
  """Writes small ones of every classifier that ships."""
  import torch

  resnet().save_pretrained(folder / "resnet-50")
  processor(folder / "resnet-50", **CONVNEXT)
  torch.save(torchvision_state(resnet()), folder / "resnet50-11ad3fa6.pth")
  style = vit(129)
  style.config.id2label = {i: f"painter-{i}" for i in range(129)}
  style.save_pretrained(folder / "style-vit-129")
  processor(folder / "style-vit-129")
  (folder / "unlearncanvas").mkdir()
  for name, classes in (("style50", 51), ("style50_cls", 20)):
    state = timm_state(vit(classes, epsilon=1e-6))
    # Beside the optimizer's state, as training leaves it.
    saved = {"model_state_dict": state, "optimizer_state_dict": {0: {}}}
    torch.save(saved, folder / f"unlearncanvas/{name}.pth")


def all_small(folder):
  """Everything that the shipped judges need."""
  clip(folder, "b32")
  clip(folder, "l14")
  q16(folder)
  classifiers(folder)


def _written(path, layers, names):
  """Writes the tensors of torch layers, scaled so that none dies out."""
  import torch

  state = {}
  for name, layer in zip(names, layers, strict=True):
    torch.nn.init.kaiming_normal_(layer.weight)
    state[f"{name}.weight"] = layer.weight.detach()
    if layer.bias is not None:
      state[f"{name}.bias"] = 0.1 * torch.randn(len(layer.bias))
  path.parent.mkdir(exist_ok=True)
  torch.save(state, path)
  return state


# Channels of each convolution, and what torch's layers lie between them.
TRUNKS = {
  "alex": (
    "alexnet-owt-7be5be79.pth",
    ((64, 11, 4, 2), "R", 3, (192, 5, 1, 2), "R", 3, (384, 3, 1, 1), "R",
     (256, 3, 1, 1), "R", (256, 3, 1, 1), "R"),
  ),
  "vgg": (
    "vgg16-397923af.pth",
    tuple(
      layer
      for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
      for layer in (*((width, 3, 1, 1), "R") * depth, 2)
    )[:-1],
  ),
}  # fmt: skip


def lpips(folder, network):
  """Writes an LPIPS's two files; returns torch's trunk and the weights."""
  import torch

  torch.manual_seed(5)
  name, plan = TRUNKS[network]
  layers, width = [], 3
  for layer in plan:
    if layer == "R":
      layers.append(torch.nn.ReLU())
    elif isinstance(layer, int):
      layers.append(torch.nn.MaxPool2d(layer, 2))
    else:
      layers.append(torch.nn.Conv2d(width, *layer))
      width = layer[0]
  places = [i for i, one in enumerate(layers) if hasattr(one, "weight")]
  convolutions = [layers[i] for i in places]
  state = _written(
    folder / name, convolutions, [f"features.{i}" for i in places]
  )
  trunk = torch.nn.Sequential(*layers).eval()
  trunk.load_state_dict({k[len("features.") :]: v for k, v in state.items()})
  widths = [64, 192, 384, 256, 256]
  if network == "vgg":
    widths = [64, 128, 256, 512, 512]
  linear = {
    f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1)
    for i, width in enumerate(widths)
  }
  (folder / "lpips").mkdir(exist_ok=True)
  torch.save(linear, folder / f"lpips/{network}.pth")
  return trunk, linear
