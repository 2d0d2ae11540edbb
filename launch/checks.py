"""`--check`: what it accepts, and what it prints at its end."""

from typing import Any

from absl import flags

# --help shows a flag below the script that asks for it.
flags.disclaim_key_flags()


class _How(flags.ArgumentParser):
  """`--check` or `--check=compile`: "" for neither, "files" for the first."""

  def parse(self, argument: Any) -> str:
    known = {"true": "files", "1": "files", "files": "files"}
    known |= {"false": "", "0": "", "": "", "compile": "compile"}
    text = str(argument).lower()
    if text not in known:
      raise ValueError("give --check, or --check=compile")
    return known[text]


def define():
  """Defines `--check`, and `--device`, which it asks about."""
  flags.DEFINE_flag(
    flags.Flag(
      _How(), None, "check", "",
      "Check everything, compute nothing, and say where it is recorded whether "
      "a program fits the device; --check=compile compiles and measures.",
      boolean=True,
    )
  )  # fmt: skip
  flags.DEFINE_string(
    "device", "", "What --check asks about, as v5e; this one if empty."
  )


def begin() -> str:
  """What `--check` was given, "" for none; looks at `--device` too.

  Raises:
    ValueError: there is no such device, or `--check` is not given with it.
  """
  asked = str(flags.FLAGS["check"].value or "")
  device = str(flags.FLAGS["device"].value or "")
  if device and not asked:
    raise ValueError(
      f"--device={device}: says what --check asks about, and --check is not "
      "given; without it the run would start here"
    )
  if device:
    from unlearning_jax.experiments.programs import fits

    fits.target(device, exact=asked == "compile")
  return asked


def said(checked: Any) -> int:
  """Prints what a check found; 1 if the device has too little memory.

  Args:
    checked: a `checking.Checked`.
  """
  from unlearning_jax import sharding
  from unlearning_jax.experiments import common
  from unlearning_jax.experiments.programs import fits

  found = sharding.describe_devices()
  room = True
  # A line is printed when it is known: the next may take minutes.
  for line, fit in fits.said(
    checked.given,
    checked.sd,
    str(flags.FLAGS["device"].value or ""),
    exact=flags.FLAGS["check"].value == "compile",
    more=checked.more,
    safe=checked.safe,
  ):
    room &= fit
    if common.is_first():
      print(line, flush=True)
  verdict = (
    f"checked, for {found['count']} {found['kind']} device(s): nothing is "
    "wrong; without --check it runs"
  )
  if not room:
    verdict = "checked: settings and files are right; it does not fit"
  if common.is_first():
    print(verdict)
  return 0 if room else 1
