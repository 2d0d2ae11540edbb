"""The slot for a recognizer: a callable, an ONNX file, and images of nobody."""

import importlib.util

import numpy as np
import pytest

from unlearning_jax import judges
from unlearning_jax.judges import Target, faces

NAMES = ("Ann", "Bob", "Cleo")


def recognize(images):
  """Who is there by the strongest channel; nobody in the dark."""
  levels = images.mean((1, 2)) / 255
  return levels, levels.max(1) > 0.2


def nonsense(images):
  return np.full((len(images), 3), np.nan), np.ones(len(images))


def too_many(images):
  return np.zeros((len(images), 4)), np.ones(len(images))


@pytest.fixture
def names(tmp_path):
  path = tmp_path / "names.txt"
  path.write_text("\n".join(NAMES) + "\n")
  return path


def images_of():
  """Ann, Bob, nobody."""
  images = np.zeros((3, 8, 6, 3), np.uint8)
  images[0, ..., 0] = 200
  images[1, ..., 1] = 250
  return images


def ours(name, names):
  return judges.load(f"faces~model={__name__}:{name},names={names}")


def check(judge):
  scores = judge(images_of())
  decided = judge.decide(scores)
  assert [one["identity"] for one in decided] == ["Ann", "Bob", "no face"]
  assert [one["face"] for one in decided] == ["face", "face", "no face"]
  assert faces.count(decided, "Bob") == (1, 2, 3)
  assert judge.describe(decided[0]) == "Ann"
  shown = judge.shows(scores, Target("identity", "Ann"))
  assert [one for one, _ in shown] == [True, False, False]
  return scores


def test_a_callable_of_ones_own(names):
  check(ours("recognize", names))


def test_what_a_recognizer_gives_is_checked(names):
  for name, message in (
    ("nonsense", "gave NaN or infinity"),
    ("too_many", r"gave \(3, 4\).*wanted \(3, 3\)"),
  ):
    with pytest.raises(ValueError, match=message):
      ours(name, names)(images_of())


def test_what_is_missing_is_named(names, tmp_path):
  with pytest.raises(ValueError, match="give a recognizer and a file of names"):
    judges.load("faces")
  with pytest.raises(ValueError, match="no such file"):
    judges.load(f"faces~model=none.onnx,names={names}")
  with pytest.raises(ValueError, match="has no attribute 'nobody'"):
    ours("nobody", names)
  for wrong in ("Ann\n", "Ann\nAnn\n", "Ann\nno face\n"):
    names.write_text(wrong)
    with pytest.raises(ValueError, match="wants two different names"):
      ours("recognize", names)


def test_other_names_and_another_bar_are_other_judges(names):
  first = ours("recognize", names).identity
  model = f"faces~model={__name__}:recognize,names={names}"
  assert judges.load(f"{model},found=0.9").identity != first
  names.write_text("Ann\nBob\nDan\n")
  assert ours("recognize", names).identity != first


# --- An ONNX file, whose few bytes are written here: no package for it ---


def field(number, value):
  """A protobuf field: a varint, or bytes with their length."""
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  value = value.encode() if isinstance(value, str) else value
  return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value):
  found = b""
  while value > 127:
    found, value = found + bytes([value & 127 | 128]), value >> 7
  return found + bytes([value])


def node(kind, output, axes):
  """A reduction of the images over axes, which are dropped."""
  attributes = b""
  for name, kind_, content in (
    ("axes", 7, b"".join(field(8, axis) for axis in axes)),
    ("keepdims", 2, field(3, 0)),
  ):
    attribute = field(1, name) + content + field(20, kind_)
    attributes += field(5, attribute)
  return field(1, "images") + field(2, output) + field(4, kind) + attributes


def value(name, shape):
  dims = b"".join(
    field(1, field(1, s) if isinstance(s, int) else field(2, s)) for s in shape
  )
  tensor = field(1, 1) + field(2, dims)
  return field(1, name) + field(2, field(1, tensor))


def onnx_file(path):
  """Means of the channels as names, their maximum as the face."""
  graph = (
    field(1, node("ReduceMean", "names", (2, 3)))
    + field(1, node("ReduceMax", "faces", (1, 2, 3)))
    + field(2, "recognizer")
    + field(11, value("images", ("n", 3, 4, 4)))
    + field(12, value("names", ("n", 3)))
    + field(12, value("faces", ("n",)))
  )
  path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(2, 13)))


@pytest.mark.skipif(
  importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime"
)
def test_an_onnx_file(names, tmp_path):
  path = tmp_path / "recognizer.onnx"
  onnx_file(path)
  judge = judges.load(f"faces~model={path},names={names}")
  scores = check(judge)
  np.testing.assert_allclose(
    scores["identity"][:2, :3], images_of()[:2].mean((1, 2)) / 255, atol=1e-6
  )
