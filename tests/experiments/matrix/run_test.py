"""A matrix of attacks: what it refuses at once, and a whole small one."""

import csv
import json

import pytest
from unlearning_jax.configs import attack_matrix_shapes

from tests.support import scripts
from unlearning_jax import settings
from unlearning_jax.durable import DamagedError
from unlearning_jax.experiments.matrix import (
  Cell,
  Erased,
  Matrix,
  Settings,
  run,
)
from unlearning_jax.record import Workdir, seal

SMALL = [
  "--config.common.rows_per_group=2",
  "--config.common.lanes=2",
  "--config.common.batch_size=2",
  "--config.common.sampling.num_inference_steps=2",
  "--config.budget.blocks=1",
  "--config.columns=('none', 'random')",
]


def make_config(tasks="object"):
  return attack_matrix_shapes.get_config(tasks)


def built(config) -> Settings:
  return settings.build(Settings, config.to_dict())


@pytest.mark.parametrize(
  "change, words",
  [
    (
      {"attacks.unlearn_diff_atk.hparams.noise": "frosen"},
      "base/unlearn_diff_atk: noise='frosen'",
    ),
    ({"attacks.p4d.hparams.timesteps": "up"}, "base/p4d: timesteps='up'"),
    (
      {"attacks.unlearn_diff_atk.hparams.decay": "none"},
      "base/unlearn_diff_atk: decay='none'",
    ),
    (
      {"tasks.object.hparams.num_tokens": 80},
      "base/none: .*long_prompts='error'",
    ),
    (
      {"common.sampling.num_inference_steps": 0},
      "base/none: num_inference_steps=0",
    ),
  ],
)
def test_a_column_that_would_fail_in_every_cell(change, words, tmp_path):
  """Told by what makes the matrix, before an erasure or a cell."""
  config = make_config("object")
  config.common.rows_per_group, config.common.long_prompts = 2, "error"
  config.attacks.none.hparams.kind = "random"
  config.update_from_flattened_dict(change)
  given = built(config)
  with pytest.raises(ValueError, match=words):
    Matrix(given, tmp_path, {})
  assert not [*tmp_path.iterdir()]


def test_a_finished_cell_of_another_table(tmp_path):
  config = make_config()
  config.common.rows_per_group, config.columns = 2, ("none", "random")
  matrix = Matrix(built(config), tmp_path, {})
  for name, inputs in {"none": {}, "random": {"prompt_table": "a"}}.items():
    cell = Cell("object", "base", name)
    run = Workdir(tmp_path / str(cell), matrix.settings.config(cell))
    run.record_provenance(devices={}, inputs=inputs)
    run.mark_done()
  matrix.store.check(Cell("object", "base", "none"))
  with pytest.raises(ValueError, match="inputs.prompt_table: 'a' -> "):
    matrix.store.check(Cell("object", "base", "random"))


def test_what_the_next_start_tries_again_is_counted(tmp_path, monkeypatch):
  """An edit with a flipped bit leaves its cells without a result."""
  config = make_config()
  config.common.rows_per_group, config.columns = 2, ("none", "random")

  def work(self, some):
    (cell,) = some
    if cell.victim == "uce":
      raise DamagedError("edit.safetensors is damaged")
    self.store.folder(cell).mkdir(parents=True)
    (self.store.folder(cell) / "DONE").touch()

  monkeypatch.setattr(Matrix, "run", work)
  monkeypatch.setattr(Matrix, "erase", lambda *_: None)
  monkeypatch.setattr(Matrix, "conclude", lambda _: "")
  assert run(built(config), tmp_path, {}) == 2


def test_an_edit_of_a_killed_start_is_sealed(tmp_path):
  config = make_config()
  config.common.rows_per_group = 2
  matrix = Matrix(built(config), tmp_path, {})
  for name in ("uce", "rece"):
    (tmp_path / "object" / name).mkdir(parents=True)
  edit = tmp_path / "object" / "uce" / "edit.safetensors"
  edit.write_bytes(b"some tensors")
  matrix.seal([Erased("object", name) for name in ("uce", "rece")])
  assert not (tmp_path / "object" / "rece" / "DONE").exists()
  edit.write_bytes(b"some tensorS")
  with pytest.raises(DamagedError, match="edit.safetensors is damaged"):
    seal.check_file(edit)


def test_a_changed_target_image_is_noticed(tmp_path, monkeypatch):
  config = make_config()
  config.common.rows_per_group = 2
  matrix, folder = (
    Matrix(built(config), tmp_path, {}),
    tmp_path / "object/targets",
  )
  folder.mkdir(parents=True)
  image = folder / "a.png"

  def draw(task):
    assert task == "object"
    image.write_bytes(b"some pixels")

  monkeypatch.setattr(matrix, "_table", draw)
  for path in (image, folder / "b.png"):
    path.write_bytes(b"some pixels")
  matrix.seal_targets()
  matrix.open()
  image.write_bytes(b"some pixelS")
  words = f"a.png is damaged: .*delete {image} and {folder / 'DONE'}, and run"
  with pytest.raises(DamagedError, match=words):
    matrix.open()
  # What the message says to do works.
  image.unlink()
  (folder / "DONE").unlink()
  matrix.open()
  matrix.seal_targets()
  assert image.exists() and {*seal.entries(folder / "DONE")} == {
    "a.png",
    "b.png",
  }


def launch(folder, *more):
  config = "--config=configs/attack_matrix_shapes.py:object"
  return scripts.run(
    "attack_matrix", config, f"--workdir={folder}", *SMALL, *more
  )


def state(folder):
  """When each cell's rows were last written, and how often it started."""
  return {
    path.parent.relative_to(folder): (
      path.stat().st_mtime_ns,
      len(json.loads((path.parent / "provenance.json").read_text())["runs"]),
    )
    for path in folder.rglob("results.jsonl")
  }


@pytest.mark.slow
@pytest.mark.e2e
def test_a_failing_cell_does_not_stop_the_others(tmp_path):
  # Rows of nobody knows what: this cell cannot be opened.
  odd = tmp_path / "object/uce/random/results.jsonl"
  odd.parent.mkdir(parents=True)
  odd.write_text('{"id": "a"}\n')
  result = launch(tmp_path)
  assert result.returncode == 3 and "1 cells failed" in result.stderr
  with open(tmp_path / "results.csv") as file:
    table = {(r["victim"], r["attack"]): r for r in csv.DictReader(file)}
  failed = {key for key, row in table.items() if row["status"] == "failed"}
  assert failed == {("uce", "random")} and len(table) == 6
  assert "no config.json" in table["uce", "random"]["error"]
  done = [row for row in table.values() if row["status"] == "done"]
  assert len(done) == 5 and all(row["n_all"] == "2" for row in done)
  odd.unlink()
  before = state(tmp_path)
  # Mended, the cell runs; the five others are left as they are.
  result = launch(tmp_path)
  assert result.returncode == 0, result.stderr[-2000:]
  after = state(tmp_path)
  assert len(after) == 6 and {k: after[k] for k in before} == before
  assert "6 of 6 cells are done" in result.stdout
  # Targets and the rows' own images were drawn once, by the first attack.
  targets = tmp_path / "object/targets"
  assert len(list(targets.glob("*.png"))) == 2
  assert len(seal.entries(targets / "DONE")) == 2
  lines = (odd.parent / "results.jsonl").read_text().splitlines()
  for row in map(json.loads, lines):
    assert row["pre_image"].startswith("../none/images/")
  # A finished cell is not taken for another: the config that differs is named.
  result = launch(tmp_path, "--config.budget.blocks=2")
  assert result.returncode == 3 and "6 cells failed" in result.stderr
  assert "hparams.blocks: 1 -> 2" in (odd.parent / "failed.txt").read_text()
  assert state(tmp_path) == after
