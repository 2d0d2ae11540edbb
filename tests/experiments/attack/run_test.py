"""A whole small attack, and one that is stopped and goes on."""

import gc
import json

import pytest

from unlearning_jax import settings
from unlearning_jax.experiments import attack, common
from unlearning_jax.record import Memory

pytestmark = pytest.mark.usefixtures("quickest_compiler")
VALUES = {
  "method": "unlearn_diff_atk",
  "hparams": {"num_tokens": 2, "blocks": 2, "iterations": 2},
  "judge": "shapes",
  "targets": ({"task": "object", "name": "star"},),
  "guidance": {"negative_prompt": "star"},
  "sampling": {
    "num_inference_steps": 2,
    "guidance_scale": 4.0,
    "sampler": "dpm++2m",
  },
  "rows_per_group": 3,
  "lanes": 2,
  "batch_size": 2,
}


def rows(record):
  return {r["id"]: {k: v for k, v in r.items() if k != "seconds"}
          for r in record.rows()}  # fmt: skip


def test_a_stopped_run_ends_as_one_that_was_not_stopped(tmp_path):
  given, whole = settings.build(attack.Settings, VALUES), Memory(quiet=True)
  found = attack.run(given, lambda: whole)
  assert found == whole.summary and whole.is_done and len(whole.rows()) == 3

  def opened(**changes):
    config = settings.plain(given) | changes
    return common.workdir(str(tmp_path / "run"), config, attack.Settings)

  def stopping():
    record = opened()
    append = record.append_row

    def once(row):
      append(row)
      raise KeyboardInterrupt

    record.append_row = once
    return record

  with pytest.raises(KeyboardInterrupt):
    attack.run(given, stopping)
  # Its lock goes with it.
  gc.collect()
  # As a version without metrics wrote it; and rows may be laid out otherwise.
  file = tmp_path / "run" / "config.json"
  config = json.loads(file.read_text())
  del config["metrics"]
  file.write_text(json.dumps(config))
  assert attack.run(given, lambda: opened(batch_size=4))["title"] == ""
  assert rows(opened()) == rows(whole)
  assert (tmp_path / "run" / "DONE").exists()
  # Beside itself as a control, it is neither ahead nor behind.
  again = attack.run(given, lambda: Memory(quiet=True), beside=str(file.parent))
  assert again["control"]["paired"]["only_attack"] == 0


def test_a_model_is_a_victim(tmp_path):
  """The one that settings name, given as what it is, is the same victim."""
  model = common.load_model(settings.build(attack.Settings, VALUES))
  given = settings.build(attack.Settings, VALUES)
  bound = attack.victims.bind(given)
  named = attack.victims.setup(given, bound)
  handed = attack.victims.setup(given, bound, model)
  assert handed.name == named.name
  guided = model.with_guidance(attack.victims.kept_from(given.guidance))
  with pytest.raises(ValueError, match="guided already"):
    attack.victims.setup(given, bound, guided)
  bare = settings.build(attack.Settings, VALUES | {"guidance": {}})
  assert attack.victims.setup(bare, bound, guided).name == named.name
