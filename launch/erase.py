"""Erases concepts from a model and shows what it did.

  python -m launch.erase --config=configs/erase_uce.py:tiny --workdir=runs/uce

Writes `edit.safetensors` (apply it with `launch.evaluate --edits`), of methods
that only guide `guidance.json`; of UCE and MACE `statistics.safetensors`, from
which `launch.amend` adds, removes and re-weights concepts; and, unless the
config evaluates nothing, images before and after and `report.html`. A method
that trains says how far it is; a run that was killed goes on from the last
multiple of `--checkpoint_every` steps. `--list` says which methods there are.
"""

from absl import flags as absl_flags

from . import flags

_CONFIG = flags.config()
_WORKDIR = flags.workdir()
# No result depends on them, so no config has them.
_EVERY = absl_flags.DEFINE_integer(
  "checkpoint_every", 100, "Steps between states to go on from.", lower_bound=1
)
_TENSORBOARD = absl_flags.DEFINE_bool("tensorboard", False, "Write events too.")


def main(_):
  """Builds the settings, erases, prints the table."""
  import jax

  from unlearning_jax.experiments import common, erase
  from unlearning_jax.report import comparison

  config, path = _CONFIG.value, _WORKDIR.value
  _, document = erase.run(
    flags.settings(erase.Settings, config),
    lambda: common.workdir(path, config, erase.Settings),
    every=_EVERY.value,
    tensorboard=_TENSORBOARD.value,
  )
  if document and jax.process_index() == 0:
    print(comparison.text_table(document))
    print(f"report: {path}/report.html")


def listed() -> list[str]:
  """The methods, and what each is."""
  from unlearning_jax import erasures

  return erasures.listing()


if __name__ == "__main__":
  flags.run(main, listed)
