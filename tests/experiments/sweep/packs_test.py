"""Cells that run at once: each is the run that it is alone."""

import functools
import json

import jax
import pytest

from tests.experiments import erase_test
from tests.experiments.sweep.workers_test import starts, table
from tests.support import toy_sweep
from unlearning_jax import durable, settings
from unlearning_jax.edits import load_edit
from unlearning_jax.experiments import erase, sweep
from unlearning_jax.experiments.sweep import verbs
from unlearning_jax.experiments.sweep import workers as runs
from unlearning_jax.finetune import together
from unlearning_jax.record import leases


@pytest.fixture
def packs(monkeypatch):
  """The packs that began, as the x of their cells."""
  begun = []

  def begin(some):
    begun.append([one.given.x for one in some])
    rest: list[verbs.Rest] = [None] * len(some)
    for i, one in enumerate(some):
      with one.failing():
        one.opened()
        if one.given.name == "early":
          raise ValueError("fails at the start")
        rest[i] = functools.partial(toy_sweep.run, one.given, one.opened, "")
    return rest

  pack = verbs.Pack(lambda given: given.scale, begin)
  toy = verbs.Verb(toy_sweep.Settings, toy_sweep.run, pack=pack)
  monkeypatch.setitem(verbs.VERBS, "toy", toy)
  monkeypatch.setattr(runs, "_LOOK_S", 0.01)
  return begun


def test_cells_of_a_kind_run_at_once(packs, tmp_path):
  grid = [("x", [0, 1, 2, 3, 4]), ("scale", [1.0, 2.0])]
  planned = sweep.plan("toy", toy_sweep.base(), grid)
  assert sweep.run(planned, tmp_path, pack=3) == 0
  # Those that are left of a kind run together too, and one alone begins none.
  assert sorted(packs) == [[0, 1, 2], [0, 1, 2], [3, 4], [3, 4]]
  assert starts(tmp_path) == {cell.id: 1 for cell in planned.cells}
  assert [row["state"] for row in table(tmp_path)] == ["done"] * 10
  costs = [tmp_path / "cells" / one.id / "cost.json" for one in planned.cells]
  assert all(cost.exists() for cost in costs)
  packs.clear()
  assert sweep.run(planned, tmp_path, pack=3) == 0 and not packs


def test_one_that_fails_leaves_the_others(packs, tmp_path):
  grid = [("name", ["good", "early", "bad", "well"])]
  planned = sweep.plan("toy", toy_sweep.base(), grid)
  assert sweep.run(planned, tmp_path, pack=4) == 2
  rows = {row["name"]: row for row in table(tmp_path)}
  assert {name: row["state"] for name, row in rows.items()} == {
    "good": "done", "early": "failed", "bad": "failed", "well": "done",
  }  # fmt: skip
  assert rows["early"]["error"] == "ValueError: fails at the start"
  assert rows["bad"]["error"] == "comes of it"


def test_one_that_another_worker_has_is_left_to_it(
  packs, tmp_path, monkeypatch
):
  planned = toy_sweep.plan(3)
  packs_of_toy, lost = verbs.VERBS["toy"].pack, []
  assert packs_of_toy is not None

  def begin_and_lose(some):
    (tmp_path / "leases" / f"{planned.cells[1].id}.2").write_text("{}\n")
    rest = packs_of_toy.begin(some)
    with some[1].failing():
      lost.append(True)
    return rest

  pack = verbs.Pack(lambda given: 0, begin_and_lose)
  toy = verbs.Verb(toy_sweep.Settings, toy_sweep.run, pack=pack)
  monkeypatch.setitem(verbs.VERBS, "toy", toy)

  def waits(seconds):
    raise KeyboardInterrupt

  monkeypatch.setattr(runs, "_sleep", waits)
  with pytest.raises(KeyboardInterrupt):
    sweep.run(planned, tmp_path, pack=3)
  assert lost
  done = [(tmp_path / "cells" / c.id / "DONE").exists() for c in planned.cells]
  assert done == [True, False, True]
  assert not list(tmp_path.glob("cells/*/failed.txt"))


def test_a_worker_takes_no_more_than_a_pack(packs, tmp_path):
  planned = toy_sweep.plan(3)
  taken = []

  class Counting(leases.Leases):
    def take(self, name):
      taken.append(name)
      return super().take(name)

  assert sweep.run(planned, tmp_path, pack=2, held=Counting) == 0
  assert taken == [cell.id for cell in planned.cells]
  assert packs == [[0, 1]]


def raising(error, wanted=1):
  """A pack whose shared part, or a cell's own, fails."""

  def begin(some):
    if wanted is None:
      raise error
    with some[wanted].failing():
      raise error
    rest = [
      functools.partial(toy_sweep.run, one.given, one.opened, "")
      for one in some
    ]
    return rest

  return verbs.Verb(
    toy_sweep.Settings, toy_sweep.run, pack=verbs.Pack(lambda given: 0, begin)
  )


@pytest.mark.parametrize(
  "error",
  [
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"),
    durable.DamagedError("checkpoint: damaged"),
  ],
)
def test_one_that_the_machine_failed_is_left_for_the_next_start(
  tmp_path, monkeypatch, error
):
  monkeypatch.setitem(verbs.VERBS, "toy", raising(error))
  planned = toy_sweep.plan(3)
  assert sweep.run(planned, tmp_path, pack=3) == 1
  assert [row["state"] for row in table(tmp_path)] == [
    "done",
    "not run",
    "done",
  ]
  assert sweep.run(planned, tmp_path, pack=3) == 0


@pytest.mark.parametrize("kind", [ValueError, jax.errors.JaxRuntimeError])
def test_what_fails_together_is_tried_one_by_one(tmp_path, monkeypatch, kind):
  """As where a device has memory for one, and not for all."""
  monkeypatch.setitem(verbs.VERBS, "toy", raising(kind("too much"), None))
  assert sweep.run(toy_sweep.plan(3), tmp_path, pack=3) == 0
  assert [row["state"] for row in table(tmp_path)] == ["done"] * 3


class Killed(BaseException):
  pass


def test_real_erasures_have_the_rows_that_they_have_alone(
  tmp_path, monkeypatch
):
  """Killed on the way, and begun again."""
  values = settings.plain(erase_test.settings())
  base = sweep.Base(lambda options: values)
  grid = [("seed", [0, 1, 2])]
  planned = sweep.plan("erase", base, grid)
  assert sweep.run(planned, tmp_path / "alone") == 0
  keep, kept = erase.keep, []

  def dying(path, *args, **options):
    if len(kept) == 1:
      raise Killed
    kept.append(path)
    keep(path, *args, **options)

  with monkeypatch.context() as patch:
    patch.setattr(erase, "keep", dying)
    with pytest.raises(Killed):
      sweep.run(planned, tmp_path / "packed", pack=3)
  packed = []
  train = together.train_together

  def counted(members, shown):
    packed.append(len(members))
    return train(members, shown)

  monkeypatch.setattr(together, "train_together", counted)
  assert sweep.run(planned, tmp_path / "packed", pack=3) == 0
  # The edit that was made before the kill is not made again.
  assert packed == [2]
  for cell in planned.cells:
    alone, one = (tmp_path / n / "cells" / cell.id for n in ("alone", "packed"))
    for name in ("edit.safetensors", "results.jsonl", "summary.json"):
      assert (alone / name).exists() and (one / name).exists(), name
    assert leaves(alone) == leaves(one)
    assert rows(alone) == rows(one)


def leaves(folder):
  tensors = load_edit(folder / "edit.safetensors").tensors
  return {path: leaf.tolist() for path, leaf in tensors.items()}


def rows(folder):
  lines = (folder / "results.jsonl").read_text().splitlines()
  found = {row["id"]: row for row in map(json.loads, lines)}
  return {key: row["right"] for key, row in found.items() if "right" in row}


@pytest.mark.parametrize("pack", [0, -1])
def test_a_pack_that_is_none(packs, tmp_path, pack):
  with pytest.raises(ValueError, match=f"--pack={pack}: must be 1 or more"):
    sweep.run(toy_sweep.plan(1), tmp_path, pack=pack)


def test_a_verb_without_packs_is_refused(tmp_path, monkeypatch):
  toy_sweep.install(monkeypatch)
  with pytest.raises(
    ValueError,
    match=r"--pack=2: cells of toy run one by one; .*\(packs are for: erase\)",
  ):
    sweep.run(toy_sweep.plan(1), tmp_path / "new", pack=2)
  assert not (tmp_path / "new").exists()
