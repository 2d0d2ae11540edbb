"""A trained erasure that is killed: what it says, keeps and goes on from."""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support import narrow, scripts
from unlearning_jax import finetune
from unlearning_jax.edits import edit_hash, load_edit
from unlearning_jax.experiments import hooks as recording
from unlearning_jax.record.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]


def losses(path):
  lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
  return {line["step"]: line["loss"] for line in lines}


class Killed(Exception):
  pass


def train(trainer, killed_at=None, seen=None):
  """Five steps on noise of each step's own key, or fewer."""

  class Rows:
    def __getitem__(self, step):
      if seen is not None:
        seen.append(step)
      if step == killed_at:
        raise Killed
      return {"x": np.full((1, 3), step, np.float32)}

  def loss(params, frozen, batch, key):
    goal = frozen + batch["x"][0] + jax.random.normal(key, (3,))
    return jnp.square(params["w"] - goal).mean(), {}

  return trainer(
    loss, optax.adam(0.1), {"w": jnp.ones(3)}, jnp.arange(3.0), Rows(),
    jax.random.key(1), batch_size=1, num_steps=5,
  )["w"]  # fmt: skip


@pytest.mark.parametrize("killed_at", [1, 3, 4])
def test_a_killed_training_ends_with_the_same_weights(
  killed_at, tmp_path, capfd
):
  def trainer(name):
    return recording.recorded(Workdir(tmp_path / name, {}), 2).trainer

  wanted = train(finetune.train_erasure)
  np.testing.assert_array_equal(train(trainer("whole")), wanted)
  with pytest.raises(Killed):
    train(trainer("cut"), killed_at)
  capfd.readouterr()
  seen = []
  np.testing.assert_array_equal(train(trainer("cut"), seen=seen), wanted)
  assert seen == list(range(killed_at // 2 * 2, 5))
  whole, cut = (losses(tmp_path / name) for name in ("whole", "cut"))
  assert list(whole) == [2, 4, 5] and cut == whole
  assert "train  5/5" in capfd.readouterr().err


def test_a_second_training_does_not_go_on_from_the_first(tmp_path):
  hooks, seen = recording.recorded(Workdir(tmp_path, {}), 2), []
  train(hooks.trainer)
  train(hooks.trainer, seen=seen)
  assert seen == [0, 1, 2, 3, 4]


def test_what_was_drawn_is_not_drawn_again(tmp_path):
  run = Workdir(tmp_path, {})
  hooks, made = recording.recorded(run, 2), []

  def make(i):
    if len(made) == 2:
      raise Killed
    made.append(i)
    return np.full((2, 1), i, np.float32)

  with pytest.raises(Killed):
    hooks.collect("anchors", 3, make)
  made[:] = []
  found = hooks.collect("anchors", 3, make)
  assert made == [2] and np.array_equal(np.ravel(found), [0, 0, 1, 1, 2, 2])
  train(hooks.trainer)
  kept = {path.name for path in tmp_path.iterdir()}
  recording.tidy(run)
  left = {path.name for path in tmp_path.iterdir()}
  assert kept - left == {"checkpoints", "drawn"}


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("method", ["esd", "concept_ablation"])
def test_a_killed_run_ends_with_the_same_edit(method, tmp_path):
  def start(name):
    hparams = {"num_steps": 40, "num_inference_steps": 2, "batch_size": 2}
    hparams |= {"num_images": 23} if method == "concept_ablation" else {}
    return scripts.Run(
      "erase", "--checkpoint_every=2", f"--workdir={tmp_path / name}",
      f"--config=configs/erase_{method}.py:tiny", "--edit_only",
      *(f"--config.hparams.{k}={v}" for k, v in hparams.items()),
      model=narrow.folder(),
    )  # fmt: skip

  start("whole").finish()
  process = start("cut")
  while not (tmp_path / "cut" / "checkpoints" / "2").exists():
    assert process.returncode is None, process.stderr[-2000:]
    time.sleep(0.05)
  process.kill()
  assert not (tmp_path / "cut" / "edit.safetensors").exists()
  start("cut").finish()
  # Every tensor's bytes.
  hashes = {
    edit_hash(load_edit(folder / "edit.safetensors"))
    for folder in (tmp_path / "whole", tmp_path / "cut")
  }
  assert len(hashes) == 1
  assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
  names = {path.name for path in (tmp_path / "cut").iterdir()}
  assert "DONE" in names and not names & {"checkpoints", "drawn"}
