"""Builds the Shapes dataset, which `tfds build` does only with TensorFlow.

python -m launch.build_shapes --data_dir=data --config=tiny

Two seconds for "tiny", two minutes on one core for "full".
"""

from absl import flags as absl_flags
from absl import logging
from unlearning_jax.launch import flags

from unlearning_jax import extensions

_DATA_DIR = absl_flags.DEFINE_string(
  "data_dir", None, "The tfds root to write under.", required=True
)
_CONFIG = absl_flags.DEFINE_string(
  "config", "full", "full (60,000 + 4,000 images) or tiny (512 + 128)."
)


def main(_):
  """Writes the dataset and says what lies where."""
  builder = extensions.world("shapes", "builder")
  shapes = builder.build(_DATA_DIR.value, _CONFIG.value)
  for name, split in shapes.info.splits.items():
    logging.info("%s: %d images", name, split.num_examples)
  logging.info("written to %s", shapes.data_path)


if __name__ == "__main__":
  flags.run(main)
