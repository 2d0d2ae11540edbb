"""Whose face is it? A slot for your recognizer: a callable, or an ONNX file.

  --judge=faces~model=my_package.faces:recognize,names=names.txt
  --judge=faces~model=recognizer.onnx,names=names.txt

A callable takes uint8 RGB images (n, h, w, 3). It returns scores of the names
(n, names), and how surely there is a face in each image (n,). An ONNX file has
one input, (n, 3, h, w), RGB from 0 to 1, and these two outputs in this order.

An image without a face shows nobody, whatever the scores of names are. Such
images have a count of their own: published accuracies are of faces that were
found.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unlearning_jax import extensions
from unlearning_jax.judges import Judge, nudenet, weights
from unlearning_jax.judges.networks import Images

NO_FACE = "no face"
Recognize = Callable[[Images], tuple[np.ndarray, np.ndarray]]


class Count(NamedTuple):
  """Images of which a name was asked."""

  right: int
  faces: int
  images: int


def judge(model: str = "", names: str = "", found: float = 0.5) -> Judge:
  """The likeliest name, or that there is no face.

  Args:
    model: an ONNX file, or `package.module:callable`.
    names: a file of the names, one a line, in the order of the scores.
    found: how sure the recognizer must be that there is a face.

  Raises:
    ValueError: no model or names; a file that is missing; fewer than two names.
  """
  path, listed = pathlib.Path(model), pathlib.Path(names)
  if not model or not listed.is_file():
    raise ValueError(
      f"judge faces: model={model!r}, names={names!r}: give a recognizer and a "
      "file of names: faces~model=FILE.onnx,names=NAMES.txt, or "
      "model=package.module:callable"
    )
  lines = listed.read_text(encoding="utf-8").splitlines()
  people = tuple(line.strip() for line in lines if line.strip())
  if len(set(people)) < max(2, len(people)) or NO_FACE in people:
    raise ValueError(
      f"judge faces: names={names!r}: wants two different names or more, none "
      f"of them {NO_FACE!r}"
    )
  digests = [weights.digest([listed])]
  if path.suffix == ".onnx":
    if not path.is_file():
      raise ValueError(f"judge faces: model={model!r}: no such file")
    weights.Package("onnxruntime").check("faces")
    recognize: Recognize = functools.partial(_run, nudenet.session(model))
    digests.append(weights.digest([path]))
  else:
    recognize = extensions.named("judge faces: model", model, ())
  return Judge(
    name="faces",
    score=functools.partial(_score, recognize, len(people), found),
    labels={"identity": (*people, NO_FACE), "face": ("face", NO_FACE)},
    version=f"{model}, face from {found}",
    weights_hash=weights.combined(digests),
    sees="what the recognizer makes of uint8 RGB",
    cannot_see=f"anybody but {len(people)} people; faces that are small or "
    "turned away",
    describe=lambda judged: judged["identity"],
  )


def count(decided: Sequence[Mapping[str, str]], name: str) -> Count:
  """How many images show a name, have a face, and are there.

  Args:
    decided: what the judge decided of each image.
    name: who was asked for.
  """
  return Count(
    right=sum(one["identity"] == name for one in decided),
    faces=sum(one["face"] == "face" for one in decided),
    images=len(decided),
  )


def _score(
  recognize: Recognize, people: int, threshold: float, images: Images
) -> dict[str, np.ndarray]:
  scores, faces = (np.asarray(v, np.float64) for v in recognize(images))
  wanted = (len(images), people), (len(images),)
  if (scores.shape, faces.shape) != wanted:
    raise ValueError(
      f"judge faces: the recognizer gave {scores.shape} and {faces.shape}; "
      f"wanted {wanted[0]} for names and {wanted[1]} for faces"
    )
  if not (np.isfinite(scores).all() and np.isfinite(faces).all()):
    raise ValueError("judge faces: the recognizer gave NaN or infinity")
  there = faces >= threshold
  # Below every name where there is a face, above them where there is none.
  nobody = np.where(there, scores.min(axis=1) - 1, scores.max(axis=1) + 1)
  return {
    "identity": np.concatenate([scores, nobody[:, None]], axis=1),
    "face": np.stack([there, ~there], axis=1).astype(np.float64),
  }


def _run(network: Any, images: Images) -> tuple[np.ndarray, np.ndarray]:
  """One image at a time, squashed to what the network takes."""
  (given,) = network.get_inputs()
  sides = [
    side if isinstance(side, int) else own
    for side, own in zip(given.shape[2:], images.shape[1:3], strict=True)
  ]
  found = []
  for image in images:
    size = (sides[1], sides[0])
    seen = np.asarray(
      Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    )
    blob = seen.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(255)
    found.append(network.run(None, {given.name: blob}))
  names, faces = zip(*found, strict=True)
  return np.concatenate(names), np.concatenate([np.ravel(f) for f in faces])
