"""CLIP score: does an image fit its prompt? The mean cosine of CLIP's vectors.

Three scales are in use, and a number's name says which:

  cosine     the cosine itself: AdvUnlearn and the Unlearned-DM leaderboard
  times-100  100 cosine: MACE, UCE, torchmetrics
  clipscore  2.5 max(cosine, 0): the paper that named the CLIPScore

A name ends with the group of prompts, as `clip-score/cosine/b32/others`.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from unlearning_jax import metrics
from unlearning_jax.concepts import check_choice
from unlearning_jax.judges import clip_zero_shot, openai_clip, weights
from unlearning_jax.judges.openai_clip import Clip
from unlearning_jax.metrics import Estimate, Images, Kept, Row, means
from unlearning_jax.metrics.means import Value

_FILES = {
  tower: tuple(dataclasses.replace(one, of="metric") for one in files)
  for tower, files in clip_zero_shot.FILES.items()
}
NEEDS = _FILES["b32"]
# Texts at once, so that every batch runs the same programs.
_TEXTS = 8
VERBS = ("evaluate", "measure", "resurgence")
SCALES: Mapping[str, Callable[[np.float64], Any]] = {
  "cosine": lambda cosine: cosine,
  "times-100": lambda cosine: 100 * cosine,
  "clipscore": lambda cosine: 2.5 * np.maximum(cosine, 0),
}


def metric(
  scale: str = "cosine", tower: str = "b32", judges_dir: str = ""
) -> metrics.Metric:
  """The mean score of each model's images and their prompts.

  A prompt that is too long is cut, and the estimate says how many were.

  Args:
    scale: cosine, times-100 or clipscore.
    tower: b32 or l14, of OpenAI's CLIP.
    judges_dir: the folder of weights; "" for the environment's.

  Raises:
    ValueError: an unknown scale or tower; files are missing or do not fit.
  """
  check_choice("metric clip-score: scale", scale, SCALES)
  check_choice("metric clip-score: tower", tower, _FILES)
  stamp = tuple(weights.stamp({"judges_dir": judges_dir}))
  clip = _clip(tower, judges_dir, stamp)
  return metrics.Metric(
    "clip-score", dict, partial(_update, clip), metrics.unite,
    partial(_compute, scale, f"clip-score/{scale}/{tower}"),
    verbs=VERBS, needs=("prompt",), identity=clip.weights_hash,
  )  # fmt: skip


@functools.lru_cache(maxsize=2)
def _clip(tower: str, judges_dir: str, stamp: Hashable) -> Clip:
  del stamp
  return openai_clip.load("clip-score", _FILES[tower], judges_dir, "floor")


def _update(
  clip: Clip, state: Kept, images: Images, rows: Sequence[Row]
) -> Kept:
  prompts = [row["prompt"] for row in rows]
  said = _said(clip, prompts)
  cosines = (clip.images(images) * said).sum(axis=1)
  cut = [length > clip.longest for length in clip.lengths(prompts)]
  of = {
    (row["model"], row["id"]): (row["group"], row["prompt"], float(c), long)
    for row, c, long in zip(rows, cosines, cut, strict=True)
  }
  return metrics.keep(state, rows, lambda row: of[row["model"], row["id"]])


def _said(clip: Clip, prompts: list[str]) -> Float[np.ndarray, "n d"]:
  """The vectors of prompts, each found once, so many at a time."""
  once = list(dict.fromkeys(prompts))
  parts = []
  for start in range(0, len(once), _TEXTS):
    part = once[start : start + _TEXTS]
    padded = part + part[-1:] * (_TEXTS - len(part))
    parts.append(clip.texts(padded, truncate=True)[: len(part)])
  found = dict(zip(once, np.concatenate(parts), strict=True))
  return np.stack([found[prompt] for prompt in prompts])


def _compute(scale: str, name: str, state: Kept) -> list[Estimate]:
  found = []
  for model, rows in state.items():
    cut = sum(long for *_, long in rows.values())
    values = {
      row: Value(group, prompt, float(SCALES[scale](np.float64(cosine))))
      for row, (group, prompt, cosine, _) in rows.items()
    }
    note = f", {cut} prompts cut" if cut else ""
    found += means.estimates(name, scale, model, values, note)
  return found
