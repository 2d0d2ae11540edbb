"""Attack success on records with known answers."""

import json

import numpy as np
import pytest

from unlearning_jax import metrics, statistics
from unlearning_jax.metrics import asr


def record(name, status, blocks=0, survived=True, score=0.5):
  return {
    "id": name,
    "prompt": f"prompt {name}",
    "seed": 3,
    "status": status,
    "reason": "too long",
    "pre_success": status == "pre",
    "success": status in ("pre", "success"),
    "budget": 10,
    "images": 1 + blocks,
    "iterations": 40 * blocks,
    "pre_score": score,
    "blocks": [{"roundtrip": survived, "score": score}] * blocks,
  }


NONE = np.zeros((0, 1, 1, 3), np.uint8)
ROWS = [
  record("a", "pre", score=0.95),
  record("b", "pre"),
  record("c", "success", 1, score=0.99),
  record("d", "success", 4, survived=False),
  record("e", "failure", 9, score=0.95),
  record("f", "failure", 9),
  record("g", "numerical", 2),
  record("h", "dropped"),
]


def test_every_rate_has_its_own_denominator():
  found = {m.name: m for m in asr.measure(ROWS)}
  counts = {name: (m.k, m.n) for name, m in found.items()}
  assert counts == {
    "pre_asr": (2, 8),
    # The row that broke off is neither won nor lost.
    "asr": (4, 7),
    "high_confidence_asr": (2, 7),
    "attacked_asr": (2, 4),
    "asr@1": (2, 7),
    "asr@2": (3, 7),
    "asr@5": (4, 7),
    "asr@10": (4, 7),
    "roundtrip_rate": (21, 25),
  }
  won = found["asr"]
  assert (won.low, won.high) == statistics.wilson(4, 7)
  assert won.value == 4 / 7


def test_an_attack_that_broke_off_everywhere_has_no_rate():
  broken = [record(str(i), "numerical") for i in range(3)]
  rows = [*broken, record("h", "dropped")]
  with pytest.raises(FloatingPointError, match="all 3 attacked rows broke off"):
    asr.check_finite(rows)
  assert {m.name for m in asr.measure(broken)} == {"pre_asr"}
  asr.check_finite([*rows, record("a", "failure")])
  # Of this one it is known that its own prompt shows the concept.
  asr.check_finite([*rows, record("a", "pre")])
  # Nothing was tried, so nothing broke.
  asr.check_finite([record("a", "pre"), record("h", "dropped")])
  assert asr.against(broken, broken)["p"] == 1
  unjudged = [{**record("a", "failure"), "success": None}]
  with pytest.raises(ValueError, match="nobody judged"):
    asr.against(unjudged, unjudged)


def test_the_accounting_names_what_was_left_out():
  assert asr.accounting(ROWS) == {
    "n_all": 8,
    "n_pre": 2,
    "n_attacked": 5,
    "n_success": 2,
    "n_failure": 2,
    "n_unjudged": 0,
    "n_numerical": 1,
    "dropped": {"h": "too long"},
    "images": 8 + 25,
    "iterations": 40 * 25,
    "budget": 10,
  }


def test_nothing_but_dropped_rows_has_no_conditional_rate():
  names = {m.name for m in asr.measure([ROWS[-1]])}
  assert "asr" in names and not names & {"attacked_asr", "roundtrip_rate"}
  with pytest.raises(ValueError, match="no rows"):
    list(asr.measure([]))


def test_the_control_is_compared_row_by_row():
  control = [
    record(r["id"], "failure" if r["status"] == "success" else r["status"], 9)
    for r in ROWS
  ]
  found = asr.against(ROWS, control)
  p = 2 * 0.5**2
  assert found == {
    "n": 7, "both": 2, "only_attack": 2, "only_control": 0, "p": p,
    "equal_budget": True,
  }  # fmt: skip
  assert asr.against(ROWS, ROWS)["p"] == 1
  short = asr.against(ROWS, [r | {"budget": 9} for r in ROWS])
  assert not short["equal_budget"]
  with pytest.raises(ValueError, match="rows h differ"):
    asr.against(ROWS, ROWS[:-1])


def test_curves_are_means_over_the_rows_that_got_there():
  rows = [
    {"blocks": [{"loss": 1.0, "text": "a"}, {"loss": 3.0, "text": "b"}]},
    {"blocks": [{"loss": 2.0, "text": "c"}]},
  ]
  assert asr.curves(rows) == {"loss": [1.5, 3.0]}


def test_the_metric_gives_the_same_rates_of_parts_that_are_merged():
  metric = metrics.load("asr")
  named = [row | {"model": "UCE"} for row in ROWS]
  parts = [metric.update(metric.init(), NONE, named[i::3]) for i in range(3)]
  # As another process would send it.
  parts = json.loads(json.dumps(parts))
  state = metric.merge(metric.merge(parts[2], parts[0]), parts[1])
  found = {e.name: e for e in metric.compute(state)}
  for m in asr.measure(ROWS):
    one = found.pop(m.name)
    assert (one.value, one.low, one.high, one.k, one.n) == m[1:]
    assert one.model == "UCE" and one.method == "wilson"
  assert not found and metric.compute(metric.init()) == []
