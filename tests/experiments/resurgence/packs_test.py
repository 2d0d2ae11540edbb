"""Cells of a study packed in one program: rows and failures of their own."""

import jax
import numpy as np
import pytest

from tests.support.resurgence_cases import (
  BLOCK,
  Killed,
  finish,
  prepare,
  stubbed,
)
from unlearning_jax import finetune
from unlearning_jax.experiments.resurgence import tuning
from unlearning_jax.finetune import packed
from unlearning_jax.record import workdir

TRAIN, PACK = finetune.train, packed.pack


@pytest.fixture
def start(monkeypatch, tmp_path):
  return stubbed(monkeypatch, tmp_path)


@pytest.fixture
def trained(start, monkeypatch):
  """Trains for real, by a step that pushes as the stub does, on one device."""
  del start  # Whose stubs it takes the place of.
  monkeypatch.setattr(tuning.loop, "train", TRAIN)
  device = jax.local_devices()[:1]
  monkeypatch.setattr(jax, "local_devices", lambda: device)

  def step(state, frozen, batch, key):
    del key
    pushed = frozen["rate"] * batch["mean"].mean()
    leaves = {k: x + pushed for k, x in state.params.items()}
    state = finetune.TrainState(state.step + 1, leaves, (), ())
    return state, {"loss": pushed, "gradient_norm": pushed}

  def prepared(*arguments):
    part, _, state, frozen = prepare(*arguments)
    return part, step, state, {"empty": np.zeros(1), "rate": frozen["rate"]}

  monkeypatch.setattr(tuning.finetune, "prepare", prepared)


@pytest.mark.usefixtures("trained")
def test_packed_cells_have_the_rows_they_have_alone(start, monkeypatch):
  alone = finish(start("alone"))
  made = []

  def counted(states):
    made.append(len(states))
    return PACK(states)

  monkeypatch.setattr(tuning.packed, "pack", counted)
  assert finish(start("packed", pack=2)) == alone and made == [2]
  # Killed between two cells of a pack; then they are not as far as each other.
  with monkeypatch.context() as patch:
    name, left = workdir.Workdir.append_row, [12]

    def dying(*arguments):
      name(*arguments)
      left[0] -= 1
      if not left[0]:
        raise Killed

    patch.setattr(workdir.Workdir, "append_row", dying)
    with pytest.raises(Killed):
      finish(start("cut", pack=2))
  steps = [key for key in start("cut", pack=2).rows if "@" in key]
  assert steps[-1] == "uce/star/control/lora/none/0@2"
  assert finish(start("cut", pack=2)) == alone and made == [2, 2]
  # On two devices, three runs and the last once more.
  devices = jax.devices()[:2]
  monkeypatch.setattr(jax, "local_devices", lambda: devices)
  block = BLOCK | {"sets": ("near", "control", "same")}
  changes = {"blocks": (block,), "algorithms.full.train": "lora"}
  rows = finish(start("devices", pack=3, **changes))
  assert made[2:] == [4, 4] and alone.items() <= rows.items()


@pytest.mark.usefixtures("trained")
def test_a_packed_cell_fails_alone(start, monkeypatch):
  alone, honest = finish(start("alone")), tuning.finetune.prepare

  def breaking(sd, erased, edit, own, mesh):
    *parts, frozen = honest(sd, erased, edit, own, mesh)
    if own.optimizer.learning_rate == 0:
      frozen["rate"] = np.float32("nan")
    return *parts, frozen

  monkeypatch.setattr(tuning.finetune, "prepare", breaking)
  rows = finish(start("packed", pack=2))
  why = rows["uce/star/control/lora/none/0!"]["failed"]
  assert why.endswith("loss or gradient not finite at step 1")
  near = {key for key in alone if "/near/lora" in key}
  assert len(near) == 4 and all(rows[key] == alone[key] for key in near)
