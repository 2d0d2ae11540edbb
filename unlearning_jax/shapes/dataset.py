"""Images, masks, captions and labels as arrays, drawn from a seed."""

import concurrent.futures
import multiprocessing
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from unlearning_jax.concepts import check_choice
from unlearning_jax.shapes import captions, render, vocabulary

# Scene seeds of the train split are below this bound, those of heldout above.
_HELDOUT_FROM = 2**30
_CHUNK = 1000


class Example(NamedTuple):
  """One drawn scene; image uint8 (32, 32, 3), mask bool (32, 32)."""

  scene: vocabulary.Scene
  image: np.ndarray
  mask: np.ndarray
  caption: str


def scene(
  index: int, seed: int, split: str
) -> tuple[vocabulary.Scene, np.random.Generator]:
  """What the `index`-th example of a split shows, and what draws its words."""
  check_choice("split", split, captions.SPLITS)
  part = captions.SPLITS.index(split)
  rng = np.random.default_rng([seed, part, index])
  scene_seed = int(rng.integers(_HELDOUT_FROM)) + part * _HELDOUT_FROM
  return vocabulary.sample_scene(rng, scene_seed), rng


def example(index: int, seed: int, split: str) -> Example:
  """The `index`-th example of a split; depends on no other example."""
  shown, rng = scene(index, seed, split)
  image, mask = render.render(shown)
  return Example(shown, image, mask, captions.caption(shown, rng, split))


def examples(n: int, seed: int, split: str) -> Iterator[Example]:
  """The first `n` examples of a split, in order."""
  return (example(index, seed, split) for index in range(n))


def _rows(start: int, stop: int, seed: int, split: str) -> dict:
  drawn = [example(index, seed, split) for index in range(start, stop)]
  classes = [vocabulary.labels(row.scene) for row in drawn]
  return {
    "images": np.stack([row.image for row in drawn]),
    "masks": np.stack([row.mask for row in drawn]),
    "captions": [row.caption for row in drawn],
    "labels": {
      head: np.array([row[head] for row in classes], np.int32)
      for head in vocabulary.HEADS
    },
  }


def dataset(n: int, seed: int, split: str, processes: int = 1) -> dict:
  """The first `n` examples of a split as arrays.

  Args:
    n: the number of examples, at least 1.
    seed: draws the examples; the number of processes changes no byte.
    split: "train" or "heldout".
    processes: the number of workers; one draws 60,000 images in about 110 s.

  Returns:
    `images` uint8 (n, 32, 32, 3), `masks` bool (n, 32, 32), `captions` a list
    of n strings, and `labels`, head -> int32 (n,), -1 if no class applies.
  """
  if n < 1:
    raise ValueError(f"n={n}; allowed: at least 1")
  starts = range(0, n, _CHUNK)
  jobs = [(start, min(start + _CHUNK, n), seed, split) for start in starts]
  if processes == 1:
    parts = [_rows(*job) for job in jobs]
  else:
    # Spawned: a forked child of a process that runs JAX may hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
      processes, mp_context=context
    ) as pool:
      parts = list(pool.map(_rows, *zip(*jobs, strict=True)))
  return {
    "images": np.concatenate([part["images"] for part in parts]),
    "masks": np.concatenate([part["masks"] for part in parts]),
    "captions": [text for part in parts for text in part["captions"]],
    "labels": {
      head: np.concatenate([part["labels"][head] for part in parts])
      for head in vocabulary.HEADS
    },
  }
