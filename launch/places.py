"""What the launchers of a run share: the run's command, and templates."""

import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import jinja2

from . import main

PLACES = ("local", "slurm", "tpu", "kubernetes")
# Verbs whose processes share a folder and nothing else.
WORKERS = ("sweep",)
# Statuses of a run that has ended: well, with failed parts, with a verdict.
ENDED = (0, 3, 4)


def command(
  words: Sequence[str], processes: int, python: str = sys.executable
) -> list[str]:
  """The command of each process of a run.

  Args:
    words: a verb and its flags, as after `unlearning-jax`.
    processes: the number of processes; several join each other.
    python: the interpreter.

  Raises:
    ValueError: there is no verb, or no such one, or it is a launcher too.
  """
  if not words:
    raise ValueError("name the run after --, as in -- evaluate --workdir=...")
  verb = main.verb(words[0], [v for v in main.verbs() if v not in PLACES])
  joined = ["--distributed"] if processes > 1 and verb not in WORKERS else []
  module = "unlearning_jax.launch.main"
  return [python, "-m", module, verb, *words[1:], *joined]


def rendered(template: pathlib.Path, **values: Any) -> str:
  """A template's text; a value that it names and that is not given fails."""
  environment = jinja2.Environment(
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  environment.filters["quoted"] = shlex.quote
  text = template.read_text(encoding="utf-8")
  return environment.from_string(text).render(values)


def check_counts(given: Any, *names: str):
  """Refuses settings that must be whole numbers from 1."""
  for name in names:
    if getattr(given, name) < 1:
      raise ValueError(f"--{name}={getattr(given, name)}: must be at least 1")
