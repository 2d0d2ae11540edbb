"""A folder of images, judged; and judged runs by another threshold."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.support import toys
from unlearning_jax.experiments import common, judge

WARMTH = "tests.support.toys:WARMTH"
PHOTO = pathlib.Path(__file__).parents[1] / "goldens/astronaut.jpg"


@pytest.fixture
def folder(tmp_path):
  """Warm, lukewarm and cold pictures of two sizes, and two odd files."""
  path = tmp_path / "pictures"
  (path / "more").mkdir(parents=True)
  for i, level in enumerate((250, 128, 5, 200, 100)):
    size = (6, 4) if i % 2 else (8, 8)
    image = np.full((*size, 3), level, np.uint8)
    Image.fromarray(image).save(path / f"{'more/' if i == 4 else ''}{i}.png")
  deep = np.full((4, 4), 40000, np.uint16)
  Image.fromarray(deep).save(path / "deep.png")
  (path / "broken.png").write_bytes(b"no image")
  (path / "notes.txt").write_text("not looked at")
  return path


def settings_of(folder, name=WARMTH):
  return judge.Settings(judge=name, images=str(folder))


def workdir(path, given):
  config = {"judge": given.judge, "images": given.images}
  return common.workdir(str(path), config, judge.Settings)


def counts(found):
  return {
    one["name"]: (one["k"], one["n"])
    for one in found["estimates"]
    if one["name"].endswith("/all")
  }


def test_every_image_is_a_row_and_odd_files_are_named(folder, tmp_path):
  given = settings_of(folder)
  run = workdir(tmp_path / "run", given)
  found = judge.run(given, run)
  assert counts(found) == {
    "seen warmth/warm/all": (2, 5),
    "seen warmth/cold/all": (1, 5),
    "seen warmth/none/all": (2, 5),
  }
  assert set(found["refused"]) == {"deep.png", "broken.png"}
  assert "is of mode I;16" in found["refused"]["deep.png"]
  assert found["judge"]["identity"] == toys.WARMTH.identity
  rows = {row["id"]: row for row in run.rows()}
  assert set(rows) == {
    "0.png", "1.png", "2.png", "3.png", "more/4.png", "deep.png", "broken.png"
  }  # fmt: skip
  image = np.full((1, 8, 8, 3), 250, np.uint8)
  wanted = toys.WARMTH(image)["warmth"][0]
  assert rows["0.png"]["scores"] == {"warmth": wanted.tolist()}
  assert rows["0.png"]["judged"] == {"warmth": "warm"}
  text = judge.text(found)
  assert "left out: 2" in text and "deep.png" in text and "2 of 5" in text


def test_another_threshold_needs_no_image(folder, tmp_path):
  given = settings_of(folder)
  judge.run(given, workdir(tmp_path / "run", given))
  for file in folder.rglob("*.png"):
    file.unlink()
  found = judge.again(str(tmp_path / "run"), 0.95)
  assert counts(found) == {
    "seen warmth/warm/all": (1, 5),
    "seen warmth/cold/all": (1, 5),
    "seen warmth/none/all": (3, 5),
  }
  same = judge.again(str(tmp_path / "run"), 0.75)
  summary = json.loads((tmp_path / "run/summary.json").read_text())
  assert same["estimates"] == summary["estimates"]


def test_a_killed_run_goes_on(folder, tmp_path, monkeypatch):
  given = settings_of(folder)
  whole = judge.run(given, workdir(tmp_path / "whole", given))
  seen = []

  def killed(*arguments):
    if len(seen) == 3:
      raise KeyboardInterrupt
    seen.append(arguments)
    return scored(*arguments)

  scored = judge._scored
  with monkeypatch.context() as patch:
    patch.setattr(judge, "_scored", killed)
    with pytest.raises(KeyboardInterrupt):
      judge.run(given, workdir(tmp_path / "run", given))
  with pytest.raises(ValueError, match="the run has not ended"):
    judge.again(str(tmp_path / "run"), 0.5)
  run = workdir(tmp_path / "run", given)
  assert 0 < len(run.done_ids()) < 7
  assert judge.run(given, run) == whole


def test_what_cannot_be_judged_is_refused(folder, tmp_path):
  with pytest.raises(ValueError, match="no such folder"):
    settings_of(tmp_path / "none")
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="has no images; looked for .png"):
    settings_of(tmp_path / "empty")
  with pytest.raises(ValueError, match="judge='shape'.*did you mean 'shapes'"):
    settings_of(folder, "shape")
  given = settings_of(folder)
  run = workdir(tmp_path / "run", given)
  judge.run(given, run)
  (tmp_path / "run/DONE").write_text("")  # Without its seal.
  for name, message in (
    ("shapes", "has no thresholds"),
    (None, "nobody judged this run"),
  ):
    config = {"judge": name, "images": str(folder)}
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
      judge.again(str(tmp_path / "run"), 0.5)


def test_rows_of_another_judge_are_refused(folder, tmp_path):
  pytest.importorskip("nudenet")
  given = settings_of(folder)
  judge.run(given, workdir(tmp_path / "run", given))
  (tmp_path / "run/DONE").write_text("")  # Without its seal.
  config = {"judge": "nudenet", "images": str(folder)}
  (tmp_path / "run/config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match="of another judge"):
    judge.again(str(tmp_path / "run"), 0.5)


def test_a_detectors_units_are_counted(tmp_path):
  pytest.importorskip("nudenet")
  (tmp_path / "one").mkdir()
  (tmp_path / "one/photo.jpg").write_bytes(PHOTO.read_bytes())
  given = settings_of(tmp_path / "one", "nudenet")
  found = judge.run(given, workdir(tmp_path / "run", given))
  units = found["counts"]["all"]
  assert units["strict-5 boxes"] == 0 and "mace-8 image x classes" in units
  assert counts(found)["seen class/FACE_FEMALE/all"] == (1, 1)
  strict = judge.again(str(tmp_path / "run"), 0.9)
  assert counts(strict)["seen class/none/all"] == (1, 1)


def test_an_evaluation_is_decided_again_by_what_drew_it():
  scores = {"base": (0.9, 0.5), "UCE": (0.1, 0.5)}
  rows = [
    {"id": f"{model}/{i}", "model": model, "scores": {"warmth": [warm, 0]}}
    for model, levels in scores.items()
    for i, warm in enumerate(levels)
  ]
  found = judge.summary(toys.WARMTH, rows)
  seen = {
    one["model"]: (one["k"], one["n"])
    for one in found["estimates"]
    if one["name"] == "seen warmth/warm/all"
  }
  assert seen == {"base": (1, 2), "UCE": (0, 2)}
  assert f"  {'UCE':8} warmth/warm" in judge.text(found)
