"""Rows that share words: the same words on any lanes, and after kills."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.support.attacks_cases import make_world
from unlearning_jax import attacks, settings, sharding
from unlearning_jax.attacks.engine import options
from unlearning_jax.attacks.engine import rows as engine_rows
from unlearning_jax.experiments import attack
from unlearning_jax.experiments.attack import control, sharing
from unlearning_jax.experiments.attack import rows as attack_rows
from unlearning_jax.experiments.attack.control import Control
from unlearning_jax.experiments.attack.victims import Setup
from unlearning_jax.model import Model
from unlearning_jax.record import Memory

pytestmark = pytest.mark.usefixtures("quick_compiler")
VALUES = {
  "method": "controls",
  "hparams": {"kind": "random", "num_tokens": 2, "blocks": 4},
  "judge": "shapes",
  "targets": ({"task": "object", "name": "star"},),
  "rows_per_group": 11,
  "sharing": {"wave": 3, "tries": 2},
}
SEARCH = {
  "method": "unlearn_diff_atk",
  "hparams": {"num_tokens": 2, "blocks": 4, "iterations": 2},
}


def build(**changes):
  return settings.build(attack.Settings, VALUES | changes)


@pytest.fixture(scope="module")
def world():
  return make_world()


def made(world, given):
  sd, victim, original = world
  return Setup(
    given=given, attack=attacks.bind(given.method, given.hparams),
    base=Model(sd, original.params), victim=victim, original=original,
    mesh=sharding.make_mesh(devices=jax.devices()[:1]), name="a" * 12,
  )  # fmt: skip


def by_words(requests):
  """Some words win nearly everywhere, most nowhere."""
  out = []
  for request in requests:
    first = request.prompt.split(" a")[0]
    lucky = sum(map(ord, first)) % 3 == 0
    row = (sum(map(ord, request.prompt)) + request.seed) % 5
    out.append(engine_rows.Verdict(lucky and row > 0, row / 5))
  return out


def run(world, given, *, lanes=4, record=None, stop=None):
  setup, rng = made(world, given), np.random.default_rng(0)
  table = [
    engine_rows.Row(
      **row, latents=rng.normal(size=world[0].latent_shape).astype("f4")
    )
    for row in attack_rows.listed(given)
  ]
  record = record or Memory(quiet=True)
  left = [row for row in table if row.id not in record.done_ids()]
  for i, _ in enumerate(
    attack.attacked(record, setup, left, by_words, lanes=lanes)
  ):
    if i + 1 == stop:
      break
  return record


def rows(record):
  """The rows without their times, floats to four digits."""
  text = json.dumps(sorted(record.rows(), key=lambda row: row["number"]))
  found = json.loads(text, parse_float=lambda x: f"{float(x):.4g}")
  return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


def tries(row):
  return [block["text"] for block in row["blocks"] if block.get("start")]


@pytest.mark.parametrize(
  "changes",
  [
    pytest.param({}, id="random"),
    pytest.param(SEARCH, id="search", marks=pytest.mark.slow),
  ],
)
def test_rows_do_not_know_lanes_or_kills(changes, world):
  given = build(**changes)
  whole = rows(run(world, given))
  assert len(whole) == 11
  # The first wave has nothing to try; later rows try two at most.
  assert not any(tries(row) for row in whole[:3])
  later = [row for row in whole[3:] if row["status"] != "pre"]
  assert {len(tries(row)) for row in later} <= {0, 1, 2}
  assert any(row["status"] == "success" and tries(row) for row in later)
  if given.method == "controls":
    # Two words are known by the last wave, so its rows only try.
    last = later[-5:]
    assert all(len(tries(row)) == len(row["blocks"]) for row in last)
    assert {row["budget"] for row in later if row["number"] >= 6} == {3}
  assert all(row["images"] == 1 + len(row["blocks"]) <= 5 for row in whole)
  assert rows(run(world, given, lanes=1)) == whole
  # Killed within the first wave, and within a later one.
  for stop in (2, 5, 8):
    record = run(world, given, stop=stop)
    assert len(record.rows()) == stop
    assert rows(run(world, given, record=record)) == whole


def test_processes_meet_before_each_wave(world):
  """A wave starts when all rows before it are recorded, by whomever."""
  given = build()
  setup, record, met = made(world, given), run(world, given), []
  how = options.Options(lanes=1, mesh=setup.mesh)
  found = list(sharing.waves(how, setup, record, (), met.append))
  assert met == [f"rows before {i} attacked" for i in (0, 3, 6)]
  words = [own.starts for _, own in found]
  assert words[0] == () != words[1]
  assert [own.search for _, own in found] == [len(w) < 2 for w in words]
  assert not found[-1][1].search
  # A control network tries none of the words that won on the victim.
  other = dataclasses.replace(setup, network="never_knew")
  found = list(sharing.waves(how, other, record, (), met.append))
  assert not any(own.starts or not own.search for _, own in found)
  for row in record.rows():
    own = {"id": f"never_knew/{row['id']}", "network": "never_knew"}
    record.append_row(row | own)
  found = list(sharing.waves(how, other, record, (), met.append))
  assert [own.starts for _, own in found] == words


def test_without_sharing_nothing_is_tried(world):
  given = build(sharing={})
  assert not any(tries(row) for row in rows(run(world, given)))
  old = settings.plain(given)
  del old["sharing"]
  assert settings.build(attack.Settings, old) == given


def test_the_best_words_come_first(world):
  sd = world[0]
  latents = np.zeros(sd.latent_shape, np.float32)
  one = engine_rows.Row("a", 0, "a star", 1, None, latents)
  (layout,), _ = engine_rows.prepare(sd, [one], "mid_k", 2)
  words = [(5, 6), (7, 8), (9, 10), (11, 12)]
  ids = [
    layout.text(sd, np.array(pair, np.int32))["ids"] for pair in words
  ]  # fmt: skip
  assert [layout.words(x) for x in ids] == words

  def record(number, *blocks):
    found = [{"ids": ids[i], "success": won} for i, won in blocks]
    return {"id": "a", "number": number, "blocks": found}

  won_once, half, often, never = 0, 1, 2, 3
  records = [
    record(1, (half, True), (never, False)),
    record(2, (half, False), (often, True)),
    record(3, (often, True)),
    record(0, (won_once, True)),
  ]
  order = [words[i] for i in (often, won_once, half)]
  assert list(sharing.best(records, {"a": layout})) == order


@pytest.mark.parametrize(
  "changes, told",
  [
    ({"sharing": {"wave": 3}}, "sharing.wave=3 and sharing.tries=0"),
    ({"sharing": {"wave": -1}}, "sharing.wave=-1: must not be negative"),
    ({"sharing": {"wave": 3, "tries": 4}}, "sharing.tries=4: leaves no image"),
    ({"judge": None, "prompt_table": "a.csv"}, "without a judge none wins"),
    ({"hparams": {"kind": "seed", "blocks": 4}}, "'controls' finds none"),
    (
      {"hparams": VALUES["hparams"] | {"insertion": "every_three"}},
      "insertion='every_three'",
    ),
    (
      {"method": "concept_inversion", "hparams": {"blocks": 4}},
      "'concept_inversion' finds none",
    ),
  ],
)
def test_what_cannot_be_shared(changes, told):
  with pytest.raises(ValueError, match=told):
    given = build(**changes)
    sharing.check(given, attacks.bind(given.method, given.hparams))


def beside(**changes):
  plain = settings.plain(build(**changes))
  found = [row | {"victim": "a" * 12} for row in attack_rows.listed(build())]
  return Control("random", found, json.loads(json.dumps(plain)))


def test_a_control_has_the_attack_s_budget(world):
  """As many images, or as many UNet calls; and it shares as the attack."""
  given = build(**SEARCH)
  listed, bound = attack_rows.listed(given), attacks.bind(**SEARCH)
  control.check_control(beside(), given, listed, vocabulary=True)
  alone = beside(sharing={})
  with pytest.raises(ValueError, match="--config.sharing.wave=3 --config.shar"):
    control.check_control(alone, given, listed, vocabulary=True)
  # A run of an older version shared nothing.
  old = dict(alone.config)
  del old["sharing"]
  control.check_control(
    alone._replace(config=old), build(**SEARCH, sharing={}), listed, True
  )

  def budget(blocks, kind="random"):
    hparams = VALUES["hparams"] | {"blocks": blocks, "kind": kind}
    shared = VALUES["sharing"] if kind == "random" else {}
    control.check_budget(
      beside(hparams=hparams, sharing=shared), bound, world[1], steps=2
    )

  # 8 updates there and back cost 16 calls, and an image 4.
  for blocks in (4, 8):
    budget(blocks)
    budget(blocks, "seed")
  budget(4, "none")
  for blocks in (3, 5, 7, 9):
    with pytest.raises(
      ValueError, match=f"hparams.blocks={blocks} .*=4, .*blocks=8$"
    ):
      budget(blocks)
  # Safe Latent Diffusion's images cost three rows a step.
  guided = dataclasses.replace(world[1], safe=True)
  with pytest.raises(ValueError, match="hparams.blocks=5$"):
    few = dataclasses.replace(bound.h, blocks=3, iterations=4)
    own = dataclasses.replace(bound, h=few)
    control.check_budget(beside(), own, guided, steps=3)
  # An attack to compare with is no control.
  control.check_budget(beside(**SEARCH), bound, world[1], steps=2)
  control.check_budget(Control(), bound, world[1], steps=2)
