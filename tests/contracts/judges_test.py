"""What every judge promises. A new one is one row."""

import dataclasses
import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from tests.support import judge_weights, toys
from unlearning_jax import judges, record
from unlearning_jax.experiments import common
from unlearning_jax.judges import Target, weights


def needs(package):
  """Only where an extra is installed, which the [test] extra does."""
  missing = importlib.util.find_spec(package) is None
  return pytest.mark.skipif(missing, reason=f"needs {package}")


FACES = "faces~model=tests.judges.faces_test:recognize,names="
NAMES = pathlib.Path(judge_weights.__file__).with_name("names.txt")

# Name, height and width of images.
JUDGES = [
  ("shapes", (32, 32)),
  ("tests.support.toys:WARMTH", (16, 24)),
  (f"{FACES}{NAMES}", (20, 16)),
  pytest.param("nudenet", (48, 64), marks=needs("nudenet")),
  # torch writes their weights, which are small here, and random.
  *(
    pytest.param(name, (70, 64), marks=needs("torch"))
    for name in (
      "clip-zero-shot~texts=a star|a moon",
      "q16",
      "resnet50-microsoft",
      "resnet50-v2",
      "style-vit-129~top=3",
      "unlearncanvas-vit",
    )
  ),
]

pytestmark = pytest.mark.parametrize("name, size", JUDGES)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
  """A folder of judges' weights, whose hashes are not the published ones."""
  path = tmp_path_factory.mktemp("judges")
  with pytest.MonkeyPatch.context() as patch:
    if importlib.util.find_spec("torch") is not None:
      judge_weights.all_small(path)
    patch.setenv(weights.VARIABLE, str(path))
    patch.setattr(weights.File, "_refuse", lambda *_: None)
    yield path


def images_of(size, n=5):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (n, *size, 3), dtype=np.uint8)


def test_every_label_has_a_score(name, size):
  judge = judges.load(name)
  scores = judge(images_of(size))
  assert {h: s.shape for h, s in scores.items()} == {
    head: (5, len(labels)) for head, labels in judge.labels.items()
  }
  assert judge.name and judge.version and judge.cannot_see and judge.sees


def test_an_image_is_judged_alone(name, size):
  judge, images = judges.load(name), images_of(size)
  together, again = judge(images), judges.load(name)(images)
  alone = [judge(images[i : i + 1]) for i in range(5)]
  for head, scores in together.items():
    np.testing.assert_array_equal(scores, again[head])
    np.testing.assert_array_equal(
      scores, np.concatenate([one[head] for one in alone])
    )


def test_devices_do_not_matter(name, size):
  first, *_, last = jax.devices()
  found = []
  for device in (first, last):
    with jax.default_device(device):
      found.append(judges.load(name)(images_of(size)))
  for head, scores in found[0].items():
    np.testing.assert_array_equal(scores, found[1][head])


def test_the_record_names_its_weights(name, size):
  del size
  judge, memory = judges.load(name), record.Memory(quiet=True)
  common.begin(memory, common.Drawn(judge=name), {})
  (run,) = memory.provenance["runs"]
  assert run["judge_hashes"] == {judge.name: judge.identity}
  assert judge.identity.startswith(judge.weights_hash or "version 1")
  # Neither other thresholds nor another version go on with its rows.
  label = next(iter(judge.labels.values()))[0]
  others = ({"thresholds": {label: 0.123}}, {"version": "2"})
  for changes in others:
    assert dataclasses.replace(judge, **changes).identity != judge.identity
  assert name != "shapes" or len(judge.identity) == 64


def test_other_images_are_refused(name, size):
  judge, images = judges.load(name), images_of(size)
  for wrong in (images[:0], images.astype(np.float32), images[..., :1]):
    with pytest.raises(ValueError, match=f"judge {judge.name}: wants uint8"):
      judge(wrong)
  if judge.image_size:
    with pytest.raises(ValueError, match="got uint8 .5, 31"):
      judge(images[:, :31])


def test_it_says_what_it_cannot_see(name, size):
  del size
  judge = judges.load(name)
  head = next(iter(judge.labels))
  for target in (Target("smell", "roses"), Target(head, "roses")):
    with pytest.raises(ValueError, match=judge.cannot_see):
      judge.find(target)


def test_decisions_follow_thresholds(name, size):
  judge, images = judges.load(name), images_of(size)
  scores = judge(images)
  head, labels = next(iter(judge.labels.items()))
  strict = dataclasses.replace(judge, thresholds=dict.fromkeys(labels, 2.0))
  assert {one[head] for one in strict.decide(scores)} == {""}
  # Of those that are over theirs, the likeliest.
  loose = dataclasses.replace(judge, thresholds=dict.fromkeys(labels, 0.0))
  likeliest = [labels[i] for i in scores[head].argmax(axis=1)]
  assert [one[head] for one in loose.decide(scores)] == likeliest
  target = Target(head, labels[0])
  assert all(seen for seen, _ in loose.shows(scores, target))
  assert not any(seen for seen, _ in strict.shows(scores, target))
  assert isinstance(judge.describe(judge.decide(scores)[0]), str)


def test_the_toy_has_its_own_thresholds(name, size):
  if not name.startswith("tests."):
    return
  levels = np.array([0, 128, 255], np.uint8)
  images = np.broadcast_to(levels[:, None, None, None], (3, *size, 3))
  seen = toys.WARMTH.decide(toys.WARMTH(images))
  assert [one["warmth"] for one in seen] == ["cold", "", "warm"]
