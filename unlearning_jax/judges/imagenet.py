"""ImageNet's thousand classes, under the names that targets use.

The names are those of Keras, in the order of the logits; where two are alike,
a word in brackets is added.
"""

import functools
import pathlib


@functools.cache
def labels() -> tuple[str, ...]:
  """The classes, in the order of a network's logits."""
  path = pathlib.Path(__file__).with_name("imagenet.txt")
  return tuple(path.read_text(encoding="utf-8").splitlines())


def check(judge: str, classes: int):
  """Refuses a head of another number of classes.

  Args:
    judge: for messages.
    classes: of the weights.

  Raises:
    ValueError: naming both numbers.
  """
  if classes != len(labels()):
    raise ValueError(
      f"judge {judge}: its weights have {classes} classes; ImageNet has "
      f"{len(labels())}"
    )
