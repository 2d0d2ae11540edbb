"""Launch scripts as modules, side by side in one process."""

import importlib
from types import ModuleType

from absl import flags


def script(name: str) -> ModuleType:
  """`launch.<name>`; each script defines `--config` and others for itself.

  The flags of those imported before give way: a test sets what `main` reads.
  """
  owned = flags.FLAGS.flags_by_module_dict().items()
  names = [f.name for owner, own in owned if "launch." in owner for f in own]
  for flag in names:
    delattr(flags.FLAGS, flag)
  return importlib.import_module(f"unlearning_jax.launch.{name}")
