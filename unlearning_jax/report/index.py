"""The page that lists the runs below a folder and links their pages."""

import os
import pathlib
import re
import shlex
import urllib.parse
from collections.abc import Iterator
from typing import Any

from unlearning_jax import durable
from unlearning_jax.record import provenance, seal
from unlearning_jax.report import audit
from unlearning_jax.report.page import fill


def write(folder: str | os.PathLike[str]) -> pathlib.Path:
  """Writes `index.html` into a folder of runs.

  Args:
    folder: runs stand below it, at any depth. A run inside another run is part
      of it and has no line of its own.

  Raises:
    ValueError: there is no such folder, or it is itself a run.
  """
  root = pathlib.Path(folder)
  if not root.is_dir():
    raise ValueError(f"index: {str(folder)!r} is no folder; name one of runs")
  if _is_run(root):
    raise ValueError(
      f"index: {str(folder)!r} is itself a run; name the folder above it, "
      f"{str(root.parent)!r}"
    )
  found = sorted(
    (_line(root, run) for run in _runs(root)),
    key=lambda line: line["started"],
    reverse=True,
  )
  text = fill(
    "index.html", "Runs", {"Folder": root.resolve().name}, runs=found,
    symbols=audit.VERDICTS,
  )  # fmt: skip
  with durable.replacing(root / "index.html") as file:
    file.write(text.encode())
  return root / "index.html"


def _is_run(folder: pathlib.Path) -> bool:
  return any((folder / n).is_file() for n in ("provenance.json", "report.html"))


def _runs(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  for child in sorted(folder.iterdir()):
    # A link could lead back above the folder.
    if child.is_dir() and not child.is_symlink():
      if _is_run(child):
        yield child
      else:
        yield from _runs(child)


def _line(root: pathlib.Path, run: pathlib.Path) -> dict[str, Any]:
  name, page = run.relative_to(root).as_posix(), run / "report.html"
  made = run / "provenance.json"
  try:
    with durable.explaining(run):
      for file in (run / "summary.json", made):
        seal.check_file(file)
      summary = _read(run / "summary.json")
      start = (made.is_file() and provenance.starts(made)) or [{}]
      return _described(name, page, summary, start[-1])
  # One damaged run among many has a line that says so.
  except ValueError as error:
    broken = {"title": f"{name}: {error}"}
    return _described(name, page, broken, {}) | {"state": "damaged"}


def _described(
  name: str, page: pathlib.Path, summary: dict[str, Any], start: dict[str, Any]
) -> dict[str, Any]:
  run = page.parent
  return {
    "name": name,
    "title": summary.get("title") or name,
    "page": urllib.parse.quote(f"{name}/report.html") if page.is_file() else "",
    "verb": verb(start.get("command", "")),
    "started": start.get("started", "")[:16].replace("T", " "),
    "state": "done" if (run / "DONE").is_file() else "not finished",
    "verdicts": [one["verdict"] for one in summary.get("verdicts", ())],
  }


def _read(path: pathlib.Path) -> dict[str, Any]:
  return durable.read_json(path) if path.is_file() else {}


def verb(command: str) -> str:
  """`erase` of `unlearning-jax erase ...` or `python -m launch.erase`."""
  words = [word for word in shlex.split(command) if not word.startswith("-")]
  for before, word in zip(words, words[1:], strict=False):
    if before.endswith("unlearning-jax"):
      return word
    if module := re.search(r"(?:^|\.)launch\.(\w+)$", word):
      return module[1]
  return ""
