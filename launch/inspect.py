"""Says what a weights file or folder is, and what can be done with it.

  python -m launch.inspect brought.safetensors
  python -m launch.inspect brought.safetensors --base=shapes

Without `--base` only headers are read, which takes a moment. With it the file
is compared: which layers differ, by how much, and of what rank.
"""

from absl import flags as absl_flags

from . import flags

_BASE = absl_flags.DEFINE_string(
  "base", None, "What to compare with: shapes, a folder or a hub id."
)
_EMA = absl_flags.DEFINE_bool(
  "ema", None, "Compare a file's averaged weights; --noema: the trained ones."
)


def main(argv: list[str]):
  """Prints what each file is."""
  from unlearning_jax.convert import inspection

  if len(argv) < 2:
    raise ValueError("name a file or folder: unlearning-jax inspect FILE")
  for path in argv[1:]:
    print(inspection.inspect(path, _BASE.value, ema=_EMA.value))


def listed() -> list[str]:
  """The kinds of files that it recognizes."""
  from unlearning_jax.convert import families

  return [f"{kind.name:16} {kind.text}" for kind in families.kinds()]


if __name__ == "__main__":
  flags.run(main, listed, names=True)
