"""The README's lines of Python, run in a notebook as a user would."""

import pathlib
import re

import pytest

from tests.support import narrow, scripts

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
notebooks = pytest.importorskip("tests.support.notebooks")
README = pathlib.Path(__file__).resolve().parents[1] / "README.md"
# The same lines, of fewer images and steps, as many at a time as there are.
SMALLER = {
  "seeds=[0, 1]": "seeds=[0, 1], batch_size=4",
  'base=model, protocol="shapes-star"': "base=model, "
  'protocol="shapes-star~rows_per_group=1,other_rows=2,steps=2"',
  'protocol="shapes-star", out="runs/audit"': 'out="runs/audit", '
  'protocol="shapes-star~rows_per_group=1,other_rows=2,steps=2", '
  'skip=("attack", "finetune", "resurgence")',
  'control="random"': 'control="random", rows=2, lanes=2, batch_size=4, '
  'hparams={"blocks": 1, "iterations": 2}',
  "steps=100": "steps=2, batch_size=8",
  "erased, tuned)": "erased, tuned, prompts=2)",
}


def lines():
  """The statements of the README's first block, one a cell."""
  block = re.findall(
    r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
  )[0]
  for large, small in SMALLER.items():
    assert block.count(large) == 1, large
    block = block.replace(large, small)
  return [line for line in block.splitlines() if line]


@pytest.mark.slow
@pytest.mark.e2e
def test_the_lines_of_the_readme_run_in_a_notebook(tmp_path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", scripts.QUICK["XLA_FLAGS"])
  # Of a network that compiles sooner; only what is shown is looked at.
  sources = (narrow.lines(), *lines())
  cells = [nbformat.v4.new_code_cell(source) for source in sources]
  notebook = nbformat.v4.new_notebook(cells=cells)
  notebooks.run(notebook, tmp_path)
  shown = {
    cell.source.split("(")[0]: out.data["text/html"]
    for cell in notebook.cells
    for out in cell.outputs
    if out.output_type == "execute_result" and "text/html" in out.data
  }
  assert shown["ul.grid"].count("<img") == 8
  assert "object/star/explicit" in shown["ul.evaluate"]
  assert "random" in shown["ul.attack"] and "asr" in shown["ul.attack"]
  assert "r_norm/explicit" in shown["ul.resurgence"]
  assert "Is it gone when a prompt asks for it?" in shown["ul.audit"]
  assert (tmp_path / "star.safetensors").is_file()
