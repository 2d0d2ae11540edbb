"""Cells of a study: killed anywhere they end alike, and they fail alone."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from tests.support import resurgence_cases
from tests.support.resurgence_cases import Killed, finish, stubbed, train
from unlearning_jax import checkpoints, sharding
from unlearning_jax.experiments.resurgence import study as studies
from unlearning_jax.experiments.resurgence import summary, tuning
from unlearning_jax.record import workdir


@pytest.fixture
def start(monkeypatch, tmp_path):
  return stubbed(monkeypatch, tmp_path)


def test_every_cell_is_measured_at_every_step(start):
  study = start()
  rows = finish(study)
  cells = study.settings.cells
  assert len(cells) == 4
  for cell in cells:
    assert {str(cell.at(step)) for step in (0, 1, 2, 4)} <= set(rows)
  # The erasure and the base were measured once for all four.
  assert sum(key.startswith("erased/") for key in rows) == 3
  assert sum(key.startswith("base/") for key in rows) == 3
  assert rows["base/star/0"]["right"]["explicit"] == "1111"
  assert rows["erased/uce/star/0"]["right"]["explicit"] == "0000"
  last = rows["uce/star/near/lora/none/0@4"]["right"]["explicit"]
  assert "1" in last
  # A learning rate of nought changes no image.
  for step in (1, 2, 4):
    still = rows[f"uce/star/control/full/none/0@{step}"]["right"]
    assert still["explicit"] == "0000"
  assert not list((study.run.path / "cells").glob("*"))
  again = start()
  assert finish(again) == rows


def test_algorithms_tune_on_data_of_their_own(start, monkeypatch):
  honest, sizes = tuning.data.Batches, []

  def counted(arrays, *arguments):
    sizes.append(len(arrays["mean"]))
    return honest(arrays, *arguments)

  monkeypatch.setattr(tuning.data, "Batches", counted)
  study = start(**{"algorithms.full.data.count": 3})
  cells = study.settings.cells
  finish(study)
  counts = [study.settings.algorithms[c.algorithm].data.count for c in cells]
  assert sizes == counts and set(counts) == {2, 3}


def test_rows_alone_are_gone_on_from(start, monkeypatch, tmp_path):
  whole = finish(start("whole"))
  first, *rest = start("first").settings.cells
  half = start("half")
  finish(half, [first])
  # What a repository keeps of a study: no edit, no checkpoint.
  kept = tmp_path / "kept"
  kept.mkdir()
  for name in ("config.json", "results.jsonl"):
    shutil.copy(half.run.path / name, kept)
  bind, made = studies.erasures.bind, []

  def counted(*arguments):
    made.append(arguments)
    return bind(*arguments)

  study = start("kept")
  monkeypatch.setattr(studies.erasures, "bind", counted)
  finish(study, [first])
  assert not made
  # An edit is made again when a cell that is left needs it, and once.
  for cell in rest:
    finish(study, [cell])
  assert len(made) == 1
  assert {row["id"]: row for row in study.run.rows()} == whole


@pytest.mark.parametrize(
  "target, count",
  [("row", 7), ("row", 13), ("save before", 2), ("save after", 3)],
)
def test_killed_anywhere_it_ends_with_the_same_rows(
  target, count, start, monkeypatch
):
  wanted = finish(start("whole"))
  left = [count]

  def dying(function, *, after):
    def call(*arguments, **named):
      left[0] -= 1
      if left[0] == 0 and not after:
        raise Killed
      found = function(*arguments, **named)
      if left[0] == 0:
        raise Killed
      return found

    return call

  with monkeypatch.context() as patch:
    if target == "row":
      name = workdir.Workdir.append_row
      patch.setattr(workdir.Workdir, "append_row", dying(name, after=True))
    else:
      after = target.endswith("after")
      patch.setattr(checkpoints, "save", dying(checkpoints.save, after=after))
    with pytest.raises(Killed):
      finish(start("cut"))
  done = len(start("cut").rows)
  assert 0 < done < len(wanted)
  assert finish(start("cut")) == wanted


def test_what_is_soon_run_again_is_not_saved(start, monkeypatch):
  saved = []
  monkeypatch.setattr(checkpoints, "save", lambda *_: saved.append(0))
  monkeypatch.setattr(tuning, "SAVE_AFTER", 600)
  rows = finish(start("quick"))
  assert not saved
  monkeypatch.setattr(tuning, "SAVE_AFTER", 0)
  # After every step that is measured, but for the last.
  assert finish(start("slow")) == rows and len(saved) == 4 * 2


@pytest.mark.parametrize(
  "error, words",
  [
    (
      FloatingPointError("loss not finite at step 2"),
      "FloatingPointError: loss",
    ),
    (ValueError("the caption 'a star' says"), "ValueError: the caption"),
  ],
)
def test_a_cell_fails_alone_and_is_not_tried_again(
  error, words, start, monkeypatch
):
  def broken(state, step, frozen, batches, key, **options):
    if frozen["rate"] == 0:
      raise error
    return train(state, step, frozen, batches, key, **options)

  monkeypatch.setattr(tuning.loop, "train", broken)
  rows = finish(start())
  failed = {key: row for key, row in rows.items() if "failed" in row}
  assert set(failed) == {
    f"uce/star/control/{name}/none/0!" for name in ("lora", "full")
  }
  assert all(words in row["failed"] for row in failed.values())
  assert "uce/star/near/full/none/0@4" in rows
  monkeypatch.setattr(tuning.loop, "train", train)
  assert finish(start()) == rows


@pytest.mark.parametrize("broken", ["train", "erase"])
def test_what_the_runtime_fails_of_is_tried_again(broken, start, monkeypatch):
  wanted, left = finish(start("whole")), [2]
  bind = studies.erasures.bind

  def dying(function):
    def call(*arguments, **options):
      left[0] -= 1
      if left[0] < 0:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
      return function(*arguments, **options)

    return call

  with monkeypatch.context() as patch:
    if broken == "train":
      patch.setattr(tuning.loop, "train", dying(train))
    else:
      left[0] = 0
      patch.setattr(studies.erasures, "bind", lambda *a: dying(bind(*a)))
    study = start("cut")
    rows = finish(study)
  ended = [study.store.ended(cell) for cell in study.settings.cells]
  assert ended == [broken == "train"] * 2 + [False] * 2
  assert not any("failed" in row for row in rows.values())
  del study  # Its rows are its own while it is there.
  assert finish(start("cut")) == wanted


def test_a_checkpoint_outlives_what_the_runtime_fails_of(start, monkeypatch):
  wanted = finish(start("whole"))
  measure = studies.Study.measure

  def failing(study, key, *arguments, **options):
    if str(key) == "uce/star/near/lora/none/0@2":
      raise jax.errors.JaxRuntimeError("INTERNAL: a device was lost")
    measure(study, key, *arguments, **options)

  monkeypatch.setattr(studies.Study, "measure", failing)
  study = start("cut")
  finish(study)
  folder = study.run.path / "cells" / "uce-star-near-lora-none-0"
  assert checkpoints.latest_step(folder) == 1
  del study
  monkeypatch.setattr(studies.Study, "measure", measure)
  assert finish(start("cut")) == wanted and not folder.exists()


def test_an_erasure_has_this_process_s_devices(start, monkeypatch):
  sizes, bind = [], studies.erasures.bind

  def erase(*arguments):
    sizes.append(sharding.make_mesh().size)
    return bind()(*arguments)

  study = start()
  monkeypatch.setattr(studies.erasures, "bind", lambda *_: erase)
  monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
  study.edit_of(study.settings.cells[0])
  assert sizes == [2] and sharding.make_mesh().size == 8


def test_processes_do_not_meet_in_a_study_s_checkpoints(start, monkeypatch):
  wanted, study = finish(start("whole")), start("one of two")

  def waits(*_):
    raise AssertionError("all processes must be here")

  for name in ("save", "restore", "latest_step"):
    monkeypatch.setattr(checkpoints, name, waits)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  assert finish(study) == wanted


def test_a_concept_that_the_base_cannot_draw(start):
  rows = finish(start(base=0.1))
  assert len([key for key in rows if key.endswith("!")]) == 4
  why = rows["uce/star/near/lora/none/0!"]["failed"]
  assert "the base shows the concept in 0.00" in why and "floor=0.5" in why


def test_the_base_instead_of_an_erased_model_is_refused(start):
  rows = finish(start(base=0.0, floor=0.0))
  why = rows["uce/star/near/lora/none/0!"]["failed"]
  assert "the model to tune is the base itself" in why


@pytest.mark.parametrize(
  "broken, failing",
  [
    # The erased model, and a tuned one after the last step.
    (lambda value: value < 0.1, ("near", "control")),
    (lambda value: 0.4 < value < 1, ("near",)),
  ],
)
def test_a_model_that_draws_no_pictures_fails_its_cells(
  broken, failing, start, monkeypatch
):
  """Its pictures do not show the concept either."""

  def draw(sd, tree, requests, how, **options):
    del sd, how, options
    value = resurgence_cases.value_of(tree)
    image = np.zeros((8, 8, 3), np.uint8)
    if not broken(value):
      image[:] = np.arange(8)[:, None] * 30
      image[0, 0] = 255 * (value > 0.2)
    yield np.stack([image] * len(requests))

  monkeypatch.setattr(studies.sampling, "draw", draw)
  monkeypatch.setattr(
    resurgence_cases.Label,
    "__init__",
    lambda self, image: setattr(self, "_seen", bool(image[0, 0, 0] == 255)),
  )
  study = start()
  rows = finish(study)
  why = {key: row["failed"] for key, row in rows.items() if "failed" in row}
  assert set(why) == {
    f"uce/star/{name}/{how}/none/0!"
    for name in failing
    for how in ("lora", "full")
  }
  for said in why.values():
    assert "the model collapsed: " in said and "pictures have one color" in said
  document = summary.document(study)
  assert len(document["failed"]) == len(why)
  assert document["cells"]["measured"] == 4 - len(why)
  assert finish(start()) == rows


@pytest.mark.parametrize("what", ["edit", "tuning"])
def test_a_model_far_from_its_base_fails_its_cells(what, start, monkeypatch):
  """Its pictures have all colors, and show nothing."""
  if what == "edit":
    (path,) = (f"unet/{resurgence_cases.KERNEL}",)
    edit = studies.erasures.bind()()
    huge = dataclasses.replace(edit, leaves={path: edit.leaves[path] - 1e30})
    monkeypatch.setattr(studies.erasures, "bind", lambda *_: lambda *_: huge)
  else:

    def drift(self, _):
      return {"moved": 1e6 if self.own.optimizer.learning_rate else 0.0}

    monkeypatch.setattr(tuning.Tuning, "_drift", drift)
  rows = finish(start())
  why = [row["failed"] for row in rows.values() if "failed" in row]
  assert len(why) == (4 if what == "edit" else 2)
  assert all("the model collapsed" in said for said in why)
  assert not any(key.startswith("erased") for key in rows) or what == "tuning"


def test_an_erasure_that_fails_is_not_tried_again(start, monkeypatch):
  tried = []

  def diverge(*_):
    tried.append(0)
    raise FloatingPointError("training: loss not finite at step 3")

  study = start()
  monkeypatch.setattr(studies.erasures, "bind", lambda *_: diverge)
  rows = finish(study)
  assert finish(start()) == rows and len(tried) == 1
  failed = [key for key, row in rows.items() if "failed" in row]
  assert len(failed) == 5 and failed[0] == "edit/uce/star/0!"
  assert all("not finite at step 3" in rows[key]["failed"] for key in failed)
