"""`launch.diagnose`: a small run, and what it refuses before it draws."""

import json
import types

import pytest
from unlearning_jax.configs import diagnose as diagnose_config

from tests.support.scripts import script
from unlearning_jax import settings, stable_diffusion
from unlearning_jax.experiments import diagnose as experiment

diagnose = script("diagnose")
FEW = {
  "rows_per_group": 2,
  "batch_size": 2,
  "sampling.num_inference_steps": 1,
  "timesteps": 2,
  "stages": ((2, 3), (4, 1)),
}


@pytest.fixture
def start(monkeypatch, tmp_path):
  """Starts it with some keys changed; the run's folder."""

  def main(argument="tiny,task=object,name=star", **changes):
    config = diagnose_config.get_config(argument)
    config.update_from_flattened_dict({**FEW, **changes})
    folder = tmp_path / "run"
    for flag, value in {
      "_CONFIG": config,
      "_WORKDIR": str(folder),
      "_EDIT": "",
    }.items():
      monkeypatch.setattr(diagnose, flag, types.SimpleNamespace(value=value))
    diagnose.main([])
    return folder

  return main


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"concept": "sta"}, "concept='sta' .*did you mean 'star'"),
    ({"caption": "a thing"}, "caption='a thing': must hold one {}"),
    ({"criterion": "l3"}, "criterion='l3'.*l2, l1"),
    ({"timesteps": 0}, "stages=.*both >= 1"),
    ({"timesteps": 1001}, "timesteps=1001: allowed: 1 to 1000"),
    ({"stages": ((2, 3), (1001, 1))}, "stages: timesteps=1001"),
    ({"stages": ((4, 3), (2, 1))}, "stages: .*n rising"),
    ({"stages": ()}, "stages: .*both >= 1"),
    ({"anchor": "star " * 76}, "tokens, start and end included"),
    ({"sampling.num_inference_steps": 0}, "num_inference_steps=0"),
    ({"target_images": "/no/such/folder"}, "target_images: no file /no/such"),
    # The classifier asks the weights, so it would say that nothing is erased.
    ({"guidance.safe": "strong"}, "diagnose: the victim acts by guidance"),
    ({"guidance.negative_prompt": "a star"}, "the victim acts by guidance"),
  ],
)
def test_what_cannot_be(changes, words, start, monkeypatch, tmp_path):
  def compiles(*_, **__):
    raise AssertionError("something is drawn: too late for an error")

  monkeypatch.setattr(stable_diffusion, "sample", compiles)
  monkeypatch.setattr(stable_diffusion, "encode_images", compiles)
  with pytest.raises(ValueError, match=words):
    start(**changes)
  assert not (tmp_path / "run").exists()


def test_a_model_has_lost_nothing_of_itself(start):
  """The victim is the original: the same gaps, the same labels."""
  folder = start()
  lines = (folder / "results.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert len(rows) == 2 and (folder / "DONE").exists()
  for row in rows:
    assert row["base"] == row["victim"]
    assert row["base"]["label"] in diagnose_config.get_config().classes
  summary = json.loads((folder / "summary.json").read_text())
  assert summary["n"] == 2 and "victim_file" not in summary
  assert summary["base_gap"] == summary["victim_gap"] != 0


def test_a_summary_counts_the_labels_that_fit():
  config = diagnose_config.get_config()
  rows = [
    {
      "base": {"gap": 0.4, "label": "star"},
      "victim": {"gap": gap, "label": label},
    }
    for gap, label in ((0.1, "star"), (0.0, "circle"), (0.2, "circle"))
  ]
  given = settings.build(experiment.Settings, config.to_dict())
  found = experiment.summary(rows, given)
  assert found["kept"] == pytest.approx(0.25)
  assert [found[f"{who}_label"]["k"] for who in ("base", "victim")] == [
    3,
    1,
  ]
