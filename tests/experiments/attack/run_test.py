"""A whole small attack, and one that is stopped and goes on."""

import dataclasses
import gc
import json
import re
from unittest import mock

import numpy as np
import pytest

from tests.metrics.asr_test import record
from tests.support import narrow
from unlearning_jax import settings, stops
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import Edit, apply_to_context
from unlearning_jax.experiments import attack, common, trust
from unlearning_jax.experiments.attack import control, doubts
from unlearning_jax.experiments.attack import rows as attack_rows
from unlearning_jax.projections import Fingerprint, leaves_of
from unlearning_jax.record import Memory, Workdir
from unlearning_jax.report import attack as page
from unlearning_jax.shapes import world

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


def test_a_stopped_run_ends_as_one_that_was_not_stopped(tmp_path, monkeypatch):
  monkeypatch.setattr(world, "model_folder", narrow.folder)
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


@pytest.mark.parametrize(
  "drawn, words",
  [
    (np.zeros((8, 8, 3), np.uint8), "2 of 2 pictures have one color"),
    (
      np.random.default_rng(0).integers(0, 2, (8, 8, 3), np.uint8) * 255,
      "2 of 2 pictures are noise",
    ),
    (None, ""),
  ],
)
def test_the_victim_draws_no_pictures(drawn, words):
  """A saturated picture shows no concept, and is no success of an erasure."""
  slope = np.tile(np.arange(0, 240, 30, np.uint8)[:, None, None], (1, 8, 3))
  record = Memory(quiet=True)
  rows = []
  for i in range(2):
    record.save_image(f"targets/{i}", slope)
    image = record.save_image(f"own{i}", slope if drawn is None else drawn)
    rows.append({"id": f"{i}", "pre_image": image})
  # Nothing is known of a row whose picture was not kept.
  rows.append({"id": "2", "pre_image": None})
  targets = record.path / "images" / "targets"
  setup = mock.Mock(edits={})
  assert doubts.collapsed(record, rows, targets, setup) == words


@pytest.mark.parametrize("shown", [0, 1])
def test_the_base_never_shows_the_concept(shown):
  """As where guidance or the decoder is broken: no rate says anything then."""
  record = Memory(quiet=True)
  for i in range(2):
    record.save_image(f"targets/{i}", np.full((8, 8, 3), i, np.uint8))
  targets = record.path / "images" / "targets"
  judge = mock.Mock(return_value="scores")
  judge.shows.return_value = [(bool(shown), 0.5), (False, 0.1)]
  setup = mock.Mock(judge=judge, target="star")
  setup.given.target_images, setup.given.batch_size = "", 2
  rows = [{"id": f"{i}"} for i in range(3)]
  found = doubts.base_shows(setup, rows, targets)
  assert found == {"k": shown, "n": 2}
  said = page.never_shown({"base_shows": found})
  never = "own 2 pictures of these prompts never"
  assert bool(said) == (never in said) == (not shown)
  # Where the attack won all the same, the page says both.
  for wins in (0, 8):
    rates = {"value": wins / 10, "k": wins, "n": 10}
    told = page.verdict(
      {
        "base_shows": found,
        "measures": [{"name": n, **rates} for n in ("pre_asr", "asr")],
      }
    )
    assert told.endswith(said) and (never in told) == (not shown)
    assert (f"for {wins} of 10" in told) == bool(wins or shown)
  setup.given.target_images = "somewhere"
  assert doubts.base_shows(setup, rows, targets) is None
  assert page.never_shown({}) == ""


def test_a_signal_is_heard_after_each_target_image(tmp_path, monkeypatch):
  """All of them may take longer than a scheduler waits."""
  images = np.zeros((1, 3, 8, 8, 3), np.uint8)
  monkeypatch.setattr(attack_rows.sampling, "draw", lambda *_, **__: images)
  monkeypatch.setattr(attack_rows, "layout", lambda *_: {})
  monkeypatch.setattr(
    attack_rows.vocabulary, "shortened", lambda _, text, __: text
  )
  monkeypatch.setattr(stops._Notice, "heard", True)
  base = mock.Mock()
  base.sd.context_shape = (77, 768)
  table = [{"id": f"{i}", "prompt": "a star", "seed": i} for i in range(3)]
  given = settings.build(attack.Settings, VALUES)
  with pytest.raises(stops.Stopped):
    attack_rows.targeted(base, table, given, mock.Mock(), tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["0.png"]


def test_a_control_that_broke_off_everywhere_is_refused(tmp_path):
  """As an earlier version let it end."""
  run = Workdir(tmp_path, {"method": "controls", "hparams": {"kind": "none"}})
  for i in range(2):
    run.append_row(record(str(i), "numerical"))
  run.mark_done()
  with pytest.raises(
    ValueError, match=f"--control: {tmp_path}: .*all 2 attacked rows broke off"
  ):
    control.finished(str(tmp_path))


def test_an_edit_that_destroys_its_model_is_said():
  model = common.load_model(settings.build(attack.Settings, VALUES))
  change = np.full((3, 3), 0.1)
  concepts = make_concepts(["star"])
  for factor, words in ((1.0, ""), (1e3, "a moves .* 1.7e.02 times its size")):
    edit = Edit(
      np.eye(3) + factor * change, Fingerprint.of(model.params, "text"), "uce",
      tuple(concepts), {},
    )  # fmt: skip
    setup = mock.Mock(edits={"a": edit}, base=model)
    record = Memory(quiet=True)
    said = doubts.collapsed(record, [], record.path, setup)
    assert re.fullmatch(words, said), said
  huge = dataclasses.replace(edit, context_map=np.eye(3) * 1e300)
  with pytest.raises(ValueError, match="too large for float32"):
    apply_to_context(huge, np.zeros((1, 2, 3), np.float32))
  (path, leaf), *_ = leaves_of(model.params).items()
  for factor, far in ((2.0, 1.0), (101.0, 100.0)):
    leaves = {path: np.asarray(leaf) * np.float32(factor)}
    edit = Edit(None, Fingerprint.of(model.params), "esd", (), {}, leaves)
    assert trust.size(edit, model.params) == pytest.approx(far, rel=1e-5)
