"""The notebooks of colab/: their scripts, what is stored, and that they run."""

import re

import pytest

from tests.support import narrow, scripts

jupytext = pytest.importorskip("jupytext")
pytest.importorskip("nbclient")
notebooks = pytest.importorskip("tests.support.notebooks")
FOLDER = notebooks.FOLDER
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
# The same cells with fewer pictures and steps: as many as in `notebook_test`,
# whose compiled programs they share.
SMALLER = {
  r"seeds=(\[[\d, ]+\])": r"seeds=\1, batch_size=4",
  r"rows_per_group=\d+,other_rows=\d+": "rows_per_group=1,other_rows=2,steps=2",
  r"rows=\d,?\)": "rows=2, lanes=2, batch_size=4, "
  'hparams={"blocks": 1, "iterations": 2})',
  r"rows=3": "rows=2, lanes=2, batch_size=4",
  r'"blocks": \d+, "iterations": \d+': '"blocks": 1, "iterations": 2',
  r"steps=60": "steps=2, batch_size=8",
  r"prompts=10": "prompts=2",
  # What its other stages do is tested with them.
  r'"shapes-star"': '"shapes-star~rows_per_group=1,other_rows=2,steps=2"',
  r'preset="quick"': 'only=("evaluate",)',
}


def html(cell):
  return "".join(
    out.get("data", {}).get("text/html", "") for out in cell.outputs
  )


def code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_script_with_what_it_showed(name):
  script = jupytext.read(FOLDER / f"{name}.py")
  stored = jupytext.read(FOLDER / f"{name}.ipynb")
  assert [(c.cell_type, c.source) for c in script.cells] == [
    (c.cell_type, c.source) for c in stored.cells
  ], "run `make notebooks`"
  outputs = [out for cell in code(stored) for out in cell.outputs]
  assert not [out for out in outputs if out.output_type == "error"]
  # A reader on a web page sees pictures, or the page in its frame.
  assert re.search("<img|<iframe", "".join(map(html, code(stored))))
  assert (FOLDER / f"{name}.ipynb").stat().st_size < 3e6


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", scripts.QUICK["XLA_FLAGS"])
  notebook = jupytext.read(FOLDER / f"{name}.py")
  for cell in code(notebook):
    for large, small in SMALLER.items():
      cell.source = re.sub(large, small, cell.source)
  first = code(notebook)[0]
  # Behind the cell that installs.
  first.source += f"\n{narrow.lines()}"
  notebooks.run(notebook, tmp_path)
  shown = "".join(map(html, code(notebook)))
  shown += "".join(path.read_text() for path in tmp_path.glob("*/report.html"))
  assert "<img" in shown and "<table" in shown
  assert [*tmp_path.glob("*.safetensors")] or (tmp_path / "audit").is_dir()
