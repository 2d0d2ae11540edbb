"""Finished runs of a published protocol in one table."""

import functools
import json
import shutil

import pytest
from PIL import Image

import unlearning_jax as ul
from unlearning_jax import model
from unlearning_jax.experiments import common, evaluate, published
from unlearning_jax.settings import build

TOY = "judge=tests.support.toys:WARMTH,target=warmth/warm,sampler=ddim"


def test_a_leaderboard_is_of_one_protocol(tmp_path):
  path = tmp_path / "mine.csv"
  path.write_text("prompt,sd_seed\na red star,5\n")
  given = published.config(
    f"udm-nudity~{TOY},steps=1", prompts=str(path), model="shapes"
  )
  folders = [tmp_path / name for name in "abc"]
  opened = functools.partial(
    common.workdir, str(folders[0]), given, evaluate.Settings
  )
  evaluate.run(
    build(evaluate.Settings, given), opened, {"base": model.load("shapes")}
  )
  for folder in folders[1:]:
    shutil.copytree(folders[0], folder)
  for folder in folders:
    (folder / "DONE").write_text("")  # Without its seal.
  file = folders[1] / "summary.json"
  noise = json.loads(file.read_text())
  noise["collapse"] = {"base": {"reasons": ["all of its pictures are noise"]}}
  file.write_text(json.dumps(noise))
  file = folders[2] / "summary.json"
  other = json.loads(file.read_text())
  other["protocol"] = other["protocol"].replace("steps=1", "steps=2")
  file.write_text(json.dumps(other))
  table = ul.leaderboard(folders[:2])
  assert table.columns == ("", "base (a)", "base (b) (collapsed)")
  assert table.rows[1]["collapsed"] == "all of its pictures are noise"
  numbers = {line[0] for line in table.lines}
  assert {"pre_asr", "asr", "fid", "clip-score"} <= numbers
  assert not any(name.startswith("seen") for name in numbers)
  with pytest.raises(ValueError, match="c ran .*steps=2.*do not compare"):
    ul.leaderboard([folders[0], folders[2]])
  # One protocol, but other weights, photographs or pictures.
  file = folders[1] / "provenance.json"
  start = json.loads(file.read_text())
  for changed, message in (
    ({"base_fingerprint": "abc"}, "b has another base than .*a: abc and"),
    ({"judge_hashes": {"warmth": "abc"}}, "another judge warmth"),
    ({"inputs": {"metric fid": "abc"}}, "another metric fid"),
  ):
    run = start["runs"][0] | changed
    file.write_text(json.dumps({"runs": [run]}))
    first = json.loads((folders[0] / "provenance.json").read_text())
    first["runs"][0]["inputs"]["metric fid"] = "def"
    (folders[0] / "provenance.json").write_text(json.dumps(first))
    with pytest.raises(ValueError, match=message):
      ul.leaderboard(folders[:2])
  file.write_text(json.dumps(start))
  for image in (folders[1] / "images").iterdir():
    with Image.open(image) as picture:
      smaller = picture.resize((16, 16))
    smaller.save(image)
  with pytest.raises(ValueError, match="another image size .*: .16, 16. and"):
    ul.leaderboard(folders[:2])
  with pytest.raises(ValueError, match="must be a list"):
    ul.leaderboard(folders[0])
  with pytest.raises(ValueError, match="is no finished run"):
    ul.leaderboard([tmp_path])
