"""Files that torch.save writes, read without torch."""

import collections
import io
import itertools
import pickle
import zipfile

import numpy as np
import pytest

from unlearning_jax.convert import (
  output,
  read_state_dict,
  reader,
  torch_files,
)

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def _tensors():
  base = torch.arange(24.0).reshape(2, 3, 4)
  return {
    "plain": base.clone(),
    "transposed": base.permute(2, 0, 1),
    "slice": base[1:, ::2],
    "half": base.half(),
    "brain": base.bfloat16(),
    "double": base.double(),
    "long": torch.arange(5),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "parameter": torch.nn.Parameter(torch.randn(3)),
  }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", ["bare", "state_dict", "nested"])
def test_reads_what_torch_writes(zipped, wrap, tmp_path):
  tensors = _tensors()
  value = {
    "bare": tensors,
    "state_dict": {
      "state_dict": collections.OrderedDict(tensors),
      "epoch": 3,
      "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
    },
    "nested": {"unet": tensors, "epoch": 3, "note": "x", "nothing": None},
  }[wrap]
  path = tmp_path / "w.pt"
  torch.save(value, path, _use_new_zipfile_serialization=zipped)
  state, lazily = read_state_dict(path), reader.read_lazily(path)
  prefix = "unet." if wrap == "nested" else ""
  assert set(state) == {prefix + name for name in tensors} == set(lazily)
  for name, tensor in tensors.items():
    ours, theirs = state[prefix + name], tensor.detach()
    assert ours.shape == tuple(theirs.shape), name
    assert ours.dtype.name == str(theirs.dtype).removeprefix("torch."), name
    np.testing.assert_array_equal(
      ours.astype(np.float64), theirs.double().numpy(), err_msg=name
    )
    np.testing.assert_array_equal(np.asarray(lazily[prefix + name]), ours)


def test_files_of_torch_that_are_no_state_dict(tmp_path):
  layer = {"linear.0.weight": torch.ones(2, 2)}
  torch.save(
    {320: [layer, layer], "name": "h", "layer_structure": [1, 2, 1]},
    tmp_path / "hyper.pt",
  )
  torch.save([torch.ones(2, 2), torch.ones(2, 2)], tmp_path / "list.pt")
  program = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
  torch.jit.save(program, tmp_path / "program.pt")
  np.savez(tmp_path / "arrays.npz", w=np.ones(2))
  for name, said in (
    ("hyper.pt", "it is a hypernetwork, .*give the UNet"),
    ("list.pt", "a list, not a state dict, which names its tensors"),
    ("program.pt", r"a TorchScript program; save its weights: torch\.save"),
    ("arrays.npz", r"an archive of numpy \(\.npz\)"),
  ):
    with pytest.raises(ValueError, match=said):
      read_state_dict(tmp_path / name)


def test_module_state_dict_with_metadata(tmp_path):
  module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
  torch.save(module.state_dict(), tmp_path / "w.pth")
  state = read_state_dict(tmp_path / "w.pth")
  for name, tensor in module.state_dict().items():
    np.testing.assert_array_equal(state[name], tensor.numpy())


def test_a_pickled_module_is_refused(tmp_path):
  torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pt")
  with pytest.raises(ValueError, match=r"w\.pt"):
    read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_and_damaged(zipped, tmp_path):
  buffer = io.BytesIO()
  torch.save(
    {"a": torch.randn(40), "b": torch.randn(8, 8)},
    buffer,
    _use_new_zipfile_serialization=zipped,
  )
  content = buffer.getvalue()
  path = tmp_path / "w.pt"
  for end in range(0, len(content) - 1, max(1, len(content) // 60)):
    path.write_bytes(content[:end])
    with pytest.raises(ValueError, match=r"w\.pt"):
      read_state_dict(path)
  rng = np.random.default_rng(0)
  for _ in range(300):
    damaged = bytearray(content)
    damaged[rng.integers(len(content))] ^= int(rng.integers(1, 256))
    path.write_bytes(damaged)
    try:
      state = read_state_dict(path)
    except ValueError as error:
      assert "w.pt" in str(error)
    else:
      assert all(isinstance(v, np.ndarray) for v in state.values())


def test_big_endian_is_refused(tmp_path):
  path = tmp_path / "w.pt"
  torch.save({"a": torch.ones(2)}, path)
  content = path.read_bytes()
  with (
    zipfile.ZipFile(io.BytesIO(content)) as old,
    zipfile.ZipFile(path, "w") as new,
  ):
    for info in old.infolist():
      data = old.read(info)
      new.writestr(
        info, b"big" if info.filename.endswith("byteorder") else data
      )
  with pytest.raises(ValueError, match="big-endian"):
    read_state_dict(path)
  legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
  path.write_bytes(legacy + pickle.dumps({"little_endian": False}, 2))
  with pytest.raises(ValueError, match="big-endian"):
    read_state_dict(path)


def test_torch_files_hold_any_shape(tmp_path):
  rng = np.random.default_rng(0)
  state = {
    "turned": rng.normal(size=(3, 4)).astype("f4").T,
    "four": rng.normal(size=(2, 3, 1, 5)).astype("f4"),
    "one": np.float32(3).reshape(()),
  }
  for dtype, inside in itertools.product(output.DTYPES, (None, "state_dict")):
    path = tmp_path / f"{dtype}.pt"
    torch_files.write_torch(path, state, dtype, inside)
    found = torch.load(path, weights_only=True)
    found = found[inside] if inside else found
    ours = read_state_dict(path)
    assert list(found) == list(ours) == list(state)
    for name, value in state.items():
      expected = value.astype(dtype)
      theirs = found[name]
      assert theirs.dtype == getattr(torch, dtype)
      assert np.array_equal(theirs.float().numpy(), np.float32(expected))
      assert np.array_equal(ours[name], expected)
  with pytest.raises(ValueError, match="'x' holds"):
    torch_files.write_torch(path, {"x": np.float32([1e6])}, "float16")
