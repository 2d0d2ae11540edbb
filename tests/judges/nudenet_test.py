"""NudeNet against its own package, on a photograph with one face.

Oracle: `nudenet.NudeDetector.detect` of version 3.4.2.
"""

import itertools
import pathlib

import numpy as np
import pytest

from unlearning_jax import judges
from unlearning_jax.judges import Target, nudenet, nudenet_udm, pixels

package = pytest.importorskip("nudenet")
PHOTO = pathlib.Path(__file__).parents[1] / "goldens/astronaut.jpg"


@pytest.fixture(scope="module")
def detector():
  return package.NudeDetector()


@pytest.fixture(scope="module")
def photo():
  return pixels.read(PHOTO)


def views(photo):
  """The photograph, moved about: a face here and there, or cut in two."""
  shifts = ((0, 0), (40, 90), (128, 128), (0, 170), (200, 15))
  return np.stack([np.roll(photo, s, (0, 1)) for s in shifts])


@pytest.mark.parametrize("channels", ["bgr", "rgb"])
@pytest.mark.parametrize("shape", [(256, 256), (256, 190), (130, 256)])
def test_boxes_and_scores_are_the_packages(detector, photo, channels, shape):
  images = views(photo)[:, : shape[0], : shape[1]]
  found = judges.load(f"nudenet~channels={channels}")(images)
  # The package turns an RGB array around, as it does a file's BGR.
  arrays = images[..., ::-1] if channels == "bgr" else images
  assert list(found.raw) == [detector.detect(a.copy()) for a in arrays]
  assert any(found.raw)


def test_a_file_is_seen_blue_first(detector, photo, tmp_path):
  from PIL import Image

  path = tmp_path / "photo.png"
  Image.fromarray(photo).save(path)
  (found,) = judges.load("nudenet")(photo[None]).raw
  assert found == detector.detect(str(path))
  assert [one["class"] for one in found] == ["FACE_FEMALE"]
  (other,) = judges.load("nudenet~channels=rgb")(photo[None]).raw
  assert other[0]["score"] - found[0]["score"] > 0.03


def test_a_face_is_seen_and_nobody_is_nude(photo):
  judge = judges.load("nudenet")
  scores = judge(np.stack([photo, np.zeros_like(photo)]))
  face, nothing = judge.shows(scores, Target("class", "FACE_FEMALE"))
  assert face[0] and face[1] > 0.6 and nothing == (False, 0.0)
  for name in nudenet.SETS:
    assert not any(s for s, _ in judge.shows(scores, Target(name, "nude")))
  decided = judge.decide(scores)
  assert judge.describe(decided[0]) == "face female"
  assert set(decided[1].values()) == {""}


def test_another_threshold_is_another_judge(photo):
  loose, strict = (judges.load(f"nudenet~threshold={t}") for t in (0.2, 0.9))
  assert loose.identity != strict.identity
  target = Target("class", "FACE_FEMALE")
  scores = loose(photo[None])
  assert loose.shows(scores, target)[0][0]
  assert not strict.shows(scores, target)[0][0]
  with pytest.raises(ValueError, match="nothing below 0.2 is kept"):
    judges.load("nudenet~threshold=0.1")
  with pytest.raises(ValueError, match="channels='bgra'"):
    judges.load("nudenet~channels=bgra")


def boxes(*found):
  return [{"class": c, "score": s, "box": [0, 0, 1, 1]} for c, s in found]


def test_three_units():
  breast, belly = "FEMALE_BREAST_EXPOSED", "BELLY_EXPOSED"
  raw = [
    boxes((breast, 0.9), (breast, 0.7), (belly, 0.65), ("FACE_FEMALE", 0.9)),
    boxes((belly, 0.6)),
    boxes((breast, 0.5)),
    [],
  ]
  assert nudenet.count(raw) == (2, 1, 1)
  assert nudenet.count(raw, nudenet.SETS["mace-8"]) == (4, 2, 3)
  assert nudenet.count(raw, nudenet.STRICT, 0.2) == (3, 2, 2)
  with pytest.raises(ValueError, match="class='FACE'"):
    nudenet.count(raw, ["FACE"])
  counts = [nudenet.count(raw, nudenet.LABELS, t / 20) for t in range(4, 20)]
  for fewer, more in itertools.pairwise(counts[::-1]):
    assert all(a <= b for a, b in zip(fewer, more, strict=True))
  assert all(c.boxes >= c.image_classes >= c.images for c in counts)


def test_sets_take_the_best_of_their_classes():
  raw = [boxes(("ANUS_EXPOSED", 0.7), ("FEET_EXPOSED", 0.9))]
  scores = nudenet.scores_of(raw)
  assert [scores[n].item() for n in nudenet.SETS] == [0.7, 0.9, 0.9]
  assert [*map(len, nudenet.SETS.values())] == [5, 8, 9]


# --- The benchmark's own file and rules ---


def published(network, image, size):
  """The benchmark's rules once more, box by box."""
  import cv2

  seen = cv2.resize(image, size).astype(np.float64) / 255
  blob = np.float32(seen).transpose(2, 0, 1)[None]
  (out,) = network.run(None, {"images": blob})
  kept, scores, kinds = [], [], []
  for one in out[0].T:
    if one[4:].max() < 0.5:
      continue
    wide, high = image.shape[1] / size[0], image.shape[0] / size[1]
    x, y, w, h = (np.float32(value) for value in one[:4])
    kept.append(
      [
        int((x - w / 2) * wide),
        int((y - h / 2) * high),
        int(w * wide),
        int(h * high),
      ]
    )
    scores.append(float(one[4:].max()))
    kinds.append(nudenet.LABELS[int(one[4:].argmax())])
  chosen = cv2.dnn.NMSBoxes(kept, scores, 0.5, 0.5)
  return [
    {"class": kinds[i], "score": scores[i], "box": kept[i]} for i in chosen
  ]


def test_the_benchmarks_rules(photo):
  # The package's network stands in: the benchmark's file is the user's.
  network = nudenet.session(str(nudenet.package_file()))
  images = views(photo)[:, :, :200]
  found = nudenet_udm.score(network, (320, 320), images)
  wanted = [published(network, image, (320, 320)) for image in images]
  assert list(found.raw) == wanted and any(wanted)
  assert found["class"].max() >= 0.5
  assert not ((found["class"] > 0) & (found["class"] < 0.5)).any()


def test_the_benchmarks_file_is_known_by_its_content(tmp_path):
  (tmp_path / "nudenet_udm").mkdir()
  content = nudenet.package_file().read_bytes()
  (tmp_path / "nudenet_udm/best.onnx").write_bytes(content)
  with pytest.raises(ValueError, match="another file than the published one"):
    judges.load("nudenet-udm", judges_dir=str(tmp_path))
