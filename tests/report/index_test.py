"""The list of runs: every run once, newest first, with its page."""

import json

import pytest

from tests.report.comparison_test import Page
from unlearning_jax.report import index


def made(folder, started, command, **summary):
  folder.mkdir(parents=True)
  start = {"started": started, "command": command}
  (folder / "provenance.json").write_text(json.dumps({"runs": [start]}))
  if summary:
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "report.html").write_text("")
    (folder / "DONE").write_text("")
  return folder


def test_runs_are_listed_and_linked(tmp_path):
  verdicts = [{"verdict": "pass"}, {"verdict": "not shown"}]
  audit = made(
    tmp_path / "a b/audit", "2026-11-29T08:19:14+00:00",
    "python /x/bin/unlearning-jax audit --preset=quick",
    title="Audit of <uce>", verdicts=verdicts,
  )  # fmt: skip
  made(audit / "evaluate", "2026-11-29T08:20:00+00:00", "", title="Inside")
  made(tmp_path / "uce", "2026-11-28T07:00:00+00:00", "python -m launch.erase")
  page = index.write(tmp_path)
  assert page == tmp_path / "index.html"
  found = Page(page.read_text())
  assert (
    "Audit of <uce> a b/audit audit 2026-11-29 08:19 done ✓ pass ? not shown "
    "uce no page uce erase 2026-11-28 07:00 not finished –"
  ) in found.text
  links = [v for _, name, v in found.attributes if name == "href"]
  assert links == ["a%20b/audit/report.html"]


@pytest.mark.parametrize(
  "command, verb",
  [
    ("python -m unlearning_jax.launch.audit --preset=quick", "audit"),
    ("python -m launch.erase", "erase"),
    ("python /x/bin/unlearning-jax compare a b", "compare"),
    ("python -m ipykernel_launcher -f kernel.json", ""),
    ("python -m my.launch.audit.other", ""),
  ],
)
def test_the_verb_of_a_command(command, verb):
  assert index.verb(command) == verb


def test_what_holds_no_runs_is_said(tmp_path):
  assert "There is no run below" in index.write(tmp_path).read_text()
  with pytest.raises(ValueError, match="is no folder"):
    index.write(tmp_path / "none")
  run = made(tmp_path / "uce", "", "")
  with pytest.raises(ValueError, match="is itself a run; name the folder abo"):
    index.write(run)
