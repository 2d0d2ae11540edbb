"""Erases a list of concepts, one or ten thousand, in one edit.

  python -m launch.erase_list --model=my/sd14 --erase=imagenette \
    --preserve=artists_1734 --captions=coco.txt --output=edit.safetensors

A list is a published one by name (`unlearning_jax.lists`), or a text file with
one phrase a line. All devices encode. `--cache` keeps the sums of preserved
lists, which all processes read if they can see the folder. At full size a
phrase takes a quarter of a second on two CPU cores. `launch.export` writes
the edit for other tools, `launch.evaluate --edits` draws with it.
"""

from absl import flags as absl_flags
from absl import logging

from . import flags

_text, _number = absl_flags.DEFINE_string, absl_flags.DEFINE_float
_text("model", None, "The base: shapes, a folder or a hub id.", required=True)
_text("erase", None, "The list to erase.", required=True)
_text("output", None, "The edit's file.", required=True)
_text("anchor", None, "For all phrases; by default the task's.")
_text("preserve", None, "A list to preserve.")
_text("captions", None, "Another list to preserve.")
_number("caption_scale", 1.0, "All captions' weight, in all erased rows'.")
_number("preserve_scale", None, "p, the preserved weight; else the release's.")
_number("erase_scale", 1.0, "e, the weight of erased rows.")
_number("lamb", 0.5, "The ridge.")
_text("task", "object", "The task of all: object, art or unsafe.")
_text("preset", "uce2023", "The rows: uce2023 or uce2025.")
_text("cache", None, "A folder for sums of preserved lists.")
flags.processes()


def main(_):
  """Builds the settings, erases, reports the edit."""
  from unlearning_jax.experiments import erase_list

  # Hours may go by.
  logging.set_verbosity(logging.INFO)
  edit = erase_list.run(flags.built(erase_list.Settings))
  logging.info(
    "%d concepts erased, relative change %.3g, condition number %.1e: %s",
    len(edit.concepts),
    edit.diagnostics["relative_change"],
    edit.diagnostics["condition_number"],
    absl_flags.FLAGS.output,
  )


def listed() -> list[str]:
  """The shipped lists of phrases."""
  from unlearning_jax import lists

  return list(lists.names())


if __name__ == "__main__":
  flags.run(main, listed)
