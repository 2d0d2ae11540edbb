"""microsoft/resnet-50: the objects of the Unlearned-DM benchmark.

Another network than `resnet50-v2`: other weights, and another resize. Their
numbers do not compare.
"""

from unlearning_jax import durable
from unlearning_jax.convert import reader, vision
from unlearning_jax.judges import (
  Judge,
  imagenet,
  networks,
  processors,
  weights,
)
from unlearning_jax.models.resnet import ResNet, ResNetConfig

NEEDS = networks.folder_files(
  "resnet-50", "huggingface.co/microsoft/resnet-50", "preprocessor_config.json"
)
_NAME = "resnet50-microsoft"
# What the network can be, and nothing else.
_FIXED = {
  "layer_type": "bottleneck",
  "hidden_act": "relu",
  "num_channels": 3,
  "downsample_in_first_stage": False,
}


def judge(top: int = 1, judges_dir: str = "") -> Judge:
  """The likeliest of ImageNet's classes.

  Args:
    top: an image shows a class that is among so many of the likeliest.
    judges_dir: the folder of judges' weights; "" for the environment's.

  Raises:
    ValueError: a file is missing, does not fit, or is torchvision's.
  """
  found = [file.find(_NAME, judges_dir) for file in NEEDS]
  config = durable.read_json(found[0])
  for key, value in _FIXED.items():
    if config.get(key, value) != value:
      raise ValueError(
        f"judge {_NAME}: {found[0]}: {key}={config[key]!r}; wanted {value!r}"
      )
  state = reader.read_state_dict(found[1])
  if "layer1.0.conv1.weight" in state:
    raise ValueError(
      f"judge {_NAME}: {found[1]} holds torchvision's ResNet-50, another "
      "network; for that one: --judge=resnet50-v2"
    )
  shapes = ResNetConfig(
    depths=tuple(config["depths"]),
    widths=tuple(config["hidden_sizes"]),
    stem=config["embedding_size"],
    classes=len(config.get("id2label", ())),
    stride_first=bool(config.get("downsample_in_bottleneck", False)),
  )
  imagenet.check(_NAME, shapes.classes)
  params = vision.resnet(
    state, vision.TRANSFORMERS_RESNET, shapes, str(found[1])
  )
  pixels = processors.convnext(_NAME, found[2])
  return Judge(
    name=_NAME,
    score=networks.classifier(ResNet(shapes), params, pixels, "object"),
    labels={"object": imagenet.labels()},
    weights_hash=weights.digest(found),
    sees=str(pixels),
    cannot_see="anything but ImageNet's thousand classes: one of them always "
    "fits best",
    top=top,
  )
