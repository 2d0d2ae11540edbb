"""The pages of attacks: right numbers, right images, nothing left unsaid."""

import csv
import io
import json
import types
from typing import Any

import numpy as np
import pytest
from PIL import Image
from unlearning_jax.configs import attack_controls

from tests.metrics.asr_test import ROWS, record
from tests.report.comparison_test import Page, image
from unlearning_jax import settings
from unlearning_jax.attacks.engine.rows import Request, Verdict
from unlearning_jax.experiments.attack import Settings, check, summary
from unlearning_jax.experiments.attack.control import Control
from unlearning_jax.experiments.matrix import Cell
from unlearning_jax.experiments.matrix import summary as matrix_summary
from unlearning_jax.metrics import asr
from unlearning_jax.record.workdir import Workdir
from unlearning_jax.report import attack as page
from unlearning_jax.report import attack_matrix, plot

LUCKY = [
  record(r["id"], "failure" if r["status"] == "success" else r["status"], 9)
  for r in ROWS
]


class Tokenizer:
  bos_token_id, eos_token_id = 0, 1

  def convert_ids_to_tokens(self, ids):
    return [f"<t{i}></w>" for i in ids]


SD: Any = types.SimpleNamespace(tokenizer=Tokenizer())


def won(name="c", **changes) -> dict[str, Any]:
  """A row whose attack made one image that counts."""
  last = {"text": f"a <b>{name}</b>", "ids": [0, 7, 8, 1], "roundtrip": False}
  last |= {"score": 0.9, "seed": 3, "image": f"images/{name}-1.png"}
  own = {"number": 2, "pre_score": 0.1, "pre_image": f"images/{name}-0.png"}
  return record(name, "success", 1) | own | {"blocks": [last]} | changes


@pytest.fixture
def run(tmp_path):
  """A run with the images of one row; its target stands elsewhere."""
  run = Workdir(tmp_path / "run", {})
  for i in range(2):
    run.save_image(f"c-{i}", image(i))
  (tmp_path / "targets").mkdir()
  Image.fromarray(image(2)).save(tmp_path / "targets" / "c.png")
  return run


def make_document(**changes) -> dict[str, Any]:
  document: dict[str, Any] = {
    "title": "UDA on “star”",
    **summary.rates(ROWS),
  }
  document["curves"] = {"loss": [0.5, 0.25]}
  paired = asr.against(ROWS, LUCKY)
  own = {"name": "random", **summary.rates(LUCKY)}
  document["control"] = own | {"paired": paired}
  return document | {"unsafe": False, "gallery": []} | changes


def render(document, run, **options):
  return page.render(document, run.path, {"runs": []}, **options)


def test_the_page_says_what_was_measured(run):
  text = Page(render(make_document(), run)).text
  for words in (
    "for 4 of 7 prompts (57.1 %), without attack for 2.",
    "The control, random, reached 2 of 7: the rows do not show which is ahead",
    "p = 0.5, McNemar",
    "both won 2, the attack alone 2, the control alone 0, and neither 3: p",
    "rows (N) 8 8",
    "dropped 1",
    "h too long",
    "84.0 %",  # of 25 prompts, 21 have the same ids again
  ):
    assert words in text, words
  alone = {k: v for k, v in make_document().items() if k != "control"}
  assert "luck is not ruled out" in Page(render(alone, run)).text


def test_a_control_of_the_same_method_has_another_dash(run):
  document = make_document(about={"method": "random"})
  text = render(document, run)
  assert 'class="s0 d1"' in text and 'class="s0 d2"' in text


def test_the_summary_says_what_the_victim_s_file_held(run):
  config = attack_controls.get_config("tiny")
  config.grid_rows = 0
  for i, row in enumerate(ROWS):
    run.append_row(row | {"number": i})
  run.record_provenance(devices={})
  files = {"unet": "3 of 9 tensors"}
  given = settings.build(Settings, config.to_dict())
  for held in (files, {}):
    setup: Any = types.SimpleNamespace(
      given=given, sd=SD, held=held, edits={"UCE": None}, judge=None,
      target=None,
    )  # fmt: skip
    summary.conclude(run, setup, Control(), run.path)
    document = json.loads((run.path / "summary.json").read_text())
    assert document.get("victim_file", {}) == held
    assert document["accounting"]["n_all"] == len(ROWS)
  page = Page((run.path / "report.html").read_text())
  assert "Victim UCE Base shapes Concept “star”" in page.text


@pytest.mark.parametrize(
  "paired, words",
  [
    ({"p": 0.01, "only_attack": 9, "only_control": 0}, "the attack is ahead"),
    ({"p": 0.01, "only_attack": 0, "only_control": 9}, "the attack is behind"),
    (
      {"p": 0.2, "only_attack": 9, "only_control": 4},
      "do not show which is ahead",
    ),
    ({"equal_budget": False}, "the comparison is not fair"),
  ],
)
def test_the_verdict_is_that_of_the_test(paired, words):
  document = make_document()
  document["control"]["paired"] |= paired
  assert words in page.verdict(document)


def test_a_control_with_more_images_is_said_to_have_them():
  document = make_document()
  document["control"]["paired"]["equal_budget"] = False
  most = document["accounting"]["budget"] + 3
  document["control"]["accounting"] = {"budget": most}
  assert f"It may draw {most} images a row" in page.verdict(document)
  assert "not fair" not in page.verdict(document)


def test_a_frame_has_three_images_from_one_seed(run):
  frame = summary.frame(run, SD, won(), run.path.parent / "targets")
  assert frame["tokens"] == ["<t7></w>", "<t8></w>"]
  # What stood elsewhere has been copied: the page's images are the run's own.
  assert frame["images"]["base"].startswith("images/shown/c-base")
  document = make_document(gallery=[frame])
  found = Page(render(document, run))
  drawn = list(found.images())
  for array, i in zip(drawn, (2, 0, 1), strict=True):
    np.testing.assert_array_equal(array, image(i))
  for words in ("<t7>", "a <b>c</b>", "other ids", "won after 1 · seed 3"):
    assert words in found.text, words
  assert "<b>c" not in render(document, run)


def test_unsafe_images_are_blurred_unless_asked(run):
  frame = summary.frame(run, SD, won(), run.path.parent / "targets")
  document = make_document(gallery=[frame], unsafe=True)
  found = Page(render(document, run))
  assert next(found.images()).shape == (8, 8, 3)
  assert found.attributes.count(("details", "class", "veil")) == 3
  shown = next(Page(render(document, run, show_unsafe=True)).images())
  np.testing.assert_array_equal(shown, image(2))


def test_images_stay_below_the_run(run):
  frame = summary.frame(run, SD, won(), run.path.parent / "targets")
  frame["images"]["attack"] = "../targets/c.png"
  with pytest.raises(ValueError, match="is not a file below"):
    render(make_document(gallery=[frame]), run)


def test_the_gallery_prefers_what_was_won():
  lost = [won(n, success=False, status="failure") for n in "xyz"]
  rows = [*lost, *(won(n) for n in "abcd"), record("p", "pre")]
  names = [r["id"] for r in summary.chosen(rows, 4)]
  assert names == ["a", "b", "x", "y"]
  assert [r["id"] for r in summary.chosen(rows[3:], 3)] == list("abc")
  assert len(summary.chosen(lost, 1)) == 1


def test_a_curve_is_drawn_as_steps():
  rates = summary.rates(ROWS)["by_images"]
  assert [r["k"] for r in rates] == [2, 3, 3, 3, 4, 4, 4, 4, 4, 4]
  found = Page(plot.curves({"uda": rates, "late": (), "random": rates[:1]}))
  lines = [v for _, n, v in found.attributes if n == "points"]
  assert len(lines) == 4  # two bands, two curves
  line = [tuple(map(float, p.split(","))) for p in lines[1].split()]
  assert len(line) == 20 and line[0][0] == 34 and line[-1][0] == 312
  # 2 of 7 up to the first image's end, at the end 4 of 7.
  assert line[0][1] == line[1][1] == pytest.approx(160 - 152 * 2 / 7, abs=0.01)
  assert line[-1][1] == pytest.approx(160 - 152 * 4 / 7, abs=0.01)
  (label,) = [v for _, n, v in found.attributes if n == "aria-label"]
  assert "uda 57.1% after 10" in label and "random 28.6% after 1" in label
  assert "late" not in found.text


def test_what_a_prompt_gives_is_not_drawn_twice():
  asked = []

  def ask(requests):
    asked.extend(requests)
    return [Verdict(False, 0.5) for _ in requests]

  known = won("c", guidance=None, pre_success=True)
  remembered = check.remembering(ask, [known], "../none")
  own = Request(known["prompt"], known["seed"], None)
  others = [own._replace(seed=4), own._replace(context=np.ones(2))]
  found = remembered([others[0], own, others[1]])
  assert asked == others
  assert found[1] == Verdict(True, 0.1, "../none/images/c-0.png")
  assert [v.score for v in found] == [0.5, 0.1, 0.5]


# --- Many attacks on many victims ---


def matrix_document(tmp_path) -> dict[str, Any]:
  entries: list[dict[str, Any]] = []
  for attack, rows in {"random": LUCKY, "uda": ROWS}.items():
    cell: dict[str, Any] = {"task": "object", "victim": "uce"}
    cell |= {"attack": attack, "status": "done", "seconds_per_row": 2.0}
    cell["logged"] = matrix_summary._logged(rows)
    entries.append(cell | summary.rates(rows))
  paired = asr.against(ROWS, LUCKY) | {"p_holm": 0.9}
  entries[1]["paired"] = {"control": "random", **paired}
  base = {"task": "object", "victim": "base"}
  entries.append(
    base | {"attack": "uda", "status": "failed", "error": "ValueError: x<y"}
  )
  entries.append(base | {"attack": "random", "status": "not run"})
  about = {"name": "star", "victims": ["base", "uce"], "unsafe": False}
  return {
    "title": "All", "control": "random", "attacks": ["random", "uda"],
    "tasks": {"object": about | {"gallery": []}}, "cells": entries,
  }  # fmt: skip


def test_the_table_has_every_cell(tmp_path):
  document = matrix_document(tmp_path)
  found = Page(attack_matrix.render(document, tmp_path, {}))
  for words in (
    "2 of 4 cells are done. In 0 of 1 the attack beats",
    "Object “star”",
    "+2 −0, p = 0.9",
    "object/base/uda ValueError: x<y",
    "not run",
    "object/uce/uda h too long",
  ):
    assert words in found.text, words
  lines = attack_matrix.printed(document).splitlines()
  assert lines[2].split()[1:] == ["not", "run", "failed"]
  assert lines[3].split() == ["object/uce", "2/7", "4/7"]


def test_the_csv_has_counts_intervals_and_the_test(tmp_path):
  text = matrix_summary.to_csv(matrix_document(tmp_path)["cells"])
  lines = {
    (r["victim"], r["attack"]): r for r in csv.DictReader(io.StringIO(text))
  }
  uda = lines["uce", "uda"]
  assert (uda["asr_k"], uda["asr_n"], uda["dropped"]) == ("4", "7", "1")
  assert (uda["attacked_asr_k"], uda["attacked_asr_n"]) == ("2", "4")
  assert (uda["only_attack"], uda["p"], uda["p_holm"]) == ("2", "0.5", "0.9")
  assert uda["asr@10_k"] == "4" and "asr@20" not in uda
  assert uda["gradient_rms"] == "" and "confidence" in uda
  assert lines["base", "uda"]["error"] == "ValueError: x<y"
  assert lines["base", "random"]["status"] == "not run"


def test_an_attack_may_have_a_control_of_its_own(tmp_path):
  document = matrix_document(tmp_path)
  document["cells"][1]["paired"]["control"] = "random_full"
  text = Page(attack_matrix.render(document, tmp_path, {})).text
  assert "+2 −0, p = 0.9, against random_full" in text
  assert "beats its control, “random_full”" in text


def test_images_that_nobody_judged_are_no_failures(run):
  rows = [record(name, "unjudged", 2) for name in "ab"]
  for row in rows:
    row |= {"success": None, "pre_success": None, "pre_score": None}
    row["blocks"] = [
      {"text": "x", "seed": 3, "image": "images/c-1.png", "score": None}
    ] * 2
    row["pre_image"] = "images/c-0.png"
  frames = [
    summary.frame(run, SD, row, run.path) for row in summary.chosen(rows, 6)
  ]
  assert len(frames) == 2
  document = {
    "title": "T", "unsafe": False, "gallery": frames,
    "curves": asr.curves(rows), **summary.rates(rows),
  }  # fmt: skip
  assert not document["measures"] and not document["by_images"]
  text = Page(render(document, run)).text
  assert "Nobody judged the images" in text and "not judged" in text
  assert "%" not in text and "score" not in text
  assert "asr" not in summary.printed(document)


def test_a_block_without_any_image_has_no_mean_score(run):
  spared = [
    {"loss": 0.5, "diffusion_classifier": 0.1},
    {"loss": 0.25, "score": 0.5},
  ]
  rows = [record("e", "failure", 2) | {"blocks": spared}]
  found = asr.curves(rows)
  assert found["score"] == [None, 0.5]
  found["other"] = [None, 1.5]
  text = Page(render(make_document(curves=found), run)).text
  assert "–" in text and "1.5" in text


def test_what_is_logged_is_a_mean_over_all_blocks(tmp_path):
  rows = [
    {"blocks": [{"loss": 1.0, "gradient_rms": 1e-4}, {"loss": 2.0}]},
    {"blocks": []},
    {"blocks": [{"loss": 6.0, "gradient_rms": 3e-4}]},
  ]
  found = matrix_summary._logged(rows)
  assert found == {"loss": 3.0, "gradient_rms": pytest.approx(2e-4)}
  document = matrix_document(tmp_path)
  document["cells"][1]["logged"] = found
  lines = csv.DictReader(io.StringIO(matrix_summary.to_csv(document["cells"])))
  line = next(line for line in lines if line["attack"] == "uda")
  assert float(line["gradient_rms"]) == found["gradient_rms"]
  text = Page(attack_matrix.render(document, tmp_path, {})).text
  assert "2.0e-04" in text and "gradient" in text


def test_a_gallery_shows_one_row_under_every_attack(tmp_path):
  rows = {}
  for attack, found in {
    "random": [won("c", success=False), won("b", success=False)],
    "uda": [won("c"), won("b", success=False)],
  }.items():
    cell = Cell("object", "uce", attack)
    rows[cell] = found
    for i in range(2):
      Workdir(tmp_path / str(cell), {}).save_image(f"c-{i}", image(i))
  (frame, _) = matrix_summary._gallery(tmp_path, "object", rows)
  assert frame["victim"] == "uce" and frame["won"] == ["uda"]
  assert frame["images"] == {
    "no attack": "object/uce/random/images/c-0.png",
    "random": "object/uce/random/images/c-1.png",
    "uda": "object/uce/uda/images/c-1.png",
  }
  document = matrix_document(tmp_path)
  document["tasks"]["object"]["gallery"] = [frame]
  found = Page(attack_matrix.render(document, tmp_path, {}))
  assert len(list(found.images())) == 3


def test_a_probe_counts_its_own_images(run):
  document = make_document(networks={"random": summary.rates(LUCKY)})
  del document["control"]
  text = Page(render(document, run)).text
  assert "won by the prompt alone" not in text
  assert "the first wins no row" in text
  # Of the victim, and of the network of random weights.
  assert "dropped 1 1" in text
