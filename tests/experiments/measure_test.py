"""A folder of pictures, measured, with a toy's features for Inception's."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import unlearning_jax as ul
from tests.metrics.quality_test import far
from tests.support import toys
from unlearning_jax.experiments import common, measure
from unlearning_jax.metrics import moments, references
from unlearning_jax.record.workdir import Workdir

COLORS = "network=tests.support.toys:COLORS"
FID = f"fid~reference=base,{COLORS}"
KID = f"kid~reference=base,subsets=3,subset_size=5,{COLORS}"


def draw(folder, seed, n=12):
  """Pictures of two sizes; the same names for any seed."""
  rng = np.random.default_rng(seed)
  folder.mkdir(parents=True)
  for i in range(n):
    image = rng.integers(0, 256, (8 + i // 6, 10, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / f"{i:02}.png")
  return folder


def read(folder):
  return [np.asarray(Image.open(p)) for p in sorted(folder.glob("*.png"))]


def settings_of(folder, base, *names):
  return measure.Settings(
    images=str(folder), base=str(base), metrics=names or (FID, KID)
  )


def values(found):
  return {one["name"]: one["value"] for one in found["estimates"]}


def test_a_folder_and_its_base(tmp_path):
  folder, base = draw(tmp_path / "new", 1), draw(tmp_path / "old", 0)
  table = ul.measure(folder, [FID, KID], base=base, out=tmp_path / "run")
  names = ["fid/colors/12", "kid/colors/12", "kid-spread/colors/12"]
  found = values(table.summary)
  assert [*found] == names and len(table.rows) == 12
  assert "fid/colors/12" in repr(table)
  mine, other = (
    np.concatenate([toys.COLORS(image[None]) for image in read(f)])
    for f in (folder, base)
  )
  assert found["fid/colors/12"] == pytest.approx(far(mine, other), rel=1e-6)
  same = measure.run(
    settings_of(base, base), common.workdir(str(tmp_path / "s"), {}, dict)
  )
  assert abs(values(same)["fid/colors/12"]) < 1e-9
  # The base is as good a reference as a folder.
  photographs = FID.replace("reference=base", f"reference={base}")
  table = ul.measure(folder, [photographs])
  assert values(table.summary)["fid/colors/12"] == pytest.approx(
    found["fid/colors/12"], rel=1e-9
  )


def test_files_that_cannot_be_used_are_named_and_so_is_a_pair_of_one(tmp_path):
  folder, base = draw(tmp_path / "new", 1), draw(tmp_path / "old", 0)
  plain = ul.measure(folder, [FID], base=base).summary
  for path in (folder, base):
    shutil.copy(path / "00.png", path / "broken.png")
    shutil.copy(path / "00.png", path / "deep.png")
    shutil.copy(path / "00.png", path / "clear.png")
  (folder / "broken.png").write_bytes(b"no image")
  Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(base / "deep.png")
  Image.new("RGBA", (4, 4), (9, 9, 9, 100)).save(folder / "clear.png")
  found = ul.measure(folder, [FID], base=base).summary
  assert set(found["refused"]) == {"broken.png", "deep.png", "clear.png"}
  assert found["images"] == 12 and values(found) == values(plain)
  assert "left out: 3" in measure.text(found)
  # A grey picture is three equal channels, not refused.
  grey = Image.fromarray(np.full((8, 10), 128, np.uint8))
  grey.save(folder / "00.png")
  assert ul.measure(folder, [FID], base=base).summary["images"] == 12
  with pytest.raises(ValueError, match="3 of its files cannot be used; mend"):
    for name in ("broken.png", "deep.png", "clear.png"):
      (base / name).write_bytes(b"no image")
    ul.measure(folder, [FID.replace("=base", f"={base}")])
  for path in folder.glob("*.png"):
    path.write_bytes(b"no image")
  with pytest.raises(ValueError, match="none of its 15 files can be used"):
    ul.measure(folder, [FID], base=base)


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
  folder, base = draw(tmp_path / "new", 1), draw(tmp_path / "old", 0)
  given = settings_of(folder, base)
  whole = measure.run(given, workdir(tmp_path / "whole", given))
  monkeypatch.setattr(measure, "_BATCH", 3)
  append, drawn = Workdir.append_row, []

  def killed(self, row):
    if len(drawn) == 7:
      raise KeyboardInterrupt
    drawn.append(row)
    append(self, row)

  with monkeypatch.context() as patch:
    patch.setattr(Workdir, "append_row", killed)
    with pytest.raises(KeyboardInterrupt):
      measure.run(given, workdir(tmp_path / "run", given))
  again = measure.run(given, workdir(tmp_path / "run", given))
  for name, value in values(whole).items():
    assert values(again)[name] == pytest.approx(value, rel=1e-9)


def workdir(path, given):
  config = json.loads(json.dumps(dataclasses.asdict(given)))
  return common.workdir(str(path), config, measure.Settings, alone=True)


def test_captions_come_from_the_folder_or_a_table(tmp_path):
  folder = draw(tmp_path / "new", 1, n=2)
  plain = measure.Settings(images=str(folder), metrics=(fid_of(folder),))
  assert measure.captions_of(plain) == {}
  lines = [
    json.dumps({"file_name": f"0{i}.png", "text": f"prompt {i}"})
    for i in range(2)
  ]
  (folder / "metadata.jsonl").write_text("\n".join(lines))
  said = {"00.png": "prompt 0", "01.png": "prompt 1"}
  assert measure.captions_of(plain) == said
  table = folder / "said.csv"
  table.write_text('file_name,text\n00.png,"a\nline"\n')
  with pytest.raises(ValueError, match="1 of 2 pictures have none, such as"):
    dataclasses.replace(plain, captions=str(table))


def fid_of(folder):
  return f"fid~reference={folder},{COLORS}"


@pytest.mark.parametrize(
  "changes, wanted",
  [
    ({"images": "/nowhere"}, "images='/nowhere': no such folder"),
    ({"metrics": ()}, "metrics: name some of clip-score, fid, fid-to-base, "),
    ({"metrics": ("accuracy",)}, "and judged by unlearning-jax judge"),
    ({"metrics": ("fdi",)}, "fid"),
    ({"metrics": (f"fid~{COLORS}",)}, "reference: name a folder of photo"),
    ({"metrics": (fid_of("gone.npz"),)}, "reference='gone.npz': no such file"),
    ({"metrics": (fid_of("gone"),)}, "reference='gone': no such folder"),
    ({"metrics": (FID,)}, "base: .* compares with the base's pictures"),
    ({"metrics": (FID,), "base": "few"}, "base=.*: lacks 2 pictures"),
    ({"metrics": (FID,), "base": "more"}, "images=.*: lacks 1 pictures"),
    ({"metrics": ("tests.support.toys:ASKS",)}, "needs the prompt of every"),
    ({"statistics": "cleen"}, "clean"),
  ],
)
def test_what_is_wrong_is_said_before_anything_is_read(
  changes, wanted, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  for name, n in (("new", 4), ("few", 2), ("more", 5)):
    draw(tmp_path / name, 0, n)
  given = {"images": "new", "metrics": (fid_of("new"),)} | changes
  with pytest.raises(ValueError, match=wanted):
    measure.Settings(**given)


def test_statistics_are_a_reference_of_what_they_were_made_of(tmp_path):
  folder, photographs = draw(tmp_path / "new", 1), draw(tmp_path / "old", 0)
  file = tmp_path / "old.npz"
  references.write(file, str(photographs), toys.COLORS)
  by_folder, by_file = (
    values(ul.measure(folder, [fid_of(p), kid_of(p)]).summary)
    for p in (photographs, file)
  )
  assert by_folder == by_file
  other = dataclasses.replace(toys.COLORS, identity="colors 2")
  with pytest.raises(ValueError, match="is of other weights: colors 1; want"):
    references.Reference("fid", str(file)).check(other)
  with pytest.raises(ValueError, match="is of 12 pictures, and 10000 are want"):
    references.Reference("fid", str(file), count=10000).check(toys.COLORS)
  with np.load(file) as held:
    bare = {key: held[key] for key in ("mu", "sigma")}
  np.savez(tmp_path / "bare.npz", **bare)
  place = str(tmp_path / "bare.npz")
  with pytest.raises(ValueError, match="does not say how its pictures were"):
    references.Reference("fid", place).check(toys.COLORS)
  said = references.Reference("fid", place, "colors", 12)
  said.check(toys.COLORS)
  with pytest.raises(ValueError, match="moments alone, and fid needs the feat"):
    said.check(toys.COLORS, vectors=True)
  with pytest.raises(ValueError, match="is of stack 'clean', and these pict"):
    references.Reference("fid", place, "clean", 12).check(toys.COLORS)
  wide = dataclasses.replace(toys.COLORS, width=7)
  with pytest.raises(ValueError, match="has 6 features, and colors has 7"):
    said.check(wide)
  np.savez(tmp_path / "bare.npz", mu=bare["mu"] * np.nan, sigma=bare["sigma"])
  with pytest.raises(ValueError, match="mu holds NaN or infinity"):
    said.check(toys.COLORS)
  (tmp_path / "bare.npz").write_bytes(b"no archive")
  with pytest.raises(ValueError, match="not a readable .npz"):
    said.check(toys.COLORS)
  assert moments.frechet(*[said_of(file)] * 2) < 1e-9


def said_of(file):
  return references.Reference("fid", str(file)).gaussian(toys.COLORS)


def kid_of(place):
  return f"kid~reference={place},subsets=3,subset_size=5,{COLORS}"
