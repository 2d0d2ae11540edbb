"""The Shapes world by name: its model, its judge, what it knows of itself.

`extensions.world("shapes")` is this module; nothing outside `shapes` imports it
otherwise.
"""

from unlearning_jax import judges, shapes
from unlearning_jax.shapes import judge as judge_
from unlearning_jax.shapes import tuning_sets

NAME = "shapes"
model_folder = shapes.model_folder
# What is tuned on, and what an edit erased.
examples = tuning_sets.examples
erased = tuning_sets.erased
words = tuning_sets.words
tuning_set = tuning_sets.tuning_set


def judge() -> judges.Judge:
  """The classifier that judges the world's images; see `shapes.judge`."""
  net = judge_.load(shapes.judge_folder())
  return judges.Judge(
    name=net.name,
    score=net,
    labels=net.heads,
    weights_hash=net.weights_hash,
    image_size=(32, 32),
    cannot_see="anything outside the Shapes world",
  )
