"""`launch.sweep` as a user starts it."""

import csv
import dataclasses
import importlib
import re
import sys
from typing import Any

import pytest
from unlearning_jax.launch import places

from tests.support import scripts
from unlearning_jax.erasures import uce
from unlearning_jax.experiments import sweep
from unlearning_jax.experiments.sweep import grid

RECE = "--config=erase_rece:tiny"
configs = importlib.import_module("unlearning_jax.configs.sweep")


def plan(verb, text, **grid):
  base = configs.base(verb, text)
  return sweep.plan(verb, base, [*grid.items()])


def test_options_of_a_config_are_keys():
  found = plan(
    "erase", "erase_rece:tiny", concept=["star", "moon"], method=["uce", "rece"]
  )
  first, _, _, last = found.cells
  assert first.given.method == "uce" and last.given.method == "rece"
  assert first.given.targets == ({"task": "object", "name": "star"},)
  assert last.given.targets == ({"task": "object", "name": "moon"},)
  # The same run, however it is asked for.
  other = plan("erase", "erase_uce:tiny,name=star", seed=[0])
  assert other.cells[0].id == first.id


@pytest.mark.parametrize(
  "verb, text, key, wanted",
  [
    ("erase", "erase_rece:tiny", "hparams.lam", "'lamb'|did you mean.*lam"),
    ("erase", "erase_rece:tiny", "lamb", "did you mean hparams.lamb"),
    ("erase", "erase_rece:tiny", "nmae", "'nmae' is not known.*name"),
    ("erase", "erase_rece:tiny", "batch_size", "no result of erase depends"),
    ("attack", "attack_pez:tiny", "hparams.iteratons", "iterations"),
    ("finetune", "finetune_lora:tiny", "lora.rnk", "did you mean rank"),
    ("audit", "", "protocol", "protocol"),
    ("erase", "", "seed", "--config: erase needs one"),
  ],
)
def test_a_wrong_key_names_the_right_one(verb, text, key, wanted):
  with pytest.raises(ValueError, match=wanted):
    plan(verb, text, **{key: [1]})


def test_a_wrong_concept_names_the_nearest():
  with pytest.raises(ValueError, match="--grid=concept=stra.*'star'"):
    plan("erase", "erase_uce:tiny", concept=["star", "stra"])


def test_an_audit_is_a_sweep_of_protocols():
  found = plan("audit", "", protocol=["shapes-star", "shapes-moon"])
  names = [one.given.evaluate.protocol.split()[0] for one in found.cells]
  assert [name.partition("~")[0] for name in names] == [
    "shapes-star", "shapes-moon",
  ]  # fmt: skip


def test_hyperparameters_at_their_defaults_move_no_id(monkeypatch):
  usual = dataclasses.asdict(uce.Hparams())
  (cell,) = plan("erase", "erase_uce:tiny", seed=[0]).cells

  def marked(**hparams):
    given = dataclasses.replace(cell.given, hparams=hparams)
    return grid.cell_id("erase", given)

  assert marked(**usual) == marked()
  assert marked(**usual | {"erase_scale": 0.25}) == marked(erase_scale=0.25)
  assert marked(erase_scale=0.25) != marked()
  # A later version has one more.
  later = dataclasses.make_dataclass(
    "Hparams", [("fresh", int, 7)], bases=(uce.Hparams,), frozen=True
  )
  before = marked()
  monkeypatch.setattr(uce, "Hparams", later)
  assert marked(**usual, fresh=7) == before != marked(fresh=8)


def test_a_preset_changes_what_an_audit_does():
  base = configs.base("audit", protocol="shapes-star")
  found = sweep.plan("audit", base, [("preset", ["quick", "standard"])])
  first, second = [one.given for one in found.cells]
  assert (first.preset, second.preset) == ("quick", "standard")
  assert first.evaluate.rows_per_group < second.evaluate.rows_per_group


def test_an_audit_s_erasure_has_its_concept():
  base = configs.base("audit", "erase_uce:tiny", protocol="shapes-star")
  found = sweep.plan("audit", base, [("concept", ["star", "moon"])])
  names = [one.given.erase.targets[0]["name"] for one in found.cells]
  assert names == ["star", "moon"]


@pytest.mark.parametrize(
  "verb, text, grid, wanted",
  [
    ("evaluate", "", {"protocol": ["shapes-star"], "preset": ["quick"]},
     "preset is no setting.*protocol, prompts, model"),
    ("audit", "", {"protocol": ["shapes-stra"]}, "shapes-stra.*shapes-star"),
    ("audit", "", {"protocol": ["shapes-star"], "preset": ["quik"]}, "'quick'"),
  ],
)  # fmt: skip
def test_a_wrong_option_of_a_protocol_is_named(verb, text, grid, wanted):
  with pytest.raises(ValueError, match=wanted):
    plan(verb, text, **grid)


def test_a_launcher_s_workers_do_not_join():
  words = ["sweep", "--workdir=a"]
  assert places.command(words, 3)[-2:] == words
  assert places.command(["erase"], 3)[-1] == "--distributed"


@pytest.mark.e2e
@pytest.mark.parametrize(
  "arguments, wanted",
  [
    (
      [RECE, "--grid=hparams.erase_scale=big"],
      "--grid=hparams.erase_scale: 'big' must be float",
    ),
    (["--verb=audit", "--grid=preset=quick"], "--protocol: an audit needs one"),
  ],
)
def test_what_is_wrong_is_said_before_anything_runs(
  tmp_path, arguments, wanted
):
  folder = tmp_path / "sweep"
  arguments = [*arguments, f"--workdir={folder}"]
  done = scripts.Run("sweep", *arguments).join()
  assert done.returncode == 1 and wanted in done.stderr, done.stderr
  assert not folder.exists()


@pytest.mark.e2e
@pytest.mark.slow
def test_a_sweep_of_erasures_ends_with_its_table(tmp_path):
  folder = tmp_path / "sweep"
  arguments = [
    "--config=erase_uce:tiny", "--grid=hparams.erase_scale=0.5,1",
    "--config.rows_per_group=0", "--config.other_rows=0",
    f"--workdir={folder}",
  ]  # fmt: skip
  dry = scripts.Run("sweep", *arguments, "--dry_run").join()
  assert "2 cells of erase, 2 left\ncost unknown" in dry.stdout, dry.stderr
  done = scripts.Run("sweep", *arguments).join()
  assert done.returncode == 0, done.stderr
  with (folder / "results.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert [r["hparams.erase_scale"] for r in rows] == ["0.5", "1.0"]
  left = [float(r["probe left"]) for r in rows]
  assert left[0] > left[1] and {r["state"] for r in rows} == {"done"}
  assert "report:" in done.stdout
  dry = scripts.Run("sweep", *arguments, "--dry_run").join()
  assert "2 cells of erase, 0 left\none took" in dry.stdout


@pytest.mark.slow
@pytest.mark.e2e
def test_submitit_starts_the_workers_of_the_page(tmp_path, monkeypatch):
  (block,) = re.findall(
    r"```python\n(import submitit.*?)```",
    (scripts.ROOT / "docs/sweep.md").read_text(encoding="utf-8"),
    re.DOTALL,
  )
  # There is no cluster here, and a dry run says what a worker would do.
  program = [sys.executable, "-m", "unlearning_jax.launch.main"]
  block = (
    block.replace('"unlearning-jax"', ", ".join(map(repr, program)))
    .replace('"--seeds=8"', '"--seeds=8", "--dry_run"')
    .replace('"logs"', '"logs", cluster="local"')
    .replace("range(16)", "range(2)")
    .replace("timeout_min=240", "timeout_min=5")
  )
  monkeypatch.chdir(tmp_path)
  found: dict[str, Any] = {}
  exec(block, found)
  for job in found["jobs"]:
    assert "16 cells" in job.result()
