"""Concept Inversion (Pham et al., ICLR 2024): a new word for what was erased.

The attack gives the victim k new tokens v* and learns their embeddings from
images of the concept, as Textual Inversion (Gal et al., ICLR 2023) does:

  min_{v*}  E_{t, eps} |eps - eps_v(x_t, c(v*))|^2 ,   t ~ U{0, ..., T-1}.

By default the image is the row's target, and c(v*) is the row's prompt with v*
inserted. With a `pool`, v* is learned from many images: with short captions
(`templates`, the paper's 25 images of a style or an object), or with the
prompts that drew them (`own`, its experiment on unsafe prompts). `new_word`
then draws any row with v*. With `insertion="replace"` the caption is v* alone,
which is Textual Inversion.

The result is embeddings and no text. It bounds what a prompt can do, and shows
whether the UNet still knows the concept. A model that never saw the concept may
learn it too: compare with the same inversion on such a model.

If the victim guides its images away from the concept, the loss may include that
guidance and follow the base's guided prediction instead of the noise
(`loss="match"`). For Safe Latent Diffusion, a `recursion` carries its momentum
through several near timesteps, and the loss is that of the last.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax.attacks.engine import adam, lane_state, losses
from unlearning_jax.attacks.engine.victim import (
  Batch,
  Problem,
  text_states,
  token_table,
)
from unlearning_jax.concepts import check_choice

UNET_CALLS = 1
# `prompt` returns embeddings, which no text stands for.
FINDS = "words"
POOLS = ("", "templates", "own")
# A recursion's timesteps come from this many below a bound, as in the release.
WINDOW = 90


@dataclasses.dataclass(frozen=True)
class Hparams(losses.Budget):
  """The attack's hyperparameters, besides its budget.

  Attributes:
    num_tokens: the number of new tokens, v*.
    insertion: where they go, see `engine.insertion`.
    learning_rate: Adam's alpha. The release multiplies 0.005 by its 16 images
      a step, which makes 0.08.
    weight_decay: Adam's lambda, on the embeddings.
    decay: `decoupled` (AdamW, the release) or `coupled` (Adam with L2).
    initial: a word of one token whose embedding v* begins with; the release has
      "art" for styles. "" begins with the vocabulary's mean.
    loss: `denoise`, or `match` for a victim with guidance.
    pool: "" learns from the row's target; `templates` or `own` learn from the
      run's images of the concept, with random captions or with their own.
    recursion: timesteps in one update through Safe Latent Diffusion; the
      release has 35. 0 has single timesteps and no momentum.
  """

  blocks: int = 5
  iterations: int = 200
  timesteps: str = "random"
  draws: int = 4
  num_tokens: int = 1
  insertion: str = "prefix_k"
  learning_rate: float = 0.08
  weight_decay: float = 0.01
  decay: str = "decoupled"
  initial: str = ""
  loss: str = "denoise"
  pool: str = ""
  recursion: int = 0

  def __post_init__(self):
    check_choice("pool", self.pool, POOLS)
    if self.recursion and not 2 <= self.recursion <= WINDOW:
      raise ValueError(
        f"recursion={self.recursion}: allowed: 0, or 2 to {WINDOW}"
      )
    if self.recursion and self.criterion != "l2":
      raise ValueError(
        f"criterion={self.criterion!r}: a recursion allows only 'l2'"
      )


class State(NamedTuple):
  """The lanes: key, iterations done, alive, v*, and Adam's moments."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  embeds: Float[Array, "b k d"]
  moments: adam.Moments


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """The initial word's embeddings, the same in every lane.

  Raises:
    ValueError: an unusable hyperparameter or model, see `losses.check`; an
      initial word of several tokens; a missing pool, guidance or negative
      prompt.
  """
  sd, victim, _, batch = problem
  losses.check(h, h.loss, sd.schedule)
  if h.pool and batch.pool is None:
    raise ValueError(f"pool={h.pool!r}: the run has no images of the concept")
  if h.recursion and (victim.guide is None or victim.guide.safe is None):
    raise ValueError(
      f"recursion={h.recursion}: the victim needs Safe Latent Diffusion in the "
      "loss; set guidance.safe and guidance.in_loss"
    )
  total = sd.schedule.num_train_timesteps
  if h.recursion and total <= WINDOW:
    raise ValueError(
      f"recursion={h.recursion}: needs more than {WINDOW} timesteps, and the "
      f"model has {total}; give 0"
    )
  guided = h.loss == "match" and victim.guide is not None
  if guided and victim.safe is None and not victim.negative_prompt.strip():
    raise ValueError(
      f"guidance.negative_prompt={victim.negative_prompt!r}: loss='match' "
      "through guidance needs a victim that is guided away from the concept; "
      "name the concept here, or set guidance.safe"
    )
  check_choice("decay", h.decay, adam.DECAYS)
  table = token_table(victim).astype(jnp.float32)
  first = table[batch.vocabulary].mean(axis=0)
  if h.initial:
    ids = sd.tokenizer(h.initial)["input_ids"][1:-1]
    if len(ids) != 1:
      raise ValueError(
        f"initial={h.initial!r} has {len(ids)} tokens; allowed: a word of one "
        "token, or '' for the vocabulary's mean"
      )
    first = table[ids[0]]
  lanes = len(batch.number)
  embeds = jnp.broadcast_to(
    first[None, None], (lanes, h.num_tokens, first.shape[0])
  )
  return State(*lane_state.begin(key, batch), embeds, adam.start(embeds))


def step(
  problem: Problem, state: State, h: Hparams
) -> tuple[State, dict[str, Array]]:
  """One iteration of every lane; a lane that is not finite stays as it was."""
  drawn = losses.draw(problem.sd, state.key, state.count, h)
  keys = jax.vmap(jax.random.fold_in)(state.key, state.count)
  loss, gradient = slope(problem, state.embeds, drawn, keys, h)
  embeds, moments = adam.update(
    state.embeds,
    gradient,
    state.moments,
    learning_rate=h.learning_rate,
    weight_decay=h.weight_decay,
    decay=h.decay,
  )
  finite = (loss, gradient, embeds)
  new = lane_state.advance(state, finite, embeds=embeds, moments=moments)
  info = {
    "loss": loss,
    "gradient_rms": lane_state.rms(gradient),
    "norm": jnp.linalg.norm(embeds, axis=2).mean(axis=1),
  }
  return new, info


def prompt(batch: Batch, state: State, h: Hparams) -> Float[Array, "b k d"]:
  """The embeddings of v*."""
  del batch, h
  return state.embeds


def slope(
  problem: Problem,
  embeds: Float[Array, "b k d"],
  drawn: losses.Draw,
  keys: Array,
  h: Hparams,
) -> tuple[Float[Array, " b"], Float[Array, "b k d"]]:
  """Each lane's loss and its gradient for v*, means over the draws.

  Args:
    problem: with `h.pool`, images and captions come from the batch's pool.
    keys: each lane's key of this iteration, (b,).
    h: `loss`, `pool`, `recursion` and `criterion`.
  """
  batch = problem.batch

  def one(
    single: losses.Draw, image: Array | None, caption: Array | None
  ) -> tuple[Array, Array]:
    rows, named = batch, batch.ids
    if h.pool:
      rows, named = _of_pool(batch, batch.pool, image, caption)
    turn = dataclasses.replace(problem, batch=rows)

    def total(embeds: Array) -> tuple[Array, Array]:
      lanes = _losses(turn, named, embeds, single, keys, h)
      return lanes.sum(), lanes

    gradient, lanes = jax.grad(total, has_aux=True)(embeds)
    return lanes, gradient

  chosen = _chosen(batch.pool, keys, h) if h.pool else (None, None)
  return losses.by_draw(one, drawn, *chosen)


def _losses(problem, named, embeds, drawn, keys, h):
  """Each lane's loss at one timestep and noise."""
  sd, victim, base, rows = problem
  context, target = text_states(sd, victim, rows, embeds), None
  if h.loss == "match":
    # The caption with the concept's name, without the new word.
    target = text_states(sd, base, rows._replace(ids=named))
  if not h.recursion:
    return losses.residuals(problem, context, drawn, h.criterion, target)
  total = sd.schedule.num_train_timesteps
  below = jax.vmap(falling, (0, None, 0, None))
  t = below(keys, h.recursion, drawn.t[:, 0], total)
  return losses.recursion(problem, context, t, drawn.noise[:, 0], target)


def falling(
  key: Array, count: int, t: Int[Array, ""], total: int
) -> Int[Array, " n"]:
  """`count` different timesteps in [t - WINDOW, t), falling.

  Args:
    key: the lane's key of this iteration.
    count: the number of timesteps, at most `WINDOW`.
    t: the bound; one below `WINDOW` is replaced by a random one that is not.
    total: the number of training timesteps.
  """
  key = jax.random.fold_in(key, t)
  below = jax.random.permutation(key, WINDOW)[:count]
  # If t is uniform over all timesteps, the result is uniform over
  # WINDOW, ..., total - 1.
  anew = jax.random.randint(jax.random.fold_in(key, 1), (), WINDOW, total)
  return jnp.where(t < WINDOW, anew, t) - 1 - jnp.sort(below)


def _chosen(pool, keys, h) -> tuple[Array, Array]:
  """Indices of the pool's images and captions, (b, m), for every draw."""

  def draw(number: int, size: int) -> Array:
    some = jax.vmap(lambda k: jax.random.fold_in(k, number))(keys)
    return jax.vmap(lambda k: jax.random.randint(k, (h.draws,), 0, size))(some)

  image = draw(3, len(pool.latents))
  return image, image if h.pool == "own" else draw(4, len(pool.ids))


def _of_pool(rows, pool, image, caption) -> tuple[Batch, Array]:
  """Rows with the pool's images and captions, and the named captions."""
  rows = rows._replace(
    latents=pool.latents[image],
    ids=pool.ids[caption],
    source=pool.source[caption],
  )
  return rows, pool.named[caption]
