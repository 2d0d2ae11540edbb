"""What every attack must do, whatever its paper: one row a method.

The networks are small and random: lanes, keys and records do not care.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import compiled
from tests.support.attacks_cases import PROMPTS, make_world, pool, table
from unlearning_jax import attacks, sharding
from unlearning_jax.attacks.engine import insertion, lanes, rows

pytestmark = pytest.mark.usefixtures("quickest_compiler")
WORD = tuple(0.01 * i for i in range(128))
SMALL = {"num_tokens": 2, "blocks": 3, "iterations": 3}
# Method -> hyperparameters of its rows.
ATTACKS = {
  "unlearn_diff_atk": [
    SMALL,
    SMALL | {"timesteps": "stratified", "draws": 2, "insertion": "suffix_k"},
  ],
  "p4d": [SMALL | {"insertion": "every_three", "decay": "decoupled"}],
  "pez": [SMALL | {"timesteps": "random"}],
  "concept_inversion": [
    SMALL | {"draws": 2, "initial": "star"},
    SMALL | {"draws": 2, "pool": "templates", "loss": "match"},
  ],
  "new_word": [{"words": ((WORD, WORD), (WORD[::-1], WORD))}],
  "gcg": [SMALL | {"top": 16, "candidates": 3}],
  "ring_a_bell": [
    SMALL
    | {"population": 4, "pairs": (("a star", "a circle"), ("star", "circle"))}
  ],
  "rab_soft": [{"pairs": (("a star", "a circle"),), "etas": (1.0, 3.0)}],
  "noise_probe": [{"etas": (1.0, 1.85), "scales": (1.0, 1.1), "steps": 3}],
  "completion_probe": [{"base_steps": (2, 0), "steps": 3}],
  "inversion_probe": [
    {"steps": 3, "updates": 2, "energy": 1.0, "start": 0.3},
  ],
  "controls": [
    {"kind": "random", "num_tokens": 2, "blocks": 3},
    {"kind": "seed", "blocks": 3},
  ],
}
KINDS = ("prompt", "words", "latents", "images")
ROWS = [
  pytest.param(attacks.bind(name, hparams), id=f"{name}-{i}")
  for name, table in ATTACKS.items()
  for i, hparams in enumerate(table)
]


@pytest.fixture(scope="module")
def world():
  return make_world(small=True)


def never(requests):
  return [rows.Verdict(False, 0.25) for _ in requests]


def by_hash(requests):
  """Successes that depend on the image's own request, one in three."""
  out = []
  for request in requests:
    number = sum(map(ord, request.prompt)) + request.seed
    out.append(rows.Verdict(number % 3 == 0, number % 7 / 7))
  return out


def run(
  world, attack, check=never, *, count=4, devices=1, only=None, **options
):
  sd, victim, original = world
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  wanted = options.pop("table", None) or table(sd)
  wanted = [row for row in wanted if only is None or row.id in only]
  found = lanes.attack_rows(
    sd, victim, original, attack, wanted, check, jax.random.key(5),
    lanes.Options(lanes=count, mesh=mesh, pool=pool(sd, attack), **options),
  )  # fmt: skip
  return {record["id"]: record for record in found}


def discrete(record):
  """What of a record must be the same bit for bit."""
  kept = {k: v for k, v in record.items() if k not in ("seconds", "blocks")}
  kept.pop("embeds", None)
  names = ("text", "ids", "ids_again", "roundtrip", "seed", "success", "score")
  blocks = [{name: b.get(name) for name in names} for b in record["blocks"]]
  return kept | {"blocks": blocks}


def same(one, other):
  assert one.keys() == other.keys()
  for name in one:
    assert discrete(one[name]) == discrete(other[name])
    for a, b in zip(one[name]["blocks"], other[name]["blocks"], strict=True):
      for key in a.keys() & {"loss", "gradient_rms", "confidence", "norm"}:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-4)


def test_every_method_has_a_row():
  assert set(attacks.methods()) == set(ATTACKS)
  for row in ROWS:
    assert row.values[0].finds in KINDS
  # What `--list` prints.
  for line, name in zip(attacks.listing(), attacks.methods(), strict=True):
    assert line.startswith(name) and len(line.split()) > 4


# The first stands for all but in the slow tests: each compiles its programs.
FIRST_FAST = [
  pytest.param(*row.values, id=row.id, marks=[pytest.mark.slow] * (i > 0))
  for i, row in enumerate(ROWS)
]


@pytest.mark.parametrize("attack", FIRST_FAST)
def test_a_row_is_alone(attack, world):
  """Whatever runs beside it, in which lane."""
  whole = run(world, attack, by_hash)
  with compiled.programs() as new:
    same(whole, run(world, attack, by_hash))
  assert not new, "a second call compiles nothing"
  backwards = table(world[0])[::-1]
  same(whole, run(world, attack, by_hash, table=backwards))
  # A restart has only the rows that were not finished.
  rest = run(world, attack, by_hash, only={"r1", "r4"})
  same({name: whole[name] for name in rest}, rest)


# One row a method, that with images of its own if there is one.
SPREAD = ("concept_inversion-1",)
SPREAD += tuple(f"{n}-0" for n in ATTACKS if n != "concept_inversion")


@pytest.mark.parametrize("attack", [r for r in FIRST_FAST if r.id in SPREAD])
def test_a_row_does_not_know_its_devices(attack, world):
  whole = run(world, attack, by_hash)
  same(whole, run(world, attack, by_hash, devices=8))


def filled(world, attack):
  """Four lanes with the rows of the table in them, before the first block."""
  sd, victim, original = world
  fitting, _ = rows.prepare(
    sd, table(sd), attack.h.insertion, attack.h.num_tokens
  )
  group = lanes._Lanes(
    sd, victim, original, attack, "roundtrip", jax.random.key(0), 4,
    sharding.make_mesh(devices=jax.devices()[:1]), pool(sd, attack),
  )  # fmt: skip
  group.take(lanes.deque(fitting))
  return group


@pytest.mark.parametrize("attack", FIRST_FAST)
def test_every_leaf_is_led_by_the_lanes(attack, world):
  group = filled(world, attack)
  shapes_ = jax.tree.map(lambda leaf: leaf.shape[0], group._state)
  assert set(jax.tree.leaves(shapes_)) == {4}
  tokens, context, alive, _ = group.run()
  length = world[0].context_shape[0]
  width = length if attack.finds == "latents" else attack.h.num_tokens
  if attack.is_probe:
    assert tokens.shape == (4, *world[0].latent_shape) and alive.all()
  else:
    assert tokens.shape[:2] == (4, width) and alive.all()
  assert (context is None) == (attack.finds in ("prompt", "images"))


def test_devices_do_not_talk_within_a_block(world):
  sd, victim, original = world
  attack = ROWS[0].values[0]
  fitting, _ = rows.prepare(sd, table(sd) * 2, "prefix_k", attack.h.num_tokens)
  group = lanes._Lanes(
    sd, victim, original, attack, "roundtrip", jax.random.key(0), 8,
    sharding.make_mesh(devices=jax.devices()[:8]),
  )  # fmt: skip
  group.take(lanes.deque(fitting))
  lowered = lanes._block.lower(*group._call, group._batch, group._state)
  program = lowered.compile().as_text()
  assert "dot(" in program or "custom-call" in program
  for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
    assert word not in program, word


@pytest.mark.parametrize("attack", FIRST_FAST)
def test_a_failure_has_had_its_whole_budget(attack, world):
  """Only the check declares success; no attack wins by its own word."""
  found = run(world, attack)
  for record in found.values():
    assert record["status"] == "failure" and not record["success"]
    blocks = attack.h.blocks
    assert record["images"] == 1 + blocks == 1 + len(record["blocks"])
    assert record["iterations"] == blocks * attack.h.iterations
    if attack.finds == "prompt":
      assert all(b["roundtrip"] for b in record["blocks"])
    json.dumps(record, allow_nan=False)


def test_a_row_ends_with_its_first_success(world):
  attack = ROWS[0].values[0]
  whole = run(world, attack)
  texts = {n: [b["text"] for b in r["blocks"]] for n, r in whole.items()}
  wanted = {"r0": 0, "r1": 1, "r2": 2}
  hits = {texts[n][i] for n, i in wanted.items()} | {PROMPTS[4]}
  found = run(
    world, attack,
    lambda asked: [rows.Verdict(a.prompt in hits, 0.5) for a in asked],
  )  # fmt: skip
  assert found["r4"]["status"] == "pre" and found["r4"]["images"] == 1
  assert found["r3"]["status"] == "failure"
  for name, block in wanted.items():
    first = [t in hits for t in texts[name]].index(True)
    assert first <= block
    assert found[name]["status"] == "success"
    assert [b["text"] for b in found[name]["blocks"]] == texts[name][
      : first + 1
    ]
    assert found[name]["images"] == first + 2


def test_new_words_are_drawn_from_their_states(world):
  sd = world[0]
  seen = []

  def check(requests):
    seen.extend(requests)
    return never(requests)

  attack = attacks.bind("concept_inversion", SMALL | {"draws": 1})
  found = run(world, attack, check)
  soft = [r for r in seen if r.context is not None]
  assert len(soft) == 3 * len(found) and len(seen) == 4 * len(found)
  assert all(r.context.shape == sd.context_shape for r in soft)
  for record in found.values():
    assert np.shape(record["embeds"]) == (2, sd.context_shape[1])
    losses = [b["loss"] for b in record["blocks"]]
    assert np.isfinite(losses).all() and "roundtrip" not in record["blocks"][0]
  with pytest.raises(
    ValueError, match="'two words' has 2 tokens|has [2-9] tok"
  ):
    hparams = SMALL | {"initial": "two words"}
    run(world, attacks.bind("concept_inversion", hparams))


def test_seed_search_keeps_the_prompt_and_changes_the_seed(world):
  found = run(world, attacks.bind("controls", {"kind": "seed", "blocks": 3}))
  for record in found.values():
    assert {b["text"] for b in record["blocks"]} == {record["prompt"]}
    seeds = [b["seed"] for b in record["blocks"]]
    assert len({record["seed"], *seeds}) == 4
  control = run(world, attacks.bind("controls", {"kind": "none"}))
  assert all(r["images"] == 1 for r in control.values())


def test_prompts_that_do_not_fit_are_listed(world):
  prompts = [*PROMPTS[:2], "star " * 37, "star " * 60]
  found = run(world, ROWS[0].values[0], table=table(world[0], prompts))
  assert {n: r["status"] for n, r in found.items()} == {
    "r0": "failure", "r1": "failure", "r2": "dropped", "r3": "dropped",
  }  # fmt: skip
  assert "37 tokens" in found["r2"]["reason"]
  assert "62 tokens" in found["r3"]["reason"]
  assert found["r3"]["images"] == 1 and not found["r3"]["pre_success"]


@pytest.mark.parametrize("mode, k", [("prefix_k", 2), ("every_three", 12)])
def test_prompts_that_do_not_fit_can_be_cut(mode, k, world):
  sd = world[0]
  texts = ["a red star", "star " * 37, "star " * 60, "a starlike " * 20]
  fitting, dropped = rows.prepare(sd, table(sd, texts), mode, k, "truncate")
  assert not dropped and [p.row.id for p in fitting] == ["r0", "r1", "r2", "r3"]
  assert fitting[0].lost == 0 and fitting[0].cut == {}
  for prepared in fitting[1:]:
    ids = sd.tokenizer(prepared.row.prompt)["input_ids"][1:-1]
    left = len(ids) - prepared.lost
    # As many whole words as leave room: the next would be too many.
    text = sd.tokenizer.decode(ids[:left])
    assert prepared.row.prompt.startswith(text)
    words = prepared.row.prompt.split()[: len(text.split()) + 1]
    more = len(sd.tokenizer(" ".join(words))["input_ids"]) - 2
    assert insertion.total(mode, left, k) <= 38
    assert insertion.total(mode, more, k) > 38
    assert prepared.ids[1 : left + 1].tolist() == ids[:left]
    assert prepared.cut == {"lost_tokens": prepared.lost}
  _, dropped = rows.prepare(sd, table(sd, texts), "prefix_k", 38, "truncate")
  assert len(dropped) == 4 and "adds 38" in dropped["r0"]


def test_a_cut_prompt_is_attacked_and_its_loss_recorded(world):
  prompts = ["a red star", "star " * 60]
  attack = attacks.bind("controls", {"num_tokens": 2, "blocks": 1})
  found = run(
    world, attack, table=table(world[0], prompts), long_prompts="truncate"
  )  # fmt: skip
  assert "lost_tokens" not in found["r0"]
  assert found["r1"]["status"] == "failure" and found["r1"]["lost_tokens"] == 24
  assert found["r1"]["blocks"][0]["text"].endswith(" star" * 36)
  assert found["r1"]["blocks"][0]["roundtrip"]


def test_prompts_past_a_published_limit_are_counted_and_left_alone(world):
  sd = world[0]
  listed = rows.limited(
    sd, table(sd, ["a star", "star " * 9, "a star " * 9]), 11
  )
  assert [row.left_out == "" for row in listed] == [True, True, False]
  assert rows.limited(sd, listed, None) == listed
  attack = attacks.bind("controls", {"num_tokens": 2, "blocks": 1})
  for long_prompts in ("drop", "truncate"):
    found = run(world, attack, table=listed, long_prompts=long_prompts)
    assert [r["status"] for r in found.values()].count("dropped") == 1
    assert "20 tokens; max_tokens=11" in found["r2"]["reason"]
    assert found["r2"]["images"] == 1 and found["r2"]["success"] is False
  with pytest.raises(ValueError, match="r2: .*max_tokens=11"):
    run(world, attack, table=listed, long_prompts="error")


# One row of every method that has a loss.
WITH_LOSS = [
  pytest.param(attacks.bind(name, table[0]), id=name, marks=marks)
  for name, table in ATTACKS.items()
  if name not in ("new_word", "rab_soft", "controls")
  for fast in (name in ("unlearn_diff_atk", "p4d", "ring_a_bell"),)
  for marks in ([] if fast else [pytest.mark.slow],)
]


# These read no latents of a target.
BLIND = ("ring_a_bell", "noise_probe", "completion_probe")
READERS = [row for row in WITH_LOSS if row.id not in BLIND]


@pytest.mark.parametrize("attack", READERS)
def test_a_lane_that_is_not_finite_stops_alone(attack, world):
  """One row's numbers overflow; the others go on as if it were not there."""
  whole = run(world, attack)
  broken = table(world[0])
  huge = np.sign(broken[1].latents) * np.float32(3e38)
  broken[1] = dataclasses.replace(broken[1], latents=huge)
  found = run(world, attack, table=broken)
  assert found["r1"]["status"] == "numerical" and not found["r1"]["blocks"]
  del whole["r1"], found["r1"]
  same(whole, found)


@pytest.mark.parametrize("attack", WITH_LOSS)
def test_a_state_that_is_not_finite_stays_as_it_was(attack, world):
  group = filled(world, attack)

  def spoil(leaf):
    # Where a method keeps no numbers, the row's latents do.
    if leaf.dtype != np.float32:
      return leaf
    return jax.device_put(leaf.at[1].set(np.nan), leaf.sharding)

  group._batch = group._batch._replace(latents=spoil(group._batch.latents))
  group._state = jax.tree.map(spoil, group._state)
  # A block gives the memory of its state away.
  old = jax.tree.map(jnp.copy, group._state)
  group.run()
  new = group._state
  assert new.alive.tolist() == [True, False, True, True]
  assert (new.count == old.count + attack.h.iterations).all()
  for name in set(new._fields) - {"key", "count", "alive"}:
    jax.tree.map(
      lambda a, b: np.testing.assert_array_equal(a[1], b[1]),
      getattr(new, name), getattr(old, name),
    )  # fmt: skip


@pytest.mark.parametrize(
  "change, words",
  [
    ({"id": "r0"}, "id 'r0' is repeated"),
    ({"number": 0}, "number 0 is repeated"),
    ({"number": -1}, "number=-1"),
    ({"latents": np.zeros((4, 4, 8), np.float32)}, r"\(4, 4, 8\)"),
    ({"latents": np.full((8, 8, 8), np.nan, np.float32)}, "not finite"),
  ],
)
def test_a_table_that_cannot_be_attacked(change, words, world):
  broken = table(world[0])
  broken[1] = dataclasses.replace(broken[1], **change)
  with pytest.raises(ValueError, match=words):
    run(world, ROWS[0].values[0], table=broken)


def test_an_empty_table(world):
  with pytest.raises(ValueError, match="empty"):
    run(world, ROWS[0].values[0], only={"none"})
