"""Classifiers of three libraries against torch, random weights.

Oracles: transformers' ViT and ResNet; a ResNet of torch's own layers under
torchvision's names. At the sizes that are published in the slow tests.
"""

import numpy as np
import pytest

from tests.support import judge_weights
from unlearning_jax import models
from unlearning_jax.convert import vision
from unlearning_jax.models.resnet import ResNet, ResNetConfig
from unlearning_jax.models.vision import VisionConfig, VisionTransformer

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

TOLERANCE = 1e-4


def slow(value):
  return pytest.param(value, marks=pytest.mark.slow)


def images_of(side, n=2):
  rng = np.random.default_rng(0)
  return rng.normal(size=(n, side, side, 3)).astype(np.float32)


def numpy_of(state):
  return {name: value.numpy() for name, value in state.items()}


def logits(model, images):
  with torch.no_grad():
    out = model(torch.tensor(images).permute(0, 3, 1, 2))
  return getattr(out, "logits", out).numpy()


def check(network, params, model, side):
  images = images_of(side)
  wanted = logits(model, images)
  found = np.asarray(models.apply(network, params, images))
  scale = np.abs(wanted).max()
  np.testing.assert_allclose(found / scale, wanted / scale, atol=TOLERANCE)
  # Both images alike would say nothing.
  assert np.abs(wanted[0] - wanted[1]).max() > 100 * TOLERANCE * scale
  return wanted


def published_vit(model):
  """As the published folders have it: `save_pretrained` gives old names."""
  import tempfile

  from safetensors.numpy import load_file

  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    return load_file(f"{folder}/model.safetensors")


@pytest.mark.parametrize("size", ["small", slow("base")])
def test_transformers_vit(size):
  model = judge_weights.vit(129, size)
  config = VisionConfig(
    **{
      key: getattr(model.config, key)
      for key in ("hidden_size", "intermediate_size", "num_hidden_layers",
                  "num_attention_heads", "image_size", "patch_size",
                  "hidden_act", "layer_norm_eps")
    },
    outputs=129, is_clip=False,
  )  # fmt: skip
  state = published_vit(model)
  assert "vit.encoder.layer.0.attention.attention.query.weight" in state
  params = vision.vision_transformer(
    state, vision.TRANSFORMERS_VIT, config, "file"
  )
  check(VisionTransformer(config), params, model, config.image_size)


@pytest.mark.parametrize("size", ["small", slow("large")])
def test_timm_vit(size):
  model = judge_weights.vit(51, size, epsilon=1e-6)
  state = numpy_of(judge_weights.timm_state(model))
  config = vision.timm_config(state, "file")
  width, layers = judge_weights.VIT_SIZES[size]
  assert config.hidden_size == width and config.num_hidden_layers == layers
  assert config.outputs == 51 and config.patch_size == 16
  params = vision.vision_transformer(state, vision.TIMM_VIT, config, "file")
  check(VisionTransformer(config), params, model, config.image_size)


class Bottleneck(torch.nn.Module):
  """torchvision's: the 3x3 convolution takes the stride."""

  def __init__(self, inside, width, stride):
    super().__init__()
    inner = width // 4
    self.conv1 = torch.nn.Conv2d(inside, inner, 1, bias=False)
    self.bn1 = torch.nn.BatchNorm2d(inner)
    self.conv2 = torch.nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
    self.bn2 = torch.nn.BatchNorm2d(inner)
    self.conv3 = torch.nn.Conv2d(inner, width, 1, bias=False)
    self.bn3 = torch.nn.BatchNorm2d(width)
    self.downsample = None
    if stride != 1 or inside != width:
      self.downsample = torch.nn.Sequential(
        torch.nn.Conv2d(inside, width, 1, stride, bias=False),
        torch.nn.BatchNorm2d(width),
      )

  def forward(self, x):
    hidden = self.bn1(self.conv1(x)).relu()
    hidden = self.bn2(self.conv2(hidden)).relu()
    hidden = self.bn3(self.conv3(hidden))
    return (hidden + (self.downsample(x) if self.downsample else x)).relu()


class TorchResNet(torch.nn.Module):
  def __init__(self, depths, widths, stem):
    super().__init__()
    self.conv1 = torch.nn.Conv2d(3, stem, 7, 2, 3, bias=False)
    self.bn1 = torch.nn.BatchNorm2d(stem)
    inside = stem
    for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
      blocks = []
      for j in range(depth):
        blocks.append(Bottleneck(inside, width, 2 if i and not j else 1))
        inside = width
      setattr(self, f"layer{i + 1}", torch.nn.Sequential(*blocks))
    self.fc = torch.nn.Linear(inside, 1000)

  def forward(self, x):
    x = torch.nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
    for i in range(1, 5):
      x = getattr(self, f"layer{i}")(x)
    return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("size", ["small", slow("50")])
def test_torchvision_resnet(size):
  shapes = judge_weights.RESNET_SIZES[size]
  model = TorchResNet(*shapes).eval()
  # The same tensors as transformers' network, whose names are turned.
  other = judge_weights.resnet(size)
  model.load_state_dict(judge_weights.torchvision_state(other))
  state = numpy_of(model.state_dict())
  config = vision.torchvision_config(state, "file")
  assert config == ResNetConfig(*shapes, classes=1000)
  params = vision.resnet(state, vision.TORCHVISION_RESNET, config, "file")
  wanted = check(ResNet(config), params, model, 224 if size == "50" else 70)
  if size == "50":
    assert config == ResNetConfig()
    images = images_of(224)
    np.testing.assert_allclose(
      logits(other, images), wanted, atol=1e-3 * np.abs(wanted).max()
    )


@pytest.mark.parametrize("first", [False, True])
def test_where_the_stride_is(first):
  model = judge_weights.resnet(downsample_in_bottleneck=first)
  state = numpy_of(model.state_dict())
  shapes = judge_weights.RESNET_SIZES["small"]
  for stride_first in (False, True):
    config = ResNetConfig(*shapes, stride_first=stride_first)
    params = vision.resnet(state, vision.TRANSFORMERS_RESNET, config, "file")
    found = models.apply(ResNet(config), params, images_of(70))
    wanted = logits(model, images_of(70))
    agrees = np.abs(found - wanted).max() < TOLERANCE * np.abs(wanted).max()
    assert agrees == (stride_first == first)


def test_what_does_not_fit_is_named():
  model = judge_weights.resnet()
  state = numpy_of(judge_weights.torchvision_state(model))
  config = vision.torchvision_config(state, "file")
  for name, message in (
    ("layer2.0.bn2.running_var", "'block1.0.conv2' lacks a part"),
    ("fc.bias", "missing: head.bias"),
  ):
    less = {k: v for k, v in state.items() if k != name}
    with pytest.raises(ValueError, match=message):
      vision.resnet(less, vision.TORCHVISION_RESNET, config, "file")
  broken = state | {"fc.bias": np.full(1000, np.nan, np.float32)}
  with pytest.raises(ValueError, match="holds NaN or infinity"):
    vision.resnet(broken, vision.TORCHVISION_RESNET, config, "file")
  with pytest.raises(ValueError, match="missing: conv1.weight"):
    vision.torchvision_config({}, "file")
  with pytest.raises(ValueError, match="missing: patch_embed.proj.weight"):
    vision.timm_config(state, "file")
