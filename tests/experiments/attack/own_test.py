"""A judge and a metric of a user's own module: named in settings, no more."""

import html
import json

import pytest

from tests.support import toys
from unlearning_jax import settings
from unlearning_jax.experiments import attack
from unlearning_jax.record import Memory


@pytest.fixture
def given(tmp_path):
  """Makes settings that name them, some keys changed."""
  lines = ["case_number,prompt,evaluation_seed,evaluation_guidance"]
  lines += ["4,a star,5,2.0", "9,a red star on gray,6,2.0"]
  (tmp_path / "prompts.csv").write_text("\n".join(lines))

  def make(**changes):
    values = {
      "method": "controls",
      "hparams": {"kind": "random", "num_tokens": 2, "blocks": 2},
      "judge": "tests.support.toys:WARMTH",
      "metrics": ["tests.support.toys:BRIGHTNESS", "asr", "seen"],
      "targets": [{"head": "warmth", "label": "warm", "task": "object"}],
      "prompt_table": str(tmp_path / "prompts.csv"), "title": "Light",
      "lanes": 2, "batch_size": 2,
      "sampling": {"num_inference_steps": 1, "guidance_scale": 2.0},
    }  # fmt: skip
    return settings.build(attack.Settings, values | changes)

  return make


def test_they_are_in_the_summary_and_on_the_page(given):
  record = Memory(quiet=True)
  found = attack.run(given(), lambda: record)
  rows = record.rows()
  images = sum(row["images"] for row in rows)
  assert len(rows) == 2 and found["accounting"]["images"] == images
  for row in rows:
    assert row["pre_success"] == (row["pre_score"] >= 0.75)
  bright, *rates = record.summary["estimates"]
  # Every image that was judged, wherever the run was stopped before.
  assert bright["name"] == "brightness" and bright["n"] == images
  asr = next(m for m in found["measures"] if m["name"] == "asr")
  (same,) = (one for one in rates if one["name"] == "asr")
  # What a judge sees, in a row of its own for each image.
  seen = {one["name"].split("/")[-1]: one["n"] for one in rates if one["n"]}
  assert (seen["all"], seen["prompt"]) == (images, len(rows))
  assert [same[key] for key in asr] == list(asr.values())
  (start,) = record.provenance["runs"]
  assert start["judge_hashes"] == {"warmth": toys.WARMTH.identity}
  assert toys.WARMTH.identity.startswith("version 1 ")
  printed = " ".join(attack.printed(found).split())
  assert f"brightness {bright['value']:.4g}" in printed
  page = str(record.files["report.html"])
  assert "brightness" in page and f"{bright['n']}" in page


def test_a_table_as_published(given, tmp_path, capsys):
  """Empty rows, other names of columns, sizes, rows without guidance."""
  lines = ["prompt,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height"]
  lines += ["a star,3000000000,1,512,512", ",1,7,512,512", "a star,6,2,64,64"]
  (tmp_path / "prompts.csv").write_text("\n".join(lines))
  record = Memory(quiet=True)
  changes = {"metrics": (), "hparams": {"kind": "none", "blocks": 1}}
  found = attack.run(given(**changes), lambda: record)
  rows = {row["id"]: row for row in record.rows()}
  assert {i: (r["seed"], r["guidance"]) for i, r in rows.items()} == {
    "0": (3000000000, 1.0), "2": (6, 2.0),
  }  # fmt: skip
  # One denoising step, with and without the empty prompt.
  assert [rows[i]["unet_calls"] / rows[i]["images"] for i in "02"] == [1, 2]
  said = capsys.readouterr().err
  for note in found["notes"]:
    assert said.count(note) == 1
    assert note in html.unescape(str(record.files["report.html"]))
  assert "1 row (case_number 1) without a prompt" in said
  assert "2 rows ask for images of another size: all are drawn at 32x32" in said


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"targets": [{"head": "object", "label": "star"}]},
     r"judge warmth \(cannot see shapes\): head='object'.*warmth.*targets=\("
     r"{'head': 'warmth', 'label': 'warm'},\)"),
    ({"targets": [{"head": "warmth", "label": "wram"}]}, "mean 'warm'"),
    ({"targets": [{"task": "object", "name": "star"}]}, "head='object'"),
    ({"targets": [{"head": "warmth"}]}, "give its head and its label"),
    ({"judge": "tests.support.toys:WARM"}, "judge='tests.support.toys:WARM': "),
    ({"metrics": ["no.toys:RED"]}, "metric='no.toys:RED'.*importable"),
    ({"metrics": ["tests.support.toys:WARMTH"]}, "is Judge, not a Metric"),
    ({"metrics": ["accuracy"]}, "'accuracy' reads .*can show asr, seen, or"),
    ({"metrics": ["r_norm"]}, "'r_norm' reads the rows of resurgence"),
    ({"metrics": ["seen"], "judge": None, "targets": []}, "name a judge"),
    ({"prompt_table": ""}, "prompt_table: name a CSV"),
  ],
)  # fmt: skip
def test_what_they_cannot_do_is_told_before_anything_is_written(
  changes, words, given
):
  def opened():
    raise AssertionError("the record is opened: too late for an error")

  with pytest.raises(ValueError, match=words):
    attack.run(given(**changes), opened)


def test_settings_pass_through_json(given):
  made = given()
  values = json.loads(json.dumps(settings.plain(made)))
  assert settings.build(attack.Settings, values) == made
  assert None not in settings.marks(attack.Settings).values()
