"""What README and docs show can be typed, and does what they say."""

import json
import re
import shutil
import stat
import subprocess
import sys

import pytest

from tests.support import scripts

ROOT = scripts.ROOT
PAGES = [
  "README.md",
  "CONTRIBUTING.md",
  *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md")),
]
SCRIPTS = {
  path.stem
  for path in (ROOT / "launch").glob("*.py")
  if path.stem not in ("__init__", "flags", "main")
}
# Each writes down how it was called, and does nothing.
STUB = """#!{python}
import json, sys
with open({log!r}, "a") as file:
  file.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
"""
PROGRAMS = (
  "python", "unlearning-jax", "make", "pip", "srun", "gcloud", "cp", "mkdir",
)  # fmt: skip


def blocks(page, language):
  text = (ROOT / page).read_text(encoding="utf-8")
  return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def shell(page, folder):
  """The commands of a page, as bash calls them: [program, argument, ...]."""
  log = folder / "log"
  (folder / "bin").mkdir()
  (folder / ".venv/bin").mkdir(parents=True)
  (folder / ".venv/bin/activate").write_text("")
  for name in PROGRAMS:
    path = folder / "bin" / name
    path.write_text(STUB.format(python=sys.executable, log=str(log), name=name))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
  for block in blocks(page, "sh"):
    subprocess.run(
      [shutil.which("bash"), "-euc", block + "\nwait"],
      cwd=folder,
      env={"PATH": f"{folder}/bin"},
      check=True,
    )
  lines = log.read_text().splitlines() if log.exists() else []
  return [json.loads(line) for line in lines]


def launched(commands):
  """The launch scripts among them: (script, arguments)."""
  for program, *rest in commands:
    if program in ("srun",):
      program, *rest = rest
    if program == "python" and rest[0] == "-m":
      folder, _, name = rest[1].partition(".")
      assert folder == "launch" and name in SCRIPTS, rest
      yield name, rest[2:]
    elif program == "unlearning-jax" and not rest[0].startswith("-"):
      assert rest[0] in SCRIPTS, rest
      yield rest[0], rest[1:]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page, tmp_path):
  text = (ROOT / page).read_text(encoding="utf-8")
  makefile = (ROOT / "Makefile").read_text()
  named = [c[1] for c in shell(page, tmp_path) if c[0] == "make"]
  named += re.findall(r"`make ([a-z-]+)", text)
  for target in named:
    assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
  for script in re.findall(r"launch\.(\w+)", text):
    assert script in SCRIPTS, script
  files = re.findall(
    r"`((?:benchmarks|tests|configs|unlearning_jax|docs)/[\w/.]+)`", text
  )
  for file in files:
    known = (ROOT / file).exists() or "/x.py" in file
    assert known, f"{page} names {file}"


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page):
  text = (ROOT / page).read_text(encoding="utf-8")
  for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
    if not link.startswith("http"):
      assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"


def test_the_readme_is_short():
  assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_ci_runs_the_commands_of_the_readme():
  lines = (ROOT / ".ci/run").read_text().splitlines()
  steps = [line for line in lines if line.startswith("make ")]
  assert steps == ["make docs", "make test-all"]
  assert "set -euo pipefail" in lines
