"""What a script prints of an error: one paragraph, with the way out."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def of_flags(error: Exception, *, traced: bool = False) -> str:
  """What is wrong with the flags, and how the script is typed.

  Args:
    error: from absl.
    traced: keeps the traceback of a config's error.
  """
  text = str(error) if traced else _without_trace(str(error))
  missing = re.findall(r"Flag (--\w+) must have a value other than", text)
  if missing:
    text = f"{', '.join(missing)}: must be given"
  return f"error: {text}\n{_example()}"


def of_words(words: Sequence[str]) -> str:
  """Words that are no flags."""
  said = " ".join(words)
  return f"error: {said!r} is no flag; type --name=value\n{_example()}"


def is_out_of_memory(error: Exception) -> bool:
  """Whether XLA could not allocate what a program needs."""
  from unlearning_jax.experiments import memory

  return memory.is_short(error)


def of_memory(error: Exception, config: Mapping[str, Any] | None) -> str:
  """A device without enough memory: which keys to halve, and what XLA said."""
  from unlearning_jax.experiments import memory

  sizes = {key: (config or {}).get(key) for key in memory.SIZES}
  return memory.remedy(error, sizes, "--config.")


def of_disk(error: Exception) -> str:
  """The way out of a full disk; "" for other errors."""
  from unlearning_jax import durable

  if not durable.is_full(error):
    return ""
  return "\nthe disk is full: make room, and the same command goes on"


def _without_trace(text: str) -> str:
  """A message without the traceback that a config's reader puts into it."""
  head, trace, lines = text.partition("Error whilst parsing config file:")
  if not trace:
    return text
  *_, last = re.split(r"^\w*Error: ", lines, flags=re.MULTILINE)
  return f"{head.removeprefix('flag ')}{last.strip()}"


def _example() -> str:
  """How the script is typed: the first command in its docstring."""
  said = sys.modules["__main__"].__doc__ or ""
  command = re.search(r"python -m launch\.((?:.*\\\n)*.*)", said)
  if command is None:
    return "(--help lists the flags)"
  typed = re.sub(r"\s*\\\n\s*", " ", command[1])
  verb = typed.split()[0]
  return (
    f"as in: unlearning-jax {typed}\n"
    f"(unlearning-jax {verb} --help lists the flags)"
  )
