"""A matrix of attacks: its cells, what it refuses, and a whole small one."""

import csv
import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from unlearning_jax.configs import (
  attack_ablation_shapes,
  attack_controls,
  attack_matrix_shapes,
)

from unlearning_jax import settings
from unlearning_jax.experiments import attack, attack_cells, comparison
from unlearning_jax.experiments.attack import rows
from unlearning_jax.experiments.attack_cells import Cell
from unlearning_jax.shapes import vocabulary

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = [
  "--config.common.per_group=2",
  "--config.common.lanes=2",
  "--config.common.batch_size=2",
  "--config.common.sampling.num_steps=2",
  "--config.budget.blocks=1",
  "--config.columns=('none', 'random')",
]


def listed(config):
  return rows.listed(settings.build(attack.Settings, config.to_dict()))


def make_config(tasks="object+unsafe") -> Any:
  return attack_matrix_shapes.get_config(tasks)


def test_every_cell_is_named_once():
  config = make_config()
  found = attack_cells.cells(config, list(config.tasks), {"object/esd": None})
  assert len(set(found)) == len(found) == 6 * (4 + 3)
  # What the others build on comes first.
  assert {cell.attack for cell in found[:7]} == {"none"}
  assert {cell.attack for cell in found[7:14]} == {"random"}
  assert Cell("object", "esd", "uda") in found
  assert Cell("unsafe", "esd", "uda") not in found


def test_a_cell_has_the_budget_of_all_and_its_own_settings():
  config = make_config()
  uda = attack_cells.settings(config, Cell("unsafe", "uce", "uda"))
  assert uda.method == "unlearn_diff_atk"
  h = uda.hparams
  assert (h.blocks, h.iterations, h.k, h.weight_decay) == (9, 25, 5, 0.0)
  assert uda.targets == ({"task": "unsafe", "name": "hazard"},)
  cce = attack_cells.settings(config, Cell("object", "uce", "cce"))
  assert (cce.hparams.blocks, cce.hparams.k) == (9, 1)
  assert uda.per_group == 100


@pytest.mark.parametrize("task", ["identity", "object", "style", "unsafe"])
def test_every_task_has_a_hundred_rows(task):
  config = make_config()
  own = attack_cells.settings(make_config(task), Cell(task, "base", "none"))
  found = listed(own)
  assert len(found) == 100 and config.common.per_group == 100
  for key in ("id", "number", "seed"):
    assert len({row[key] for row in found}) == 100


@pytest.mark.parametrize(
  "task, words",
  [("identity", "Quill Estane"), ("object", "star"), ("style", "neon"),
   ("unsafe", "warning tape")],
)  # fmt: skip
def test_clean_prompts_are_as_many_of_the_same_head(task, words):
  argument = f"tiny,task={task},preset="
  config = attack_controls.get_config(argument + "clean+random")
  assert config.hparams.kind == "random"
  clean = listed(config)
  assert len(clean) == config.per_group == 100
  assert not any(words in row["prompt"] for row in clean)
  people = [identity.name for identity in vocabulary.IDENTITIES]
  if task == "identity":
    assert all(any(p in row["prompt"] for p in people) for row in clean)
  # Those that ask for it keep their names, numbers and seeds beside them.
  asked = listed(attack_controls.get_config(argument + "random"))
  config.groups = ("explicit", "others")
  assert listed(config) == asked + clean


def test_the_ablation_spends_the_same_on_every_choice():
  config: Any = attack_ablation_shapes.get_config()
  attack_cells.check(config, {})
  own = {
    name: attack_cells.settings(config, Cell("object", "uce", name))
    for name in config.columns
  }
  spent = {
    c.hparams.blocks * c.hparams.iterations * c.hparams.draws
    for c in own.values()
    if c.method == "unlearn_diff_atk"
  }
  assert spent == {9 * 25}
  fixed = own["fixed"]
  reference = {"vocabulary": "full", "noise": "frozen", "weight_decay": 0.1}
  for name, changed in {
    "coupled": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decay": "decoupled"},
    "full": {"vocabulary": "full"},
    "stratified": {"timesteps": "stratified", "draws": 5, "iterations": 5},
    "random_t": {"timesteps": "random"},
    "frozen": {"noise": "frozen"},
    "reference": reference,
  }.items():
    wanted = {"vocabulary": "roundtrip", **fixed.hparams, **changed}
    found = {"vocabulary": own[name].vocabulary, **own[name].hparams}
    assert found == wanted, name
    full = wanted["vocabulary"] == "full"
    beside = attack_cells.control_of(
      config, attack_cells.Cell("object", "uce", name)
    )
    assert beside.attack == ("random_full" if full else "random")
  assert config.columns[:2] == ("none", "random")
  assert own["random"].vocabulary == "roundtrip"
  assert own["random_full"].vocabulary == "full"


@pytest.mark.parametrize(
  "change, given, words",
  [
    ({"control": "randm"}, {}, "randm.*'random'"),
    ({"columns": ("none", "udaa")}, {}, "udaa.*'uda'"),
    ({}, {"objekt/esd": None}, "objekt.*'object'"),
    ({}, {"object/uce": None}, "object/uce"),
    ({}, {"object": None}, "is not a new <task>/<name>"),
    ({"common": {"judge": None}}, {}, "common.judge=None"),
    ({"common": {"victim": "a.pt"}}, {}, "common.victim='a.pt'"),
    (
      {"common": {"guidance": {"safe": "max"}}},
      {},
      "common.guidance.safe='max'.*launch.attack",
    ),
    (
      {"common": {"proxy": {"timesteps": 5}}},
      {},
      "common.proxy.timesteps=5",
    ),
    (
      {"common": {"too_long": "cut"}},
      {},
      "too_long='cut'",
    ),
    (
      {"attacks": {"cce": {"hparams": {"pool": "own"}}}},
      {},
      "attacks.cce.hparams.pool='own': .*launch.attack",
    ),
    ({"tasks": {"object": {"hparams": {"k": 0}}}}, {}, "hparams.k=0"),
    (
      {"attacks": {"uda": {"control": "luck"}}},
      {},
      "attacks.uda.control='luck'",
    ),
  ],
)
def test_a_matrix_that_cannot_be(change, given, words):
  config = make_config()
  config.update(change)
  with pytest.raises(ValueError, match=words):
    attack_cells.check(config, given)


@pytest.mark.parametrize(
  "change, words",
  [
    ({"attacks.uda.hparams.noise": "frosen"}, "base/uda: noise='frosen'"),
    ({"attacks.p4d.hparams.timesteps": "up"}, "base/p4d: timesteps='up'"),
    ({"attacks.uda.hparams.decay": "none"}, "base/uda: decay='none'"),
    ({"tasks.object.hparams.k": 80}, "base/none: .*too_long='error'"),
    ({"common.sampling.num_steps": 0}, "base/none: num_steps=0"),
  ],
)
def test_a_column_that_would_fail_in_every_cell(change, words, tmp_path):
  """Told by what makes the matrix, before an erasure or a cell."""
  config = make_config("object")
  config.common.per_group, config.common.too_long = 2, "error"
  config.attacks.none.hparams.kind = "random"
  config.update_from_flattened_dict(change)
  attack_cells.check(config, {})
  with pytest.raises(ValueError, match=words):
    attack_cells.Matrix(config, tmp_path, {})
  assert not [*tmp_path.iterdir()]


def test_a_finished_cell_of_another_table(tmp_path):
  config = attack_cells.settings(make_config(), Cell("object", "base", "none"))
  run = comparison.open_run(tmp_path, config, {}, inputs={"table": "a"})
  run.mark_done()
  attack_cells._check_done(tmp_path, config, {}, {"table": "a"})
  with pytest.raises(ValueError, match="inputs.table: 'a' -> 'b'"):
    attack_cells._check_done(tmp_path, config, {}, {"table": "b"})


def test_a_hyperparameter_that_is_none():
  config = make_config()
  config.attacks.uda.hparams.iteration = 3
  with pytest.raises(ValueError, match="did you mean iterations"):
    attack_cells.check(config, {})


def launch(folder, *more):
  command = [sys.executable, "-m", "launch.attack_matrix"]
  command += ["--config=configs/attack_matrix_shapes.py:object"]
  command += [f"--workdir={folder}", *SMALL, *more]
  return subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, timeout=900
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
  assert result.returncode != 0 and "1 cells failed" in result.stderr
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
  assert len(list((tmp_path / "object/targets").glob("*.png"))) == 2
  lines = (odd.parent / "results.jsonl").read_text().splitlines()
  for row in map(json.loads, lines):
    assert row["pre_image"].startswith("../none/images/")
  # A finished cell is not taken for another: the config that differs is named.
  result = launch(tmp_path, "--config.budget.blocks=2")
  assert result.returncode != 0 and "6 cells failed" in result.stderr
  assert "hparams.blocks: 1 -> 2" in (odd.parent / "failed.txt").read_text()
  assert state(tmp_path) == after
