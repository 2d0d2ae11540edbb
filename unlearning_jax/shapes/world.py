"""The Shapes world by name: its model, its judge, what it knows of itself.

`extensions.world("shapes")` is this module; nothing outside `shapes` imports it
otherwise.
"""

from unlearning_jax import judges, shapes
from unlearning_jax.shapes import judge as judge_
from unlearning_jax.shapes import study_rows as study_rows_

NAME = "shapes"
model_folder = shapes.model_folder
study_rows = study_rows_.study_rows
tuned_rows = study_rows_.tuned_rows


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
