"""The house rules that a parser can check: layers, imports, sizes, docs."""

import ast
import collections
import functools
import graphlib
import pathlib

import pytest
from unlearning_jax.launch import main

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "unlearning_jax"

# From the bottom up. A part may import the parts below it and those beside
# it, never those above; see SEPARATE for the parts with no such neighbors.
FLOORS = (
  {
    "models",
    "sharding",
    "processes",
    "checking",
    "stops",
    "durable",
    "checkpoints",
    "noise",
    "schedules",
  }
  | {"concepts", "statistics", "memory", "extensions", "settings"}
  | {"scheduler_keys", "renamed", "pictures"},
  {"convert", "samplers", "timesteps", "guidance", "tokens", "lists", "data"}
  | {"record", "prompt_tables"},
  {"stable_diffusion", "projections", "edits", "lora", "exports"}
  | {"sampling", "model", "probe", "casting"},
  {"closed_form", "finetune"},
  {"erasures", "attacks", "judges"},
  {"metrics"},
  # A world brings protocols of its own.
  {"protocols"},
  {"shapes"},
  {"report"},
  {"experiments"},
  {"api"},
)
RANK = {part: i for i, floor in enumerate(FLOORS) for part in floor}
# A method or a model must be readable alone.
SEPARATE = {"models", "sharding", "erasures", "attacks", "judges", "shapes"}
# Of all annotated arguments.
MOST_ANY = 0.05
# Lines of a file of launch/ that has a `main`.
SCRIPT = 60
# Only launch/ decides where a run is kept and with what flags.
LAUNCH_ONLY = {"absl.flags", "absl.app", "ml_collections", "argparse"}
FORBIDDEN = {"torch", "torchvision", "tensorflow", "clu", "chex"}


@functools.cache
def package_files():
  files = {}
  for folder in (PACKAGE, "launch", "configs"):
    for path in sorted((ROOT / folder).rglob("*.py")):
      files[path.relative_to(ROOT).as_posix()] = path.read_text()
  return files


@functools.cache
def parse(source):
  return ast.parse(source)


@functools.cache
def imports(source):
  """Full dotted names that a module imports, also inside functions."""
  return list(imported_names(parse(source)))


def imported_names(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      # Scripts reach what they share by whichever name they run under.
      shared = node.level in (1, 2) and node.module is None
      assert shared or not node.level, f"line {node.lineno}: a relative import"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and node.args:
      # importlib.import_module("torch")
      name = getattr(node.func, "attr", getattr(node.func, "id", ""))
      if name in ("import_module", "__import__"):
        if isinstance(node.args[0], ast.Constant):
          yield node.args[0].value


def is_below(name, package):
  return name == package or name.startswith(package + ".")


def part_of(path):
  """`unlearning_jax/erasures/uce.py` belongs to the part `erasures`."""
  return pathlib.PurePosixPath(path).with_suffix("").parts[1]


def violations(files):
  """Every broken import rule as text, for {path: source}."""
  found = []
  for path, source in files.items():
    inside = path.startswith(f"{PACKAGE}/") and part_of(path) != "__init__"
    if inside and part_of(path) not in RANK:
      found.append(f"{path}: give {part_of(path)} a layer in this test")
      continue
    for name in imports(source):
      if any(is_below(name, package) for package in FORBIDDEN):
        found.append(f"{path}: imports {name}")
      if is_below(name, "jax.sharding") and path != f"{PACKAGE}/sharding.py":
        found.append(f"{path}: only sharding.py imports {name}")
      if not inside:
        continue
      if any(is_below(name, package) for package in LAUNCH_ONLY):
        found.append(f"{path}: only launch/ imports {name}")
      if is_below(name, "launch") or is_below(name, "configs"):
        found.append(f"{path}: imports {name} from above")
      if is_below(name, PACKAGE):
        found += layer_violation(path, name)
  return found


def layer_violation(path, name):
  own, other = part_of(path), name.split(".")[1]
  if own == other or other == "__version__":
    return []
  if other not in RANK:
    return [f"{path}: {other}, in {name}, has no layer"]
  if RANK[other] > RANK[own]:
    return [f"{path}: imports {name} from a layer above"]
  if RANK[other] == RANK[own] and {own, other} & SEPARATE:
    return [f"{path}: imports {name}, its neighbour"]
  return []


def test_imports_follow_the_layers():
  found = violations(package_files())
  assert not found, "\n".join(found)


def test_imports_have_no_cycle():
  files = package_files()
  modules = {
    path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
    for path in files
  }
  graph = {}
  for module, path in modules.items():
    names = set(imports(files[path]))
    # `from a.b import c` names a module a.b.c or something inside a.b.
    names |= {name.rpartition(".")[0] for name in names if name not in modules}
    graph[module] = names & modules.keys()
  graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
  "path, source",
  [
    ("models/unet.py", "from unlearning_jax import schedules"),
    ("models/unet.py", "from unlearning_jax.sharding import make_mesh"),
    ("schedules.py", "import unlearning_jax.erasures.uce"),
    ("erasures/uce.py", "from unlearning_jax.attacks import p4d"),
    ("erasures/uce.py", "def f():\n  from unlearning_jax import judges"),
    ("erasures/uce.py", "from unlearning_jax import workdir"),
    ("erasures/uce.py", "from absl import flags"),
    ("erasures/uce.py", "import ml_collections"),
    ("erasures/uce.py", "from launch import erase"),
    ("erasures/uce.py", "import torch.nn as nn"),
    ("erasures/uce.py", "import importlib\nimportlib.import_module('torch')"),
    ("noise.py", "import tensorflow"),
    ("data.py", "from jax.sharding import Mesh"),
    ("data.py", "from jax import sharding"),
    ("brand_new.py", ""),
    ("data.py", "from unlearning_jax import brand_new"),
  ],
)
def test_a_broken_rule_is_found(path, source):
  assert len(violations({f"{PACKAGE}/{path}": source})) == 1


@pytest.mark.parametrize(
  "path, source",
  [
    ("unlearning_jax/models/unet.py", "from unlearning_jax.models import clip"),
    ("unlearning_jax/sharding.py", "from jax.sharding import Mesh"),
    (
      "unlearning_jax/erasures/rece.py",
      "from unlearning_jax.erasures import u",
    ),
    ("unlearning_jax/erasures/uce.py", "from unlearning_jax import concepts"),
    ("unlearning_jax/report/x.py", "from unlearning_jax.metrics import y"),
    (
      "launch/erase.py",
      "from absl import flags\nimport unlearning_jax.record.workdir",
    ),
  ],
)
def test_a_kept_rule_is_no_violation(path, source):
  assert violations({path: source}) == []


# --- Sizes and docstrings ---


@functools.cache
def functions():
  """(place, node) of every function in the package and the scripts."""
  found = []
  for path, source in package_files().items():
    for node in ast.walk(parse(source)):
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        found.append((f"{path}:{node.lineno} {node.name}", node))
  return found


def test_files_and_functions_are_short():
  long = [
    f"{path.relative_to(ROOT)}: {lines} lines"
    for folder in (PACKAGE, "launch", "configs", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if (lines := len(path.read_text().splitlines())) > 400
  ]
  long += [
    f"{place}: {lines} lines"
    for place, node in functions()
    if (lines := node.end_lineno - node.lineno + 1) > 80
  ]
  assert not long, "\n".join(long)


def test_public_functions_say_what_they_do():
  silent = []
  for path, source in package_files().items():
    for node in parse(source).body:
      names = [node]
      if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        names += node.body
      silent += [
        f"{path}:{n.lineno} {n.name}"
        for n in names
        if isinstance(n, ast.FunctionDef | ast.ClassDef)
        and path.startswith(PACKAGE)
        and not n.name.startswith("_")
        and n.name != "setup"  # linen's own hook, the same everywhere
        and not ast.get_docstring(n)
      ]
  assert not silent, "\n".join(silent)


def test_launch_holds_short_scripts_alone():
  long, folder = [], ROOT / "launch"
  for path in (*folder.glob("*.py"), *folder.glob("*/__main__.py")):
    text = path.read_text()
    runs = any(getattr(n, "name", "") == "main" for n in parse(text).body)
    assert runs or path.stem in main.PARTS, path
    assert not runs or 'if __name__ == "__main__":' in text, path
    if runs and (lines := len(text.splitlines())) >= SCRIPT:
      long.append(f"{path.relative_to(folder)}: {lines} lines")
  assert not long, "\n".join(long)


def parameters(node):
  """The arguments of a function, `self` and the starred ones left out."""
  given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
  return [arg for arg in given if arg.arg not in ("self", "cls")]


def test_functions_take_few_parameters():
  many = [
    f"{place}: {len(found)}"
    for place, node in functions()
    if len(found := parameters(node)) > 10
  ]
  assert not many, "\n".join(many)


def test_arguments_say_their_types():
  """`Any` only where nothing better can be said."""
  annotated = [
    (place.partition(":")[0], ast.unparse(arg.annotation))
    for place, node in functions()
    for arg in (*parameters(node), node.args.vararg, node.args.kwarg)
    if arg is not None and arg.annotation is not None
  ]
  vague = collections.Counter(
    path for path, hint in annotated if hint in ("Any", "typing.Any")
  )
  share = vague.total() / len(annotated)
  most = "\n".join(f"{path}: {n}" for path, n in vague.most_common(20))
  assert share <= MOST_ANY, f"{share:.1%} of {len(annotated)}\n{most}"
