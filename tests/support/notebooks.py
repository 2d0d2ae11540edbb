"""Runs the notebooks of colab/.

python -m tests.support.notebooks   # stores what they show, for `make`
"""

import pathlib
import re
import sys
import tempfile

import jupytext
import nbclient

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "colab"


def run(notebook, folder):
  """Runs every cell in a folder; what cells print while they work is dropped.

  Progress lines and warnings name the machine, and their times differ.
  """
  nbclient.NotebookClient(
    notebook, timeout=900, kernel_name="python3",
    resources={"metadata": {"path": str(folder)}},
  ).execute()  # fmt: skip
  for cell in notebook.cells:
    if cell.cell_type == "code":
      cell.metadata.pop("execution", None)
      cell.outputs = [
        out
        for out in cell.outputs
        if out.output_type != "stream" or out.name == "stdout"
      ]


def main():
  """Runs all, or those that are named."""
  names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.py"))
  for name in names:
    notebook = jupytext.read(FOLDER / f"{name}.py")
    with tempfile.TemporaryDirectory() as folder:
      run(notebook, folder)
    text = jupytext.writes(notebook, fmt="ipynb")
    # A page's provenance names the kernel's own temporary file.
    text = re.sub(r"[^\s\"']*/tmp\w+\.json", "kernel.json", text)
    (FOLDER / f"{name}.ipynb").write_text(text, encoding="utf-8")


if __name__ == "__main__":
  main()
