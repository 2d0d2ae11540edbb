"""Adds, removes and re-weights concepts of a UCE or MACE edit by one re-solve.

Erase the first concepts; later erase more, fewer, or with other weights:

  python -m launch.amend --model=shapes --add="star -> circle" --output=runs/a
  python -m launch.amend --model=shapes --statistics=runs/a \
    --add="heart -> circle" --weight="star = 0.5" --output=runs/b

`--statistics` also takes the folder of a `launch.erase` run. MACE trains an
adapter for each concept, so its concepts can go or get another weight, but none
can be added. The output has `edit.safetensors`, and `statistics.safetensors`
for the next change. UCE's edit equals that of erasing the resulting list from
the base, up to the last bits of float32 text states. New concepts have the
settings of the run. A preserved concept cannot be erased, and a removed one is
not preserved instead. It takes seconds.
"""

from absl import flags as absl_flags

from . import flags

_FLAGS = absl_flags.FLAGS
absl_flags.DEFINE_string(
  "model", None, "The base: shapes, a folder or a hub id.", required=True
)
absl_flags.DEFINE_string("output", None, "The new folder.", required=True)
absl_flags.DEFINE_string("statistics", None, "An earlier run's folder.")
absl_flags.DEFINE_multi_string("add", [], "'concept' or 'concept -> anchor'.")
absl_flags.DEFINE_multi_string("preserve", [], "A phrase to preserve.")
absl_flags.DEFINE_multi_string("remove", [], "A concept to give back.")
absl_flags.DEFINE_multi_string("weight", [], "'concept = e'.")
absl_flags.DEFINE_string(
  "task", "object", "The task of --add: object, art, unsafe."
)
absl_flags.DEFINE_string(
  "preset", "uce2023", "Without --statistics: uce2023, uce2025."
)


def main(_):
  """Builds the settings, amends, reports the edit."""
  from unlearning_jax.experiments import amend

  edit = amend.run(flags.built(amend.Settings))
  print(
    f"{len(edit.concepts)} concepts erased, relative change "
    f"{edit.diagnostics['relative_change']:.3g}: {_FLAGS.output}"
  )


def listed() -> list[str]:
  """The presets."""
  from unlearning_jax.erasures import uce

  return list(uce.PRESETS)


if __name__ == "__main__":
  flags.run(main, listed)
