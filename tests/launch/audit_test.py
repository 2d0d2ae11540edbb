"""The command `audit`: killed and started again, its exit status, Python."""

import json
import runpy
import time
from unittest import mock

import pytest
from unlearning_jax.configs import audit as configs

import unlearning_jax as ul
from tests.support import narrow, scripts
from unlearning_jax.shapes import world

# Two rows and two steps; an attack has two images, of two iterations each.
PROTOCOL = "shapes-star~rows_per_group=2,other_rows=3,steps=2"


def shortened():
  """The preset's attacks are otherwise most of an audit's time."""
  quick = configs._BUDGETS["quick"]
  return {"quick": quick._replace(blocks=2, iterations=2)}


@pytest.fixture(scope="module")
def edit(tmp_path_factory, quickest_compiler):
  folder = tmp_path_factory.mktemp("uce")
  with mock.patch.object(world, "model_folder", narrow.folder):
    erased = ul.erase(ul.load("shapes"), "star", "uce", out=folder)
    yield folder, erased


def start(edit, folder, *more):
  return scripts.Run(
    __name__, f"--protocol={PROTOCOL}", f"--edits={edit[0]}",
    f"--workdir={folder}", "--skip=finetune,resurgence", "--lanes=2",
    "--batch_size=4", *more, model=narrow.folder(),
  )  # fmt: skip


def untimed(summary):
  for one in (*summary["stages"], *summary["cost"]):
    one["seconds"] = one["memory_bytes"] = None
    one.pop("command", None)
  summary.pop("provenance")
  return summary


def rows(folder):
  return sum(
    len(path.read_bytes().splitlines())
    for path in folder.rglob("results.jsonl")
  )


def judged(folder):
  text = (folder / "evaluate" / "results.jsonl").read_text()
  return {
    row["id"]: row["judged"] for row in map(json.loads, text.splitlines())
  }


@pytest.mark.slow
@pytest.mark.e2e
def test_a_killed_audit_ends_with_the_same_summary(edit, tmp_path, monkeypatch):
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  done = start(edit, whole, "--fail_on=warn").join()
  # Two rows show nothing, which the gate counts as a warning.
  assert done.returncode == 4, done.stderr[-3000:]
  assert "--fail_on=warn: UCE2023, gone: not shown" in done.stderr
  assert "report.html" in done.stdout and (whole / "report.html").is_file()
  for _ in range(2):
    before, run = rows(cut), start(edit, cut)
    while run.returncode is None and rows(cut) < before + 5:
      time.sleep(0.02)
    assert run.returncode is None
    run.kill()
  start(edit, cut).finish()
  summaries = [
    untimed(json.loads((folder / "summary.json").read_text()))
    for folder in (whole, cut)
  ]
  assert summaries[0] == summaries[1]
  assert judged(cut) == judged(whole)
  # Were all pictures alike, that would prove little.
  assert len({json.dumps(one) for one in judged(whole).values()}) > 3
  same = scripts.run("compare", whole, cut, "--fail_on=warn")
  assert same.returncode == 0 and "2 rows in both: 0 worse" in same.stdout
  # The lines of Python give the verdicts of the script.
  monkeypatch.setattr(configs, "_BUDGETS", shortened())
  python = ul.audit(edit[1], protocol=PROTOCOL, skip=("finetune", "resurgence"))
  keys = ("question", "verdict", "value", "low", "high", "n")
  assert [[one[k] for k in keys] for one in python.verdicts] == [
    [one[k] for k in keys] for one in summaries[0]["verdicts"]
  ]
  assert python.rows and "<iframe" in python._repr_html_()
  assert "gone" in {one["question"] for one in python.show().verdicts}


if __name__ == "__main__":
  configs._BUDGETS = shortened()
  runpy.run_module("launch.audit", run_name="__main__")
