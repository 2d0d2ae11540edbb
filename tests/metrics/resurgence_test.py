"""Resurgence in numbers: against formulas worked out by hand, or scipy."""

import numpy as np
import pytest
import scipy.stats

from unlearning_jax import statistics
from unlearning_jax.metrics import resurgence, study

N = 60
_, CLOSED, TRAINED = study.AMONG


def bits(k, n=N):
  return np.arange(n) < k


def test_normalized_is_the_share_of_what_was_lost_that_is_back():
  prompts = range(N)
  found = resurgence.normalized(bits(54), bits(6), bits(30), prompts)
  assert found.value == pytest.approx((30 - 6) / (54 - 6))
  assert found.low < found.value < found.high
  # Nothing moved, or all is back: exactly, but of 60 prompts only.
  doubt = statistics.wilson(0, N)[1] / (48 / N)
  still = resurgence.normalized(bits(54), bits(6), bits(6), prompts)
  assert still == pytest.approx((0, -doubt, doubt))
  back = resurgence.normalized(bits(54), bits(6), bits(54), prompts)
  assert back.value == 1 and back.low < 1 <= back.high


def test_images_of_one_prompt_are_drawn_together():
  alone = resurgence.normalized(bits(60), bits(0), bits(30), range(N))
  # Two prompts only: either may be missing from a draw.
  pairs = resurgence.normalized(bits(60), bits(0), bits(30), np.arange(N) < 30)
  assert alone.value == pairs.value == 0.5
  assert pairs.low <= 0 and pairs.high == 1 and alone.high - alone.low < 0.3


def test_normalized_interval_covers_as_often_as_it_says():
  rng = np.random.default_rng(0)
  inside = 0
  for trial in range(200):
    now = rng.random(N) < 0.4
    found = resurgence.normalized(
      np.ones(N, bool), np.zeros(N, bool), now, range(N), num_draws=400,
      seed=trial,
    )  # fmt: skip
    inside += found.low <= 0.4 <= found.high
  # 95 % of 200, within five standard deviations of a binomial.
  assert 175 <= inside <= 200


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.98])
def test_normalized_interval_covers_near_the_ends(rate):
  # There the bootstrap alone is too sure of itself.
  rng = np.random.default_rng(2)
  inside = 0
  for trial in range(200):
    now = rng.random(N) < rate
    found = resurgence.normalized(
      np.ones(N, bool), np.zeros(N, bool), now, range(N), num_draws=200,
      seed=trial,
    )  # fmt: skip
    inside += found.low <= rate <= found.high
  assert inside >= 175


@pytest.mark.parametrize("base, gone", [(6, 6), (3, 6)])
def test_what_was_never_lost_cannot_come_back(base, gone):
  with pytest.raises(ValueError, match="resurgence is undefined: the base"):
    resurgence.normalized(bits(base), bits(gone), bits(60), range(N))


def test_revival_area_and_early_share():
  steps, values = (0, 10, 100), (0.0, 0.2, 0.5)
  assert resurgence.revival_step(steps, values, 0.2) == 10
  assert resurgence.revival_step(steps, values, 0.6) is None
  a, b, c = np.log1p(steps)
  wanted = (0.1 * (b - a) + 0.35 * (c - b)) / (c - a)
  assert resurgence.area(steps, values) == pytest.approx(wanted)
  assert resurgence.early_share(steps, values, 20) == pytest.approx(0.4)
  assert resurgence.early_share(steps, (0, 0, 0), 20) is None
  assert resurgence.deviation((0.1, 0.3, 0.9)) == pytest.approx((0.3, 0.6))
  with pytest.raises(ValueError, match="at least two, rising"):
    resurgence.area((0, 0), (0, 1))


def test_rank_correlation_is_spearmans():
  rng = np.random.default_rng(1)
  x = rng.integers(6, size=30).astype(float)
  y = x + 3 * rng.random(30)
  found = resurgence.rank_correlation(x, y, range(30))
  assert found.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
  assert found.low < found.value < found.high
  assert resurgence.rank_correlation(np.ones(30), y, range(30)) is None
  assert resurgence.rank_correlation(x[:3], y[:3], range(3)) is None
  # Sixty runs of six erasures know less than sixty of sixty.
  x, y = np.repeat(x[:6], 10), np.repeat(y[:6], 10)
  every = resurgence.rank_correlation(x, y, np.arange(60))
  few = resurgence.rank_correlation(x, y, np.repeat(np.arange(6), 10))
  assert few.value == every.value
  assert few.high - few.low > 2 * (every.high - every.low)


# --- A study ---


def text(k, n):
  return "1" * k + "0" * (n - k)


def right(by_name, n=20):
  return {
    "explicit": text(by_name, n),
    "synonyms": text(2, 10),
    "paraphrases": text(1, 10),
    "others": text(9, 10),
    "tuned": text(5, 5),
  }


def cell(condition, seed, erased, *values, pull=0.0, kind="", **more):
  prompts = {
    g: [f"{g} {i}" for i in range(len(t))] for g, t in right(0).items()
  }
  drift = dict.fromkeys(study.EARLY, float(values[0]))
  points = {
    step: {"right": right(k), "drift": drift}
    for step, k in zip((5, 20, 50), values, strict=True)
  }
  return study.record(
    study.Condition.parse(condition), seed, right(20), right(erased), points,
    prompts, {"pull": pull, **more}, kind,
  )  # fmt: skip


def test_seeds_are_pooled_image_by_image():
  name = "esd_x/star/near/lora/none"
  found, = study.summarize(
    [cell(name, 0, 0, 2, 4, 8), cell(name, 1, 2, 2, 6, 12)], 0.3
  )  # fmt: skip
  last = found["steps"][-1]
  assert found["seeds"] == [0, 1] and [e["step"] for e in found["steps"]] == [
    0, 5, 20, 50,
  ]  # fmt: skip
  rate = last["groups"]["explicit"]
  assert (rate["k"], rate["n"]) == (20, 40)
  assert last["resurgence"]["explicit"]["value"] == pytest.approx(18 / 38)
  assert last["median"] == pytest.approx((8 / 20 + 10 / 18) / 2)
  assert found["revival"] == 50 and found["defined"]
  start = found["steps"][0]["resurgence"]["explicit"]
  assert set(start.values()) == {0}
  assert found["early"] == {"step": 20, "share": pytest.approx(8 / 18)}


def test_seeds_are_told_apart_and_changes_counted():
  name = "esd_x/star/near/lora/none"
  # Given out of order.
  cells = [cell(name, 1, 2, 2, 6, 12), cell(name, 0, 5, 2, 4, 8)]
  (found,) = study.summarize(cells, 0.3)
  first, *_, last = found["steps"]
  assert found["base"]["explicit"]["by_seed"] == [20, 20]
  assert first["groups"]["explicit"]["by_seed"] == [5, 2]
  assert last["groups"]["explicit"]["by_seed"] == [8, 12]
  # Synonyms and paraphrases together.
  words = last["groups"]["words"]
  assert (words["by_seed"], words["n"]) == ([3, 3], 40)
  # Three gained and ten: all of 13 go one way, and of each seed's.
  wanted = {"lost": 0, "gained": 13, "p": 2 / 2**13}
  change = last["change"]["explicit"]
  assert change == wanted | {"p_by_seed": [2 / 2**3, 2 / 2**10]}
  assert last["change"]["words"]["p"] == 1 and "change" not in first
  assert found["steps"][1]["change"]["explicit"]["lost"] == 3
  assert last["drift"]["moved"] == [2, 2]
  # Half of what named the concept is gone, and 0.9 of the rest is kept.
  assert last["harmonic"] == pytest.approx(2 / (1 / 0.5 + 1 / 0.9))
  assert "defended" not in last


def test_a_defense_is_compared_with_the_same_run_without():
  run, rest = "esd_x/star/near/full", (2, 4, 8)
  cells = [cell(f"{run}/none", 0, 0, *rest), cell(f"{run}/none", 1, 0, 2, 2, 9)]
  held = [
    cell(f"{run}/anchor", 0, 0, 2, 4, 3),
    cell(f"{run}/anchor", 1, 0, 2, 3, 4),
  ]
  _, found = study.summarize([*cells, *held], 0.3)
  points = [point.get("defended") for point in found["steps"]]
  assert points[0] is None and points[1]["explicit"]["p"] == 1
  last = points[3]["explicit"]
  assert (last["lost"], last["gained"]) == (5 + 5, 0)
  assert last["p"] == 2 / 2**10 and last["p_by_seed"] == [2 / 2**5] * 2
  assert (points[2]["explicit"]["lost"], points[2]["explicit"]["gained"]) == (
    0,
    1,
  )
  # Of a seed that nothing was left undefended there is no comparison.
  _, alone = study.summarize([cells[0], *held], 0.3)
  assert "defended" not in alone["steps"][-1]


@pytest.mark.parametrize("left", [20, 17])
def test_an_erasure_that_took_hardly_anything_away_is_undefined(left):
  (found,) = study.summarize(
    [cell("uce/star/in/full/none", 0, left, left, left, 20)], 0.3
  )
  assert not found["defined"] and found["area"] is None
  assert found["steps"][-1]["resurgence"]["explicit"] is None
  assert found["steps"][-1]["groups"]["explicit"]["value"] == 1


def test_predictors_leave_controls_out():
  runs = [
    cell(f"m{i}/star/near/lora/none", 0, 0, i, 2 * i, 2 * i, pull=i / 10)
    for i in range(6)
  ]
  runs.append(cell("m0/star/control/lora/none", 0, 0, 0, 0, 0, pull=9.0))
  runs.append(cell("m0/star/same/lora/none", 0, 0, 9, 9, 20, pull=-9.0))
  runs.append(cell("m0/star/near/full/project", 0, 0, 9, 9, 20, pull=-9.0))
  listed = study.predictors(runs)
  assert {row["among"] for row in listed} == {"all"}
  found = {row["name"]: row for row in listed}
  assert found["pull"]["value"] == pytest.approx(1) and found["pull"]["n"] == 6
  assert found["moved"]["when"] == "early"
  # The same in all runs: it cannot foretell anything.
  assert "synonyms_left" not in found
  # However many runs, four erased models are too few.
  few = [
    cell(f"m{i % 4}/star/{kind}/lora/none", i, 0, i, i, 2 * i, pull=i / 10)
    for i, kind in enumerate(("near", "far", "in", "out") * 2)
  ]
  assert study.predictors(few) == []


def test_an_edit_of_the_text_encoder_has_no_size_in_the_unet():
  runs = [
    cell(
      f"m{i}/star/near/lora/none", 0, 0, i, i, 2 * i, relative_change=float(i),
      prompt_change=float(i), overlap=float(i),
    )
    for i in range(6)
  ]  # fmt: skip
  found = {row["name"]: row for row in study.predictors(runs)}
  for name in ("relative_change", "prompt_change"):
    assert found[name]["n"] == 5 and found[name]["value"] == pytest.approx(1)
  assert found["overlap"]["n"] == 6


def test_predictors_are_told_within_kinds_of_erasure_too():
  # Closed forms hold whatever the pull; of trained ones it says the reverse.
  runs = [
    cell(f"c{i}/star/near/lora/none", 0, 0, 0, 0, i % 2, pull=i, kind=CLOSED)
    for i in range(6)
  ] + [
    cell(
      f"t{i}/star/near/lora/none", 0, 0, 1, 2, 9 - i, pull=9 + i, kind=TRAINED
    )
    for i in range(6)
  ]
  found = {
    row["among"]: row for row in study.predictors(runs) if row["name"] == "pull"
  }
  assert list(found) == list(study.AMONG)
  assert found["all"]["value"] > 0.5 and found["all"]["n"] == 12
  assert found[TRAINED]["value"] == pytest.approx(-1)
  assert found[TRAINED]["n"] == found[CLOSED]["n"] == 6
  # Of one kind there may be too few.
  few = {row["among"] for row in study.predictors(runs[2:])}
  assert few == {"all", TRAINED}
