"""OpenAI's CLIP from a transformers folder: images and texts to vectors."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from unlearning_jax import durable, models, tokens
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
    texts: texts to unit vectors; with `truncate=True` a text that is too long
      is cut, with a warning, and otherwise refused.
    lengths: how many tokens each text has, start and end included.
    longest: how many the tower reads.
    scale: by which cosines are multiplied before the softmax.
    weights_hash: of its config and weights.
    pixels: what it sees of an image.
  """

  images: Callable[[Images], Float[np.ndarray, "n d"]]
  texts: Callable[..., Float[np.ndarray, "n d"]]
  lengths: Callable[[Sequence[str]], list[int]]
  longest: int
  scale: float
  weights_hash: str
  pixels: Pixels


def load(
  judge: str, files: Sequence[weights.File], judges_dir: str, middle: str
) -> Clip:
  """OpenAI's CLIP from a transformers folder.

  Args:
    judge: the judge's or metric's name, for messages.
    files: its config and weights, and what its tokenizer needs.
    judges_dir: the folder of judges.
    middle: how a crop's margin is rounded; see `Pixels`.

  Raises:
    ValueError: a file is missing or does not fit; another activation than
      quick_gelu, with which these weights were trained.
  """
  found = [file.find(judge, judges_dir) for file in files]
  config = durable.read_json(found[0])
  parts = {key: dict(config.get(f"{key}_config") or {}) for key in _SIDES}
  for key, part in parts.items():
    act = part.get("hidden_act", "quick_gelu")
    if act != "quick_gelu":
      raise ValueError(
        f"{files[0].of} {judge}: {found[0]}: {key}_config.hidden_act={act!r}; "
        "OpenAI's CLIP is quick_gelu, and anything else gives other scores"
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
  text = _Text(found[0].parent, parts["text"], sides["text"])
  return Clip(
    images=lambda images: networks.unit(embed(images)),
    texts=text.embed,
    lengths=text.lengths,
    longest=text.config.max_position_embeddings,
    scale=float(np.exp(np.float64(state["logit_scale"]))),
    weights_hash=weights.digest(found[:2]),
    pixels=pixels,
  )


class _Text:
  """The text tower, which is built when the first text comes."""

  def __init__(self, folder: pathlib.Path, config: dict, state: dict):
    self.config = ClipTextConfig(**networks.picked(ClipTextConfig, config))
    self._folder, self._state = folder, state

  @functools.cached_property
  def _tokenizer(self) -> Any:
    import transformers

    return transformers.CLIPTokenizer.from_pretrained(str(self._folder))

  @functools.cached_property
  def _params(self) -> Any:
    ids = jax.ShapeDtypeStruct(
      (1, self.config.max_position_embeddings), np.int32
    )
    network = models.ClipTextModel(self.config)
    template = models.parameter_shapes(network, ids)
    own = {
      k: v for k, v in self._state.items() if k != "text_projection.weight"
    }
    what = str(self._folder)
    return to_flax(reader.as_float32(own, what), template, what)

  def _rows(self, texts: Sequence[str]) -> list[list[int]]:
    given = self._tokenizer(list(texts), truncation=False, padding=False)
    return given["input_ids"]

  def lengths(self, texts: Sequence[str]) -> list[int]:
    return list(map(len, self._rows(texts)))

  def embed(
    self, texts: Sequence[str], truncate: bool = False
  ) -> Float[np.ndarray, "n d"]:
    length = self.config.max_position_embeddings
    rows = tokens.fitting(
      self._tokenizer, texts, self._rows(texts), length, truncate=truncate
    )
    # Padding is behind the end of the text, which nothing before it sees.
    padded = [row + [row[-1]] * (length - len(row)) for row in rows]
    network = models.ClipTextModel(self.config)
    _, pooled = models.apply(network, self._params, np.array(padded, np.int32))
    projection = np.asarray(self._state["text_projection.weight"], np.float64)
    return networks.unit(np.asarray(pooled, np.float64) @ projection.T)
