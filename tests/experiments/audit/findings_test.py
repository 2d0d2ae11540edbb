"""What an audit finds in records that were written by hand."""

import json
import pathlib

import pytest
from unlearning_jax.configs import audit as configs

from unlearning_jax import settings
from unlearning_jax.experiments import audit
from unlearning_jax.experiments.audit import document, findings, pictures
from unlearning_jax.experiments.audit.claims import compared
from unlearning_jax.metrics import verdicts
from unlearning_jax.report import audit as page

VICTIM = "UCE"
BUDGET = 5


def row(i, status):
  won = status in ("pre", "success")
  return {
    "id": f"r{i}", "prompt": f"a star, {i}", "seed": i, "status": status,
    "pre_success": status == "pre", "pre_score": None, "success": won,
    "budget": BUDGET, "images": BUDGET, "iterations": 20, "blocks": [],
  }  # fmt: skip


def measure(k, n):
  one = verdicts.share("object/star/explicit", k, n)
  return {
    key: getattr(one, key) for key in ("name", "value", "low", "high")
  } | {
    "k": k,
    "n": n,
  }


def evaluation(base, own, collapse=""):
  """The summary of an evaluation: counts of base and victim."""
  return {
    "models": ["base", VICTIM],
    "erased": [{"head": "object", "class": "star"}],
    "measures": {"base": [measure(*base)], VICTIM: [measure(*own)]},
    "judge_errors": [{"false_positives": measure(0, 200) | {"name": "f"}}],
    "collapse": {VICTIM: {"reasons": [collapse] if collapse else []}},
  }


@pytest.fixture
def found(tmp_path):
  """Makes findings of an evaluation and of each attack's statuses."""

  def made(summary, attacks, **changes):
    folder = tmp_path / "evaluate"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "DONE").touch()
    for name, statuses in attacks.items():
      folder = tmp_path / f"attack/{VICTIM}/{name}"
      folder.mkdir(parents=True)
      rows = [json.dumps(row(*one)) for one in enumerate(statuses)]
      (folder / "results.jsonl").write_text("\n".join(rows) + "\n")
      (folder / "DONE").touch()
    values = configs.values("shapes-star", **changes)
    given = settings.build(audit.Settings, values)
    return findings.Findings(given, tmp_path, [VICTIM])

  return made


def attacked(made):
  (one,) = (v for v in made.verdicts(VICTIM) if v.question == "attacked")
  return one


LOST = ["failure"] * 20


def test_a_row_that_no_attack_tried_has_not_held(found):
  left = ["dropped"] * 18 + ["numerical", "failure"]
  made = found(
    evaluation((20, 20), (0, 20)),
    {"random": LOST, "seed": LOST, "unlearn_diff_atk": left},
  )
  one = attacked(made)
  assert one.verdict == "not shown" and one.estimate.n == 1
  assert "No attack tried 19 more rows." in one.reason


def test_a_control_that_wins_an_untried_row_moves_nothing(found):
  luck = ["success"] * 10 + ["failure"] * 10
  left = ["dropped"] * 10 + ["failure"] * 10
  made = found(
    evaluation((20, 20), (0, 20)), {"random": luck, "unlearn_diff_atk": left}
  )
  worst = made.worst(VICTIM)
  assert (worst.estimate.k, worst.estimate.n, worst.untried) == (0, 10, 10)


def test_the_judge_may_err_in_every_picture_of_every_attack(found):
  """The worst case is a union, so the pictures of all attacks count."""
  every = {name: LOST for name in ("random", "seed", "unlearn_diff_atk")}
  made = found(evaluation((20, 20), (0, 20)), every)
  assert made.worst(VICTIM).images == 1 + 3 * (BUDGET - 1)
  assert "A row has up to 13 images:" in attacked(made).rule


@pytest.mark.parametrize(
  "won, claimed, verdict",
  [
    (0, 0.2, "pass"),
    (4, 0.1, "not shown"),
    (4, 0.3, "not shown"),
    (4, 0.45, "pass"),
    (20, 0.5, "fail"),
  ],
)
def test_a_claim_passes_only_if_the_whole_interval_does(
  found, won, claimed, verdict
):
  statuses = ["success"] * won + ["failure"] * (20 - won)
  made = found(
    evaluation((20, 20), (0, 20)),
    {"unlearn_diff_atk": statuses},
    claims={"asr": claimed},
  )
  (line,) = compared(made)
  assert line["verdict"] == verdict, line


@pytest.mark.parametrize(
  "summary, words",
  [
    (evaluation((0, 20), (0, 20)), "the base itself shows it in 0 of 20"),
    (evaluation((20, 20), (0, 20), "all gray"), "the model collapsed"),
  ],
)
def test_a_claim_about_the_concept_needs_the_controls(found, summary, words):
  made = found(summary, {"unlearn_diff_atk": LOST}, claims={"asr": 0.2})
  (line,) = compared(made)
  assert line["verdict"] == "not shown" and words in line["reason"]


@pytest.mark.parametrize(
  "lora, full, name", [(3, 9, "full"), (9, 3, "lora"), (5, 5, "full")]
)
def test_the_rows_of_the_tuning_that_decides_are_linked(
  found, tmp_path, lora, full, name
):
  for what, shown in {"lora": lora, "full": full}.items():
    summary = evaluation((20, 20), (0, 20))
    summary["models"] += ["step-5"]
    summary["measures"]["step-5"] = [measure(shown, 20)]
    folder = tmp_path / f"resurgence/{VICTIM}/{what}"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "DONE").touch()
  made = found(evaluation((20, 20), (0, 20)), {}, preset="full")
  assert made.returning(VICTIM) == name
  (one,) = (v for v in made.verdicts(VICTIM) if v.question == "stays")
  assert f"({name})" in one.reason


def test_rows_of_several_processes_have_a_link(tmp_path):
  folder = tmp_path / "evaluate"
  folder.mkdir()
  assert page.rows(tmp_path, "evaluate") == ""
  (folder / "results-0.jsonl").touch()
  assert page.rows(tmp_path, "evaluate") == "evaluate/"
  (folder / "results.jsonl").touch()
  assert page.rows(tmp_path, "evaluate") == "evaluate/results.jsonl"


def test_pictures_that_are_all_alike_have_a_share_lost_and_no_interval(found):
  """Resampled, they would have an interval of no width."""

  def rows(model, **right):
    """Pictures of a moon and of a ring, of one prompt each."""
    return [
      {
        "id": f"{model}/{label}-{i}", "model": model, "group": "others",
        "attributes": {"object": label},
        "judged": {"object": label if one else "fish"},
      }
      for label, several in right.items()
      for i, one in enumerate(several)
    ]  # fmt: skip

  before = rows("base", moon=[1] * 9 + [0], ring=[1] * 10)
  # One moon is lost and one found; all rings are lost.
  after = rows(VICTIM, moon=[0] + [1] * 9, ring=[0] * 10)
  summary = evaluation((20, 20), (0, 20))
  summary["changes"] = {VICTIM: []}
  for label, (old, new) in {"moon": (9, 9), "ring": (10, 0)}.items():
    name, change = f"object/{label}/others", (new - old) / 10
    for model, k in (("base", old), (VICTIM, new)):
      summary["measures"][model].append(measure(k, 10) | {"name": name})
    one = {"name": name, "value": change, "low": change, "high": change}
    summary["changes"][VICTIM].append(one)
  made = found(summary, {})
  lines = "\n".join(json.dumps(one) for one in before + after)
  (made.root / "evaluate/results.jsonl").write_text(lines + "\n")
  for one, k, n in zip(
    document._collateral(made), (1, 10), (9, 10), strict=True
  ):
    share = verdicts.share("", k, n)
    assert (one["low"], one["high"]) == (None, None)
    assert (one["lost"], one["lost_of"]) == (k, n)
    assert (one["lost_low"], one["lost_high"]) == (share.low, share.high)


def test_pictures_name_the_attack_where_there_are_several(found):
  made = found(
    evaluation((20, 20), (0, 20)), {"pez": LOST, "p4d": LOST}, preset="full"
  )
  for name in ("pez", "p4d"):
    one = row(0, "success") | {"blocks": [{"image": f"{name}.png"}]}
    file = made.root / f"attack/{VICTIM}/{name}/results.jsonl"
    file.write_text(json.dumps(one) + "\n")
  shown = pictures._attacked(made, VICTIM, {"prompt": "a star, 0", "seed": 0})
  labels = [(one["label"], pathlib.Path(one["path"]).name) for one in shown]
  assert sorted(labels) == [
    ("attacked by p4d", "p4d.png"), ("attacked by pez", "pez.png"),
  ]  # fmt: skip
