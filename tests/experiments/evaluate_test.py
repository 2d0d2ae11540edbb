"""Evaluate: what is drawn, kept, judged and told, and how it goes on."""

import csv
import dataclasses
import functools
import gc
import io
import threading

import jax
import numpy as np
import pytest

from tests.support import toys
from unlearning_jax import (
  guidance,
  judges,
  model,
  protocols,
  record,
  stable_diffusion,
)
from unlearning_jax.experiments import common, drawing, evaluate
from unlearning_jax.experiments.evaluate import Settings
from unlearning_jax.sampling import Sampling

TOY = {
  "judge": "tests.support.toys:WARMTH",
  "metrics": ("tests.support.toys:BRIGHTNESS",),
}
STAR = ({"task": "object", "name": "star"},)
HAZARD = ({"task": "unsafe", "name": "hazard"},)


def settings(**changes):
  small = Settings(
    judge="shapes", targets=HAZARD, rows_per_group=2, other_rows=2, grid_rows=1,
    batch_size=8, sampling=Sampling(2, 4.0, "dpm++2m", "jax"),
  )  # fmt: skip
  return dataclasses.replace(small, **changes)


@pytest.fixture(scope="module")
def models():
  """The base, and it kept from hazards while it samples."""
  base = model.load("shapes")
  kept = guidance.Guidance("with warning tape", method="negative_prompt")
  return {"base": base, "GUIDED": base.with_guidance(kept)}


@pytest.fixture(scope="module")
def run(models):
  memory = record.Memory(quiet=True)
  evaluate.run(settings(), lambda: memory, models)
  return memory


def test_every_model_draws_every_row(run):
  ids = [row["id"] for row in drawing.rows(settings())]
  assert [row["id"] for row in run.rows()] == [
    f"{stage}/{i}" for stage in ("before", "GUIDED") for i in ids
  ]
  assert run.is_done
  assert run.summary["models"] == ["base", "GUIDED"]
  assert {"report.html", "results.csv"} <= set(run.files)
  # The base has no input of its own; what guides the other is one.
  (start,) = run.provenance["runs"]
  assert list(start["inputs"]) == ["GUIDED"]


def test_the_judge_that_decided_is_recorded(run):
  judge = judges.load("shapes")
  (start,) = run.provenance["runs"]
  assert start["judge_hashes"] == {"shapes": judge.weights_hash}


def test_the_page_shows_grid_rows_of_each_group(run):
  groups = {row["group"] for row in run.rows()}
  assert len(groups) == 5
  # One row a group (`grid_rows`), under both models.
  assert len(run.images) == 2 * len(groups)
  assert len(run.summary["pairs"]) == len(groups)
  for pair in run.summary["pairs"]:
    assert set(pair["images"].values()) <= set(run.images)


def test_captions_say_what_the_judge_saw(run):
  rows = {row["id"]: row for row in run.rows()}
  describe = judges.load("shapes").describe
  for pair in run.summary["pairs"]:
    name = pair["images"]["base"].split("/")[1].removesuffix("-before.png")
    judged = rows[f"before/{name}"]["judged"]
    assert pair["seen"]["base"] == describe(judged)
    assert f"seen: {describe(judged)}" in run.files["report.html"]


def test_thresholds_can_be_applied_again(run):
  judge = judges.load("shapes")
  again = evaluate.rejudged(run.rows(), judge)
  assert [row["judged"] for row in again] == [r["judged"] for r in run.rows()]
  strict = dataclasses.replace(judge, thresholds={"star": 2.0})
  found = evaluate.rejudged(run.rows(), strict)
  assert {row["judged"]["object"] for row in found} == {""}
  with pytest.raises(ValueError, match="has no scores; draw it again"):
    evaluate.rejudged([{"id": "a"}], judge)


def test_a_judge_and_a_metric_of_ones_own_appear_everywhere(models):
  memory = record.Memory(quiet=True)
  target = ({"head": "warmth", "label": "warm"},)
  given = settings(
    **TOY, targets=target, prompts={"explicit": ("a red star", "a red moon"),
    "others": ("a blue moon",)},
  )  # fmt: skip
  evaluate.run(given, lambda: memory, models)
  row = memory.rows()[0]
  assert row["attributes"] == {"warmth": "warm"}
  assert set(row["judged"]) == set(row["scores"]) == {"warmth"}
  lines = list(csv.DictReader(io.StringIO(memory.files["results.csv"])))
  heads = {(line["model"], line["head"]) for line in lines}
  for name in ("base", "GUIDED"):
    assert {(name, h) for h in ("warmth", "seen warmth", "brightness")} <= heads
  bright = [line for line in lines if line["head"] == "brightness"]
  assert [(one["n"], one["low"], one["k"]) for one in bright] == [
    ("3", "", "")
  ] * 2
  told = {e["name"] for e in memory.summary["estimates"]}
  assert "brightness" in told and "seen warmth/warm/all" in told
  page = memory.files["report.html"]
  assert "brightness" in page and "none: a toy" in page and "levels" in page
  assert "Asked for “warm” by name" in page


def test_a_killed_run_goes_on(models, tmp_path):
  """Killed after each batch was tallied, or in the middle of its rows."""
  given = settings(
    metrics=TOY["metrics"], targets=(), rows_per_group=0, other_rows=5
  )
  whole = record.Memory(quiet=True)
  evaluate.run(given, lambda: whole, models)

  class Killed(Exception):
    pass

  def opened():
    return common.workdir(str(tmp_path), dataclasses.asdict(given), Settings)

  class Kill:
    """A record that a run outlives by so many rows."""

    def __init__(self, rows):
      self.run, self.left = opened(), rows

    def __getattr__(self, name):
      return getattr(self.run, name)

    def append_row(self, row):
      if not self.left:
        raise Killed
      self.left -= 1
      self.run.append_row(row)

  for rows in (0, 3, 2):
    with pytest.raises(Killed):
      evaluate.run(given, functools.partial(Kill, rows), models)
    # Its file is let go.
    gc.collect()
  run = opened()
  assert evaluate.run(given, lambda: run, models) == whole.summary | {
    "heads": ["object", "style", "identity", "hazard"]
  }
  assert run.rows() == whole.rows()
  # Another judge may not go on with these rows.
  with pytest.raises(ValueError, match="judge: 'shapes' -> 'tests.support"):
    other = dataclasses.replace(given, judge=TOY["judge"])
    common.workdir(str(tmp_path), dataclasses.asdict(other), Settings)


def test_the_next_batch_is_drawn_while_one_is_judged(models, monkeypatch):
  """By events: nothing is judged before the device draws what comes next."""
  begun, judged = [threading.Event() for _ in range(4)], []

  def draw(noise):
    next(event for event in begun if not event.is_set()).set()
    return np.zeros((len(noise), 32, 32, 3), np.uint8)

  def sample(sd, params, context, noise, **_):
    shape = jax.ShapeDtypeStruct((len(noise), 32, 32, 3), np.uint8)
    images = jax.jit(lambda x: jax.pure_callback(draw, shape, x))(noise)
    return images, jax.numpy.ones(len(noise), bool)

  def score(images):
    following = len(judged) + 1
    # The last batch has none after it; the others wait for theirs.
    assert following == len(begun) or begun[following].wait(60)
    judged.append(len(images))
    return {"warmth": np.zeros((len(images), 2))}

  monkeypatch.setattr(stable_diffusion, "sample", sample)
  own = dataclasses.replace(toys.WARMTH, score=score)
  monkeypatch.setattr(toys, "WARMTH", own)
  given = settings(
    judge=TOY["judge"], targets=(), prompts={"others": ("a star",) * 10}
  )
  run = record.Memory(quiet=True)
  evaluate.run(given, lambda: run, models)
  assert judged == [8, 2, 8, 2] and len(run.rows()) == 20


def test_a_protocol_is_recorded(models):
  config = evaluate.config(
    None, "shapes-hazard~other_rows=1,num_inference_steps=2,rows_per_group=1"
  )
  memory = record.Memory(quiet=True)
  given = evaluate.Settings(**{**config, "sampling": settings().sampling})
  document = evaluate.run(
    dataclasses.replace(given, batch_size=8), lambda: memory, models
  )
  name, digest = config["protocol"].split(" ")
  assert document["protocol"] == config["protocol"]
  (start,) = memory.provenance["runs"]
  assert start["inputs"][f"protocol {name}"] == digest
  assert f"Protocol {name} {digest[:12]}." in memory.files["report.html"]
  assert digest == protocols.find(name).hash


def test_several_seeds_add_rows_and_change_none():
  once, thrice = drawing.rows(settings()), drawing.rows(settings(seeds=3))
  assert [row for row in thrice if "repeat" not in row] == once
  assert len({row["id"] for row in thrice}) == 3 * len(once)
  assert len({row["seed"] for row in thrice}) == 3 * len(once)
  assert [row["id"] for row in thrice[:2]] == [
    once[0]["id"], once[0]["id"] + "-s1"
  ]  # fmt: skip


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"seeds": 0}, "seeds=0: must be at least 1"),
    ({"judge": "shaeps"}, "judge='shaeps' is not known.*mean 'shapes'"),
    ({"metrics": ("acuracy",)}, "metric='acuracy' is not known.*'accuracy'"),
    ({"judge": None}, "neither a judge nor prompts"),
    ({"model": "my/sd14", "judge": TOY["judge"]}, "is no embedded world"),
    (
      {"judge": TOY["judge"]},
      "judge warmth .cannot see shapes.: head='hazard'",
    ),
    ({"targets": ({"task": "object", "name": "sun"},)}, "object name='sun'"),
    ({"rows_per_group": -1}, "rows_per_group=-1: must not be negative"),
    ({"judge": "tests.support.toys:COLD"}, "no attribute 'COLD'"),
  ],
)
def test_wrong_settings_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    settings(**changes)


def test_what_a_model_cannot_do_is_refused(models):
  long = settings(judge=None, prompts={"a": ("star " * 99,)})
  with pytest.raises(ValueError, match="101 tokens.*Shorten it"):
    evaluate.check_fits(long, models["base"])
  unguided = settings(sampling=Sampling(2, 1.0, None, "jax"))
  with pytest.raises(ValueError, match="guidance_scale=1.0: NEGATIVE_PROMPT"):
    evaluate.check_fits(unguided, models["GUIDED"])
  with pytest.raises(ValueError, match="give one of them"):
    evaluate.config({}, "shapes-star")
  with pytest.raises(ValueError, match="--protocol fixes both"):
    evaluate.config(None, "shapes-star", judge=toys.WARMTH.name)
