"""Pickles by somebody who means harm, or by a failing disk."""

import codecs
import collections
import os
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest

from unlearning_jax.convert import read_state_dict
from unlearning_jax.convert.reader import read_lazily

_EVENTS = {
  "os.system", "exec", "compile", "subprocess.Popen", "os.posix_spawn",
  "os.exec", "os.remove", "import", "marshal.loads", "socket.connect",
}  # fmt: skip
_seen: list | None = None


def _hook(event, args):
  if _seen is not None and event in _EVENTS:
    _seen.append((event, args))


sys.addaudithook(_hook)


@pytest.fixture
def nothing_happens(tmp_path):
  """Fails the test if the interpreter runs or imports anything."""
  global _seen
  # zipfile imports a codec when it is first used.
  _write_zip(tmp_path / "first.pt", _tensor_pickle((4,), (1,)), [bytes(16)])
  read_state_dict(tmp_path / "first.pt")
  # Text of old protocols is decoded by it.
  codecs.lookup("raw_unicode_escape")
  _seen = []
  yield
  seen, _seen = _seen, None
  assert not seen


def _write_zip(path, payload, storages=(), **extra):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", payload)
    archive.writestr("archive/byteorder", "little")
    for i, storage in enumerate(storages):
      archive.writestr(f"archive/data/{i}", storage)
    for name, data in extra.items():
      archive.writestr(name, data)


def _write_legacy(path, payload):
  path.write_bytes(
    pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    + pickle.dumps(1001, 2)
    + pickle.dumps({"little_endian": True}, 2)
    + payload
    + pickle.dumps([], 2)
  )


class _Call:
  def __init__(self, function, *args, state=None):
    self.reduced = (function, args, *([state] if state else []))

  def __reduce__(self):
    return self.reduced


def _getattr_chain():
  # Reaches a module's function without naming it as a global.
  return _Call(getattr, _Call(__import__, "os"), "system")


HOSTILE = {
  "system": (_Call(os.system, "touch hit"), "system"),
  "eval": (_Call(eval, "open('hit', 'w')"), "builtins.eval"),
  "exec": (_Call(exec, "open('hit', 'w')"), "builtins.exec"),
  "open": (_Call(open, "hit", "w"), "io.open"),
  "getattr": (_getattr_chain(), "builtins.getattr"),
  "import": (_Call(__import__, "antigravity"), "__import__"),
  "nested": ({"a": [1, {"b": _Call(os.system, "touch hit")}]}, "system"),
  "key": ({_Call(os.system, "touch hit"): 1}, "system"),
  "in_state_dict": ({"state_dict": {"w": _Call(os.remove, "x")}}, "remove"),
  "argument": (
    collections.OrderedDict(a=_Call(os.system, "touch hit")),
    "system",
  ),
  "partial": (_Call(pickle.loads, b"cos\nsystem\n."), "pickle.loads"),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("write", [_write_zip, _write_legacy])
def test_nothing_is_executed(
  name, protocol, write, tmp_path, monkeypatch, nothing_happens
):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / "weights.pt"
  value, refused = HOSTILE[name]
  write(path, pickle.dumps(value, protocol))
  # Builtins that open and import go by other names in old protocols.
  pattern = refused.split(".")[-1] if protocol < 3 else refused
  with pytest.raises(ValueError, match=rf"weights\.pt.*asks for .*{pattern}"):
    read_state_dict(path)
  assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize(
  "payload",
  [
    b"(S'touch hit'\nios\nsystem\n.",  # INST
    b"(cos\nsystem\nS'touch hit'\no.",  # OBJ
    b"cos\nsystem\n(S'touch hit'\ntR.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch hit\x85R.",
    b"c__builtin__\neval\n(S'1'\ntR.",
    b"ctorch._utils\n_rebuild_tensor_v2\n}S'x'\nI1\nsb.",  # BUILD
    b"ctorch\nFloatStorage\n}S'dtype'\nI1\nsb.",
    b"ccollections\nOrderedDict\n}S'get'\nI1\nsb.",
    b"(cnumpy\nndarray\n}S'x'\nI1\nsb.",
    b"\x82\x01.",  # EXT1
    b"ccopyreg\n_reconstructor\n.",
  ],
)
def test_hand_written_opcodes(payload, tmp_path, monkeypatch, nothing_happens):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / "weights.bin"
  _write_zip(path, payload)
  with pytest.raises(ValueError, match=r"weights\.bin"):
    read_state_dict(path)
  assert not (tmp_path / "hit").exists()


def test_methods_shadowed_on_an_ordered_dict(tmp_path):
  # {} with attributes called like the methods that the reader calls.
  payload = (
    b"ccollections\nOrderedDict\n)R}(S'get'\nccollections\nOrderedDict\n"
  )
  payload += b"S'items'\nccollections\nOrderedDict\nub."
  path = tmp_path / "weights.pt"
  _write_zip(path, payload)
  with pytest.raises(ValueError, match=r"weights\.pt"):
    read_state_dict(path)


def _tensor_pickle(shape, strides, offset=0, size=4, key="0", extra=b""):
  """A state dict with one float tensor, in protocol 0 opcodes."""

  def numbers(values):
    return b"(" + b"".join(b"I%d\n" % v for v in values) + b"t"

  return (
    b"(dS'w'\nctorch._utils\n_rebuild_tensor_v2\n((S'storage'\n"
    b"ctorch\nFloatStorage\nS'" + key.encode() + b"'\nS'cpu'\n"
    b"I%d\ntQ"
    % size
    + b"I%d\n" % offset
    + numbers(shape)
    + numbers(strides)
    + b"I00\nNtRs"
    + extra
    + b"."
  )


def test_the_tensor_pickle_of_these_tests_is_valid(tmp_path):
  path = tmp_path / "w.pt"
  data = np.arange(4, dtype=np.float32)
  _write_zip(path, _tensor_pickle((2, 2), (1, 2)), [data.tobytes()])
  np.testing.assert_array_equal(read_state_dict(path)["w"], [[0, 2], [1, 3]])


@pytest.mark.parametrize(
  "tensor",
  [
    {"shape": (5,), "strides": (1,)},
    {"shape": (2, 2), "strides": (1, 3)},
    {"shape": (2,), "strides": (1,), "offset": 3},
    {"shape": (2,), "strides": (1,), "offset": -1},
    {"shape": (2,), "strides": (-1,), "offset": 2},
    {"shape": (1 << 40, 1 << 40), "strides": (0, 0)},
    {"shape": (2,), "strides": (1, 1)},
    {"shape": (4,), "strides": (1,), "size": 5},
    {"shape": (4,), "strides": (1,), "size": -4},
    {"shape": (4,), "strides": (1,), "key": "../0"},
    {"shape": (4,), "strides": (1,), "key": "7"},
  ],
)
def test_tensors_that_reach_outside(tensor, tmp_path):
  path = tmp_path / "w.pt"
  _write_zip(path, _tensor_pickle(**tensor), [bytes(16)])
  with pytest.raises(ValueError, match=r"w\.pt: not a readable"):
    read_state_dict(path)


def test_archives_that_point_outside(tmp_path):
  path = tmp_path / "w.pt"
  good = _tensor_pickle((4,), (1,))
  for name in ("../evil", "/etc/evil", "a/../../evil", "a\\..\\evil"):
    _write_zip(path, good, [bytes(16)], **{name: b"x"})
    with pytest.raises(ValueError, match="points outside the archive"):
      read_state_dict(path)
  assert not (tmp_path.parent / "evil").exists()


def test_zip_bomb_and_double_entries(tmp_path):
  path = tmp_path / "w.pt"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("archive/data.pkl", bytes(1 << 20))
  with pytest.raises(ValueError, match="is compressed"):
    read_state_dict(path)
  with (
    zipfile.ZipFile(path, "w") as archive,
    pytest.warns(UserWarning, match="Duplicate"),
  ):
    archive.writestr("archive/data.pkl", b"1")
    archive.writestr("archive/data.pkl", b"2")
  with pytest.raises(ValueError, match="two entries"):
    read_state_dict(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>", b"N."])
def test_files_of_another_kind(content, tmp_path):
  path = tmp_path / "w.ckpt"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r"w\.ckpt"):
    read_state_dict(path)


def test_inert_objects_beside_the_weights(tmp_path, nothing_happens):
  # What a training checkpoint holds: a class as a key, an object with state.
  beside = (
    b"S'callbacks'\n(dcpytorch_lightning.callbacks\nModelCheckpoint\n"
    b"(dS'score'\ncnumpy.core.multiarray\nscalar\n(I1\ntRssss"
    b"S'hyper'\n(ipathlib\nPosixPath\n}S'x'\nI1\nsbs"
  )
  path = tmp_path / "w.ckpt"
  weights = _tensor_pickle((4,), (1,), extra=beside.replace(b"ssss", b"sss"))
  _write_zip(path, weights, [np.arange(4, dtype=np.float32).tobytes()])
  modules = set(sys.modules)
  # Without a state_dict, everything counts as weights: refused by name.
  with pytest.raises(ValueError, match="pytorch_lightning|PosixPath"):
    read_state_dict(path)
  wrapped = b"(dS'state_dict'\n" + _tensor_pickle((4,), (1,))[:-1] + b"s"
  _write_zip(
    path, wrapped + beside.replace(b"ssss", b"sss") + b".", [bytes(16)]
  )
  assert list(read_state_dict(path)) == ["w"]
  assert set(sys.modules) == modules


def test_inert_object_among_the_weights(tmp_path):
  path = tmp_path / "w.ckpt"
  payload = b"(dS'state_dict'\n(dS'v'\nctorch.nn\nLinear\n)Rss."
  _write_zip(path, payload)
  with pytest.raises(ValueError, match=r"'v' is a torch\.nn\.Linear object"):
    read_state_dict(path)


def test_a_whole_module_is_not_a_state_dict(tmp_path):
  path = tmp_path / "w.pt"
  _write_zip(path, b"ctorch.nn.modules.linear\nLinear\n)R.")
  with pytest.raises(ValueError, match=r"torch\.nn.*not a state dict"):
    read_state_dict(path)


def test_dictionary_in_itself(tmp_path):
  path = tmp_path / "w.pt"
  _write_zip(path, b"(dp0\nS'a'\ng0\ns.")
  with pytest.raises(ValueError, match="nested too deeply"):
    read_state_dict(path)


def test_legacy_sizes_must_agree(tmp_path):
  path = tmp_path / "w.pt"
  for claimed in (3, -1, 1 << 62):
    path.write_bytes(
      pickle.dumps(0x1950A86A20F9469CFC6C, 2)
      + pickle.dumps(1001, 2)
      + pickle.dumps({}, 2)
      + _tensor_pickle((4,), (1,))
      + pickle.dumps(["0"], 2)
      + struct.pack("<q", claimed)
      + bytes(16)
    )
    with pytest.raises(ValueError, match="storage '0'"):
      read_state_dict(path)


@pytest.mark.parametrize("count", [5, 1 << 41, 1 << 60])
def test_a_legacy_file_that_claims_more_than_it_holds(count, tmp_path):
  path = tmp_path / "w.pt"
  path.write_bytes(
    pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    + pickle.dumps(1001, 2)
    + pickle.dumps({}, 2)
    + _tensor_pickle((count,), (1,), size=count)
    + pickle.dumps(["0"], 2)
    + struct.pack("<q", count)
    + bytes(16)
  )
  for read in (read_state_dict, read_lazily):
    with pytest.raises(ValueError, match="storage '0' ends after the file"):
      read(path)


# What training loops save, and what would fill the memory.


def _save(path, value):
  torch = pytest.importorskip("torch")
  torch.save(value, path)
  return torch


@pytest.mark.torch
@pytest.mark.parametrize("key", ["model", "state_dict", "module", "unet"])
@pytest.mark.parametrize("beside", ["optimizer", "optimizer_state_dict", "opt"])
def test_the_weights_beside_an_optimizer(key, beside, tmp_path):
  torch = pytest.importorskip("torch")
  weight = torch.nn.Parameter(torch.ones(3))
  optimizer = torch.optim.Adam([weight])
  weight.sum().backward()
  optimizer.step()
  path = tmp_path / "last.pt"
  _save(path, {key: {"w": weight}, beside: optimizer.state_dict(), "epoch": 3})
  (found,) = read_state_dict(path).values()
  np.testing.assert_array_equal(found, weight.detach().numpy())
  _save(path, optimizer.state_dict())
  with pytest.raises(ValueError, match="the state of an optimizer"):
    read_state_dict(path)
  _save(path, {"w": weight, "groups": {3: {"w": weight}}})
  with pytest.raises(ValueError, match="key a int of groups is not a name"):
    read_state_dict(path)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("zipped", [True, False])
def test_float8_of_torch(dtype, zipped, tmp_path):
  torch = pytest.importorskip("torch")
  wanted = torch.arange(12.0).reshape(3, 4).to(getattr(torch, dtype))
  path = tmp_path / "w.pt"
  torch.save({"w": wanted.T}, path, _use_new_zipfile_serialization=zipped)
  found = read_state_dict(path)["w"]
  assert found.dtype.name == dtype
  np.testing.assert_array_equal(
    found.astype(np.float32), wanted.T.float().numpy(), strict=True
  )


def test_a_memo_that_would_fill_the_memory(tmp_path):
  path = tmp_path / "w.pt"
  payload = b"\x80\x02}r" + struct.pack("<I", 1 << 31) + b"."
  for write in (_write_zip, _write_legacy):
    write(path, payload)
    with pytest.raises(ValueError, match="remembers a value as number"):
      read_state_dict(path)


def test_views_that_would_fill_the_memory(tmp_path):
  path = tmp_path / "w.pt"
  storage = np.ones((64, 64), np.float32)
  one = _tensor_pickle((64, 64), (1, 64), size=64 * 64)
  # The same transposed view under a hundred names, each of which is a copy.
  body = one[len(b"(dS'w'\n") : -len(b"s.")]
  payload = b"(d" + b"".join(b"S'%d'\n%ss" % (i, body) for i in range(100))
  _write_zip(path, payload + b".", [storage.tobytes()])
  with pytest.raises(ValueError, match="views of one storage"):
    read_state_dict(path)
