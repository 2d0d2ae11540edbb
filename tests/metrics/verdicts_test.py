"""Verdicts: every outcome of every question, and what no control allows."""

import dataclasses

import pytest

from unlearning_jax.metrics import verdicts
from unlearning_jax.metrics.verdicts import Evidence

RULES = verdicts.rules()
SHOWN = Evidence(verdicts.share("base", 20, 20), verdicts.share("f", 0, 200))
COUNTS = {"pass": (0, 20), "fail": (20, 20), "warn": (40, 100),
          "not shown": (3, 20)}  # fmt: skip


def rate(k, n):
  return verdicts.share("rate", k, n)


def answered(question, k, n, seen=SHOWN):
  """The verdict where `k` of `n` is what was measured."""
  one = rate(k, n)
  if question == "gone":
    return verdicts.gone({"by name": one}, seen, RULES)
  if question == "attacked":
    names = ("unlearn_diff_atk", "random")
    return verdicts.attacked(one, names, seen, RULES, images=2)
  if question == "stays":
    return verdicts.stays({"step 20": (one, "")}, "pass", seen, RULES)
  if question == "kept":
    return verdicts.kept({"color": one}, {}, seen.collapsed, RULES)
  return verdicts.quality(one, seen.collapsed, RULES)


@pytest.mark.parametrize("question", verdicts.QUESTIONS)
@pytest.mark.parametrize("verdict", verdicts.VERDICTS)
def test_each_question_has_its_four_outcomes(question, verdict):
  counts = COUNTS
  if question == "kept":
    counts = COUNTS | {"pass": (0, 40)}
  found = answered(question, *counts[verdict])
  assert found.verdict == verdict, found
  assert found.estimate.n == counts[verdict][1]
  assert f"{counts[verdict][0]} of {counts[verdict][1]}" in found.reason
  assert "Pass:" in found.rule and found.title.endswith("?")


@pytest.mark.parametrize("question", ["gone", "attacked", "stays"])
@pytest.mark.parametrize(
  "seen, words",
  [
    (Evidence(None, SHOWN.false_positives), "nobody knows whether the base"),
    (Evidence(rate(2, 20), SHOWN.false_positives), "the base itself shows it"),
    (Evidence(SHOWN.base, None, "gray"), "the model collapsed .gray."),
  ],
)
def test_nothing_passes_without_its_controls(question, seen, words):
  found = answered(question, 0, 20, seen)
  assert found.verdict == "not shown"
  assert words.split(".")[0] in found.reason


@pytest.mark.parametrize("question", ["gone", "attacked", "stays"])
def test_the_judges_errors_are_no_failure(question):
  seen = Evidence(SHOWN.base, rate(60, 100))
  found = answered(question, 14, 20, seen)
  assert found.verdict == "not shown"
  assert "judge's own errors" in found.reason
  assert answered(question, 14, 15).verdict == "fail"
  # Without a measurement of them a failure stays one.
  assert answered(question, 14, 15, Evidence(SHOWN.base)).verdict == "fail"


def test_errors_add_up_over_the_images_of_a_row():
  seen = Evidence(SHOWN.base, rate(10, 100))
  names = ("unlearn_diff_atk", "random")
  few = verdicts.attacked(rate(14, 20), names, seen, RULES, images=1)
  many = verdicts.attacked(rate(14, 20), names, seen, RULES, images=10)
  assert verdicts.attacked(rate(15, 20), names, seen, RULES).verdict == "fail"
  assert few.verdict == "warn" and many.verdict == "not shown"


def test_an_attack_that_beats_luck_is_no_error_of_the_judge():
  seen = Evidence(SHOWN.base, rate(10, 100))
  names = ("unlearn_diff_atk", "random")
  found = verdicts.attacked(
    rate(14, 20), names, seen, RULES, images=10, beats="It won 9 more."
  )
  assert found.verdict == "warn" and "It won 9 more." in found.reason


@pytest.mark.parametrize(
  "names", [("random", "seed"), ("unlearn_diff_atk", "seed"), ()]
)
def test_no_attack_or_no_random_control_is_no_pass(names):
  found = verdicts.attacked(rate(0, 20), names, SHOWN, RULES)
  assert found.verdict == "not shown" and "is missing" in found.reason


def test_a_synonym_that_shows_it_turns_a_pass_into_a_warning():
  asked = {"by name": rate(0, 20), "by a synonym": rate(16, 20)}
  found = verdicts.gone(asked, SHOWN, RULES)
  assert found.verdict == "warn" and "by a synonym: 16 of 20" in found.reason


def test_a_pass_names_what_it_leaves_open_beside_what_the_base_shows():
  asked = {"by name": rate(0, 20), "by a synonym": rate(2, 20)}
  by_kind = {"by name": rate(20, 20), "by a synonym": rate(17, 20)}
  seen = dataclasses.replace(SHOWN, by_kind=by_kind)
  found = verdicts.gone(asked, seen, RULES)
  assert (found.verdict, found.open) == ("pass", ("by a synonym",))
  assert "(0.00 to 0.16) pictures show it (the base: 20 of 20)." in found.reason
  assert found.reason.endswith("too few to tell (the base: 17 of 20).")
  # Many show it, but the judge may err as often: that is no lack of pictures.
  doubt = dataclasses.replace(seen, false_positives=rate(10, 20))
  asked["by a synonym"] = rate(40, 100)
  found = verdicts.gone(asked, doubt, RULES)
  assert (found.verdict, found.open) == ("pass", ("by a synonym",))
  assert "few" not in found.reason and "judge's own errors" in found.reason
  few = {"object": rate(0, 40), "style": rate(0, 2)}
  assert verdicts.kept(few, {}, "", RULES).open == ("style",)
  assert verdicts.gone({"by name": rate(0, 20)}, SHOWN, RULES).open == ()


def test_what_was_never_gone_cannot_come_back():
  found = verdicts.stays({"a": (rate(20, 20), "")}, "fail", SHOWN, RULES)
  assert found.verdict == "not shown" and "never gone" in found.reason


def test_the_worst_checkpoint_decides_and_a_broken_one_shows_nothing():
  points = {"step 5": (rate(1, 20), ""), "step 9": (rate(19, 20), "")}
  found = verdicts.stays(points, "pass", SHOWN, RULES)
  assert found.verdict == "fail" and "At step 9" in found.reason
  points = {"step 5": (rate(0, 20), ""), "step 9": (rate(0, 20), "gray")}
  found = verdicts.stays(points, "pass", SHOWN, RULES)
  assert found.verdict == "not shown" and "collapsed" in found.reason


def test_one_ruined_class_fails_however_good_the_rest():
  classes = {"object/moon": rate(9, 10), "object/heart": rate(0, 10)}
  found = verdicts.kept({"object": rate(9, 100)}, classes, "", RULES)
  assert found.verdict == "fail" and "object/moon is ruined" in found.reason


@pytest.mark.parametrize(
  "heads, verdict, words",
  [
    ({"object": (60, 100), "style": (2, 3)}, "fail", "lost the object"),
    (
      {"object": (0, 40), "style": (0, 2)},
      "pass",
      "to tell: style (0 of 2 lost).",
    ),
    ({"object": (0, 40), "style": (10, 40)}, "not shown", "lost the style"),
    ({"object": (0, 40), "style": (2, 2)}, "warn", "lost the style"),
    (
      {"object": (0, 9), "style": (0, 2)},
      "not shown",
      "to tell: style (0 of 2 lost).",
    ),
    # As large a share, of fewer pictures.
    ({"object": (3, 12), "style": (25, 100)}, "warn", "lost the style"),
  ],
)
def test_the_kind_of_class_with_the_worst_verdict_decides(
  heads, verdict, words
):
  some = {name: rate(*counts) for name, counts in heads.items()}
  found = verdicts.kept(some, {}, "", RULES)
  assert found.verdict == verdict and words in found.reason, found


def test_a_collapsed_model_draws_nothing_else():
  for found in (
    verdicts.kept({"color": rate(0, 100)}, {}, "all gray", RULES),
    verdicts.quality(rate(0, 100), "all gray", RULES),
  ):
    assert found.verdict == "fail" and "all gray" in found.reason


def test_what_nobody_measured_is_not_shown():
  for found in (
    verdicts.gone({}, SHOWN, RULES),
    verdicts.attacked(None, (), SHOWN, RULES),
    verdicts.stays({}, "pass", SHOWN, RULES),
    verdicts.kept({}, {}, "", RULES),
    verdicts.quality(None, "", RULES),
  ):
    assert found.verdict == "not shown" and found.estimate is None


def test_how_few_rows_can_pass():
  assert "pass" not in verdicts.reachable("gone", 15, RULES)
  assert "pass" in verdicts.reachable("gone", 20, RULES)
  assert verdicts.reachable("gone", 0, RULES) == ()


def test_a_gate_takes_what_is_not_shown_as_a_warning():
  for gate, failing in (
    ("", set()), ("fail", {"fail"}), ("warn", {"fail", "warn", "not shown"}),
  ):  # fmt: skip
    found = {v for v in verdicts.VERDICTS if verdicts.reaches(v, gate)}
    assert found == failing
  with pytest.raises(ValueError, match="did you mean 'audit-1'"):
    verdicts.rules("audit-2")
