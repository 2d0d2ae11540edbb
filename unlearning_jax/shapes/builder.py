"""The Shapes world as a `tfds` dataset, without TensorFlow."""

import dataclasses
import io
import pathlib
from collections.abc import Iterator
from os import PathLike
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from unlearning_jax.concepts import check_choice
from unlearning_jax.shapes import captions, dataset, render, vocabulary


@dataclasses.dataclass(eq=False)
class ShapesConfig(tfds.core.BuilderConfig):
  """The number of images in each split, and the seed that draws them."""

  train: int = 60_000
  heldout: int = 4_000
  seed: int = 0


def _png(pixels: np.ndarray) -> bytes:
  """Encodes an image here, because `tfds` would use TensorFlow."""
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, format="png")
  return buffer.getvalue()


class Shapes(tfds.core.GeneratorBasedBuilder):
  """Captioned renders with masks and ground-truth labels."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [
    ShapesConfig(name="full", description="60,000 and 4,000 images."),
    ShapesConfig(name="tiny", description="For tests.", train=512, heldout=128),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    size = render.SIZE
    heads = {
      # Plain integers, because -1 says that no class applies.
      head: tfds.features.Scalar(np.int32, doc=", ".join(classes))
      for head, classes in vocabulary.HEADS.items()
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description="Procedurally rendered shapes and faces with captions.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(
            shape=(size, size, 3), encoding_format="png"
          ),
          "mask": tfds.features.Image(
            shape=(size, size, 1), encoding_format="png"
          ),
          "caption": tfds.features.Text(),
          "labels": heads,
        }
      ),
      supervised_keys=None,
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager  # Nothing is downloaded.
    config = self.builder_config
    assert isinstance(config, ShapesConfig)
    return {
      split: self._generate_examples(split, getattr(config, split), config.seed)
      for split in captions.SPLITS
    }

  def _generate_examples(
    self, split: str, n: int, seed: int
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, example in enumerate(dataset.examples(n, seed, split)):
      yield (
        index,
        {
          "image": _png(example.image),
          "mask": _png(example.mask.astype(np.uint8) * 255),
          "caption": example.caption,
          "labels": vocabulary.labels(example.scene),
        },
      )


def build(data_dir: str | PathLike[str], config: str = "full") -> Shapes:
  """Writes the dataset as array_record files, if they do not exist.

  Args:
    data_dir: the `tfds` root; files go to `data_dir/shapes/<config>/1.0.0`.
    config: "full" (60,000 + 4,000 images) or "tiny" (512 + 128).

  Returns:
    The builder. `build(...).as_data_source(split="heldout")` reads rows with
    `image`, `mask`, `caption` and `labels` by index.
  """
  names = [entry.name for entry in Shapes.BUILDER_CONFIGS]
  check_choice("config", config, names)
  builder = Shapes(
    data_dir=str(pathlib.Path(data_dir).expanduser()),
    config=config,
    file_format="array_record",
  )
  builder.download_and_prepare()
  return builder
