"""OpenAI's CLIP from a transformers folder: images and texts to vectors."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from jaxtyping import Float

from unlearning_jax import models, tokens
from unlearning_jax.convert import reader, to_flax, vision
from unlearning_jax.judges import networks, weights
from unlearning_jax.judges.networks import Images
from unlearning_jax.judges.pixels import Pixels
from unlearning_jax.models.clip import ClipTextConfig
from unlearning_jax.models.vision import VisionConfig, VisionTransformer

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_SIDES = {
  "text": ("text_model.", "text_projection."),
  "vision": ("vision_model.", "visual_projection."),
}


@dataclasses.dataclass(frozen=True)
class Clip:
  """A CLIP that has been read.

  Attributes:
    images: uint8 images to unit vectors.
    texts: texts to unit vectors.
    scale: by which cosines are multiplied before the softmax.
    weights_hash: of its config and weights.
    pixels: what it sees of an image.
  """

  images: Callable[[Images], Float[np.ndarray, "n d"]]
  texts: Callable[[Sequence[str]], Float[np.ndarray, "n d"]]
  scale: float
  weights_hash: str
  pixels: Pixels


def load(
  judge: str, files: Sequence[weights.File], judges_dir: str, middle: str
) -> Clip:
  """OpenAI's CLIP from a transformers folder.

  Args:
    judge: for messages.
    files: its config and weights, and what its tokenizer needs.
    judges_dir: the folder of judges.
    middle: how a crop's margin is rounded; see `Pixels`.

  Raises:
    ValueError: a file is missing or does not fit; another activation than
      quick_gelu, with which these weights were trained.
  """
  found = [file.find(judge, judges_dir) for file in files]
  config = reader.read_json(found[0])
  parts = {key: dict(config.get(f"{key}_config") or {}) for key in _SIDES}
  for key, part in parts.items():
    act = part.get("hidden_act", "quick_gelu")
    if act != "quick_gelu":
      raise ValueError(
        f"judge {judge}: {found[0]}: {key}_config.hidden_act={act!r}; OpenAI's "
        "CLIP is quick_gelu, and anything else gives other scores"
      )
  state = reader.read_state_dict(found[1])
  what, width = str(found[1]), config.get("projection_dim", 512)
  vision_config = VisionConfig(
    **networks.picked(VisionConfig, parts["vision"]), outputs=width
  )
  sides = {
    key: {k: v for k, v in state.items() if k.startswith(starts)}
    for key, starts in _SIDES.items()
  }
  network = VisionTransformer(vision_config)
  params = vision.vision_transformer(
    sides["vision"], vision.CLIP, vision_config, what
  )
  side = vision_config.image_size
  pixels = Pixels(side, side, "bicubic", MEAN, STD, middle)
  embed = networks.batched(network, params, pixels)
  return Clip(
    images=lambda images: networks.unit(embed(images)),
    texts=partial(_embed_texts, found[0].parent, parts["text"], sides["text"]),
    scale=float(np.exp(np.float64(state["logit_scale"]))),
    weights_hash=weights.digest(found[:2]),
    pixels=pixels,
  )


def _embed_texts(
  folder: pathlib.Path, config: dict, state: dict, texts: Sequence[str]
) -> Float[np.ndarray, "n d"]:
  import transformers

  network = models.ClipTextModel(
    ClipTextConfig(**networks.picked(ClipTextConfig, config))
  )
  length = network.config.max_position_embeddings
  ids = jax.ShapeDtypeStruct((1, length), np.int32)
  template = jax.eval_shape(network.init, jax.random.key(0), ids)["params"]
  own = {k: v for k, v in state.items() if k != "text_projection.weight"}
  params = to_flax(reader.as_float32(own, str(folder)), template, str(folder))
  tokenizer = transformers.CLIPTokenizer.from_pretrained(str(folder))
  rows = tokenizer(list(texts), truncation=False, padding=False)["input_ids"]
  rows = tokens.fitting(tokenizer, texts, rows, length)
  # Padding is behind the end of the text, which nothing before it sees.
  padded = [row + [row[-1]] * (length - len(row)) for row in rows]
  _, pooled = models.apply(network, params, np.array(padded, np.int32))
  projection = np.asarray(state["text_projection.weight"], np.float64)
  return networks.unit(np.asarray(pooled, np.float64) @ projection.T)
