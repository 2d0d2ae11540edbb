"""What a user gets: a wheel that works alone."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from unlearning_jax.launch import main

import unlearning_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHIPPED = ("unlearning_jax", "configs", "launch")
SCRIPTS = [*main.verbs()]
JUNK = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")


def run(*command, cwd):
  done = subprocess.run(
    [str(part) for part in command], cwd=cwd, capture_output=True, text=True
  )
  return done.returncode, done.stdout, done.stderr


def test_every_file_names_the_same_version():
  version = unlearning_jax.__version__
  cited = re.findall(
    r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M
  )
  assert cited == [version]
  changes = (ROOT / "CHANGELOG.md").read_text()
  assert re.findall(r"^## \[(\d.+?)\] - \d{4}", changes, re.M)[0] == version


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """What a wheel is built of, and nothing else."""
  source = tmp_path_factory.mktemp("checkout") / "source"
  for name in SHIPPED:
    shutil.copytree(ROOT / name, source / name, ignore=JUNK)
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  return source


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory):
  """A fresh environment with the wheel and the core dependencies only."""
  folder = tmp_path_factory.mktemp("fresh")
  python = folder / "venv/bin/python"
  for command in (
    [sys.executable, "-m", "venv", folder / "venv"],
    # What is imported compiles then: a part of all that is installed.
    [python, "-m", "pip", "install", "--quiet", "--no-compile", source],
  ):
    code, _, errors = run(*command, cwd=folder)
    assert code == 0, errors
  return python


def packages_folder(python):
  code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
  return pathlib.Path(run(python, "-c", code, cwd=python.parent)[1].strip())


@pytest.mark.slow
@pytest.mark.e2e
def test_the_command_works_from_any_folder(installed, tmp_path):
  python, command = installed, installed.with_name("unlearning-jax")
  there = {path.name for path in packages_folder(python).iterdir()}
  assert "unlearning_jax" in there and not {"launch", "configs"} & there
  code, output, errors = run(command, "--list", cwd=tmp_path)
  assert code == 0 and "erase" in output, errors
  config = "--config=erase_uce:tiny,task=object,name=star"
  small = ("--edit_only", "--workdir=uce")
  code, _, errors = run(command, "erase", config, *small, cwd=tmp_path)
  assert code == 0, errors
  assert (tmp_path / "uce/edit.safetensors").is_file()
  assert (tmp_path / "uce/DONE").is_file()
  where = "import unlearning_jax as ul; print(ul.__file__, ul.methods())"
  _, output, errors = run(python, "-c", where, cwd=tmp_path)
  assert str(packages_folder(python)) in output, errors
  code, _, errors = run(command, "erase", "--config=erase_uc", cwd=tmp_path)
  assert code and "did you mean 'erase_uce'" in errors
  code, _, errors = run(command, "erasee", cwd=tmp_path)
  assert code and "did you mean 'erase'" in errors


@pytest.mark.slow
@pytest.mark.e2e
def test_the_wheel_holds_every_file(installed, source):
  def files(*roots):
    return {
      path.relative_to(root.parent).as_posix(): path.read_bytes()
      for root in roots
      for path in root.rglob("*")
      if path.is_file() and "__pycache__" not in path.parts
    }

  package = packages_folder(installed) / "unlearning_jax"
  want = files(*(source / name for name in SHIPPED))
  # The two folders of scripts and configs lie within it, and nowhere else.
  inner = [package / name for name in SHIPPED[1:]]
  got = files(package, *inner)
  for name in [*got]:
    if name.split("/")[1] in SHIPPED:
      del got[name]
  assert sorted(got) == sorted(want)
  assert got == want


IMPORT_ALL = """
import importlib, importlib.util, pkgutil, sys
for name in ("torch", "tensorflow"):
  assert importlib.util.find_spec(name) is None, name
import unlearning_jax
assert not {"jax", "transformers"} & sys.modules.keys(), "a heavy import"
for module in pkgutil.walk_packages(unlearning_jax.__path__, "unlearning_jax."):
  # Scripts define the same flags: each is started by itself, below.
  if not module.name.startswith("unlearning_jax.launch."):
    importlib.import_module(module.name)
    print(module.name)
"""


@pytest.mark.slow
@pytest.mark.e2e
def test_every_module_imports_without_torch_and_tensorflow(installed):
  code, output, errors = run(installed, "-c", IMPORT_ALL, cwd=installed.parent)
  assert code == 0, errors
  assert "unlearning_jax.record.workdir" in output.split()


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_launch_script_explains_itself(installed, script):
  command = (installed.with_name("unlearning-jax"), script, "--help")
  code, output, errors = run(*command, cwd=installed.parent)
  # absl's --help exits with 1.
  assert code in (0, 1) and "Traceback" not in errors, errors
  assert f"launch.{script}" in output and "--" in output
