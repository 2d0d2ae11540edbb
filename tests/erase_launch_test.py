"""`launch.erase`: what it refuses before a model is read."""

import types

import pytest
from scripts import script

from configs import erase_uce

erase = script("erase")


@pytest.fixture
def launched(monkeypatch, tmp_path):
  """Runs `launch.erase` in this process, on a config and some flags."""

  def run(config, **values):
    flags = {"WORKDIR": str(tmp_path / "run"), "DISTRIBUTED": False}
    for name, value in {"CONFIG": config, **flags, **values}.items():
      flag = types.SimpleNamespace(value=value)
      monkeypatch.setattr(erase, f"_{name}", flag)
    erase.main(["erase"])
    return tmp_path / "run"

  return run


def test_templates_that_a_task_lacks_are_refused_at_launch(launched, tmp_path):
  config = erase_uce.get_config("sd14,task=unsafe")
  config.model, config.hparams.expand_prompts = "/no/such/folder", True
  with pytest.raises(ValueError, match="expand_prompts: task 'unsafe'"):
    launched(config)
  assert not (tmp_path / "run").exists()
