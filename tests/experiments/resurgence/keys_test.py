"""Names of cells and rows: what was ever stored reads back."""

import json
import pathlib

import pytest

from unlearning_jax.experiments.resurgence import keys
from unlearning_jax.experiments.resurgence.keys import Cell, parse

ROOT = pathlib.Path(__file__).resolve().parents[3]
ROWS = ROOT / "benchmarks/results/resurgence_full/results.jsonl"
CELL = Cell("esd_x", "people 5", "near", "lora 300", "none", 2)


def test_every_id_that_was_ever_stored():
  ids = [json.loads(line)["id"] for line in ROWS.read_text().splitlines()]
  assert len(ids) == 2073
  found = [parse(text) for text in ids]
  assert [str(key) for key in found] == ids and len(set(found)) == len(ids)
  kinds = [type(key) for key in found]
  assert kinds.count(keys.Point) == 1690
  assert kinds.count(keys.Base) == 58 and kinds.count(keys.Erased) == 325


@pytest.mark.parametrize(
  "key, text",
  [
    (CELL, "esd_x/people 5/near/lora 300/none/2"),
    (CELL.at(0), "esd_x/people 5/near/lora 300/none/2@0"),
    (keys.Failure(CELL), "esd_x/people 5/near/lora 300/none/2!"),
    (CELL.base(), "base/people 5/2"),
    (CELL.base("near"), "base/people 5/2/near"),
    (CELL.erased(), "erased/esd_x/people 5/2"),
    (CELL.erased("near"), "erased/esd_x/people 5/2/near"),
    (keys.Failure(CELL.edit), "edit/esd_x/people 5/2!"),
    # However a method is called.
    (Cell("base", "a", "b", "c", "d", 0), "base/a/b/c/d/0"),
    (keys.Erased("edit", "erased", 1), "erased/edit/erased/1"),
  ],
)
def test_each_kind_of_key(key, text):
  assert str(key) == text and parse(text) == key


def test_folders_have_plain_names():
  assert CELL.file == "esd_x-people_5-near-lora_300-none-2"
  assert CELL.edit.file == "esd_x-people_5-2"
  assert str(CELL.condition) == "esd_x/people 5/near/lora 300/none"


@pytest.mark.parametrize(
  "text",
  ["", "uce/star", "base/star/x", "base/star/0@3", "base/star/0!", "uce/a@1",
   "a/b/c/d/e/0@x", "a/b/c/d/e/00", "edit/uce/star/0/near", "erased/uce/0"],
)  # fmt: skip
def test_what_is_no_id(text):
  with pytest.raises(ValueError, match="names no cell or row"):
    parse(text)
