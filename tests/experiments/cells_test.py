"""Cells: each runs once, fails alone, and is one process's."""

import functools
import logging

import jax
import pytest

from unlearning_jax import durable, processes
from unlearning_jax.experiments import cells
from unlearning_jax.record import Memory, Workdir


def rows(run):
  """A store whose cells are letters; a cell ends with its row of that name."""
  return cells.Rows[str](
    run, lambda c: c, lambda c: f"{c}!", lambda c: run.path / "going" / c
  )


def worked(store, done, errors, some):
  """Ends cells, or fails as `errors` says of them."""
  for cell in some:
    done.append(cell)
    if cell in errors:
      raise errors[cell]
    if isinstance(store, cells.Rows):
      store.record({"id": cell})
    else:
      store.folder(cell).mkdir(parents=True, exist_ok=True)
      (store.folder(cell) / "DONE").touch()


def run(store, errors=(), names="abc", **options):
  done = []
  work = functools.partial(worked, store, done, dict(errors))
  cells.run(store, [*names], work, **options)
  return done


@pytest.fixture(params=["rows", "folders"])
def start(request, tmp_path):
  """Opens a store as a fresh process would."""
  if request.param == "folders":
    return lambda: cells.Folders[str](tmp_path)
  run = Memory(quiet=True)
  return lambda: rows(run)


def test_a_cell_that_has_ended_is_not_run_again(start):
  after = []
  assert run(start(), after=lambda: after.append(0)) == [*"abc"]
  assert len(after) == 3
  assert run(start(), names="abcd", after=lambda: after.append(0)) == ["d"]
  assert len(after) == 4


def test_a_cell_fails_alone_and_says_why(start):
  store = start()
  assert run(store, {"b": ValueError("too\nlong")}) == [*"abc"]
  assert set(store.failed) == {"b"} and store.why("b").endswith("long")
  again = start()
  # A folder may have been mended; a row is for good.
  tried = ["b"] if isinstance(again, cells.Folders) else []
  assert run(again) == tried and not again.failed
  assert bool(again.why("b")) == (not tried)


def test_what_the_runtime_fails_of_is_tried_again(start, caplog):
  error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")
  with caplog.at_level(logging.WARNING):
    assert run(start(), {"b": error}) == [*"abc"]
  assert "RESOURCE_EXHAUSTED" in caplog.text
  assert run(start()) == ["b"]


@pytest.mark.parametrize(
  "cause",
  [
    OSError(28, "No space left on device"),
    MemoryError(),
    processes.PartedError("process 0 waits at 'a'"),
  ],
)
def test_an_error_of_the_machine_is_no_cell_s_own(start, cause):
  error = ValueError("a library's own words")
  error.__cause__ = cause
  store = start()
  with pytest.raises(ValueError, match="own words"):
    run(store, {"b": error})
  assert not store.failed and not store.why("b")
  # Some libraries quote it only.
  with pytest.raises(ValueError, match="No space"):
    run(start(), {"b": ValueError("write failed: No space left on device")})
  assert run(start()) == ["b", "c"]


def test_a_damaged_file_fails_no_cell_for_good(start, caplog):
  error = durable.DamagedError("edit.safetensors is not a safetensors file")
  with caplog.at_level(logging.WARNING):
    assert run(start(), {"b": error}) == [*"abc"]
  assert "edit.safetensors" in caplog.text
  assert run(start()) == ["b"]


def test_another_error_ends_a_record_s_run_and_not_a_folder_s(tmp_path):
  error = {"b": TypeError("a slip")}
  assert run(cells.Folders[str](tmp_path), error) == [*"abc"]
  store = rows(Memory(quiet=True))
  with pytest.raises(TypeError, match="a slip"):
    run(store, error)
  assert not store.failed


def test_a_finished_folder_that_is_another_run_s(tmp_path):
  def check(cell):
    if cell == "b":
      raise ValueError("another budget")

  run(cells.Folders[str](tmp_path))
  store = cells.Folders[str](tmp_path, check=check)
  assert run(store) == [] and store.why("b").endswith("another budget")
  assert run(cells.Folders[str](tmp_path)) == []
  assert cells.Folders[str](tmp_path).why("b") == ""


def test_cells_of_a_pack_fail_apart_and_leave_nothing_to_go_on_from():
  store = rows(Memory(quiet=True))
  for cell in "abc":
    (store.run.path / "going" / cell).mkdir(parents=True)

  def work(some):
    for cell in some:
      with cells.failing(store, cell):
        if cell == "b":
          raise FloatingPointError("not finite")
        if cell == "c":
          raise jax.errors.JaxRuntimeError("lost")
        store.record({"id": cell})

  cells.run(store, [*"ab"], work, pack=lambda left: [left])
  cells.run(store, ["c"], work)
  assert [r["id"] for r in store.run.rows()] == ["a", "b!"]
  kept = [path.name for path in (store.run.path / "going").iterdir()]
  assert kept == ["c"] and store.left("abc") == ["c"]


def test_processes_share_cells_that_go_together(monkeypatch):
  names = ["a0", "b0", "a1", "c0", "b1"]
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  shares = []
  for index in range(2):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    shares.append(cells.share(names, lambda name: name[0]))
  assert shares == [["a0", "a1", "c0"], ["b0", "b1"]]
  monkeypatch.setattr(jax, "process_index", lambda: 0)
  assert cells.share(names) == ["a0", "a1", "b1"]


def test_what_another_process_has_ended(tmp_path):
  mine = rows(Workdir(tmp_path, {}, process_index=0, process_count=2))
  other = rows(Workdir(tmp_path, {}, process_index=1, process_count=2))
  run(mine, names="a")
  run(other, {"c": ValueError("no")}, names="bc")
  assert mine.left("abcd") == ["d"]
