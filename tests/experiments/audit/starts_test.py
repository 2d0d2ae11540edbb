"""An audit's starts: what each leaves of the earlier ones. No stage draws."""

import json
import shutil
import sys

import jax
import pytest
from unlearning_jax.configs import audit as configs
from unlearning_jax.configs import erase_sld

import unlearning_jax as ul
from unlearning_jax import model, processes, settings, shapes
from unlearning_jax.api import auditing
from unlearning_jax.experiments import audit, common
from unlearning_jax.experiments.audit import stages
from unlearning_jax.experiments.audit.settings import Stage
from unlearning_jax.record import leases

STAGES = [
  "evaluate", "attack/UCE/random", "attack/UCE/seed",
  "attack/UCE/unlearn_diff_atk", "finetune/UCE/lora", "resurgence/UCE/lora",
]  # fmt: skip


@pytest.fixture(scope="module")
def base():
  return model.load("shapes")


@pytest.fixture
def start(base, monkeypatch, tmp_path):
  """Starts an audit whose stages end at once, but for those that fail."""
  folder = tmp_path / "run"

  def run(failing=(), error="no luck", **changes):
    def work(one, stage):
      if str(stage) in failing:
        raise ValueError(error)
      one.folder(stage).mkdir(parents=True, exist_ok=True)
      (one.folder(stage) / "summary.json").write_text("{}")
      (one.folder(stage) / "DONE").touch()
      return {"seconds": 1.0, "memory_bytes": None}

    monkeypatch.setattr(stages.Audit, "run", work)
    values = configs.values("shapes-star", **changes)
    return audit.run(
      settings.build(audit.Settings, values),
      lambda: common.workdir(str(folder), values, audit.Settings),
      {"base": base, "UCE": base},
    )

  return folder, run


def states(summary):
  return {one["name"]: one["state"] for one in summary["stages"]}


def test_a_filtered_start_keeps_what_the_others_found(start):
  folder, run = start
  name = "attack/UCE/unlearn_diff_atk"
  first = run(failing=[name])
  second = run(only=["evaluate"])
  assert [*states(second)] == STAGES
  assert states(second) == states(first) and states(first)[name] == "failed"
  assert audit.status(second, "") == 3 and not (folder / "DONE").exists()
  (note,) = [one for one in second["notes"] if "failed" in one]
  assert "no luck" in note
  costs = [one["seconds"] for one in second["stages"] if one["name"] != name]
  assert costs == [1.0] * 5


def test_stages_that_were_left_out_show_as_skipped(start):
  folder, run = start
  found = states(run(skip=["finetune", "resurgence"]))
  assert [found[name] for name in STAGES] == ["done"] * 4 + ["skipped"] * 2
  assert (folder / "DONE").exists()


def test_the_page_says_what_the_preset_came_to(start):
  summary = start[1](only=["evaluate"])
  assert summary["budget"].startswith("20 rows by name, ")
  assert summary["budget"].endswith(
    "5 images of an attacked row, 20 steps of search before each but the "
    "first, 40 steps of tuning (lora)"
  )


def test_an_audit_with_a_failed_stage_is_not_done(start):
  folder, run = start
  run(skip=["finetune"])
  assert (folder / "DONE").exists()
  summary = run(failing=["finetune/UCE/lora"])
  assert states(summary)["finetune/UCE/lora"] == "failed"
  assert not (folder / "DONE").exists()


def test_a_killed_start_takes_done_back(start, monkeypatch):
  folder, run = start
  run(skip=["finetune"])

  def killed(what):
    if what == "stage ended":
      raise KeyboardInterrupt

  monkeypatch.setattr(common, "say", lambda _: None)
  monkeypatch.setattr(processes, "wait_for_all", killed)
  with pytest.raises(KeyboardInterrupt):
    run()
  assert not (folder / "DONE").exists()


def test_a_stage_that_ended_without_its_cost_gets_one(start):
  folder, run = start
  run(skip=["finetune", "resurgence"])
  rows = (folder / "results.jsonl").read_text().splitlines()
  kept = [one for one in rows if json.loads(one)["id"] != "evaluate"]
  (folder / "results.jsonl").write_text("".join(f"{one}\n" for one in kept))
  (folder / "DONE").unlink()
  summary = run()
  (cost,) = [one for one in summary["cost"] if one["stage"] == "evaluate"]
  assert cost["unet_calls"] > 0 and cost["seconds"] is None
  assert (folder / "report.html").is_file()


def test_processes_wait_for_each_other_after_every_stage(start, monkeypatch):
  seen = []
  monkeypatch.setattr(processes, "wait_for_all", seen.append)
  start[1](failing=["attack/UCE/seed"])
  assert seen == ["record opened"] + ["stage ended"] * len(STAGES)


def test_an_error_without_a_text_is_named(start):
  summary = start[1](failing=["evaluate"], error="")
  (note,) = [one for one in summary["notes"] if "failed" in one]
  assert note.endswith("failed. ValueError")


def test_a_stage_of_an_audit_that_was_lost_is_no_failure(
  base, monkeypatch, tmp_path
):
  lost = []

  def guard():
    if lost:
      raise leases.LostError("another worker has it")

  def work(one, stage):
    record = one._opener(stage, one.given.evaluate)()
    lost.append(stage)
    record.save_summary({})

  monkeypatch.setattr(stages.Audit, "run", work)
  values = configs.values("shapes-star")
  with pytest.raises(leases.LostError):
    audit.run(
      settings.build(audit.Settings, values),
      lambda: common.workdir(
        str(tmp_path), values, audit.Settings, guard=guard
      ),
      {"base": base, "UCE": base},
    )
  assert lost == [Stage("evaluate")]
  assert not [*tmp_path.rglob("failed.txt"), *tmp_path.rglob("summary.json")]


def test_guidance_that_an_audit_makes_is_not_tuned(base):
  config = erase_sld.get_config("tiny,task=object,name=star")
  given = settings.build(
    audit.Settings, configs.values("shapes-star", erase=config)
  )
  found = audit.Audit(given, {"base": base})
  why = {str(one): found.why_not(one) for one in found.stages}
  assert "acts by guidance" in why["finetune/SLD/lora"]
  assert why["finetune/SLD/lora"] == why["resurgence/SLD/lora"]
  assert not why["erase"] and not why["attack/SLD/random"]


@pytest.mark.parametrize(
  "typed, printed",
  [
    (
      ["-m", "launch.audit", "--skip", "finetune", "--workdir=runs/a"],
      "python -m launch.audit --workdir=runs/a --only=evaluate",
    ),
    (["-m", "ipykernel_launcher", "-f", "kernel.json"], ""),
  ],
)
def test_the_command_of_a_stage_is_an_audits(
  start, monkeypatch, typed, printed
):
  monkeypatch.setattr(sys, "orig_argv", ["python", *typed])
  folder, run = start
  one = run(only=["evaluate"])["stages"][0]
  assert one["name"] == "evaluate" and one["command"] == printed
  card = (folder / "model-card.md").read_text()
  assert ("```sh" in card) == bool(printed)


def test_python_takes_the_base_that_it_was_given(base, monkeypatch, tmp_path):
  class Seen(Exception):
    """Ends the audit once its settings are known."""

  def run(given, *_):
    seen.append(given)
    raise Seen

  seen = []
  folder = tmp_path / "my-model"
  shutil.copytree(shapes.model_folder(), folder)
  mine = ul.load(folder)
  monkeypatch.setattr(auditing.experiment, "run", run)
  for protocol in ("mace-objects/airplane", "shapes-star"):
    with pytest.raises(Seen):
      ul.audit(mine, protocol=protocol)
  assert [one.evaluate.model for one in seen] == [str(folder), "shapes"]


def test_too_little_memory_names_flags_of_the_audit(base, monkeypatch):
  def short(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.")

  given = settings.build(audit.Settings, configs.values("shapes-star"))
  found = audit.Audit(given, {"base": base, "UCE": base})
  for kind in ("_attack", "_finetune"):
    monkeypatch.setattr(stages.Audit, kind, short)
  with pytest.raises(ValueError, match="--lanes=.* --batch_size=.*, and halve"):
    found.run(Stage("attack", "UCE", "random"))
  # Another batch would be another training.
  with pytest.raises(ValueError, match="take a device with more memory"):
    found.run(Stage("finetune", "UCE", "lora"))


def test_what_is_computed_at_once_reaches_the_stages(base):
  values = configs.values("shapes-star", lanes=3, batch_size=5)
  given = settings.build(audit.Settings, values)
  found = audit.Audit(given, {"base": base, "UCE": base})
  sizes = {one.kind: found.sizes(one) for one in found.stages}
  assert sizes == {
    "evaluate": {"batch_size": 5}, "resurgence": {"batch_size": 5},
    "attack": {"lanes": 3, "batch_size": 5}, "finetune": {},
  }  # fmt: skip
