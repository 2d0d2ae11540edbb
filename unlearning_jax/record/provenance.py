"""The facts of one start: command, versions, devices, weights, seeds."""

import contextlib
import datetime
import importlib.metadata
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from unlearning_jax import durable

_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "numpy",
  "transformers",
  "diffusers",
)


def of_start(
  *,
  devices: Mapping[str, Any],
  base_fingerprint: str = "",
  judge_hashes: Mapping[str, str] | None = None,
  inputs: Mapping[str, str] | None = None,
  seeds: Mapping[str, int] | None = None,
) -> dict[str, Any]:
  """This start of a run, as `provenance.json` keeps it.

  Args:
    devices: the devices, from `sharding.describe_devices`.
    base_fingerprint: SHA-256 of the model that the run starts from.
    judge_hashes: judge name -> hash of its weights.
    inputs: name -> hash of whatever else the rows depend on, such as an edit.
    seeds: name -> seed.
  """
  return {
    "started": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
    "command": shlex.join(["python", *sys.orig_argv[1:]]),
    "git_commit": _git_commit(),
    "python": platform.python_version(),
    "versions": _versions(),
    "devices": dict(devices),
    "base_fingerprint": base_fingerprint,
    "judge_hashes": dict(judge_hashes or {}),
    "inputs": dict(inputs or {}),
    "seeds": dict(seeds or {}),
  }


def starts(file: pathlib.Path) -> list[dict[str, Any]]:
  """The starts in a `provenance.json`, the first one first.

  Raises:
    ValueError: the file is damaged.
  """
  found = durable.read_json(file).get("runs")
  kinds = {"base_fingerprint": str, "judge_hashes": dict, "inputs": dict}
  kinds |= {"seeds": dict, "command": str, "started": str}
  for one in found if isinstance(found, list) else [None]:
    if not isinstance(one, dict) or not all(
      isinstance(one.get(key, kind()), kind) for key, kind in kinds.items()
    ):
      raise ValueError(f"{file}: is damaged: it lists no starts of a run")
  return list(found or ())


def _versions() -> dict[str, str]:
  found = {}
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def _git_commit() -> str:
  """The commit of this code, `+changes` when edited, "" when installed."""
  root = pathlib.Path(__file__).resolve().parents[2]
  if not (root / ".git").exists():
    return ""

  def git(*args: str) -> str:
    command = ["git", "-C", str(root), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()

  changed = git("status", "--porcelain", "--untracked-files=no")
  return git("rev-parse", "HEAD") + ("+changes" if changed else "")
