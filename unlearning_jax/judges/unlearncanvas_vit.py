"""UnlearnCanvas' two judges: 51 styles and 20 objects, a ViT-L/16 each.

The two files are easily confused. The number of a head's classes says which one
a file is; its name does not. They know the pictures of UnlearnCanvas'
own Stable Diffusion; of an unmodified one they call one style in nine right.
"""

import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from unlearning_jax.convert import read_state_dict, vision
from unlearning_jax.judges import Judge, networks, weights
from unlearning_jax.judges.networks import Images
from unlearning_jax.judges.pixels import Pixels
from unlearning_jax.models.vision import VisionTransformer

_PROJECT = "the classifiers of github.com/OPTML-Group/UnlearnCanvas"
NEEDS = (
  weights.File("unlearncanvas/style50.pth", f"style50.pth of {_PROJECT}"),
  weights.File(
    "unlearncanvas/style50_cls.pth", f"style50_cls.pth of {_PROJECT}"
  ),
)
_NAME = "unlearncanvas-vit"
STYLES = (
  "Abstractionism", "Artist_Sketch", "Blossom_Season", "Bricks", "Byzantine",
  "Cartoon", "Cold_Warm", "Color_Fantasy", "Comic_Etch", "Crayon", "Cubism",
  "Dadaism", "Dapple", "Defoliation", "Early_Autumn", "Expressionism",
  "Fauvism", "French", "Glowing_Sunset", "Gorgeous_Love", "Greenfield",
  "Impressionism", "Ink_Art", "Joy", "Liquid_Dreams", "Magic_Cube",
  "Meta_Physics", "Meteor_Shower", "Monet", "Mosaic", "Neon_Lines", "On_Fire",
  "Pastel", "Pencil_Drawing", "Picasso", "Pop_Art", "Red_Blue_Ink", "Rust",
  "Seed_Images", "Sketch", "Sponge_Dabbed", "Structuralism", "Superstring",
  "Surrealism", "Ukiyoe", "Van_Gogh", "Vibrant_Flow", "Warm_Love", "Warm_Smear",
  "Watercolor", "Winter",
)  # fmt: skip
OBJECTS = (
  "Architectures", "Bears", "Birds", "Butterfly", "Cats", "Dogs", "Fishes",
  "Flame", "Flowers", "Frogs", "Horses", "Human", "Jellyfish", "Rabbits",
  "Sandwiches", "Sea", "Statues", "Towers", "Trees", "Waterfalls",
)  # fmt: skip
HEADS = {"style": STYLES, "object": OBJECTS}


def judge(judges_dir: str = "") -> Judge:
  """The style and the object of an image.

  Args:
    judges_dir: the folder of judges' weights; "" for the environment's.

  Raises:
    ValueError: a file is missing or does not fit; both are of one head.
  """
  paths = [file.find(_NAME, judges_dir) for file in NEEDS]
  made, pixels = {}, None
  for path in paths:
    state = read_state_dict(path)
    config = vision.timm_config(state, str(path))
    head = _head_of(config.outputs, path)
    if head in made:
      raise ValueError(
        f"judge {_NAME}: {paths[0].name} and {paths[1].name} both have "
        f"{config.outputs} classes: each is the {head}; get the other file"
      )
    params = vision.vision_transformer(
      state, vision.TIMM_VIT, config, str(path)
    )
    side = (config.image_size, config.image_size)
    pixels = Pixels(side, 0, "bilinear", networks.HALF, networks.HALF)
    network = VisionTransformer(config)
    made[head] = networks.classifier(network, params, pixels, head)
  return Judge(
    name=_NAME,
    score=lambda images: _score(made, images),
    labels=HEADS,
    # Whichever file has which name.
    weights_hash=weights.combined(
      sorted(weights.digest([path]) for path in paths)
    ),
    sees=str(pixels),
    cannot_see="anything but UnlearnCanvas' styles and objects, and those only "
    "in pictures of its own model",
  )


def _head_of(outputs: int, path: pathlib.Path) -> str:
  for head, labels in HEADS.items():
    if len(labels) == outputs:
      return head
  raise ValueError(
    f"judge {_NAME}: {path} has {outputs} classes; wanted 51 styles or "
    "20 objects"
  )


def _score(
  made: dict[str, Any], images: Images
) -> dict[str, Float[np.ndarray, "n c"]]:
  return {head: made[head](images)[head] for head in HEADS}
