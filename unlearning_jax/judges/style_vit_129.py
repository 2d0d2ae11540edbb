"""The Unlearned-DM benchmark's judge of style: a ViT over 129 painters.

Its labels are the folder's own, as `vincent-van-gogh`. The benchmark reports
both the likeliest and the three likeliest: `style-vit-129~top=3`.
"""

from unlearning_jax import durable
from unlearning_jax.convert import reader, vision
from unlearning_jax.judges import Judge, networks, processors, weights
from unlearning_jax.models.vision import VisionConfig, VisionTransformer

NEEDS = networks.folder_files(
  "style-vit-129",
  "the style classifier that the README of "
  "github.com/OPTML-Group/Diffusion-MU-Attack links",
  "preprocessor_config.json",
)
_NAME = "style-vit-129"
_CLASSES = 129


def judge(top: int = 1, judges_dir: str = "") -> Judge:
  """Who painted it?

  Args:
    top: an image shows a painter's style who is among so many of the likeliest.
    judges_dir: the folder of judges' weights; "" for the environment's.

  Raises:
    ValueError: a file is missing, or does not fit.
  """
  found = [file.find(_NAME, judges_dir) for file in NEEDS]
  config = durable.read_json(found[0])
  names = config.get("id2label", {})
  if len(names) != _CLASSES:
    raise ValueError(
      f"judge {_NAME}: {found[0]}: id2label has {len(names)} classes; wanted "
      f"{_CLASSES} painters"
    )
  shapes = VisionConfig(
    **networks.picked(VisionConfig, config),
    outputs=_CLASSES,
    is_clip=False,
  )
  state = reader.read_state_dict(found[1])
  params = vision.vision_transformer(
    state, vision.TRANSFORMERS_VIT, shapes, str(found[1])
  )
  pixels = processors.vit(_NAME, found[2])
  return Judge(
    name=_NAME,
    score=networks.classifier(
      VisionTransformer(shapes), params, pixels, "style"
    ),
    labels={"style": tuple(names[str(i)] for i in range(_CLASSES))},
    weights_hash=weights.digest(found),
    sees=str(pixels),
    cannot_see="anything but the style of 129 painters: one of them always "
    "fits best",
    top=top,
  )
