"""Small pickles that build what would fill the memory."""

import pickle

import pytest

from tests.convert.pickles_test import _tensor_pickle, _write_zip
from unlearning_jax.convert import pickles, read_state_dict

# A tuple of twice the one before; its text has 2 ** 12 parts.
DEEP = b")" + b"2\x86" * 12
STORAGE = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\n"


@pytest.mark.parametrize(
  "payload",
  [
    b"(" + DEEP + b"NNNNtQ.",
    STORAGE + DEEP + b"tQ.",
    b"ctorch._utils\n_rebuild_tensor_v2\n("
    + STORAGE + b"I4\ntQI0\n" + DEEP + DEEP + b"I00\nNtR.",
  ],
  ids=["reference", "storage", "tensor"],
)  # fmt: skip
def test_messages_that_would_fill_the_memory(payload, tmp_path):
  path = tmp_path / "w.pt"
  _write_zip(path, payload)
  with pytest.raises(ValueError, match="not a readable torch") as refused:
    read_state_dict(path)
  assert len(str(refused.value)) < 400


def test_names_of_storages_and_entries_that_would(tmp_path):
  path = tmp_path / "w.pt"
  path.write_bytes(
    pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    + pickle.dumps(1001, 2)
    + pickle.dumps({}, 2)
    + _tensor_pickle((4,), (1,))
    + b"]" + DEEP + b"a."
    + bytes(24)
  )  # fmt: skip
  with pytest.raises(ValueError, match="called by a tuple") as refused:
    read_state_dict(path)
  assert len(str(refused.value)) < 400
  _write_zip(path, b"}S'state_dict'\n}s" + DEEP + b"I1\nsS'epoch'\nI1\ns.")
  assert pickles.read_beside(path) == ["epoch"]


@pytest.mark.parametrize("limit", ["_MAX_ENTRIES", "_MAX_LETTERS"])
def test_dictionaries_that_are_one(limit, tmp_path, monkeypatch):
  # Under two names in each of seven dictionaries: 2 ** 7 empty ones.
  tree = {}
  for _ in range(7):
    tree = {"a": tree, "b": tree}
  path = tmp_path / "w.pt"
  weights = _tensor_pickle(
    (4,), (1,), extra=b"S'x'\n%ss" % pickle.dumps(tree, 0)[:-1]
  )
  _write_zip(path, weights, [bytes(16)])
  assert list(read_state_dict(path)) == ["w"]
  monkeypatch.setattr(pickles, limit, 200)
  with pytest.raises(ValueError, match="holds more than"):
    read_state_dict(path)
