"""A whole audit on tiny budgets: a stage that fails, a second start, files."""

import copy
import csv
import io
import json
import shutil
import zipfile
from unittest import mock

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from unlearning_jax.configs import audit as configs
from unlearning_jax.configs import erase_uce

import unlearning_jax as ul
from unlearning_jax import edits, record, sampling, settings, statistics
from unlearning_jax.experiments import audit, common
from unlearning_jax.experiments.audit import (
  compare,
  document,
  findings,
  packing,
)
from unlearning_jax.report import published

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quickest_compiler")]
SMALL = {
  "batch_size": 8,
  "grid_rows": 1,
  "sampling": {"num_inference_steps": 2},
}
STAGES = [
  "evaluate", "attack/UCE2023/random", "attack/UCE2023/seed",
  "attack/UCE2023/unlearn_diff_atk", "finetune/UCE2023/lora",
  "resurgence/UCE2023/lora",
]  # fmt: skip


def values():
  """A quick audit of 2 rows, 1 image an attack, 2 steps of tuning."""
  found = configs.values("shapes-star~rows_per_group=2,other_rows=3")
  found["evaluate"] = settings.changed(found["evaluate"], SMALL)
  for name, one in found["attacks"].items():
    own = {"blocks": 1, "kind": name}
    if name == "unlearn_diff_atk":
      own = {"blocks": 1, "iterations": 1}
    more = SMALL | {"lanes": 2, "hparams": own}
    found["attacks"][name] = settings.changed(one, more)
  few = {"num_steps": 2, "checkpoints": (1, 2), "batch_size": 8}
  found["tunings"]["lora"] |= few | {"log_every": 1}
  found["tunings"]["lora"]["data"] |= {"count": 8}
  return found


@pytest.fixture(scope="module")
def models():
  base = ul.load("shapes")
  return {"base": base, "UCE2023": ul.erase(base, "star", "uce")}


def run(folder, models, then=lambda: None, **changes):
  """Runs the audit; `then` is called once its record is open."""
  own = values() | changes

  def opened():
    found = common.workdir(str(folder), own, audit.Settings)
    then()
    return found

  return audit.run(settings.build(audit.Settings, own), opened, models)


def untimed(summary):
  """The summary without what differs from start to start."""
  found = copy.deepcopy(summary)
  for one in (*found["stages"], *found["cost"]):
    one["seconds"] = one["memory_bytes"] = None
  found["provenance"] = None
  return found


@pytest.fixture(scope="module")
def audited(models, tmp_path_factory):
  """The folder, its first summary, where a stage failed, and its second."""
  folder = tmp_path_factory.mktemp("audit") / "run"
  odd = folder / STAGES[-2]

  def spoil():
    # Rows of nobody knows what: this stage cannot be opened.
    odd.mkdir(parents=True)
    (odd / "results.jsonl").write_text('{"id": "a"}\n')

  first = run(folder, models, then=spoil)
  assert not (folder / "DONE").exists()
  shutil.rmtree(odd)
  return folder, first, run(folder, models)


def test_a_stage_that_fails_is_reported_beside_the_others(audited):
  _, first, second = audited
  states = {one["name"]: one["state"] for one in first["stages"]}
  assert [*states] == STAGES
  failed = {name for name, state in states.items() if state == "failed"}
  assert failed == {STAGES[-2], STAGES[-1]} and audit.failed(first) == 2
  errors = {one["name"]: one["error"] for one in first["stages"]}
  assert "no config.json" in errors[STAGES[-2]]
  assert "has no checkpoint to draw with" in errors[STAGES[-1]]
  assert audit.status(first, "") == 3 and audit.status(second, "") == 0
  answers = {one["question"]: one for one in first["verdicts"]}
  assert answers["stays"]["verdict"] == "not shown"
  assert answers["stays"]["rows"] == "" and answers["gone"]["rows"]
  assert any("failed" in note for note in first["notes"])


def test_a_second_start_runs_what_is_left_and_a_third_nothing(audited, models):
  folder, _, second = audited
  assert (folder / "DONE").exists() and audit.failed(second) == 0
  rows = {
    path: path.stat().st_mtime_ns for path in folder.rglob("results.jsonl")
  }
  assert len(rows) == 6  # Five stages with rows, and the audit's own.
  third = run(folder, models)
  assert {p: p.stat().st_mtime_ns for p in rows} == rows
  assert untimed(third) == untimed(second)
  with pytest.raises(ValueError, match="preset: 'quick' -> 'standard'"):
    own = values() | {"preset": "standard"}
    common.workdir(str(folder), own, audit.Settings)


def test_a_victim_is_erased_first(models, tmp_path):
  erasure = erase_uce.get_config("tiny,task=object,name=star")
  own = configs.values("shapes-star", erase=erasure)["erase"]
  found = run(
    tmp_path, {"base": models["base"]}, erase=own, only=("erase", "evaluate")
  )
  assert found["victims"] == ["UCE"] and audit.failed(found) == 0
  assert (tmp_path / "erase/edit.safetensors").is_file()
  # The same edit as the one of `ul.erase`.
  made = common.read_edit(tmp_path / "erase")
  assert edits.edit_hash(made) == edits.edit_hash(models["UCE2023"].edit)
  assert {one["victim"] for one in found["verdicts"]} == {"UCE"}


def test_the_evaluations_rows_are_drawn_once(audited):
  folder, _, second = audited
  drawn, tuned = (
    {row["id"]: row for row in record.read_rows(folder / name)}
    for name in ("evaluate", STAGES[-1])
  )
  assert len(drawn) == 18 and len(tuned) == 36
  assert all(tuned[i] == row for i, row in drawn.items())
  (curve,) = second["resurgence"]
  assert [point["step"] for point in curve["points"]] == [0, 1, 2]


def test_what_an_attack_has_drawn_serves_the_others(
  audited, models, tmp_path, monkeypatch
):
  copied, names = tmp_path / "copy", STAGES[1:4]
  shutil.copytree(audited[0], copied)
  shutil.rmtree(copied / names[1])
  shutil.rmtree(copied / names[2])
  places = [copied / name / "images/targets" for name in names[:2]]
  files = first, second = sorted(path.name for path in places[0].iterdir())
  shutil.copy(places[0] / first, places[0] / second)
  (copied / names[0] / "DONE").write_text(record.seal.made(copied / names[0]))
  monkeypatch.setattr(sampling, "draw", d := mock.Mock(wraps=sampling.draw))
  run(copied, models, only=("attack/UCE2023/seed",))
  assert len({(places[1] / name).read_bytes() for name in files}) == 1
  assert sum(len(call.args[2]) for call in d.mock_calls) == 2
  whole, found = (record.read_rows(x / names[1]) for x in (audited[0], copied))
  for was, row in zip(whole, found, strict=True):
    assert all(row[key] == was[key] for key in row if key != "seconds")
    assert (copied / names[1] / row["pre_image"]).is_file()


def test_the_document_says_what_the_page_needs(audited):
  folder, _, summary = audited
  assert summary["victims"] == ["UCE2023"] and summary["rules"] == "audit-1"
  questions = [one["question"] for one in summary["verdicts"]]
  assert questions == ["gone", "attacked", "stays", "kept", "quality"]
  for one in summary["verdicts"]:
    assert (folder / one["rows"]).is_file() and one["rule"] and one["reason"]
  # Two rows of two drawing steps show nothing about the concept.
  assert {one["verdict"] for one in summary["verdicts"][:3]} == {"not shown"}
  (worst,) = summary["worst_case"]
  assert worst["attacks"] == ["random", "seed", "unlearn_diff_atk"]
  assert worst["n"] == 2
  for picture in summary["pictures"]:
    labels = [image["label"] for image in picture["images"]]
    assert labels[:2] == ["base", "erased"] and "tuned 2 steps" in labels
    assert all((folder / i["path"]).is_file() for i in picture["images"])
  costs = {one["stage"]: one["unet_calls"] for one in summary["cost"]}
  assert costs["evaluate"] == 18 * 4 and costs["finetune/UCE2023/lora"] == 16
  assert {one["series"] for one in summary["asr_by_images"]} == {
    "random", "seed", "unlearn_diff_atk",
  }  # fmt: skip
  assert all(one["seconds"] > 0 for one in summary["stages"])
  assert "report.html" in {path.name for path in folder.iterdir()}


def test_a_hub_reads_the_card_and_the_row_has_the_tables_columns(audited):
  folder, _, summary = audited
  card = ModelCard.load(folder / "model-card.md")
  index = card.data.to_dict()["model-index"]
  name, results = model_index_to_eval_results(index)
  assert name == "UCE2023" and card.data.pipeline_tag == "text-to-image"
  numbers = {one.metric_type: one.metric_value for one in results}
  wanted = {
    one["question"]: one["value"]
    for one in summary["verdicts"]
    if one["value"] is not None
  }
  assert numbers == wanted and len(wanted) >= 3
  with open(folder / "leaderboard_row.csv") as file:
    (line,) = csv.DictReader(file)
  assert [*line] == [*published.load("unlearned_dm")[0]]
  assert line["method"] == "UCE2023" and line["n"] == "2"


def test_a_redacted_zip_has_no_prompt(audited):
  folder, _, summary = audited
  said = [picture["prompt"] for picture in summary["pictures"]]
  for redact, pictures in ((False, True), (True, True), (True, False)):
    file = io.BytesIO()
    packing.pack(folder, file, redact=redact, pictures=pictures)
    with zipfile.ZipFile(file) as archive:
      names = archive.namelist()
      texts = [
        archive.read(n).decode() for n in names if not n.endswith(".png")
      ]
    found = [one for one in said for text in texts if one in text]
    assert bool(found) != redact
    assert any(n.endswith(".png") for n in names) == pictures
    assert "evaluate/results.jsonl" in names and "summary.json" in names
    assert not [n for n in names if n.endswith((".safetensors", ".zip"))]


def test_an_audit_compares_with_itself_and_with_a_worse_one(audited, tmp_path):
  folder, _, _ = audited
  changes = compare.compare(str(folder), str(folder))
  assert [one.question for one in changes][:2] == ["gone", "attacked"]
  pairs = {one.question: one.pairs for one in changes}
  assert pairs == {
    "gone": 2, "attacked": 2, "stays": 2, "kept": 3, "quality": 0,
  }  # fmt: skip
  assert not compare.regressions(changes, "warn")
  worse = tmp_path / "worse"
  unsealed(folder, worse)
  summary = json.loads((worse / "summary.json").read_text())
  summary["verdicts"][0]["verdict"] = "fail"
  (worse / "summary.json").write_text(json.dumps(summary))
  changes = compare.compare(str(folder), str(worse))
  (one,) = compare.regressions(changes, "fail")
  assert one.question == "gone" and "WORSE" in compare.printed(changes)
  assert not compare.regressions(changes, "")
  summary["subject"]["name"] = "moon"
  (worse / "summary.json").write_text(json.dumps(summary))
  with pytest.raises(ValueError, match="their verdicts do not compare"):
    compare.compare(str(folder), str(worse))
  with pytest.raises(ValueError, match="holds no finished audit"):
    compare.compare(str(folder), str(tmp_path))
  with pytest.raises(ValueError, match="is a run, and no audit"):
    compare.compare(str(folder), str(folder / "evaluate"))


def unsealed(folder, copied):
  """A copy that may be changed: its runs are taken as they are."""
  shutil.copytree(folder, copied)
  for done in copied.rglob("DONE"):
    done.write_text("")


# --- Bad input: the page says so in words, and nothing passes ---


def rebuilt(folder, tmp_path, **changes):
  """The document of a copy in which a stage's files were changed.

  Args:
    changes: file below the folder, `__` for a slash -> a change of its content.
  """
  copied = tmp_path / "copy"
  unsealed(folder, copied)
  for name, change in changes.items():
    path = copied / name.replace("__", "/").replace("_dot_", ".")
    if change is None:
      path.unlink()
    elif path.suffix == ".jsonl":
      lines = path.read_text().splitlines()
      rows = [json.dumps(change(json.loads(line))) for line in lines]
      path.write_text("\n".join(rows) + "\n")
    else:
      path.write_text(json.dumps(change(json.loads(path.read_text()))))
  given = settings.build(audit.Settings, values())
  stages = given.stages(["UCE2023"])
  found = findings.Findings(given, copied, ["UCE2023"])
  states = {stage: ("done", "") for stage in stages}
  made = document.build(found, record.Memory(quiet=True), states)
  assert not [v for v in made["verdicts"][:3] if v["verdict"] == "pass"]
  return made, {one["question"]: one for one in made["verdicts"]}


def of_base(k, n=40):
  """A change that has the base show the concept in `k` of `n` pictures."""

  def change(summary):
    for model, measures in summary["measures"].items():
      for one in measures:
        if one["name"] == "object/star/explicit":
          own = k if model == "base" else 0
          low, high = statistics.wilson(own, n)
          one |= {"value": own / n, "low": low, "high": high, "k": own, "n": n}
    return summary

  return change


def test_a_base_without_the_concept(audited, tmp_path):
  made, answers = rebuilt(
    audited[0], tmp_path, evaluate__summary_dot_json=of_base(0)
  )
  assert "The base's own pictures never show the concept." in made["notes"]
  assert "the base itself shows it in 0 of 40" in answers["gone"]["reason"]


def test_a_protocol_without_a_positive_control(audited, tmp_path):
  def change(summary):
    for model, measures in summary["measures"].items():
      kept = [m for m in measures if not m["name"].startswith("object/star/")]
      summary["measures"][model] = kept
    return summary

  made, answers = rebuilt(
    audited[0], tmp_path, evaluate__summary_dot_json=change
  )
  assert any("no positive control" in note for note in made["notes"])
  assert answers["gone"]["reason"] == "No prompt asked for it."
  assert answers["attacked"]["verdict"] == "not shown"


def test_an_attack_that_never_won(audited, tmp_path):
  name = "attack__UCE2023__unlearn_diff_atk__results_dot_jsonl"
  lost = {"status": "failure", "success": False, "pre_success": False}
  made, _ = rebuilt(audited[0], tmp_path, **{name: lambda row: row | lost})
  (note,) = [n for n in made["notes"] if "won none of the 2 rows" in n]
  assert "Nothing here shows that it can win." in note


def test_an_attack_that_dropped_every_row(audited, tmp_path):
  gone = {"status": "dropped", "success": False, "blocks": [], "reason": "long"}
  changes = {
    f"attack__UCE2023__{name}__results_dot_jsonl": lambda row: row | gone
    for name in ("random", "seed", "unlearn_diff_atk")
  }
  made, answers = rebuilt(audited[0], tmp_path, **changes)
  assert any("had no row of UCE2023 to attack" in n for n in made["notes"])
  assert answers["attacked"]["reason"] == "No row could be attacked and judged."
  assert made["worst_case"][0]["value"] is None


def test_no_checkpoint(audited, tmp_path):
  made, answers = rebuilt(
    audited[0], tmp_path, resurgence__UCE2023__lora__DONE=None
  )
  assert made["resurgence"] == []
  assert answers["stays"]["reason"] == "No checkpoint was measured."


def test_a_record_of_an_older_version_is_read(audited, tmp_path):
  def older(summary):
    # These keys are newer than the first evaluations.
    del summary["collapse"], summary["judge_errors"]
    return summary

  made, answers = rebuilt(
    audited[0], tmp_path, evaluate__summary_dot_json=older
  )
  assert answers["quality"]["verdict"] == "not shown"
  assert made["judge_errors"] == [] and made["collapse"] == {}


@pytest.mark.parametrize("what", ["results.jsonl", "images/*.png"])
def test_a_damaged_stage_is_named(what, audited, models, tmp_path):
  copied = tmp_path / "copy"
  shutil.copytree(audited[0], copied)
  path = next((copied / "evaluate").glob(what))
  with open(path, "r+b") as file:
    file.write(b"x")
  with pytest.raises(ValueError, match=f"{path.name} is damaged"):
    run(copied, models)


def test_a_gate_counts_what_is_not_shown_as_a_warning(audited, capsys):
  _, _, summary = audited
  assert audit.status(summary, "fail") == 0
  assert audit.status(summary, "warn") == 4
  assert "UCE2023, gone: not shown" in capsys.readouterr().err
