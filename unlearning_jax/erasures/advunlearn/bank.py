"""Trajectories of the base that AdvUnlearn draws once and reads at every step.

Only the text encoder trains, and the base draws every x_t from its own text
states. So neither x_t nor what the base predicts there depends on what trains:
a few hundred trajectories, kept with both predictions at each of their steps,
replace nearly all the sampling. Without a bank the same numbers are computed
anew wherever they are read.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unlearning_jax import durable, samplers, sharding, stable_diffusion
from unlearning_jax.erasures.esd import partial_trajectory
from unlearning_jax.projections import Fingerprint
from unlearning_jax.stable_diffusion import Params, StableDiffusion

FORMAT = "unlearning_jax.trajectories"
# What each bank holds of a state: x_t, and one or both predictions.
WAYS = {"concepts": 3, "retained": 2}
# Trajectories drawn in one batch.
_ROWS = 16


class Scored(NamedTuple):
  """x_t, and the base's predictions there.

  Attributes:
    latents: x_t.
    t: its timestep.
    towards: the prediction for the phrase that the trajectory went towards.
    empty: the prediction for the empty prompt; None where it was not kept.
  """

  latents: Float[Array, "b h w c"]
  t: Int[Array, " b"]
  towards: Float[Array, "b h w c"]
  empty: Float[Array, "b h w c"] | None


@dataclasses.dataclass(frozen=True)
class Walk:
  """How DDIM draws the trajectories.

  Attributes:
    steps: sampling steps of a whole trajectory.
    guidance: guidance scale towards the phrase.
    too_clean: whether x_t is less noisy than t says, as in the release. Its
      index counts from the clean end, the walk leaves the noisiest step out and
      stops after the step of that index less one, and t lies between the
      timesteps of the index and the next.
  """

  steps: int
  guidance: float
  too_clean: bool

  def sampler(self, sd: StableDiffusion) -> samplers.Sampler:
    """DDIM with these steps."""
    return samplers.make_sampler(sd.schedule, self.steps, "ddim")


class Bank(NamedTuple):
  """Trajectories towards phrases, as many towards each.

  Attributes:
    states: x_t and the predictions `towards` and `empty` by trajectory, index
      and way, (n, steps, 2 or 3, h, w, c); without a bank the trajectories'
      noise, (n, h, w, c).
    t: timesteps by trajectory and index.
    context: the base's text states of the phrases.
  """

  states: Float[Array, "n ..."] | Float[np.ndarray, "n ..."]
  t: Int[Array, "n s"] | Int[np.ndarray, "n s"]
  context: Float[Array, "p l d"]

  @property
  def each(self) -> int:
    """Trajectories towards each phrase."""
    return len(self.t) // len(self.context)


def begin(
  sd: StableDiffusion,
  walk: Walk,
  context: Float[Array, "p l d"],
  each: int,
  key: PRNGKeyArray,
) -> Bank:
  """The noise and the timesteps of `each` trajectories towards each phrase."""
  count = each * len(context)
  keys = jax.vmap(functools.partial(jax.random.fold_in, key))(np.arange(count))
  noise = jax.vmap(lambda k: jax.random.normal(k, sd.latent_shape))(keys)
  times = np.asarray(walk.sampler(sd).timesteps, np.int32)
  if walk.too_clean:
    gap = sd.schedule.num_train_timesteps // walk.steps
    within = jax.random.randint(key, (count, walk.steps), 0, gap)
    times = gap * np.arange(walk.steps, dtype=np.int32) + np.asarray(within)
  shape = (count, walk.steps)
  return Bank(np.asarray(noise), np.broadcast_to(times, shape), context)


def fill(
  sd: StableDiffusion,
  base: Params,
  walk: Walk,
  bank: Bank,
  empty: Float[Array, "1 l d"],
  collect: Callable[..., list[np.ndarray]],
  name: str,
) -> Bank:
  """The bank of the trajectories that `begin` began.

  Args:
    base: its UNet is read.
    empty: text states of the empty prompt.
    collect: `Hooks.collect`.
    name: of `WAYS`; `collect` keeps the arrays under it.
  """
  count = len(bank.t)
  # Once to the devices, not with every batch.
  base = {"unet": sharding.on_device(base["unet"])}

  def draw(batch: int) -> np.ndarray:
    rows = np.minimum(_ROWS * batch + np.arange(_ROWS), count - 1)
    found = _whole(
      sd, walk, base, bank.states[rows], bank.t[rows],
      bank.context[rows // bank.each], empty,
    )  # fmt: skip
    return np.asarray(found[:, :, : WAYS[name]])

  drawn = collect(name, -(-count // _ROWS), draw)
  return bank._replace(states=np.concatenate(drawn)[:count])


def look(
  sd: StableDiffusion,
  base: Params,
  walk: Walk,
  bank: Bank,
  empty: Float[Array, "1 l d"],
  number: Int[Array, " b"],
  index: Int[Array, ""],
) -> Scored:
  """What is scored at an index of trajectories, read or computed anew."""
  t = jnp.asarray(bank.t)[number, index]
  states = jnp.asarray(bank.states)
  if states.ndim > 4:
    latents, *by = jnp.moveaxis(states[number, index], 1, 0)
    return Scored(latents, t, by[0], by[1] if len(by) > 1 else None)
  first, stop = 0, index
  if walk.too_clean:
    first, stop = 1, walk.steps + 1 - jnp.maximum(index, 1)
  contexts = {
    "student": bank.context[number // bank.each],
    "empty": jnp.repeat(empty, len(number), 0),
  }
  sampler = walk.sampler(sd)
  state = partial_trajectory(
    sd, base, sampler, states[number], contexts, first, stop, walk.guidance
  )
  latents = sampler.latents(state)
  by_empty, towards = _both(
    sd, base, latents, t, contexts["empty"], contexts["student"]
  )
  return Scored(latents, t, towards, by_empty)


def _both(sd, base, latents, t, empty, towards):
  """The base's predictions for the empty prompt and the phrase."""
  out = stable_diffusion.predict_noise(
    sd, base, jnp.tile(latents, (2, 1, 1, 1)), jnp.tile(t, 2),
    jnp.concatenate([empty, towards]),
  )  # fmt: skip
  return jnp.split(out, 2)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _whole(sd, walk, base, noise, t, context, empty):
  """Whole trajectories as `Bank.states` holds them."""
  sampler = walk.sampler(sd)
  times = jnp.asarray(sampler.timesteps)
  empty = jnp.repeat(empty, len(noise), 0)
  both = functools.partial(_both, sd, base, empty=empty, towards=context)

  def body(state: samplers.State, i: Array):
    latents = sampler.latents(state)
    by_empty, towards = both(latents, jnp.full((len(noise),), times[i]))
    out = by_empty + walk.guidance * (towards - by_empty)
    return sampler.step(state, i, out), (latents, towards, by_empty)

  start = sampler.init(noise * sampler.init_noise_sigma)
  indices = jnp.arange(int(walk.too_clean), walk.steps)
  last, found = jax.lax.scan(body, start, indices)
  if walk.too_clean:
    # From the clean end on; both of the first two indices stop there.
    latents = jnp.concatenate([found[0][1:], sampler.latents(last)[None]])[::-1]
    latents = jnp.concatenate([latents[:1], latents])
    by_empty, towards = jax.lax.map(lambda at: both(*at), (latents, t.T))
    found = latents, towards, by_empty
  return jnp.moveaxis(jnp.stack(found), (0, 1, 2), (2, 1, 0))


def save(
  path: str | os.PathLike[str],
  banks: Mapping[str, Bank],
  params: Params,
  about: Mapping[str, Any],
) -> None:
  """Writes banks to a file.

  Args:
    banks: by name.
    params: the base that drew them.
    about: what else they depend on, plain JSON.
  """
  tensors = {}
  for name, bank in banks.items():
    tensors |= {f"{name}/states": bank.states, f"{name}/t": bank.t}
  digest = Fingerprint.of(params).digest
  header = {"format": FORMAT, "base": digest, "about": json.dumps(about)}
  durable.save_tensors(path, tensors, header)


def load(
  path: str | os.PathLike[str],
  banks: Mapping[str, Bank],
  params: Params,
  about: Mapping[str, Any],
) -> dict[str, Bank]:
  """Reads what `save` wrote into banks that `begin` began.

  Raises:
    ValueError: another base drew them, or they depend on something else; names
      it.
  """
  remedy = "name a file that is not there yet, and it will be drawn"
  tensors, header = durable.load_tensors(path, FORMAT)
  what = f"bank={os.fspath(pathlib.Path(path))!r}"
  Fingerprint("model", header["base"]).check(params, what, remedy)
  found = json.loads(header["about"])
  for key, value in json.loads(json.dumps(about)).items():
    if found.get(key) != value:
      raise ValueError(
        f"{what}: drawn with {key}={_short(found.get(key))}, now "
        f"{_short(value)}; {remedy}"
      )
  for name, bank in banks.items():
    states = tensors.get(f"{name}/states")
    shape = () if states is None else states.shape
    wanted = (*bank.t.shape, WAYS[name], *bank.states.shape[1:])
    if shape != wanted:
      raise ValueError(
        f"{what}: {name}/states is {shape}, needed: {wanted}; {remedy}"
      )
  return {
    name: bank._replace(
      states=tensors[f"{name}/states"], t=tensors[f"{name}/t"]
    )
    for name, bank in banks.items()
  }


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) < 200 else f"{text[:200]} ..."
