"""Erases concepts from a model and shows the result.

  python -m launch.erase --config=configs/erase_uce.py:tiny --workdir=runs/uce

The folder gets `edit.safetensors`, which `launch.evaluate --edits` applies, or
`guidance.json` from methods that change no weight. UCE and MACE also write
`statistics.safetensors`, from which `launch.amend` adds, removes and re-weights
concepts. Images before and after and `report.html` follow; with `--edit_only`
nothing is drawn. A method that trains shows its progress; start a killed run
again to go on from the last multiple of `--checkpoint_every` steps. `--list`
prints the methods. A probe warns, with figures, of an erasure that seems to
have failed; with `--strict` it raises an error, and writes no edit.
"""

from absl import flags as absl_flags

from . import flags

_CONFIG = flags.config()
_WORKDIR = flags.workdir()
_EDIT_ONLY = absl_flags.DEFINE_bool("edit_only", False, "Draw nothing.")
# Results do not depend on these, so they are in no config.
_EVERY = absl_flags.DEFINE_integer(
  "checkpoint_every", 100, "Steps between saved states.", lower_bound=1
)
_STRICT = absl_flags.DEFINE_bool("strict", False, "Refuse what seems to fail.")
_EVENTS = absl_flags.DEFINE_bool("tensorboard", False, "Write its events too.")


def main(_):
  """Builds the settings, erases, prints the table."""
  from unlearning_jax.experiments import common, erase
  from unlearning_jax.report import comparison

  config, path = _CONFIG.value, _WORKDIR.value
  if _EDIT_ONLY.value:
    config.unlock().edit_only = True
  _, document = erase.run(
    flags.settings(erase.Settings, config),
    lambda: common.workdir(path, config, erase.Settings),
    every=_EVERY.value,
    tensorboard=_EVENTS.value,
    strict=_STRICT.value,
  )
  if common.is_first():
    if document:
      print(f"{comparison.text_table(document)}\nreport: {path}/report.html")
    print(erase.what_next(path))


def listed() -> list[str]:
  """The methods, and what each is."""
  from unlearning_jax import erasures

  return erasures.listing()


if __name__ == "__main__":
  flags.run(main, listed)
