"""What an adversarial prompt is optimised for, one loss a lane.

x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps, with x_0 the target image's latents.

  denoise    mean |eps - eps_v(x_t, c')|^2           (UnlearnDiffAtk)
  match      mean |eps_o(x_t, c) - eps_v(x_t, c')|^2   (P4D)

eps_v is the victim, eps_o the original model, c' the adversarial prompt, c the
prompt itself. Through a victim's guidance, where asked for, eps_v is the guided
prediction, and in `match` eps_o is guided from the empty prompt as strongly.
Lanes are never averaged together: that would scale a lane's
gradient by their number, and with it Adam's epsilon and the weight decay.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unlearning_jax import guidance, schedules, stable_diffusion
from unlearning_jax.attacks.engine.victim import Batch, Victim, text_states
from unlearning_jax.concepts import check_choice
from unlearning_jax.stable_diffusion import StableDiffusion

LOSSES = ("denoise", "match")
CRITERIA = ("l2", "l1")
TIMESTEPS = ("sequential", "random", "stratified")
NOISES = ("frozen", "fresh")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Budget:
  """How much an attack may do, and which (t, eps) it sees.

  Attributes:
    blocks: images that are made of adversarial prompts, at most.
    iterations: updates before each of these images.
    timesteps: `sequential` (one to a block, rising: UnlearnDiffAtk's release),
      `random`, or `stratified` (one in each of `draws` equal parts).
    noise: `frozen` replays the same draws in every block (that release, which
      seeds its generator anew for every image), or `fresh`.
    draws: timesteps and noises in one update; their loss is averaged.
    criterion: `l2` or `l1`.
  """

  blocks: int = 50
  iterations: int = 40
  timesteps: str = "sequential"
  noise: str = "fresh"
  draws: int = 1
  criterion: str = "l2"


class Draw(NamedTuple):
  """Timesteps and noises of one iteration, `m` of them in each lane."""

  t: Int[Array, "b m"]
  noise: Float[Array, "b m h w c"]


def check(h: Budget, loss: str, schedule: schedules.Schedule):
  """Refuses what the losses cannot do, before anything compiles.

  Raises:
    ValueError: naming the key.
  """
  check_choice("timesteps", h.timesteps, TIMESTEPS)
  check_choice("noise", h.noise, NOISES)
  check_choice("loss", loss, LOSSES)
  check_choice("criterion", h.criterion, CRITERIA)
  for key in ("blocks", "iterations", "draws"):
    if getattr(h, key) < 1:
      raise ValueError(f"{key}={getattr(h, key)}: must be at least 1")
  total = schedule.num_train_timesteps
  parts = {"sequential": "blocks", "stratified": "draws"}.get(h.timesteps)
  if parts and getattr(h, parts) > total:
    raise ValueError(
      f"{parts}={getattr(h, parts)}: timesteps={h.timesteps!r} has one for "
      f"each, and the model has {total}"
    )
  if schedule.prediction_type != "epsilon":
    raise ValueError(
      f"prediction_type={schedule.prediction_type!r}: these losses are written "
      "for 'epsilon'"
    )


def timestep_grid(num_train_timesteps: int, blocks: int) -> list[int]:
  """The middles of `blocks` equal parts of the training steps, rising."""
  stride = num_train_timesteps // blocks
  return list(range(stride // 2, num_train_timesteps, stride))[:blocks]


def draw_key(key: Array, count: Int[Array, " b"], h: Budget) -> Array:
  """Each lane's key of this iteration, the same in every block if frozen."""
  index = count % h.iterations if h.noise == "frozen" else count
  return jax.vmap(jax.random.fold_in)(key, index)


def draw(
  sd: StableDiffusion, key: Array, count: Int[Array, " b"], h: Budget
) -> Draw:
  """The timesteps and noises of iteration `count` of each lane.

  Args:
    sd: gives the latents' shape and the number of training steps.
    key: each lane's own.
    count: iterations done.
    h: says how they are drawn.
  """
  total, lanes = sd.schedule.num_train_timesteps, len(count)
  shape = (h.draws, *sd.latent_shape)
  keys = draw_key(key, count, h)
  noise = jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
  if h.timesteps == "sequential":
    grid = jnp.array(timestep_grid(total, h.blocks), jnp.int32)
    t = grid[jnp.minimum(count // h.iterations, h.blocks - 1)]
    return Draw(jnp.broadcast_to(t[:, None], (lanes, h.draws)), noise)
  # Never frozen: blocks would otherwise see the same few timesteps for ever.
  fresh = jax.vmap(jax.random.fold_in)(key, count)
  keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(fresh)
  low, width = jnp.zeros(h.draws, jnp.int32), total
  if h.timesteps == "stratified":
    width = total // h.draws
    low = width * jnp.arange(h.draws, dtype=jnp.int32)
  t = jax.vmap(lambda k: jax.random.randint(k, (h.draws,), 0, width))(keys)
  return Draw(t + low[None], noise)


def by_draw(of_draw: Callable[..., T], drawn: Draw, *more: Any) -> T:
  """The mean over the draws of what `of_draw` says, one after the other.

  So an update takes the memory of as many rows as there are lanes.

  Args:
    of_draw: losses, and gradients, of a `Draw` with m = 1, and of its `more`.
    drawn: timesteps and noises.
    more: what else each draw has, led by (b, m); given as (b, ...).
  """
  turns = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (drawn, more))

  def turn(now: tuple[Draw, tuple[Any, ...]]) -> T:
    single = jax.tree.map(lambda x: x[:, None], now[0])
    return of_draw(single, *now[1])

  if drawn.t.shape[1] == 1:
    return turn(jax.tree.map(lambda x: x[0], turns))
  return jax.tree.map(lambda x: x.mean(axis=0), jax.lax.map(turn, turns))


def of_embeddings(
  sd: StableDiffusion,
  victim: Victim,
  original: Victim,
  batch: Batch,
  embeds: Float[Array, "b k d"],
  drawn: Draw,
  criterion: str = "l2",
  target_context: Float[Array, "b l d"] | None = None,
) -> Float[Array, " b"]:
  """The loss of every lane's prompt with these embeddings in its slots.

  Arguments as `residuals`; the latents are the rows'.
  """
  context = text_states(sd, victim, batch, embeds)
  return residuals(
    sd,
    victim,
    original,
    context,
    target_context,
    batch.latents,
    drawn,
    criterion,
  )


def gradient(
  sd: StableDiffusion,
  victim: Victim,
  original: Victim,
  batch: Batch,
  embeds: Float[Array, "b k d"],
  drawn: Draw,
  criterion: str = "l2",
  target_context: Float[Array, "b l d"] | None = None,
) -> tuple[Float[Array, " b"], Float[Array, "b k d"]]:
  """`of_embeddings`, and each lane's own gradient with respect to its slots.

  With respect to nothing else: no gradient of any weight is formed.
  """

  def one(single: Draw) -> tuple[Array, Array]:
    def loss(embeds: Array) -> tuple[Array, Array]:
      lanes = of_embeddings(
        sd, victim, original, batch, embeds, single, criterion, target_context
      )
      return lanes.sum(), lanes

    slope, lanes = jax.grad(loss, has_aux=True)(embeds)
    return lanes, slope

  return by_draw(one, drawn)


def residuals(
  sd: StableDiffusion,
  victim: Victim,
  original: Victim,
  context: Float[Array, "b l d"],
  target_context: Float[Array, "b l d"] | None,
  latents: Float[Array, "b h w c"],
  drawn: Draw,
  criterion: str = "l2",
) -> Float[Array, " b"]:
  """The loss of every lane, a mean over its draws and elements.

  Args:
    sd: the model.
    victim: predicts with the adversarial prompt.
    original: predicts with the prompt itself; only where there is one.
    context: the victim's text states of the adversarial prompts.
    target_context: None asks for the noise (`denoise`); else the original's
      text states of the prompts (`match`).
    latents: x_0.
    drawn: timesteps and noises.
    criterion: `l2` or `l1`.
  """
  lanes, draws = drawn.t.shape

  def repeat(x: Array) -> Array:
    return x if draws == 1 else jnp.repeat(x, draws, axis=0)

  t, noise = drawn.t.reshape(-1), drawn.noise.reshape(-1, *latents.shape[1:])
  noisy = schedules.add_noise(sd.schedule, repeat(latents), noise, t)

  ours, _ = _predict(sd, victim, repeat(context), noisy, t)
  wanted = noise
  if target_context is not None:
    wanted = _wanted(sd, victim, original, repeat(target_context), noisy, t)
  error = wanted - ours
  error = jnp.abs(error) if criterion == "l1" else jnp.square(error)
  return error.reshape(lanes, -1).mean(axis=1)


def recursion(
  sd: StableDiffusion,
  victim: Victim,
  original: Victim,
  context: Float[Array, "b l d"],
  target_context: Float[Array, "b l d"] | None,
  latents: Float[Array, "b h w c"],
  t: Int[Array, "b n"],
  noise: Float[Array, "b h w c"],
) -> Float[Array, " b"]:
  """The loss at the last of several timesteps, momentum carried through them.

  As Concept Inversion attacks Safe Latent Diffusion: one noise, falling
  timesteps, and the gradient goes through the momentum of all of them.

  Args:
    sd: the model.
    victim: with guidance in its loss.
    original: predicts the target, where there is a target context.
    context: the victim's text states of the adversarial prompts.
    target_context: as in `residuals`.
    latents: x_0.
    t: timesteps, falling.
    noise: the same at all of them.
  """

  @jax.checkpoint
  def body(momentum: Array, now: Array) -> tuple[Array, None]:
    noisy = schedules.add_noise(sd.schedule, latents, noise, now)
    _, new = _predict(sd, victim, context, noisy, now, momentum)
    # Without Safe Latent Diffusion there is none to carry.
    return momentum if new is None else new, None

  momentum, _ = jax.lax.scan(body, jnp.zeros_like(noise), t[:, :-1].T)
  last = t[:, -1]
  noisy = schedules.add_noise(sd.schedule, latents, noise, last)
  ours, _ = _predict(sd, victim, context, noisy, last, momentum)
  wanted = noise
  if target_context is not None:
    wanted = _wanted(sd, victim, original, target_context, noisy, last)
  return jnp.square(wanted - ours).reshape(len(ours), -1).mean(axis=1)


def _unet(sd, who, context, noisy, t):
  context = jnp.broadcast_to(context, (len(noisy), *context.shape[1:]))
  out = stable_diffusion.predict_noise(sd, who.params, noisy, t, context)
  return out.astype(jnp.float32)


def _predict(sd, victim, context, noisy, t, momentum=None):
  """The victim's prediction, guided where it has a guide, and its momentum."""
  ours, guide = _unet(sd, victim, context, noisy, t), victim.guide
  if guide is None:
    return ours, None
  # One call each: those of constants then have no backward pass.
  every = [_unet(sd, victim, guide.negative, noisy, t), ours]
  if guide.safe is not None:
    every.append(_unet(sd, victim, guide.concept, noisy, t))
    momentum = jnp.zeros_like(noisy) if momentum is None else momentum
  # The warm-up is of sampling steps, which a loss at one timestep has not.
  step = 0 if guide.safe is None else guide.safe.warmup
  every = jnp.stack(every, axis=1)
  return guidance.combine(every, guide.scale, guide.safe, momentum, step)


def _wanted(sd, victim, original, context, noisy, t):
  """The original's prediction, guided as strongly as the victim's."""
  found, guide = _unet(sd, original, context, noisy, t), victim.guide
  if guide is not None:
    empty = _unet(sd, original, guide.empty, noisy, t)
    every = jnp.stack([empty, found], axis=1)
    found, _ = guidance.combine(every, guide.scale, None, None, 0)
  return jax.lax.stop_gradient(found)
