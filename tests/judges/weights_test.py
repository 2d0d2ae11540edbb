"""Files and packages that judges need: found, or named with what to do."""

import hashlib
import subprocess

import numpy as np
import pytest

from unlearning_jax import judges
from unlearning_jax.judges import weights

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def file(**changes):
  return weights.File("some/net.pth", "net.pth of a project", **changes)


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "some").mkdir()
  (tmp_path / "some/net.pth").write_bytes(CONTENT)
  return tmp_path


def test_a_missing_file_is_named_with_where_it_comes_from(
  monkeypatch, tmp_path
):
  monkeypatch.delenv(weights.VARIABLE, raising=False)
  with pytest.raises(ValueError, match="judge j: some/net.pth is missing: it "):
    file().find("j")
  assert "UNLEARNING_JAX_JUDGES=FOLDER" in file().lacks()
  assert "net.pth of a project (hash unknown)" in file().lacks()
  assert f"SHA-256 {SHA256}" in file(sha256=SHA256).lacks()
  assert "git blob 12f4" in file(git_blob="12f4").lacks()
  monkeypatch.setenv(weights.VARIABLE, str(tmp_path))
  assert f"Put it into {tmp_path}" in file().lacks()


def test_it_is_found_in_the_folder_of_judges(monkeypatch, folder):
  monkeypatch.setenv(weights.VARIABLE, str(folder))
  assert file().find("j") == folder / "some/net.pth"
  monkeypatch.setenv(weights.VARIABLE, "/nowhere")
  assert file().find("j", str(folder)) == folder / "some/net.pth"
  assert file(sha256=SHA256[:8]).find("j", str(folder)).is_file()


def test_another_file_is_refused(folder):
  for wrong in ({"sha256": "11ad3fa6"}, {"git_blob": "12f4"}):
    with pytest.raises(ValueError, match="another file than the published"):
      file(**wrong).find("j", str(folder))


def test_a_git_blob_is_what_git_says(folder):
  line = ["git", "hash-object", str(folder / "some/net.pth")]
  found = subprocess.run(line, capture_output=True, check=True, text=True)
  assert file(git_blob=found.stdout.strip()).find("j", str(folder)).is_file()


def test_a_missing_package_comes_with_its_command():
  assert not weights.Package("numpy").lacks()
  assert "needs the package nonesuch" in weights.Package("nonesuch").lacks()
  with pytest.raises(ValueError, match="pip install 'numpy==0.1'"):
    weights.Package("numpy", "0.1").check("j")


def test_every_shipped_judge_says_what_it_needs(monkeypatch):
  monkeypatch.setenv(weights.VARIABLE, "/nowhere")
  for name in judges.names():
    needs = getattr(judges.module(name), "NEEDS", ())
    files = [need for need in needs if isinstance(need, weights.File)]
    missing = weights.missing(needs)
    assert all(any(one.path in m for m in missing) for one in files)
    if files:
      with pytest.raises(ValueError, match="is missing: it is"):
        judges.load(name)


def test_options_are_read_from_the_name():
  with pytest.raises(ValueError, match="did you mean 'threshold'"):
    judges.load("nudenet~treshold=1")
  with pytest.raises(ValueError, match="threshold='x' is not a float"):
    judges.load("nudenet~threshold=x")
  with pytest.raises(ValueError, match="did you mean 'nudenet'"):
    judges.load("nudenet-3.4.2")


def test_a_judge_is_read_once_while_its_files_stay(tmp_path):
  path = tmp_path / "names.txt"
  path.write_text("Ann\nBob\n")
  name = f"faces~model=tests.judges.faces_test:recognize,names={path}"
  first = judges.load(name)
  assert judges.load(name) is first
  assert judges.load(name, found=0.9) is not first
  path.write_text("Ann\nBobby\n")
  assert judges.load(name).labels["identity"][1] == "Bobby"
  for i in range(9):
    judges.load(name, found=i / 10)
  assert len(judges._KEPT) <= judges._MOST_KEPT


def test_options_may_come_beside_the_name():
  made = [
    judges.load("tests.judges.weights_test:counting~start=3", words=["a", "b"]),
    judges.load("tests.judges.weights_test:counting", start=3, words="a|b"),
  ]
  assert {one.version for one in made} == {"3 a b"}
  with pytest.raises(ValueError, match="option='stat'.*mean 'start'"):
    judges.load("tests.judges.weights_test:counting", stat=1)


def counting(start: int = 0, words: tuple[str, ...] = ()):
  """A judge of one's own, with options."""
  version = " ".join([str(start), *words])
  return judges.Judge("c", lambda images: {}, {}, version=version)


def test_scores_that_are_no_numbers_are_refused():
  judge = judges.Judge(
    "blind", lambda x: {"h": np.full((len(x), 1), np.nan)}, {"h": ("a",)}
  )
  with pytest.raises(ValueError, match="judge blind: scores hold NaN"):
    judge(np.zeros((1, 2, 2, 3), np.uint8))
