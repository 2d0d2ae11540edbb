"""Configs by name, the verbs of the command, and what they print."""

import errno
import importlib
import os
import sys
from unittest import mock

import pytest
from absl import flags as absl_flags
from unlearning_jax.launch import errors, flags, main, places

from tests.support import scripts
from unlearning_jax import processes, stops

# These have one way to go.
NO_CHOICE = {"build_shapes", "ship_shapes", *places.PLACES}


@pytest.fixture
def asked(monkeypatch, tmp_path):
  """Runs a tiny script with a command line from an empty folder."""
  monkeypatch.chdir(tmp_path)

  def ask(*arguments):
    values = absl_flags.FlagValues()
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    holder = flags.config(values)
    values(sys.argv)
    return holder.value

  return ask


@pytest.mark.parametrize("name", ["erase_uce", "configs/erase_uce.py"])
def test_a_shipped_config_is_found_from_any_folder(asked, name):
  config = asked(
    f"--config={name}:tiny,task=object,name=heart", "--config.seed=3"
  )
  assert config.method == "uce" and config.seed == 3
  assert config.targets[0]["name"] == "heart"


def test_a_file_goes_before_a_name(asked, tmp_path):
  text = "def get_config(text=''):\n  return {'text': text}\n"
  (tmp_path / "erase_uce").write_text(text)
  assert asked("--config=erase_uce:a:b") == {"text": "a:b"}


def test_an_unknown_config_names_the_nearest(asked):
  with pytest.raises(absl_flags.Error, match="did you mean 'erase_rece'"):
    asked("--config=erase_recee:tiny")
  with pytest.raises(absl_flags.Error, match="my/erase_rece.py"):
    asked("--config=my/erase_rece.py")


@pytest.mark.parametrize(
  "typed, said",
  [
    ("hparams.lam", r"--config.hparams: key='lam' .*did you mean 'lamb'"),
    ("hparam.lamb", r"--config: key='hparam' .*did you mean 'hparams'"),
  ],
)
def test_an_unknown_key_names_the_nearest(asked, typed, said):
  with pytest.raises(absl_flags.Error, match=said):
    asked("--config=erase_uce", f"--config.{typed}=1")


def test_the_command_knows_every_script(capsys, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["unlearning-jax", "--list"])
  main.main()
  lines = capsys.readouterr().out.splitlines()
  assert {"attack", "erase", "evaluate", "train"} <= {
    x.split()[0] for x in lines
  }
  assert all(len(line.split()) > 3 for line in lines)
  monkeypatch.setattr(sys, "argv", ["unlearning-jax", "erasee"])
  with pytest.raises(SystemExit, match="unlearning-jax: .*mean 'erase'"):
    main.main()


@pytest.mark.parametrize(
  "config, verb, wanted",
  [
    ("attack_p4d:tiny", "erase", "attack"),
    ("erase_uce:tiny", "attack", "erase"),
    ("erase_uce:tiny", "evaluate", "erase"),
    ("evaluate_shapes:tiny", "finetune", "evaluate"),
    ("finetune_lora:tiny", "erase", "finetune"),
    ("finetune_resurgence_small", "finetune", "resurgence"),
    ("attack_matrix_shapes", "attack", "attack_matrix"),
    ("diagnose:tiny,task=object,name=star", "attack", "diagnose"),
  ],
)
def test_a_config_of_another_verb_names_its_command(
  asked, monkeypatch, config, verb, wanted
):
  module = {"attack_matrix": "matrix"}.get(verb, verb)
  module = importlib.import_module(f"unlearning_jax.experiments.{module}")
  given = asked(f"--config={config}")
  monkeypatch.setattr(sys, "argv", [f"launch/{verb}.py", f"--config={config}"])
  said = f"settings of {wanted}, not of {verb}; run unlearning-jax {wanted} "
  with pytest.raises(ValueError) as error:
    flags.settings(module.Settings, given)
  assert f"{said}--config={config}" in str(error.value)


@pytest.mark.parametrize("traceback", [False, True])
def test_an_error_is_a_paragraph_unless_more_is_asked(monkeypatch, traceback):
  values = absl_flags.FlagValues()
  absl_flags.DEFINE_bool("traceback", traceback, "", flag_values=values)
  values(["script"])
  monkeypatch.setattr(flags.flags, "FLAGS", values)

  def wrong(error):
    def main(_):
      raise error

    return lambda: flags._started(main, ["script"])

  with pytest.raises(ValueError if traceback else SystemExit) as found:
    wrong(ValueError("seed=-1: no"))()
  said = "seed=-1: no" if traceback else "error: seed=-1: no\n(--traceback "
  assert str(found.value).startswith(said)
  # What nobody expected is shown whole.
  with pytest.raises(KeyError):
    wrong(KeyError("seed"))()


def test_configs_and_helpers_stand_apart():
  assert "common" not in flags.shipped() and "erase_uce" in flags.shipped()
  assert not set(main.PARTS) & set(main.verbs())


@pytest.mark.parametrize(
  "verb, arguments, wanted",
  [
    (
      "erase", [],
      ["--workdir, --config: must be given", "as in: unlearning-jax erase"],
    ),
    (
      "erase",
      ["--config=erase_uce:tiny,name=stra", "--workdir=a"],
      ["--config=erase_uce:tiny,name=stra: object name='stra'", "'star'"],
    ),
    ("erase", ["--config=erase_uce:tiny", "--edits=a"], ["flag 'edits'"]),
    (
      "erase",
      ["--config=erase_uce:tiny", "--workdir=a", "stray"],
      ["'stray' is no flag; type --name=value"],
    ),
    ("amend", ["--model=shapes"], ["--output: must be given"]),
  ],
)  # fmt: skip
def test_a_wrong_flag_is_one_paragraph(verb, arguments, wanted, tmp_path):
  done = scripts.Run(verb, *arguments, cwd=tmp_path).join()
  assert done.returncode == 1
  assert all(text in done.stderr for text in wanted), done.stderr
  assert len(done.stderr.splitlines()) <= 4, done.stderr
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("verb", main.verbs())
def test_every_verb_lists_its_choices(verb, monkeypatch):
  done = scripts.Run(verb, "--list").join()
  if verb in NO_CHOICE:
    assert done.returncode
    return
  lines = done.stdout.splitlines()
  assert lines and all(line.strip() for line in lines), done.stderr


def test_a_full_disk_is_not_too_little_memory():
  # As the storage of checkpoints words it.
  error = ValueError("RESOURCE_EXHAUSTED: write: No space left on device")
  assert not errors.is_out_of_memory(error)
  assert errors.of_disk(error).endswith(
    "make room, and the same command goes on"
  )
  assert errors.of_disk(OSError(errno.EDQUOT, "Quota", "a"))
  assert not errors.of_disk(ValueError("seed=-1"))


def test_too_little_memory_names_what_to_halve():
  error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory of 3 bytes.\nmore")
  assert errors.is_out_of_memory(error)
  text = errors.of_memory(error, {"lanes": 9, "batch_size": 1, "seed": 4})
  assert "--config.lanes=4," in text and "batch_size" not in text
  assert text.endswith("Out of memory of 3 bytes.")
  assert "more memory" in errors.of_memory(error, None)


def test_a_stop_while_it_waits_at_the_end_is_said(monkeypatch, capsys):
  """The others hear of it, and whoever reads the log."""
  said = []
  typed = {"coordinator": "", "distributed": True, "check": "", "device": ""}
  values = {name: mock.Mock(value=value) for name, value in typed.items()}
  monkeypatch.setattr(flags.flags, "FLAGS", values)
  monkeypatch.setattr(stops, "listen", lambda **_: None)
  for name, does in {
    "initialize_distributed": lambda *_, **__: None,
    "wait_for_all": mock.Mock(side_effect=stops.Stopped),
    "say_stopped": lambda: said.append(True),
  }.items():
    monkeypatch.setattr(processes, name, does)
  with pytest.raises(stops.Stopped):
    flags._together(lambda _: 0, [], True)
  assert said and "stopped; the same command" in capsys.readouterr().err


def test_programs_are_kept_without_make(monkeypatch, tmp_path):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  monkeypatch.delitem(sys.modules, "jax")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  with monkeypatch.context() as patched:
    environ = dict(os.environ)
    patched.setattr(os, "environ", environ)
    flags._keep_programs()
  assert environ["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path))
  assert (tmp_path / "unlearning_jax" / "programs").is_dir()
  # A variable that is set stays.
  environ["JAX_COMPILATION_CACHE_DIR"] = "mine"
  monkeypatch.setattr(os, "environ", environ)
  flags._keep_programs()
  assert environ["JAX_COMPILATION_CACHE_DIR"] == "mine"
