"""The losses that an adversarial prompt minimizes, one value a lane.

x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps, where x_0 is the target image's latents
and a_t the schedule's cumulative alpha.

  denoise    mean |eps - eps_v(x_t, c')|^2              (UnlearnDiffAtk)
  match      mean |eps_o(x_t, c) - eps_v(x_t, c')|^2    (P4D)

eps_v is the victim's prediction and eps_o the base's; c' is the adversarial
prompt and c the row's own. If the victim's guidance belongs to the loss, eps_v
is the guided prediction. In `match`, eps_o is then guided from the empty prompt
with the same scale.

Lanes are summed, never averaged. A mean over lanes would divide each lane's
gradient by their number, and so change what Adam's epsilon and the weight decay
do to it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unlearning_jax import guidance, schedules, stable_diffusion
from unlearning_jax.attacks.engine.victim import Problem, text_states
from unlearning_jax.concepts import check_choice
from unlearning_jax.stable_diffusion import StableDiffusion

LOSSES = ("denoise", "match")
CRITERIA = ("l2", "l1")
TIMESTEPS = ("sequential", "random", "stratified")
NOISES = ("frozen", "fresh")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Budget:
  """How many images and updates an attack may spend, and which (t, eps).

  Attributes:
    blocks: the most images that one row may have, besides that of its own
      prompt.
    iterations: updates before each of these images.
    timesteps: `sequential` gives every block one timestep, in rising order
      (UnlearnDiffAtk's release); `random` draws them evenly; `stratified` draws
      one from each of `draws` equal parts.
    noise: `frozen` repeats the same draws in every block, as that release does
      by seeding its generator again for every image; `fresh` never repeats.
    draws: timesteps and noises in one update, which takes their mean.
    criterion: `l2` for squared errors, `l1` for absolute ones.
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
  """Checks that these losses can be computed for this model.

  Raises:
    ValueError: an unknown choice, a count below 1, more blocks or draws than
      timesteps, or a model that does not predict the noise.
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
      f"{parts}={getattr(h, parts)}: timesteps={h.timesteps!r} needs a "
      f"timestep for each, and the model has {total}; give at most {total}, "
      "or timesteps='random'"
    )
  check_noise(schedule)


def check_noise(schedule: schedules.Schedule):
  """Refuses a model that does not predict the noise.

  Raises:
    ValueError: naming what it predicts.
  """
  if schedule.prediction_type != "epsilon":
    raise ValueError(
      f"prediction_type={schedule.prediction_type!r}: this attack compares "
      "noise predictions, which only a model with 'epsilon' makes"
    )


def timestep_grid(num_train_timesteps: int, blocks: int) -> list[int]:
  """The middles of `blocks` equal parts of the training timesteps, rising."""
  stride = num_train_timesteps // blocks
  return list(range(stride // 2, num_train_timesteps, stride))[:blocks]


def draw_key(key: Array, count: Int[Array, " b"], h: Budget) -> Array:
  """Each lane's key of this iteration, the same in every block if frozen."""
  index = count % h.iterations if h.noise == "frozen" else count
  return jax.vmap(jax.random.fold_in)(key, index)


def draw(
  sd: StableDiffusion, key: Array, count: Int[Array, " b"], h: Budget
) -> Draw:
  """Draws the timesteps and noises of each lane's next iteration.

  Args:
    key: each lane's own, (b,).
    count: iterations that each lane has done.
    h: how to draw.
  """
  total, lanes = sd.schedule.num_train_timesteps, len(count)
  shape = (h.draws, *sd.latent_shape)
  keys = draw_key(key, count, h)
  noise = jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
  if h.timesteps == "sequential":
    grid = jnp.array(timestep_grid(total, h.blocks), jnp.int32)
    t = grid[jnp.minimum(count // h.iterations, h.blocks - 1)]
    return Draw(jnp.broadcast_to(t[:, None], (lanes, h.draws)), noise)
  # Timesteps are never frozen: all blocks would see the same few.
  fresh = jax.vmap(jax.random.fold_in)(key, count)
  keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(fresh)
  low, width = jnp.zeros(h.draws, jnp.int32), total
  if h.timesteps == "stratified":
    width = total // h.draws
    low = width * jnp.arange(h.draws, dtype=jnp.int32)
  t = jax.vmap(lambda k: jax.random.randint(k, (h.draws,), 0, width))(keys)
  return Draw(t + low[None], noise)


def by_draw(of_draw: Callable[..., T], drawn: Draw, *more: Any) -> T:
  """The mean of `of_draw` over the draws, which it computes one at a time.

  An update then needs memory for one UNet row a lane, whatever `draws` is.

  Args:
    of_draw: takes a `Draw` with m = 1 and one draw's part of `more`; returns
      losses and perhaps gradients.
    more: further arrays led by (b, m); `of_draw` sees them led by (b,).
  """
  turns = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (drawn, more))

  def turn(now: tuple[Draw, tuple[Any, ...]]) -> T:
    single = jax.tree.map(lambda x: x[:, None], now[0])
    return of_draw(single, *now[1])

  if drawn.t.shape[1] == 1:
    return turn(jax.tree.map(lambda x: x[0], turns))
  return jax.tree.map(lambda x: x.mean(axis=0), jax.lax.map(turn, turns))


def of_embeddings(
  problem: Problem,
  embeds: Float[Array, "b k d"],
  drawn: Draw,
  criterion: str = "l2",
  target_context: Float[Array, "b l d"] | None = None,
) -> Float[Array, " b"]:
  """`residuals` of the prompts with these embeddings in their slots."""
  context = text_states(problem.sd, problem.victim, problem.batch, embeds)
  return residuals(problem, context, drawn, criterion, target_context)


def gradient(
  problem: Problem,
  embeds: Float[Array, "b k d"],
  drawn: Draw,
  criterion: str = "l2",
  target_context: Float[Array, "b l d"] | None = None,
) -> tuple[Float[Array, " b"], Float[Array, "b k d"]]:
  """Each lane's loss and its gradient at the slots' embeddings.

  Only the embeddings are differentiated: no gradient of a weight is formed.
  """

  def one(single: Draw) -> tuple[Array, Array]:
    def loss(embeds: Array) -> tuple[Array, Array]:
      lanes = of_embeddings(problem, embeds, single, criterion, target_context)
      return lanes.sum(), lanes

    slope, lanes = jax.grad(loss, has_aux=True)(embeds)
    return lanes, slope

  return by_draw(one, drawn)


def residuals(
  problem: Problem,
  context: Float[Array, "b l d"],
  drawn: Draw,
  criterion: str = "l2",
  target_context: Float[Array, "b l d"] | None = None,
) -> Float[Array, " b"]:
  """Each lane's loss, a mean over its draws and the latents' elements.

  Args:
    problem: the batch's latents are x_0.
    context: the victim's text states of c'.
    target_context: the base's text states of c (`match`); None compares with
      the noise itself (`denoise`).
  """
  lanes, draws = drawn.t.shape
  latents = problem.batch.latents

  def repeat(x: Array) -> Array:
    return x if draws == 1 else jnp.repeat(x, draws, axis=0)

  t, noise = drawn.t.reshape(-1), drawn.noise.reshape(-1, *latents.shape[1:])
  noisy = schedules.add_noise(problem.sd.schedule, repeat(latents), noise, t)

  ours, _ = _predict(problem, repeat(context), noisy, t)
  wanted = noise
  if target_context is not None:
    wanted = _wanted(problem, repeat(target_context), noisy, t)
  error = wanted - ours
  error = jnp.abs(error) if criterion == "l1" else jnp.square(error)
  return error.reshape(lanes, -1).mean(axis=1)


def recursion(
  problem: Problem,
  context: Float[Array, "b l d"],
  t: Int[Array, "b n"],
  noise: Float[Array, "b h w c"],
  target_context: Float[Array, "b l d"] | None = None,
) -> Float[Array, " b"]:
  """Each lane's loss at the last of n timesteps of Safe Latent Diffusion.

  This is how Concept Inversion attacks that victim: one noise, falling
  timesteps, and a gradient that flows through the momentum of all of them.

  Args:
    problem: its victim has a guide; the batch's latents are x_0.
    context: the victim's text states of c'.
    t: timesteps, falling.
    noise: eps, the same at every timestep.
    target_context: as in `residuals`.
  """
  sd, latents = problem.sd, problem.batch.latents

  @jax.checkpoint
  def body(momentum: Array, now: Array) -> tuple[Array, None]:
    noisy = schedules.add_noise(sd.schedule, latents, noise, now)
    _, new = _predict(problem, context, noisy, now, momentum)
    # Guidance other than Safe Latent Diffusion has no momentum.
    return momentum if new is None else new, None

  momentum, _ = jax.lax.scan(body, jnp.zeros_like(noise), t[:, :-1].T)
  last = t[:, -1]
  noisy = schedules.add_noise(sd.schedule, latents, noise, last)
  ours, _ = _predict(problem, context, noisy, last, momentum)
  wanted = noise
  if target_context is not None:
    wanted = _wanted(problem, target_context, noisy, last)
  return jnp.square(wanted - ours).reshape(len(ours), -1).mean(axis=1)


def _unet(sd, who, context, noisy, t):
  context = jnp.broadcast_to(context, (len(noisy), *context.shape[1:]))
  out = stable_diffusion.predict_noise(sd, who.params, noisy, t, context)
  return out.astype(jnp.float32)


def _predict(problem, context, noisy, t, momentum=None):
  """The victim's prediction, guided if it has a guide, and its momentum."""
  sd, victim, guide = problem.sd, problem.victim, problem.victim.guide
  ours = _unet(sd, victim, context, noisy, t)
  if guide is None:
    return ours, None
  # Each context has a call of its own, so that the constant ones have no
  # backward pass.
  every = [_unet(sd, victim, guide.negative, noisy, t), ours]
  if guide.safe is not None:
    every.append(_unet(sd, victim, guide.concept, noisy, t))
    momentum = jnp.zeros_like(noisy) if momentum is None else momentum
  # A warm-up that counts sampling steps is over, because a loss has none.
  step = 0 if guide.safe is None else guide.safe.warmup
  every, t = jnp.stack(every, axis=1), t[:, None, None, None]
  return guidance.combine(every, guide.scale, guide.safe, momentum, step, t)


def _wanted(problem, context, noisy, t):
  """The base's prediction, guided with the victim's scale; a constant."""
  sd, base, guide = problem.sd, problem.base, problem.victim.guide
  found = _unet(sd, base, context, noisy, t)
  if guide is not None:
    empty = _unet(sd, base, guide.empty, noisy, t)
    every = jnp.stack([empty, found], axis=1)
    found, _ = guidance.combine(every, guide.scale, None, None, 0)
  return jax.lax.stop_gradient(found)
