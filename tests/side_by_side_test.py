"""`make bench`: its rows, and the plain torch form that RECE is timed with."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.support import closed_form_cases as cases
from unlearning_jax.erasures import rece

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.fixture
def bench():
  import side_by_side

  return side_by_side


def measured(seconds, gib=1.0, version="torch 2"):
  return {"w": {"seconds": seconds, "peak_gib": gib, "version": version}}


def row(bench, ours, theirs):
  return bench.row("w", "a call", ("fast", "eager"), ours, theirs)


def test_a_row_has_the_ratios_of_its_rounds(bench):
  ours = [measured(2.0, 1.0, "jax 1"), measured(4.0, 3.0, "jax 1")]
  found = row(bench, ours, [measured(3.0), measured(10.0, 2.0)])
  assert {k: found[k] for k in ("work", "unit", "ours", "peer", "threads")} == {
    "work": "w", "unit": "a call", "ours": 3.0, "peer": 6.5, "threads": 1,
  }  # fmt: skip
  assert (found["ratio_min"], found["ratio_max"]) == (1.5, 2.5)
  assert found["ratio_median"] == 2.0
  assert (found["version"], found["peer_version"]) == ("jax 1", "torch 2")
  assert (found["ours_gib"], found["peer_gib"]) == (3.0, 2.0)
  assert found["cpu"]


def test_a_row_says_how_far_its_rounds_lie_apart(bench):
  ours = [measured(1.0), measured(1.0)]
  quiet = row(bench, ours, [measured(2.0), measured(2.18)])
  assert "noisy" not in quiet
  loud = row(bench, ours, [measured(2.0), measured(2.5)])
  assert loud["noisy"] == "the rounds lie 25% apart"
  assert "25% apart" in bench.printed(loud)


def test_a_row_says_why_a_side_is_missing(bench):
  ours = [measured(1.0), measured(1.0)]
  found = row(bench, ours, [{"missing": "not installed: torch"}] * 2)
  assert found["missing"] == "not installed: torch"
  assert "ratio_median" not in found
  assert "not installed: torch" in bench.printed(found)
  # Another work of the group.
  assert row(bench, ours, [{"other": measured(1.0)["w"]}] * 2) is None


def test_a_peer_that_is_not_installed_is_named(monkeypatch, tmp_path):
  import side_by_side_works as works

  monkeypatch.setattr(works.importlib.util, "find_spec", lambda name: None)
  found = works.measure("shapes", "eager", 0.0, tmp_path)
  assert found == {"missing": "not installed: torch, diffusers"}


def test_every_side_of_a_group_has_its_packages(bench):
  import side_by_side_works as works

  for group in bench.GROUPS.values():
    assert {*group.ours, *group.peers} <= set(works.PACKAGES)
    assert set(group.ours) <= set(works.OURS)


def test_preparing_is_not_timed_and_the_first_call_not_counted(
  monkeypatch, tmp_path
):
  import side_by_side_works as works

  clock, calls = [0.0], []

  def prepare():
    clock[0] += 100.0

    def call():
      calls.append(None)
      clock[0] += 50.0 if len(calls) == 1 else 2.0

    return call

  listed = [("w", prepare), ("again", prepare)]
  monkeypatch.setattr(works, "works", lambda *_: iter(listed))
  monkeypatch.setattr(works, "cpu_seconds", lambda: clock[0])
  found = works.measure("start", "ours", 5.0, tmp_path)
  assert found["w"]["seconds"] == found["again"]["seconds"] == 2.0
  assert len(calls) == 4


def test_one_core_one_group_at_once(bench, monkeypatch):
  monkeypatch.setattr(
    bench.os, "sched_getaffinity", lambda _: {3}, raising=False
  )
  assert bench.cores() == [3]
  monkeypatch.delattr(bench.os, "sched_getaffinity")
  assert bench.cores() == [-1]


def test_little_memory_one_group_at_once(bench, monkeypatch):
  monkeypatch.setattr(
    bench.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False
  )
  gigabytes = {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 20 * 10**6}
  monkeypatch.setattr(bench.os, "sysconf", gigabytes.get)
  assert bench.cores() == [0, 1]
  gigabytes["SC_PHYS_PAGES"] = 8 * 10**6
  assert bench.cores() == [0]


def test_a_gpu_is_hidden(bench, monkeypatch):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  found = bench.environment()
  assert found["CUDA_VISIBLE_DEVICES"] == ""
  assert found["JAX_PLATFORMS"] == "cpu"


@pytest.mark.torch
def test_the_plain_form_is_the_authors_and_ours():
  torch = pytest.importorskip("torch")
  import side_by_side_plain as plain

  golden = cases.Golden("rece_nudity")
  s = golden.settings
  ours, _ = rece.solve(
    golden.task("uce2023", s["uce"]["preserve"]),
    golden.gram,
    s["preserve_scale"] * golden.held(s["preserve"]),
    rece.Epochs(s["epochs"], s["lam_r"], s["erase_scale"], s["lamb"]),
    {},
  )

  def change(dtype):
    weights = np.split(golden.weights, golden.arrays["splits"])
    base = [torch.tensor(w, dtype=dtype) for w in weights if len(w)]
    concept, empty = (
      torch.tensor(golden.states[phrase].rows, dtype=dtype)
      for phrase in ("nudity", "")
    )
    new = plain.nudity(base, concept, empty)
    return np.concatenate([np.float64(w) for w in new]) - golden.weights

  exact = golden.arrays["change"][s["epochs"]]
  assert cases.relative(golden.change(ours), exact) < 1e-9
  assert cases.relative(change(torch.float64), exact) < 1e-9
  # float32 and its inverses lose four digits of the change even here.
  assert 1e-5 < cases.relative(change(torch.float32), exact) < 1e-2


@pytest.mark.e2e
def test_the_record_of_a_short_run(tmp_path):
  out = tmp_path / "record.json"
  done = subprocess.run(
    [
      sys.executable, ROOT / "benchmarks/side_by_side.py", "--groups=start",
      "--rounds=1", "--seconds=0", f"--out={out}",
    ],
    env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    capture_output=True, text=True,
  )  # fmt: skip
  (found,) = json.loads(out.read_text())["rows"]
  assert found["work"] == "start" and "start" in done.stdout
  assert ("missing" in found) == (importlib.util.find_spec("torch") is None)
  if "missing" not in found:
    ratio = found["peer"] / found["ours"]
    assert found["ratio_median"] == pytest.approx(ratio, rel=1e-2)
