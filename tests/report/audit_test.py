"""The page of an audit: what it shows, what it says is missing, escaping."""

import re
from typing import Any

import pytest

from tests.report.comparison_test import Page
from tests.support import audit_documents
from unlearning_jax.report import audit

HEADINGS = [
  "Verdicts", "Claims and published numbers",
  "Pictures from the same noise", "Attack success by number of images",
  "Does fine-tuning bring it back?", "What else changed", "Cost", "Stages",
]  # fmt: skip
EVIL = "<script>alert(1)</script>\"' onload='x' {{ 7 * 7 }}"


@pytest.fixture
def whole(tmp_path):
  return audit_documents.full(tmp_path)


def headings(text):
  return re.findall(r"<h2[^>]*>([^<]+)</h2>", text)


def test_the_page_has_every_section(whole, tmp_path):
  text = audit.html(whole, tmp_path)
  assert headings(text) == [
    *HEADINGS[:6], "The judge&#x27;s own errors", *HEADINGS[6:],
    "How this was made", "Glossary",
  ]  # fmt: skip
  page = Page(text)
  for words in (
    "Victims uce, rece Base shapes (e9e89f67) Concept “star” (object)",
    "The quick preset draws 20 rows.",
    "Preset quick: 40 rows by name",
    "70.0 % number-attacked",
    "48.1 to 85.5 %, 14 of 20",
    "12.31 number-quality",
    "-0.575 to -0.375, n = 40",
    "Question attacked? The upper bound is at most 0.1.",
    "75.0 % of the rows showed the concept under at least one attack",
    "The claim lies below the interval.",
    "its paper, table 2",
    "prompt: zfjq star",
    "−47.5 [−57.5, −37.5] 97.5 % → 50.0 %, n = 40",
    "24,000 512 MiB",
    "ValueError: no data.",
    "unlearning-jax evaluate --edits=runs/uce",
    "collapsed: 9 pictures are noise",
  ):
    assert words in page.text, words
  assert "#judge" in [v for _, name, v in page.attributes if name == "href"]
  # Each chart leads to the stages behind it, and those to their commands.
  links = [value for _, name, value in page.attributes if name == "href"]
  targets = [value for _, name, value in page.attributes if name == "id"]
  assert {"#evaluate", "#attack/rece/p4d"} <= {*links}
  assert {one[1:] for one in links if one[0] == "#"} <= {*targets}
  # The largest fall stands first.
  assert page.text.index("object: moon") < page.text.index("object: ring")


def test_every_verdict_has_a_chip_and_its_rows(whole, tmp_path):
  text = audit.html(whole, tmp_path)
  for verdict, count in {
    "pass": 2,
    "fail": 1,
    "warn": 1,
    "not shown": 1,
  }.items():
    class_ = f'class="chip {verdict.replace(" ", "-")}"'
    # In the table of all, and on the card. The claim has one more.
    assert text.count(class_) == 4 * count + (verdict == "fail"), verdict
  # Four verdicts of each victim have rows; the classes have some too.
  assert text.count(f'href="{audit_documents.PATH}"') == 9


def test_the_verdicts_of_a_victim_are_one_sentence(whole, tmp_path):
  page = Page(audit.html(whole, tmp_path))
  others = (
    "“Question attacked?” (fail), “Question stays?” (not shown), "
    "“Question kept?” (warn)"
  )
  assert f"2 of 5 questions pass, but not {others}." in page.text
  for one in whole["verdicts"]:
    one["open"] = ["by a synonym"] if one["verdict"] == "pass" else ["style"]
  page = Page(audit.html(whole, tmp_path))
  left = "Undecided: by a synonym, by a synonym."
  assert f"but not {others}. {left}" in page.text
  assert "pass undecided: by a synonym" in page.text
  assert "undecided: style" not in page.text


def test_a_change_of_few_pictures_has_no_interval(whole, tmp_path):
  for one in whole["collateral"]:
    one["n"] = 2
  text = Page(audit.html(whole, tmp_path)).text
  assert "−47.5 too few for an interval 97.5 % → 50.0 %, n = 2" in text
  assert "1 more classes, none of which changed" in text


def test_where_resampling_gives_no_interval_the_share_lost_has_one(
  whole, tmp_path
):
  for one in whole["collateral"]:
    one |= {"low": None, "high": None, "lost": 0, "lost_of": 20}
    one |= {"lost_low": 0.0, "lost_high": 0.161}
  text = Page(audit.html(whole, tmp_path)).text
  assert "+0.0 0 of 20 lost (0.0 % to 16.1 %)" in text
  assert "[" not in text.partition("What else changed")[2].partition("Cost")[0]


def test_memory_has_a_column_only_where_it_was_measured(whole, tmp_path):
  assert "most memory" in Page(audit.html(whole, tmp_path)).text
  for one in whole["cost"]:
    one["memory_bytes"] = None
  assert "most memory" not in Page(audit.html(whole, tmp_path)).text


def test_the_chart_of_tuning_reads_in_percent(whole, tmp_path):
  text = audit.html(whole, tmp_path)
  assert "uce: 50% [35%, 65%] at step 100" in text
  # Even steps: 10 of 100 stands at a tenth of the width.
  assert 'cx="40.0"' in text and 'cx="69.2"' in text and 'cx="332.0"' in text


def test_what_is_missing_is_said_in_words(tmp_path):
  text = audit.html(audit_documents.LEAST, tmp_path)
  page = Page(text)
  for words in (
    "There is no verdict on this victim.",
    "No attack on this victim was measured, so there is no worst case.",
    "This audit kept no pictures.",
    "No fine-tuned model was measured.",
    "No other class was measured.",
    "No cost was recorded.",
    "No stage ran.",
  ):
    assert words in page.text, words
  assert 'class="chip pass"' not in text
  with pytest.raises(ValueError, match="lacks 'stages'; it has"):
    audit.html({"title": "", "victims": [], "verdicts": []}, tmp_path)


def unknown(value: Any) -> Any:
  """The document with no number but seeds, steps and counts of images."""
  if isinstance(value, dict):
    kept = ("step", "images", "claimed", "seed", "row")
    return {
      key: one if key in kept and not isinstance(one, list) else unknown(one)
      for key, one in value.items()
    }
  if isinstance(value, list):
    return [unknown(one) for one in value]
  return None if type(value) in (int, float) else value


def test_numbers_may_be_unknown(whole, tmp_path):
  del whole["judge_errors"]
  page = Page(audit.html(unknown(whole), tmp_path))
  for words in (
    "No attack on this victim was measured, so there is no worst case.",
    "No fine-tuned model was measured.",
    "uce asr 0.1 – ✕ fail",
    "asr –",
    "object: moon – –",
  ):
    assert words in page.text, words
  assert "None" not in page.text and "%" not in page.text.replace("95 %", "")


def spoiled(value: Any) -> Any:
  """The document with every text made hostile, but for what has a meaning."""
  if isinstance(value, dict):
    kept = ("question", "verdict", "state", "path", "rows")
    return {
      key: one if key in kept else spoiled(one) for key, one in value.items()
    }
  if isinstance(value, list):
    return [spoiled(one) for one in value]
  return value + EVIL if isinstance(value, str) else value


def test_every_text_is_escaped(whole, tmp_path):
  text = audit.html(spoiled(whole), tmp_path)
  assert "<script" not in text and "49" not in headings(text)
  page = Page(text)
  assert EVIL in page.text
  assert not [a for a in page.attributes if a[1].startswith("on")]
  for _, name, value in page.attributes:
    if name == "href":
      assert re.match(r"#|[\w./%-]+$", value), value


def test_links_and_pictures_stay_below_the_run(whole, tmp_path):
  for path in ("../x", "/etc/passwd", "//elsewhere/x"):
    stage = whole["stages"][0] | {"page": path}
    with pytest.raises(ValueError, match="leaves the run's folder"):
      audit.html({**whole, "stages": [stage]}, tmp_path)
  (tmp_path / "run").mkdir()
  with pytest.raises(ValueError, match="is not a file below"):
    picture = {**whole["pictures"][0]}
    picture["images"] = [
      picture["images"][0] | {"path": "../" + audit_documents.PATH}
    ]
    audit.html(
      {**audit_documents.LEAST, "pictures": [picture]}, tmp_path / "run"
    )


def test_a_picture_that_no_stage_drew_is_named(whole, tmp_path):
  (tmp_path / "evaluate/images/uce0-1.png").unlink()
  assert "This picture is missing." in audit.html(whole, tmp_path)


def test_unsafe_pictures_are_covered_one_by_one(tmp_path):
  whole = audit_documents.full(tmp_path, unsafe=True)
  page = Page(audit.html(whole, tmp_path))
  assert page.attributes.count(("details", "class", "veil")) == 16
  assert not [a for a in page.attributes if a[:2] == ("details", "open")]
  assert "press Enter" in page.text


def test_a_large_audit_has_smaller_pictures(tmp_path, monkeypatch):
  whole = audit_documents.full(tmp_path, size=256)
  large = audit.html(whole, tmp_path)
  monkeypatch.setattr(audit, "_MOST_BYTES", len(large) // 2)
  small = audit.html(whole, tmp_path)
  assert len(small) < len(large) / 2
  assert len(list(Page(small).images())) == 16
