"""Tensors that stay in their file act as the arrays that they will be."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from unlearning_jax.convert import names, reader, torch_files
from unlearning_jax.convert.lazy import Lazy

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
  "change",
  [
    lambda x: x,
    lambda x: x.reshape(6, 4),
    lambda x: x.reshape((2, -1)),
    lambda x: x[1:, ..., 2],
    lambda x: x.astype(np.float16),
    lambda x: x[0].reshape(3, 4, 1, 1).astype(ml_dtypes.bfloat16)[:2],
  ],
)
def test_it_acts_as_the_array(change):
  reads = []

  def make():
    reads.append(1)
    return ARRAY

  expected, found = change(ARRAY), change(Lazy(make, (2, 3, 4), np.float32))
  assert isinstance(found, Lazy) and not reads
  assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
  assert (found.ndim, found.size, len(found)) == (
    expected.ndim, expected.size, len(expected),
  )  # fmt: skip
  np.testing.assert_array_equal(np.asarray(found), expected)
  assert found.tobytes() == expected.tobytes()
  # Nothing is kept: each of the two read it.
  assert len(reads) == 2
  doubled = found.then(lambda x: x * 2)
  np.testing.assert_array_equal(np.asarray(doubled), expected * 2)


@pytest.mark.parametrize("write", ["safetensors", "torch"])
def test_files(write, tmp_path):
  path = tmp_path / "w"
  state = {"a": ARRAY, "b": ARRAY[0, 0].copy(), "c": np.zeros(0, np.float32)}
  if write == "torch":
    torch_files.write_torch(path, state, "float16")
  else:
    save_file({k: v.astype(np.float16) for k, v in state.items()}, path)
  found = reader.read_lazily(path)
  assert all(isinstance(value, Lazy) for value in found.values())
  eager = reader.read_state_dict(path)
  assert found.keys() == eager.keys() == state.keys()
  for name, value in eager.items():
    np.testing.assert_array_equal(np.asarray(found[name]), value)
  # Names under which a tensor stands twice are told apart by its numbers.
  twice = {"module.a": found["a"], "a": found["a"][:]}
  assert names.unwrapped(twice, "x").keys() == {"a"}
  with pytest.raises(ValueError, match="and they differ"):
    names.unwrapped({"module.a": found["a"], "a": found["a"][::-1]}, "x")


def test_a_file_that_was_cut_since(tmp_path):
  path = tmp_path / "w.safetensors"
  save_file({"a": ARRAY}, path)
  found = reader.read_lazily(path)["a"]
  path.write_bytes(path.read_bytes()[:-4])
  with pytest.raises(ValueError, match="w.safetensors: ends before"):
    np.asarray(found)
