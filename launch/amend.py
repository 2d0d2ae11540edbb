"""Adds, removes and re-weights concepts of a UCE or MACE edit by one re-solve.

The first concepts, and later more, fewer, or at another strength:

  python -m launch.amend --model=shapes --add="star -> circle" --output=runs/a
  python -m launch.amend --model=shapes --statistics=runs/a \
    --add="heart -> circle" --weight="star = 0.5" --output=runs/b

`--statistics` may also be the folder of a `launch.erase` run; of MACE, which
trains an adapter for every concept, concepts can go and change weight but none
can come. Writes `edit.safetensors`, of UCE what erasing the resulting list from
the base gives, up to the last bits of float32 text states, and
`statistics.safetensors`, which the next change starts from. Concepts come with
the settings of the run; what it preserves cannot be erased, and what is removed
is not preserved instead. Seconds.
"""

from absl import flags as absl_flags
from absl import logging

from . import flags

_FLAGS = absl_flags.FLAGS
absl_flags.DEFINE_string(
  "model", None, "The base: shapes, a folder or a hub id.", required=True
)
absl_flags.DEFINE_string("output", None, "A folder.", required=True)
absl_flags.DEFINE_string(
  "statistics", None, "Folder of an earlier amendment or erasure, if any."
)
absl_flags.DEFINE_multi_string("add", [], "'concept' or 'concept -> anchor'.")
absl_flags.DEFINE_multi_string("preserve", [], "Phrase to hold.")
absl_flags.DEFINE_multi_string("remove", [], "Concept to give back.")
absl_flags.DEFINE_multi_string("weight", [], "'concept = e'.")
absl_flags.DEFINE_string("task", "object", "object, art or unsafe: of --add.")
absl_flags.DEFINE_string("preset", "uce2023", "uce2023 or uce2025: of a first.")


def main(_):
  """Builds the settings, amends, says what came of it."""
  from unlearning_jax.experiments import amend

  edit = amend.run(flags.built(amend.Settings))
  logging.info(
    "%d concepts erased, relative change %.3g: %s",
    len(edit.concepts),
    edit.diagnostics["relative_change"],
    _FLAGS.output,
  )


if __name__ == "__main__":
  flags.run(main)
