"""The zip of an audit: what it keeps, what it hides, how it is sealed."""

import csv
import io
import json
import zipfile

import pytest

from unlearning_jax.experiments.audit import packing
from unlearning_jax.record import Workdir, seal

PROMPT = "it's a woman in a river"


@pytest.fixture
def folder(tmp_path):
  """An audit with one stage that ended and one that failed."""
  root = tmp_path / "run"
  quoted = f"prompt {PROMPT!r} has 9 tokens; max_tokens=5"
  record = Workdir(root / "attack", {"blocks": 1})
  record.append_row({"id": "a", "prompt": PROMPT, "reason": quoted})
  record.append_row({"id": "b", "prompt": "woman", "reason": "'woman' is rare"})
  record.save_summary({"accounting": {"dropped": {"a": quoted}}, "n": 2})
  record.write("guidance.json", json.dumps({"negative_prompt": PROMPT}))
  record.write("edit.safetensors", b"weights")
  record.write("images/a.png", b"picture")
  record.mark_done()
  (root / "failed").mkdir()
  torn = json.dumps({"id": "a", "prompt": PROMPT}) + '\n{"id": "b", "pro'
  (root / "failed/results.jsonl").write_text(torn)
  lines = io.StringIO()
  table = csv.writer(lines, lineterminator="\n")
  table.writerow(["name", "command", "error"])
  table.writerow([f"of {PROMPT}", "erase --negative=woman,river", quoted])
  (root / "stages.csv").write_text(lines.getvalue())
  (root / "summary.json").write_text(
    json.dumps({"notes": [quoted], "stages": [{"error": quoted}]})
  )
  return root


def unpacked(folder, target, **changes):
  file = io.BytesIO()
  packing.pack(folder, file, **changes)
  with zipfile.ZipFile(file) as archive:
    archive.extractall(target)
    return {one.filename: one for one in archive.infolist()}


def test_a_redacted_zip_quotes_no_prompt_anywhere(folder, tmp_path):
  names = unpacked(folder, tmp_path / "out", redact=True)
  assert {"attack/results.jsonl", "failed/results.jsonl", "stages.csv"} <= {
    *names
  }
  for path in (tmp_path / "out").rglob("*"):
    text = path.read_text() if path.is_file() else ""
    assert "river" not in text and "'woman'" not in text, path
  rows = (tmp_path / "out/attack/results.jsonl").read_text()
  assert "has 9 tokens" in rows and "(redacted) is rare" in rows


@pytest.mark.parametrize(
  "redact, pictures", [(False, True), (True, True), (True, False)]
)
def test_the_seal_is_of_the_files_in_the_zip(
  folder, tmp_path, redact, pictures
):
  out = tmp_path / "out"
  names = unpacked(folder, out, redact=redact, pictures=pictures)
  seal.check(out / "attack", images=True)
  assert ("attack/images/a.png" in names) == pictures
  assert "attack/edit.safetensors" not in names
  with open(out / "attack/results.jsonl", "r+b") as file:
    file.write(b"x")
  with pytest.raises(ValueError, match="is damaged"):
    seal.check(out / "attack")


def test_a_zip_is_compressed_and_the_same_each_time(folder, tmp_path):
  names = unpacked(folder, tmp_path / "out")
  kinds = {one.compress_type for one in names.values()}
  assert kinds == {zipfile.ZIP_DEFLATED}
  first, second = io.BytesIO(), io.BytesIO()
  packing.pack(folder, first)
  packing.pack(folder, second)
  assert first.getvalue() == second.getvalue()
