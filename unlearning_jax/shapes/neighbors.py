"""How similar two concepts are in the Shapes world's own CLIP."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file

from unlearning_jax import shapes, stable_diffusion
from unlearning_jax.concepts import check_choice
from unlearning_jax.shapes import captions

# Head -> the task whose phrases name its classes.
TASKS = {"object": "object", "style": "style", "identity": "identity"}


def embed(
  sd: stable_diffusion.StableDiffusion,
  params: Mapping[str, Any],
  phrases: Sequence[str],
) -> Float[np.ndarray, "n p"]:
  """Unit vectors of n phrases in the contrastive space."""
  ids = stable_diffusion.tokenize(sd, phrases)
  states = np.asarray(
    stable_diffusion.encode_text(sd, dict(params), ids), np.float64
  )
  # The end of text is the first token with the id that also pads.
  ends = (ids == sd.tokenizer.eos_token_id).argmax(axis=1)
  file = shapes.clip_folder() / "model.safetensors"
  weight = load_file(file)["text_projection.weight"].astype(np.float64)
  vectors = states[np.arange(len(ids)), ends] @ weight.T
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def similarity(
  sd: stable_diffusion.StableDiffusion,
  params: Mapping[str, Any],
  erased: Sequence[tuple[str, str]],
  head: str,
  names: Sequence[str],
) -> dict[str, float]:
  """Each class's mean cosine to the names of what was erased.

  Args:
    erased: (task, class) of each erased concept.
    head: the head of the classes to compare, a key of `TASKS`.
    names: the classes to compare.

  Raises:
    ValueError: an unknown head, class or task.
  """
  check_choice("head", head, TASKS)
  own = [
    phrase
    for task, name in erased
    for phrase in captions.phrases(task, name)["explicit"]
  ]
  said = [captions.phrases(TASKS[head], name)["explicit"][0] for name in names]
  cosines = embed(sd, params, said) @ embed(sd, params, own).T
  return dict(zip(names, cosines.mean(axis=1).tolist(), strict=True))
