"""The driver: attacks many rows at once, each as if it were alone.

A lane is one row's place in a compiled program that optimizes many rows side by
side. A block of iterations runs on the devices. Then each prompt is decoded,
drawn and judged, and a lane whose row has ended takes the next row. A row's
prompts never depend on images, on other lanes or on the devices; its images
only decide when it stops.
"""

import functools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Array

from unlearning_jax import sharding
from unlearning_jax.attacks import Attack
from unlearning_jax.attacks.engine import starts, vocabulary
from unlearning_jax.attacks.engine.lane_state import keep_lanes
from unlearning_jax.attacks.engine.options import Options as Options
from unlearning_jax.attacks.engine.rows import (
  Check,
  Prepared,
  Row,
  check_rows,
  prepare,
)
from unlearning_jax.attacks.engine.victim import (
  Batch,
  Pool,
  Problem,
  Victim,
  text_states,
)
from unlearning_jax.stable_diffusion import StableDiffusion

Record = dict[str, Any]


@functools.partial(jax.jit, static_argnames=("sd", "attack", "where"))
def _start(sd, attack, where, victim, base, batch, key):
  state = attack.init(Problem(sd, victim, base, batch), key)
  return jax.lax.with_sharding_constraint(state, where)


@functools.partial(
  jax.jit, static_argnames=("sd", "attack", "where"), donate_argnames="state"
)
def _refill(sd, attack, where, victim, base, batch, key, state, fresh):
  new = attack.init(Problem(sd, victim, base, batch), key)
  state = keep_lanes(fresh, new, state)
  return jax.lax.with_sharding_constraint(state, where)


def iterate(attack: Attack, problem: Problem, state: Any) -> tuple[Any, ...]:
  """One block of iterations.

  Returns:
    The state, what the attack found, its text states if it found no prompt,
    which lanes are alive, and each info's mean over the block.
  """
  sd, victim, _, batch = problem

  def body(state, _):
    return attack.step(problem, state)

  state, info = jax.lax.scan(body, state, length=attack.h.iterations)
  info = jax.tree.map(lambda x: x.mean(axis=0), info)
  found, context = attack.prompt(batch, state), None
  if attack.finds == "words":
    context = text_states(sd, victim, batch, found)
  elif attack.finds == "latents":
    context = victim.edit_context(found) if victim.edit_context else found
  return state, found, context, state.alive, info


@functools.partial(
  jax.jit, static_argnames=("sd", "attack", "where"), donate_argnames="state"
)
def _block(sd, attack, where, victim, base, batch, state):
  problem = Problem(sd, victim, base, batch)
  state, *rest = iterate(attack, problem, state)
  return jax.lax.with_sharding_constraint(state, where), *rest


class _Lanes:
  """The rows in the lanes, with their state on the devices."""

  def __init__(
    self, sd, victim, base, attack, mode, key, count, mesh, pool=None
  ):
    self._mesh, self._key = mesh, key
    where = sharding.batch_sharding(mesh)
    self._call = (sd, attack, where, victim, base)
    self._ids: Any = sharding.place(
      vocabulary.attack_ids(sd.tokenizer, mode), sharding.replicated(mesh)
    )
    self._pool: Any = sharding.place(pool, sharding.replicated(mesh))
    self.rows: list[Any] = [None] * count
    # Shapes are static, so an empty lane computes its last row again, unread.
    self._computed: list[Any] = []
    self._state: Any = None

  def take(self, queue: deque[Prepared]) -> list[int]:
    """Gives the next rows to empty lanes; returns the lanes that got one."""
    fresh = [lane for lane, row in enumerate(self.rows) if row is None]
    fresh = fresh[: len(queue)]
    if not fresh:
      return []
    for lane in fresh:
      self.rows[lane] = queue.popleft()
    old = self._computed or [self.rows[fresh[0]]] * len(self.rows)
    self._computed = [
      row or was for row, was in zip(self.rows, old, strict=True)
    ]
    self._batch = self._gather()
    if self._state is None:
      self._state = _start(*self._call, self._batch, self._key)
    else:
      mask = np.isin(np.arange(len(self.rows)), fresh)
      mask = sharding.global_batch(self._mesh, mask)
      self._state = _refill(
        *self._call, self._batch, self._key, self._state, mask
      )
    return fresh

  def _gather(self) -> Batch:
    rows = self._computed
    numbers = np.array([p.row.number for p in rows], np.uint32)
    parts = [
      numbers,
      np.stack([p.ids for p in rows]),
      np.stack([p.source for p in rows]),
      np.stack([p.row.latents for p in rows]),
    ]
    batch = Batch(self._ids, *sharding.global_batch(self._mesh, parts))
    return batch._replace(pool=self._pool)

  def run(self) -> tuple[Any, Any, np.ndarray, dict[str, np.ndarray]]:
    """Runs a block; returns finds, text states, alive lanes and infos."""
    self._state, *read = _block(*self._call, self._batch, self._state)
    return jax.tree.map(sharding.local_rows, tuple(read))


def check_attack(
  sd: StableDiffusion,
  victim: Victim,
  base: Victim,
  attack: Attack,
  mode: str,
  pool: Pool | None = None,
):
  """Checks that an attack can begin, before any image is drawn.

  Args:
    attack: from `attacks.bind`.
    mode: `roundtrip` or `full`, see `vocabulary`.
    pool: images that every row may learn from; None if they do not exist yet,
      and then a stand-in is checked.

  Raises:
    ValueError: the attack's `init` refuses, or the vocabulary has no ids.
  """
  ids = vocabulary.attack_ids(sd.tokenizer, mode)
  text = np.zeros((1, sd.context_shape[0]), np.int32)
  latents = np.zeros((1, *sd.latent_shape), np.float32)
  if pool is None and getattr(attack.h, "pool", ""):
    pool = Pool(latents, text, text, text)  # type: ignore[arg-type]
  number = np.zeros(1, np.uint32)
  batch = Batch(ids, number, text, text, latents, pool)  # type: ignore[arg-type]

  def init(*arrays):
    return attack.init(Problem(sd, *arrays), jax.random.key(0))

  jax.eval_shape(init, victim, base, batch)


def attack_rows(
  sd: StableDiffusion,
  victim: Victim,
  base: Victim,
  attack: Attack,
  table: Sequence[Row],
  check: Check,
  key: Array,
  how: Options,
) -> Iterator[Record]:
  """Attacks each row until it succeeds or has had all its blocks.

  Args:
    attack: from `attacks.bind`.
    table: the rows.
    check: draws and judges images.
    key: the run's key; a row folds its number in.
    how: lanes, devices, vocabulary, proxy.

  Yields:
    A record for each row when it ends. Its `status` is `pre` (the row's own
    prompt shows the concept, and the attack is no probe), `success`, `failure`,
    `unjudged` (no judge), `numerical` (NaN or infinity froze the lane) or
    `dropped` (with `reason`).

  Raises:
    ValueError: an unusable table, what `check_attack` refuses, or, with
      `long_prompts="error"`, prompts that leave no room.
  """
  check_rows(table, sd.latent_shape)
  check_attack(sd, victim, base, attack, how.mode, how.pool)
  multiple = sharding.local_rows_multiple(how.mesh)
  lanes = -(-how.lanes // multiple) * multiple
  fitting, dropped = prepare(
    sd, table, attack.h.insertion, attack.h.num_tokens, how.long_prompts
  )
  layouts = {prepared.row.id: prepared for prepared in fitting}
  queue: deque[Prepared] = deque()
  records: dict[str, Record] = {}
  for row, verdict in _unchanged(sd, table, check, lanes):
    record = _record(row, verdict, attack)
    if verdict.success and not attack.is_probe:
      yield record | {"status": "pre", "success": True}
    elif row.id in dropped:
      yield record | {"status": "dropped", "reason": dropped[row.id]}
    elif attack.h.blocks == 0:
      yield record | {"status": _status(record, True, 0)}
    else:
      queue.append(layouts[row.id])
      records[row.id] = record | layouts[row.id].cut
  yield from starts.tried(sd, queue, records, check, how)
  if not queue:
    return
  group = _Lanes(
    sd, victim, base, attack, how.mode, key, lanes, how.mesh, how.pool
  )
  began: dict[int, float] = {}
  while queue or any(group.rows):
    for lane in group.take(queue):
      began[lane] = time.monotonic()
    for lane in _block_of(sd, group, attack, check, records, how):
      ended = group.rows[lane].row.id
      group.rows[lane] = None
      record = records.pop(ended)
      spent = record["seconds"] + time.monotonic() - began[lane]
      yield record | {"seconds": round(spent, 3)}


def _unchanged(sd, table, check, size):
  """Every row with the verdict on its unchanged prompt, in batches."""
  length = sd.context_shape[0]
  for start in range(0, len(table), size):
    part = table[start : start + size]
    # A prompt that is too long is cut, as the text encoder would cut it.
    asked = [
      row.request(vocabulary.shortened(sd.tokenizer, row.prompt, length))
      for row in part
    ]
    yield from zip(part, check(asked), strict=True)


def _record(row, verdict, attack) -> Record:
  return {
    "id": row.id,
    "number": row.number,
    "method": attack.method,
    "prompt": row.prompt,
    "seed": row.seed,
    "guidance": row.guidance,
    "pre_success": verdict.success,
    "pre_score": verdict.score,
    "pre_image": verdict.image,
    "success": None if verdict.success is None else False,
    "budget": 1 + attack.h.blocks,
    "images": 1,
    "iterations": 0,
    "blocks": [],
    "seconds": 0.0,
  }


def _block_of(sd, group, attack, check, records, how):
  """Runs and judges one block; yields the lanes whose rows have ended."""
  tokens, contexts, alive, info = group.run()
  busy = [lane for lane, row in enumerate(group.rows) if row is not None]
  found, asked = {}, {}
  for lane in busy:
    prepared = group.rows[lane]
    record = records[prepared.row.id]
    record["iterations"] += attack.h.iterations
    if alive[lane]:
      context = None if contexts is None else contexts[lane]
      if attack.finds == "words":
        record["embeds"] = tokens[lane].tolist()
        found[lane] = {
          "text": f"<{attack.h.num_tokens} vectors> {prepared.row.prompt}"
        }
      elif attack.finds == "latents":
        found[lane] = {"text": f"<text states> {prepared.row.prompt}"}
      elif attack.is_probe:
        found[lane] = {"text": prepared.row.prompt}
      else:
        found[lane] = prepared.text(sd, tokens[lane])
      seed = prepared.row.seed
      if attack.reseed:
        seed = _new_seed(seed, len(record["blocks"]))
      asked[lane] = prepared.row.request(found[lane]["text"], seed, context)
      if attack.is_probe:
        asked[lane] = asked[lane]._replace(latents=tokens[lane])
  shares = {}
  if how.proxy and asked:
    shares = _shares(group, records, how.proxy, asked)
    for lane, share in shares.items():
      record = records[group.rows[lane].row.id]
      last = len(record["blocks"]) == attack.h.blocks - 1
      if share < how.threshold and not last:
        del asked[lane]
        infos = _infos(info, lane) | {"diffusion_classifier": share}
        record["blocks"].append(found[lane] | infos)
  verdicts = check(list(asked.values())) if asked else ()
  for lane, verdict in zip(asked, verdicts, strict=True):
    record = records[group.rows[lane].row.id]
    infos = _infos(info, lane)
    record["blocks"].append(
      {**found[lane], "seed": asked[lane].seed, **verdict._asdict(), **infos}
    )
    if lane in shares:
      record["blocks"][-1]["diffusion_classifier"] = shares[lane]
    record["images"] += 1
    record["success"] = verdict.success
  for lane in busy:
    record = records[group.rows[lane].row.id]
    status = _status(record, bool(alive[lane]), attack.h.blocks)
    if status:
      record["status"] = status
      yield lane


def _infos(info, lane) -> dict[str, float]:
  found = {name: float(values[lane]) for name, values in info.items()}
  if found.get("gradient_rms") == 0:
    # The attack then equals its random control, whatever it reports.
    logging.log_first_n(
      logging.WARNING,
      "text gradient is zero: the victim does not read its prompt",
      1,
    )
  return found


def _shares(group, records, proxy, asked) -> dict[int, float]:
  """The proxy's score of each lane; counts its UNet rows in the records."""
  rows = [group.rows[lane].row for lane in asked]
  found = proxy(rows, list(asked.values()))
  for row in rows:
    record = records[row.id]
    # The first score of a row also costs those of its own prompt, by the
    # victim and by the base.
    count = 1 if "diffusion_classifier_calls" in record else 3
    spent = (
      record.get("diffusion_classifier_calls", 0) + count * proxy.timesteps
    )
    record["diffusion_classifier_calls"] = spent
  return dict(zip(asked, found, strict=True))


def _new_seed(seed: int, block: int) -> int:
  return int(np.random.default_rng([seed, block]).integers(1, 2**32))


def _status(record, alive, blocks) -> str | None:
  """How the row has ended, or None if it goes on."""
  if not alive:
    return "numerical"
  if record["success"]:
    return "success"
  if len(record["blocks"]) < blocks:
    return None
  return "unjudged" if record["success"] is None else "failure"
