"""A pickled array is read, and nothing else is."""

import pickle

import numpy as np
import pytest

from unlearning_jax.convert import arrays


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_pickled_is_read(tmp_path, dtype, protocol, order):
  array = np.random.default_rng(0).normal(size=(2, 5))
  array = np.asarray(array, dtype, order=order)
  path = tmp_path / "a.p"
  path.write_bytes(pickle.dumps(array, protocol))
  found = arrays.read_array(path)
  np.testing.assert_array_equal(found, array.astype(np.float32))
  assert found.dtype == np.float32


class Evil:
  def __reduce__(self):
    return (print, ("executed",))


@pytest.mark.parametrize(
  "content, message",
  [
    (Evil(), "asks for builtins.print"),
    ([1.0, 2.0], "holds a list, not an array"),
    (np.arange(3), "does not hold plain floats"),
    (np.array([Evil()], object), "."),
    (np.array([1.0]).astype(">f8"), "byte order"),
  ],
)
def test_anything_else_is_refused(tmp_path, capsys, content, message):
  path = tmp_path / "a.p"
  path.write_bytes(pickle.dumps(content, 3))
  with pytest.raises(ValueError, match=f"not a readable array.*{message}"):
    arrays.read_array(path)
  assert "executed" not in capsys.readouterr().out


def test_a_torn_file_is_refused(tmp_path):
  path = tmp_path / "a.p"
  path.write_bytes(pickle.dumps(np.ones(9), 3)[:40])
  with pytest.raises(ValueError, match="not a readable array"):
    arrays.read_array(path)
  with pytest.raises(ValueError, match="not a readable array"):
    arrays.read_array(tmp_path / "none.p")
