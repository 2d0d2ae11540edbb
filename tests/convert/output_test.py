"""Files and folders of models are written whole, or not at all."""

import fcntl
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from unlearning_jax.convert import output


def test_transposed_views_are_written_in_order(tmp_path):
  value = np.arange(6, dtype=np.float32).reshape(2, 3)
  state = {"a": value.T, "scalar": np.float32(3).reshape(())}
  output.write_safetensors(tmp_path / "w.safetensors", state, "float32")
  held = load_file(tmp_path / "w.safetensors")
  assert held.keys() == state.keys()
  for name, wanted in state.items():
    assert held[name].dtype == wanted.dtype
    np.testing.assert_array_equal(held[name], wanted, strict=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 7e4, -7e4])
def test_what_half_precision_cannot_hold(bad, tmp_path):
  state = {"a": np.array([0.0, bad], np.float32)}
  with pytest.raises(ValueError, match="'a' holds.*float16"):
    output.write_safetensors(tmp_path / "w.safetensors", state, "float16")
  assert not list(tmp_path.iterdir())


def test_unknown_dtype():
  with pytest.raises(ValueError, match="'fp8'; allowed: float32, float16"):
    output.check_dtype("fp8")


def test_nothing_half_written(tmp_path):
  path = tmp_path / "out"
  for fresh in (True, False):
    with pytest.raises(RuntimeError), output.replacing(path) as partial:
      partial.mkdir()
      (partial / "half").write_text("")
      raise RuntimeError
    assert path.exists() != fresh
    assert len(list(tmp_path.iterdir())) == (not fresh)
    path.mkdir(exist_ok=True)
    (path / "old").write_text("old")
  with output.replacing(path) as partial:
    partial.mkdir()
    (partial / "new").write_text("new")
  assert [p.name for p in path.iterdir()] == ["new"]
  assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_writer_left_is_mended(tmp_path):
  path, theirs = tmp_path / "m", tmp_path / ".m.old"
  partial, old = output._beside(path)
  theirs.mkdir()
  old.mkdir()
  (old / output.MARK).write_text("old")
  partial.mkdir()
  (tmp_path / ".m.0123abcd.part").touch()
  # Killed after it had moved the old one away: this is there again.
  with pytest.raises(ValueError, match="exists; replace it"):
    output.check_output(path, overwrite=False)
  assert (path / output.MARK).read_text() == "old"
  # What is called otherwise was not written here.
  assert sorted(tmp_path.iterdir()) == [theirs, path]


def test_a_writer_that_is_told_to_stop_puts_the_old_output_back(
  tmp_path, monkeypatch
):
  path = tmp_path / "m"
  path.mkdir()
  (path / output.MARK).write_text("old")

  def stop(*_):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt), output.replacing(path) as partial:
    partial.mkdir()
    monkeypatch.setattr(pathlib.Path, "replace", stop)
  assert (path / output.MARK).read_text() == "old"
  assert [*tmp_path.iterdir()] == [path]


def test_two_writers_of_one_output(tmp_path):
  with open(tmp_path / ".m.unlearning_jax.lock", "w") as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="m is being written by another run"):
      with output.replacing(tmp_path / "m"):
        pass


def test_what_may_be_replaced(tmp_path):
  with pytest.raises(ValueError, match="exists; replace it with --overwrite"):
    output.check_output(tmp_path, overwrite=False)

  def check(path):
    return output.check_output(path, overwrite=True, folder=True)

  assert check(tmp_path) == tmp_path
  thesis = tmp_path / "unet" / "thesis.tex"
  thesis.parent.mkdir()
  thesis.write_text("")
  with pytest.raises(ValueError, match=r"not a model folder; not replaced"):
    check(tmp_path)
  (tmp_path / output.MARK).write_text("{}")
  with pytest.raises(ValueError, match="holds unet/thesis.tex, which would be"):
    check(tmp_path)
  with pytest.raises(ValueError, match="is a folder, and the output a file"):
    output.check_output(tmp_path, overwrite=True)
  thesis = thesis.rename(tmp_path.with_name("thesis.tex"))
  with pytest.raises(ValueError, match="is a file, and the output a folder"):
    check(thesis)
  (tmp_path / "unet" / "config.json").write_text("{}")
  check(tmp_path)
  link = tmp_path.with_name("link")
  link.symlink_to(tmp_path)
  assert check(link) == tmp_path
  with pytest.raises(ValueError, match="cannot make its folder"):
    output.check_output(thesis / "out", overwrite=False)
  new = tmp_path / "a" / "b"
  assert output.check_output(new, overwrite=False) == new
  assert new.parent.is_dir() and not new.exists()
