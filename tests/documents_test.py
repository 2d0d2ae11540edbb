"""What README and docs show can be typed, and does what they say."""

import functools
import json
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import PurePath

import pytest
from unlearning_jax.launch import main

from tests.launch.scripts_test import SHORT
from tests.support import narrow, scripts
from unlearning_jax.convert import families

ROOT = scripts.ROOT
PAGES = [
  "README.md",
  "CONTRIBUTING.md",
  *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md")),
]
# Pages whose commands and Python run, on small budgets.
RUN = [
  f"docs/{name}.md"
  for name in ("erase", "attack", "finetune", "evaluate", "extend")
]
SCRIPTS = main.verbs().keys()
# Each writes down how it was called, and does nothing.
STUB = """#!{python} -IS
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


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
  """`shell` of a page, once."""
  return functools.cache(
    lambda page: shell(page, tmp_path_factory.mktemp("page"))
  )


def launched(commands):
  """The launch scripts among them: (script, arguments)."""
  for program, *rest in commands:
    if "--" in rest:
      # A launcher, and the run that it starts.
      at = rest.index("--")
      yield from launched([["unlearning-jax", *rest[at + 1 :]]])
    if program in ("srun",):
      program, *rest = rest
    if program == "python" and rest[0] == "-m":
      folder, _, name = rest[1].partition(".")
      assert folder == "launch" and name in SCRIPTS, rest
      yield name, rest[2:]
    elif program == "unlearning-jax" and not rest[0].startswith("-"):
      assert rest[0] in SCRIPTS, rest
      yield rest[0], rest[1:]


# As a shell and a template could mistake it.
AWKWARD = "my BASE's FILE.ckpt"


def printed():
  """The commands that messages print about files that people bring."""
  kinds = [kind for _, kind in families._TABLE]
  kinds.append(families.recognize({}, {"format": families.EDIT_FORMAT}))
  for use in {kind.use for kind in kinds}:
    said = families.filled(use, AWKWARD)
    for command in re.findall(r"unlearning-jax [^;]+", said):
      yield shlex.split(command)


# What a script does before it runs: flags, the config, its keys. One process
# for all commands, as the imports take longest.
PARSE = """
import json, runpy, sys
from absl import app, flags

def run(main, argv=None, flags_parser=flags.FLAGS):
  flags_parser(sys.argv)

app.run = run
before = set(flags.FLAGS)
for name, arguments in json.load(sys.stdin):
  flags.FLAGS.unparse_flags()
  for flag in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, flag)
  sys.argv = [name, *arguments]
  try:
    runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)
  except BaseException as error:
    print(name, *arguments, "->", *str(error).splitlines()[:1])
"""


def test_the_commands_of_the_pages_parse(commands):
  found = []
  for page in PAGES:
    asked = launched(commands(page))
    found += [one for one in asked if "--list" not in one[1]]
  assert len(found) > 30
  brought = list(launched(printed()))
  assert {name for name, _ in brought} == {"convert", "export"}
  for _, arguments in brought:
    assert arguments[0].partition("=")[2] == AWKWARD, arguments
  found += brought
  done = subprocess.run(
    [sys.executable, "-c", PARSE],
    input=json.dumps([*found, ("erase", ["--config=erase_uce:tiny", "--no"])]),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  # The last is wrong on purpose: this test can fail.
  *wrong, last = done.stdout.splitlines()
  assert last.startswith("erase --config=erase_uce:tiny --no ->")
  assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES)
def test_no_run_of_a_page_is_to_hold_another(page, commands):
  """A folder that holds other runs is refused as a run's own."""
  flag = "--workdir="
  folders = {
    PurePath(one.removeprefix(flag))
    for _, arguments in launched(commands(page))
    for one in arguments
    if one.startswith(flag)
  }
  assert not [(a, b) for a in folders for b in folders if a in b.parents]


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_of_a_page_have_heads(page):
  text = (ROOT / page).read_text(encoding="utf-8")
  for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
    _, rule, *_ = [*table.splitlines(), "", ""]
    assert re.fullmatch(r"\|[-:|]+\|", rule), table[:200]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page, commands):
  text = (ROOT / page).read_text(encoding="utf-8")
  makefile = (ROOT / "Makefile").read_text()
  named = [c[1] for c in commands(page) if c[0] == "make"]
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


# --- They run ---

# The same calls, of fewer images and steps.
FEW = ["--config.batch_size=2", "--config.sampling.num_inference_steps=2"]
ROWS = ["--config.rows_per_group=1", *FEW]
SMALL = {
  "erase": [*ROWS, "--config.other_rows=2"],
  "evaluate": [*ROWS, "--config.other_rows=2"],
  "attack": ["--config.rows_per_group=2", *FEW, "--config.hparams.blocks=1"],
  "finetune": [
    "--config.num_steps=2", "--config.batch_size=2",
    "--config.checkpoints=(2,)",
  ],
  "attack_matrix": ["--dry_run"],
  "resurgence": ["--dry_run"],
  "train": ["--config.num_steps=1", "--config.data.size=64"],
}  # fmt: skip
SMALLER = {
  'protocol="shapes-star"': 'protocol="shapes-star~rows_per_group=1,'
  'other_rows=2,steps=2"',
  'control="random")': 'control="random", rows=2, lanes=2, batch_size=4, '
  'hparams={"blocks": 1, "iterations": 2})',
  "steps=100": "steps=2, batch_size=8",
  "erased, tuned)": "erased, tuned, prompts=2)",
}


@pytest.fixture(scope="module")
def demo(scripts_in_turn, tmp_path_factory):
  """The edit that `make demo` leaves behind, made by its own command."""
  folder = tmp_path_factory.mktemp("runs")
  recipe = subprocess.run(
    ["make", "--dry-run", "demo", f"PYTHON={sys.executable}"],
    cwd=ROOT, capture_output=True, text=True, check=True,
  ).stdout.replace("runs/demo", str(folder))  # fmt: skip
  (arguments,) = re.findall(r"-m launch\.audit (.*)", recipe)
  scripts_in_turn(
    "audit", *arguments.split(), "--only=erase", model=narrow.folder()
  ).finish()
  return folder


def python(block, folder):
  """A block with smaller budgets; a file where its first line names one."""
  name = re.match(r"# (\w+\.py)\n", block)
  if name:
    (folder / name[1]).write_text(block)
    return ""
  for large, small in SMALLER.items():
    block = block.replace(large, small)
  return block


def run_python(block, folder):
  """Runs a block in a process of its own, whose folder is this one."""
  (folder / "page").mkdir(exist_ok=True)
  (folder / "page" / "block.py").write_text(block)
  scripts.run("page.block", cwd=folder, model=narrow.folder()).finish()


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("page", RUN)
def test_the_python_of_a_page_runs(page, tmp_path):
  found = [python(block, tmp_path) for block in blocks(page, "python")]
  # The sketch of an erasure's module is no program.
  found = [b for b in found if "import unlearning_jax as ul" in b or not b]
  assert found
  for block in filter(None, found):
    run_python(block, tmp_path)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_the_lines_for_stable_diffusion_run(page, tmp_path):
  (block,) = [b for b in blocks(page, "python") if "stable-diffusion-v1" in b]
  # A folder as any other: of it no world is known.
  folder = shutil.copytree(narrow.folder(), tmp_path / "model")
  block = block.replace("CompVis/stable-diffusion-v1-4", str(folder))
  block = block.replace("seeds=[0, 1]", "seeds=[0], num_inference_steps=2")
  head = "import unlearning_jax as ul\n"
  run_python(head + block, tmp_path)
  assert (tmp_path / "van_gogh.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run(
  page, demo, commands, scripts_in_turn, tmp_path
):
  for block in blocks(page, "python"):
    python(block, tmp_path)
  shutil.copytree(ROOT / "configs", tmp_path / "configs")
  shutil.copytree(demo, tmp_path / "runs/demo")
  shutil.copytree(demo / "audit/erase", tmp_path / "runs/uce")
  ran = 0
  for name, arguments in launched(commands(page)):
    small = SMALL.get(name, [])
    if "--list" in arguments or small == ["--dry_run"]:
      continue
    # A model of full size, which is not here; its flags are read elsewhere.
    if "my/sd14" in str(arguments):
      continue
    if "preset=fewer" in str(arguments):
      small = [*small, "--config.hparams.blocks=2", "--config.sharing.tries=1"]
    if "attack_controls" not in str(arguments) and name == "attack":
      small = [*small, "--config.hparams.iterations=1"]
    for method, short in SHORT.items():
      if f"erase_{method}." in str(arguments):
        small = [*small, *(f"--config.hparams.{flag}" for flag in short)]
    if "--protocol=shapes-star" in arguments:
      arguments = [
        "--protocol=shapes-star~rows_per_group=1,other_rows=2,steps=2",
        *[a for a in arguments if not a.startswith("--protocol")],
      ]
      small = []
    scripts_in_turn(
      name, *arguments, *small, cwd=tmp_path, model=narrow.folder()
    ).finish()
    ran += 1
  assert ran
