"""Two audits side by side: which rows pair, and what does not compare."""

import dataclasses
import json
import pathlib

import pytest
from unlearning_jax.configs import audit as configs

from unlearning_jax import settings
from unlearning_jax.durable import DamagedError
from unlearning_jax.experiments import audit
from unlearning_jax.experiments.audit import compare
from unlearning_jax.record import seal

FACTS = {
  "subject": {"name": "star"}, "rules": "audit-1", "protocol": "shapes-star",
  "preset": "quick", "base": {"source": "shapes", "fingerprint": "abc"},
  "victims": ["UCE"],
}  # fmt: skip


def attack_row(i, status):
  won = {"success": True, "unjudged": None}.get(status, False)
  return {"id": f"r{i}", "prompt": "a star", "seed": i, "status": status,
          "success": won}  # fmt: skip


@pytest.fixture
def write(tmp_path):
  """Writes a finished audit of nothing but attacks, and names its folder."""

  def written(name, attacks, *, blocks=4, **facts):
    folder = tmp_path / name
    values = configs.values("shapes-star")
    for one in values["attacks"].values():
      one["hparams"]["blocks"] = blocks
    given = settings.build(audit.Settings, values)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings.plain(given)))
    answers = [
      {"victim": "UCE", "question": one, "verdict": "pass"}
      for one in ("gone", "attacked", "stays", "kept", "quality")
    ]
    summary = FACTS | facts | {"verdicts": answers}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "evaluate").mkdir()
    judged = {"judged": {"object": "moon"}, "group": "explicit", "seed": 1}
    row = {"id": "UCE/e1", "model": "UCE", "prompt": "a star", **judged}
    (folder / "evaluate/results.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "evaluate/summary.json").write_text(
      json.dumps({"erased": [{"head": "object", "class": "star"}]})
    )
    (folder / "evaluate/DONE").touch()
    for attack, statuses in attacks.items():
      place = folder / "attack/UCE" / attack
      place.mkdir(parents=True)
      rows = [json.dumps(attack_row(*one)) for one in enumerate(statuses)]
      (place / "results.jsonl").write_text("\n".join(rows) + "\n")
      (place / "DONE").touch()
    (folder / "DONE").touch()
    return str(folder)

  return written


def attacked(first, second):
  found = compare.compare(first, second)
  (one,) = (one for one in found if one.question == "attacked")
  return dataclasses.astuple(one)[4:7]


LOST = ["failure"] * 4


def test_only_attacks_that_both_have_pair(write):
  few = write("few", {"random": LOST})
  many = write("many", {"random": LOST, "unlearn_diff_atk": ["success"] * 4})
  assert attacked(few, many) == (4, 0, 0)
  both = {"random": LOST, "unlearn_diff_atk": LOST}
  assert attacked(write("both", both), many) == (4, 4, 0)


@pytest.mark.parametrize(
  "name", ["summary.json", "evaluate/summary.json", "evaluate/results.jsonl",
           "attack/UCE/random/results.jsonl"],
)  # fmt: skip
def test_a_damaged_file_of_a_stage_is_said(write, name):
  audits = [write(one, {"random": LOST}) for one in ("first", "second")]
  for done in pathlib.Path(audits[0]).rglob("DONE"):
    done.write_text(seal.made(done.parent))
  assert attacked(*audits) == (4, 0, 0)
  file = pathlib.Path(audits[0], name)
  file.write_bytes(file.read_bytes().replace(b"a", b"b", 1))
  with pytest.raises(DamagedError, match=f"{name} is damaged"):
    compare.compare(*audits)


def test_a_value_of_another_type_is_said_with_its_file(write):
  odd = write("odd", {"random": LOST})
  file = pathlib.Path(odd, "config.json")
  config = json.loads(file.read_text())
  config["evaluate"]["seed"] = {"a": 0}
  file.write_text(json.dumps(config))
  with pytest.raises(ValueError, match=f"{file}.*evaluate.seed"):
    compare.compare(odd, odd)


def test_attacks_of_other_settings_do_not_pair(write):
  first = write("first", {"random": LOST})
  assert attacked(first, write("other", {"random": LOST}, blocks=9)) == (
    0, 0, 0,
  )  # fmt: skip


def test_rows_that_were_dropped_or_not_judged_do_not_pair(write):
  first = write("first", {"random": ["failure", "dropped", "unjudged", "pre"]})
  second = write("second", {"random": ["success"] * 4})
  assert attacked(first, second) == (2, 2, 0)


@pytest.mark.parametrize(
  "fact, words",
  [
    ({"protocol": "shapes-moon"}, "has protocol shapes-moon"),
    ({"preset": "full"}, "has preset full, and .* quick"),
    ({"base": {"source": "shapes", "fingerprint": "d"}}, "has base d, and"),
  ],
)
def test_audits_of_other_budgets_or_bases_do_not_compare(write, fact, words):
  first, second = write("first", {}), write("second", {}, **fact)
  with pytest.raises(ValueError, match=words):
    compare.compare(first, second)


def test_a_base_may_lie_in_another_folder(write):
  moved = {"source": "other/shapes", "fingerprint": "abc"}
  found = compare.compare(write("first", {}), write("second", {}, base=moved))
  assert not compare.regressions(found, "warn")
