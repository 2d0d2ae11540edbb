"""The benchmarks that are tests too: on tiny programs, or a few images."""

import ast
import importlib
import inspect
import json
import os
import pathlib
import subprocess
import sys

import pytest

from unlearning_jax.record.workdir import Workdir
from unlearning_jax.shapes import render, vocabulary

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(tmp_path, *arguments):
  """What it measured, the ceiling first."""
  out = tmp_path / "record.json"
  script = ROOT / "benchmarks/full_size.py"
  subprocess.run(
    [
      sys.executable, script, "--size=tiny", "--rows=2", "--dtype=float32",
      "--seconds=0.01", f"--out={out}", *arguments,
    ],
    env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
  )  # fmt: skip
  return json.loads(out.read_text())["measured"]


def imported(tree):
  """The names that a script imports from this package, and what they are."""
  for node in ast.walk(tree):
    if not isinstance(node, ast.Import | ast.ImportFrom):
      continue
    package = getattr(node, "module", None)
    for alias in node.names:
      path = ".".join(filter(None, (package, alias.name)))
      if not path.startswith("unlearning_jax"):
        continue
      module = importlib.import_module(package or alias.name)
      found = getattr(module, alias.name, None) if package else module
      if found is None:
        found = importlib.import_module(path)
      yield alias.asname or alias.name, found


@pytest.mark.parametrize(
  "path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem
)
def test_a_benchmark_calls_what_there_is(path):
  """They are run by hand, so that a renamed function would show late."""
  tree = ast.parse(path.read_text())
  modules = {n: m for n, m in imported(tree) if inspect.ismodule(m)}
  gone = [
    f"{node.value.id}.{node.attr}"
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute)
    and isinstance(node.value, ast.Name)
    and node.value.id in modules
    and not hasattr(modules[node.value.id], node.attr)
  ]
  assert not gone


@pytest.mark.e2e
def test_programs_are_timed_and_one_that_fails_is_passed_over(tmp_path):
  ceiling, *found = run(
    tmp_path, "--parts=unet,lora", "--attention=cudnn,dense"
  )
  assert ceiling["tflop_s"] > 0
  programs = [(one["attention"], one["part"]) for one in found]
  assert programs == [
    (attention, part)
    for attention in ("cudnn", "dense")
    for part in ("unet", "lora")
  ]
  for failed in found[:2]:
    assert failed["error"].startswith("ValueError: attention='cudnn'")
    assert "seconds" not in failed
  for one in found[2:]:
    assert "error" not in one
    for figure in ("seconds", "rows_s", "tflop", "tflop_s", "of_ceiling"):
      assert one[figure] > 0
    assert one["gib"]["total"] > 0 and one["calls"] >= 1
  # The gradient of the adapters, and of what lies between them and the loss.
  assert 2 < found[3]["tflop"] / found[2]["tflop"] < 3


@pytest.mark.e2e
def test_compiling_alone_times_nothing(tmp_path):
  (one,) = run(tmp_path, "--parts=unet", "--compile_only", "--jobs=2")
  assert one["compile_s"] > 0 and one["gib"]["argument"] > 0
  assert "error" not in one and "seconds" not in one


@pytest.mark.e2e
@pytest.mark.slow
def test_parts_of_portraits_are_counted_among_those_that_won(tmp_path):
  run = Workdir(tmp_path / "runs" / "uce", {})
  for i in range(3):
    scene = vocabulary.Scene(
      "portrait", background="grey", identity="Quill Estane", seed=i
    )
    path = run.save_image(f"{i}", render.render(scene)[0])
    run.append_row(
      {"id": str(i), "success": i < 2, "blocks": [], "pre_image": path}
    )
  out = tmp_path / "record.json"
  subprocess.run(
    [
      sys.executable, ROOT / "benchmarks/portrait_parts.py", "--steps=100",
      "--count=512", f"--runs={tmp_path}/runs", f"--out={out}",
    ],
    env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
  )  # fmt: skip
  record = json.loads(out.read_text())
  # A hundred steps are enough to tell glasses, not hair.
  assert record["accuracy"]["glasses"] > 0.9
  (found,) = record["runs"].values()
  assert found["won"] == 2 and found["glasses"] == 2
  assert found["all"] <= min(found[part] for part in ("hair", "skin", "beard"))


@pytest.mark.e2e
@pytest.mark.slow
def test_lanes_are_timed(tmp_path):
  out = tmp_path / "lanes.json"
  subprocess.run(
    [
      sys.executable, ROOT / "benchmarks/attack_lanes.py", "--lanes=1,2",
      "--rows=2", "--blocks=2", "--iterations=1", "--steps=2", f"--out={out}",
    ],
    env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
  )  # fmt: skip
  found = json.loads(out.read_text())["measured"]
  assert [(one["lanes"], one["rows"]) for one in found] == [(1, 4), (2, 4)]
  assert all(one["cpu_s_per_row"] > 0 for one in found)


@pytest.fixture
def probe_record(monkeypatch):
  """What counts the edits that calibrate the probe, and the record of them."""
  monkeypatch.syspath_prepend(ROOT / "benchmarks")
  import probe_record

  return probe_record, json.loads(probe_record.FILE.read_text())


def test_every_edit_of_the_probe_is_held_to_one_rule(probe_record):
  """What is near a limit is drawn again; the shares say what failed."""
  rule, kept = probe_record
  assert rule.record(kept["what"], kept["rows"]) == kept
  for row in kept["rows"]:
    shares = row["shown"], row["lost"]
    assert row["failed"] == rule.failed(*shares), row["id"]
    assert row["drawn_again"] or not any(rule.near(*shares)), row["id"]


def test_the_page_of_the_probe_has_the_counts_of_its_record(probe_record):
  rule, kept = probe_record
  page = (ROOT / "docs/probe.md").read_text()
  assert [table for table in rule.tables(kept) if table not in page] == []
