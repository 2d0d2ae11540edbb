"""Configs by name, the verbs of the command, and what they print."""

import importlib
import sys

import pytest
from absl import flags as absl_flags
from unlearning_jax.launch import flags, main


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
  assert not {"flags", "main"} & set(main.verbs())
