"""Files that judges need, and where they are looked for.

Nothing is downloaded. A judge's weights lie in one folder, which the
environment variable UNLEARNING_JAX_JUDGES names, or `--judges_dir`, or
`ul.judge(name, judges_dir=...)`. What a judge needs is its module's `NEEDS`.
"""

import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

VARIABLE = "UNLEARNING_JAX_JUDGES"


class MissingError(ValueError):
  """A file or a package that a judge or metric needs is not there."""


@dataclasses.dataclass(frozen=True)
class File:
  """A weights file that the user has to get.

  Attributes:
    path: where it lies in the folder of judges, as `q16/prompts.p`.
    source: the public project, and the file there.
    sha256: of the published file, or its first digits; "" where unknown.
    git_blob: its git object id, where the project keeps it in git.
    also: another path, where the project has the same in another format.
    of: what needs it, judge or metric, for messages.
  """

  path: str
  source: str
  sha256: str = ""
  git_blob: str = ""
  also: str = ""
  of: str = "judge"

  def lacks(self, judges_dir: str = "") -> str:
    """What is missing and where to put it; "" if the file is there."""
    folder = judges_dir or os.environ.get(VARIABLE, "")
    if folder and self._there(folder):
      return ""
    known = f"SHA-256 {self.sha256}" if self.sha256 else "hash unknown"
    if self.git_blob:
      known = f"git blob {self.git_blob}"
    what = f"{self.path} is missing: it is {self.source} ({known}). "
    if folder:
      return f"{what}Put it into {folder}"
    return (
      f"{what}Put it into a folder of judges' weights, and name the folder: "
      f"{VARIABLE}=FOLDER, or --judges_dir=FOLDER"
    )

  def find(self, judge: str, judges_dir: str = "") -> pathlib.Path:
    """The file, if it is the published one.

    Args:
      judge: the judge's or metric's name, for messages.
      judges_dir: the folder of judges; "" for the environment's.

    Raises:
      MissingError: it is missing.
      ValueError: it is another file than the published one.
    """
    if missing := self.lacks(judges_dir):
      raise MissingError(f"{self.of} {judge}: {missing}")
    path = self._there(judges_dir or os.environ[VARIABLE])[0]
    if self.sha256 and not digest([path]).startswith(self.sha256):
      self._refuse(judge, path, f"SHA-256 {digest([path])}", self.sha256)
    if self.git_blob and _git_blob(path) != self.git_blob:
      self._refuse(judge, path, f"git blob {_git_blob(path)}", self.git_blob)
    return path

  def _there(self, folder: str) -> list[pathlib.Path]:
    paths = [pathlib.Path(folder) / p for p in (self.path, self.also) if p]
    return [path for path in paths if path.is_file()]

  def _refuse(self, judge: str, path: pathlib.Path, found: str, wanted: str):
    raise ValueError(
      f"{self.of} {judge}: {path} is another file than the published one: it "
      f"has {found}, wanted {wanted}. Get {self.source}"
    )


@dataclasses.dataclass(frozen=True)
class Package:
  """A Python package that a judge is made of.

  Attributes:
    name: as pip calls it.
    version: the one whose numbers are published; "" for any.
  """

  name: str
  version: str = ""

  def lacks(self, judges_dir: str = "") -> str:
    """What is to be installed; "" if it is there."""
    del judges_dir
    try:
      found = importlib.metadata.version(self.name)
    except importlib.metadata.PackageNotFoundError:
      found = ""
    if found and self.version in ("", found):
      return ""
    pin = f"=={self.version}" if self.version else ""
    has = f"version {found} is installed" if found else "it is not installed"
    return (
      f"needs the package {self.name}{pin}, and {has}. "
      f"Run: pip install '{self.name}{pin}' (or 'unlearning_jax[judges]')"
    )

  def check(self, judge: str):
    """Raises if it is not installed.

    Raises:
      MissingError: with what to type.
    """
    if missing := self.lacks():
      raise MissingError(f"judge {judge}: {missing}")


Need = File | Package


def missing(needs: Iterable[Need], judges_dir: str = "") -> list[str]:
  """What a judge still lacks on this machine, a sentence each."""
  found = (need.lacks(judges_dir) for need in needs)
  return [sentence for sentence in found if sentence]


def listing(modules: Mapping[str, Any]) -> list[str]:
  """A line for each judge or metric: ready, or what it lacks here.

  Args:
    modules: by name; each has what it `NEEDS`, or nothing.
  """
  lines = []
  for name, module in modules.items():
    lacks = missing(getattr(module, "NEEDS", ()))
    lines.append(f"{name:20} {'lacks:' if lacks else 'ready'}")
    lines += [f"{'':20}   {sentence}" for sentence in lacks]
  return lines


def stamp(given: Mapping[str, Any]) -> list[tuple[str, int, int]]:
  """What changes with any file that a judge may have been read from.

  Args:
    given: the judge's options; some are files.
  """
  folder = given.get("judges_dir") or os.environ.get(VARIABLE, "")
  paths = sorted(pathlib.Path(folder).rglob("*")) if folder else []
  for value in given.values():
    values = value if isinstance(value, tuple) else (value,)
    paths += [pathlib.Path(one) for one in values if isinstance(one, str)]
  # Unlike `is_file` of a path, it takes a text that is too long for a name.
  files = [path for path in paths if os.path.isfile(path)]
  facts = [(str(path), path.stat()) for path in files]
  return [(name, stat.st_mtime_ns, stat.st_size) for name, stat in facts]


def digest(paths: Iterable[pathlib.Path]) -> str:
  """SHA-256 of a file; of several, of their digests in this order."""
  return combined([_sha256(path) for path in paths])


def combined(digests: Sequence[str]) -> str:
  """One hash of several; a single one is itself."""
  if len(digests) == 1:
    return digests[0]
  return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _sha256(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _git_blob(path: pathlib.Path) -> str:
  header = f"blob {path.stat().st_size}\0".encode()
  found = hashlib.sha1(header, usedforsecurity=False)
  found.update(path.read_bytes())
  return found.hexdigest()
