"""`--check` reads all that can be wrong, and leaves no trace."""

import pytest
from absl import flags as absl_flags
from unlearning_jax.launch import checks

from unlearning_jax import checking
from unlearning_jax.record import Workdir, binding

# The others that open a record do it as `erase` does.
VERBS = {
  "erase": ["--config=erase_uce:tiny"],
  "attack_matrix": ["--config=attack_matrix_shapes"],
  "attack": ["--config=attack_unlearn_diff_atk:tiny,task=object,name=star"],
  "diagnose": ["--config=diagnose:tiny,task=object,name=star"],
  "evaluate": ["--config=evaluate_shapes:tiny"],
  "audit": ["--protocol=shapes-star", "--config=erase_uce:tiny"],
  "erase_list": ["--model=shapes", "--erase=list.txt", "--output=edit"],
  "finetune": ["--config=finetune_lora:tiny,without=object/star"],
  "train": ["--config=train_shapes_vae", "--model=shapes"],
}


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("verb", VERBS)
def test_a_check_writes_nothing(verb, scripts_in_turn, tmp_path):
  (tmp_path / "list.txt").write_text("star\n")
  flags = [*VERBS[verb], "--check"]
  if verb != "erase_list":
    flags.append("--workdir=run")
  done = scripts_in_turn(verb, *flags, cwd=tmp_path).finish()
  assert "checked, for 1 cpu device(s): nothing is wrong" in done.stdout
  assert [path.name for path in tmp_path.iterdir()] == ["list.txt"]


@pytest.mark.slow
@pytest.mark.e2e
def test_a_check_sees_what_does_not_fit(scripts_in_turn, tmp_path):
  flags = ["--config=finetune_lora:tiny", "--mesh=data=4,fsdp=2", "--check"]
  done = scripts_in_turn("finetune", *flags, f"--workdir={tmp_path}/run")
  assert done.returncode == 1
  assert "valid: --mesh=data=1,fsdp=1" in done.stderr


def test_a_folder_is_checked_as_it_would_be_opened(tmp_path):
  def found():
    return sorted(path.name for path in tmp_path.rglob("*"))

  binding.check(tmp_path / "a" / "new", {"seed": 1})
  assert found() == []
  with pytest.raises(ValueError, match="no folder on this machine"):
    binding.check("gs://bucket/run", {})
  with pytest.raises(ValueError, match="cannot be written"):
    (tmp_path / "file").touch()
    binding.check(tmp_path / "file" / "run", {})

  Workdir(tmp_path / "run", {"seed": 1, "lanes": 2}).append_row({"id": 1})
  before = found()
  binding.check(tmp_path / "run", {"seed": 1, "lanes": 4}, free=("lanes",))
  with pytest.raises(ValueError, match="another config.*\n  seed: 1 -> 2"):
    binding.check(tmp_path / "run", {"seed": 2, "lanes": 2})
  assert found() == before


def test_only_a_check_ends_where_the_work_begins():
  checking.passed()
  checking.ask()
  try:
    with pytest.raises(checking.Checked):
      checking.passed()
  finally:
    checking.ask(False)


@pytest.mark.slow
@pytest.mark.e2e
def test_a_check_can_compile_what_would_run(scripts_in_turn, tmp_path):
  config = "--config=finetune_lora:tiny,without=object/star"
  flags = [config, "--check=compile", f"--workdir={tmp_path}/run"]
  done = scripts_in_turn("finetune", *flags, cwd=tmp_path).finish()
  said, verdict = done.stdout.splitlines()[-2:]
  assert said.startswith("cpu: lora, 48 row(s) a chip in float32: ")
  assert "GiB a chip (compiled in" in said and "fits" not in said
  assert "nothing is wrong" in verdict and not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.e2e
def test_a_device_without_a_check_starts_nothing(scripts_in_turn, tmp_path):
  flags = ["--config=erase_uce:tiny", "--device=v5e"]
  done = scripts_in_turn("erase", *flags, f"--workdir={tmp_path}/run")
  assert done.returncode == 1 and not any(tmp_path.iterdir())
  assert "--check is not given" in done.stderr


@pytest.mark.parametrize(
  "typed, wanted",
  [
    ([], ""), (["--check"], "files"), (["--check=true"], "files"),
    (["--nocheck"], ""), (["--check=compile"], "compile"),
  ],
)  # fmt: skip
def test_a_check_is_asked_for(typed, wanted, monkeypatch):
  values = absl_flags.FlagValues()
  monkeypatch.setattr(checks.flags, "DEFINE_flag", values_of(values))
  monkeypatch.setattr(checks.flags, "DEFINE_string", lambda *_: None)
  checks.define()
  assert values(["verb", *typed]) == ["verb"]
  assert values["check"].value == wanted
  with pytest.raises(absl_flags.Error, match="--check=compile"):
    values(["verb", "--check=all"])


def values_of(values, define=absl_flags.DEFINE_flag):
  return lambda flag: define(flag, values)


def test_a_check_carries_what_was_named_first():
  checking.about("early")
  checking.ask()
  try:
    checking.about(sd="model")
    checking.about("first")
    with pytest.raises(checking.Checked) as ended:
      checking.passed("second")
  finally:
    checking.ask(False)
  assert (ended.value.given, ended.value.sd) == ("first", "model")
