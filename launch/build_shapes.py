"""Builds the Shapes dataset; `tfds build` would need TensorFlow.

python -m launch.build_shapes --data_dir=data --config=tiny

"tiny" takes two seconds, "full" two minutes on one core.
"""

from absl import logging
from absl.flags import DEFINE_string

from . import flags

_DATA_DIR = DEFINE_string(
  "data_dir", None, "The tfds root to write under.", required=True
)
_CONFIG = DEFINE_string(
  "config", "full", "full (60,000 + 4,000 images) or tiny (512 + 128)."
)


def main(_):
  """Writes the dataset and reports its splits and folder."""
  from unlearning_jax import extensions

  builder = extensions.world("shapes", "builder")
  shapes = builder.build(_DATA_DIR.value, _CONFIG.value)
  for name, split in shapes.info.splits.items():
    logging.info("%s: %d images", name, split.num_examples)
  logging.info("written to %s", shapes.data_path)


if __name__ == "__main__":
  flags.run(main)
