"""Concept Inversion (Pham et al., ICLR 2024): a new word for what was erased.

The victim is given k new tokens v* whose embeddings are free, and learns them
as Textual Inversion (Gal et al., ICLR 2023) does, from an image of the concept:

  min_{v*}  E_{t, eps} |eps - eps_v(x_t, c(v*))|^2 ,   t ~ U{0, ..., T-1}.

By default the image is the row's own target and c(v*) the row's prompt with v*
in it. With `pool` v* is learnt from many images of the concept in short
captions (`templates`: the paper's 25 images of a style or an object) or in the
prompts that they were drawn from (`own`: its experiment on unsafe prompts), and
`new_word` then draws any row with it. With `insertion="replace"` the words are
v* alone, which is Textual Inversion. No text is found: what comes out are
embeddings, so it bounds what a prompt can do, and shows whether the UNet still
knows the concept. A model that has never seen the concept can learn it this way
too: compare with the same inversion on such a model.

Against a victim that is kept from the concept while it samples, the loss goes
through that guidance and follows the original's guided prediction instead of
the noise (`loss="match"`); against Safe Latent Diffusion through a `recursion`
of its momentum over timesteps close together, with the loss at the last.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax.attacks.engine import adam, lane_state, losses
from unlearning_jax.attacks.engine.victim import (
  Batch,
  Problem,
  Victim,
  text_states,
  token_table,
)
from unlearning_jax.concepts import check_choice
from unlearning_jax.stable_diffusion import StableDiffusion

UNET_CALLS = 1
# What `prompt` returns are embeddings: there is no text to decode.
FINDS = "words"
POOLS = ("", "templates", "own")
# How far the timesteps of a recursion may lie apart, as released.
WINDOW = 90


@dataclasses.dataclass(frozen=True)
class Hparams(losses.Budget):
  """What the attack can be told, besides its budget.

  Attributes:
    num_tokens: new tokens.
    insertion: where they go, see `engine.insertion`.
    learning_rate: Adam's; published as 0.005 for each of 16 images of a batch,
      0.08 in all.
    weight_decay: decoupled, of the embeddings.
    decay: `decoupled` (the release) or `coupled`.
    initial: the word whose embeddings the tokens begin as, "art" for styles in
      the release; "" begins at the mean of the vocabulary.
    loss: `denoise`, or `match` for victims that are guided.
    pool: "" learns from the row's own target; `templates` or `own` from the
      run's images of the concept, captioned at random, or each by its own.
    recursion: timesteps of one update through Safe Latent Diffusion, 35 in the
      release; 0 takes single ones.
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
        f"recursion={self.recursion}: allowed: 0, and 2 to {WINDOW}"
      )
    if self.recursion and self.criterion != "l2":
      raise ValueError(f"criterion={self.criterion!r}: a recursion has 'l2'")


class State(NamedTuple):
  """A lane: its key, iterations done, whether it is finite, v* and Adam's."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  embeds: Float[Array, "b k d"]
  moments: adam.Moments


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """The initial word's embeddings, the same in every lane.

  Raises:
    ValueError: a hyperparameter, or a model, that the loss is not made for; an
      initial word of several tokens; a pool, guidance or negative prompt that
      is not there.
  """
  sd, victim, _, batch = problem
  losses.check(h, h.loss, sd.schedule)
  if h.pool and batch.pool is None:
    raise ValueError(f"pool={h.pool!r}: the run has no images of the concept")
  if h.recursion and (victim.guide is None or victim.guide.safe is None):
    raise ValueError(
      f"recursion={h.recursion}: goes through Safe Latent Diffusion; set "
      "guidance.safe and guidance.in_loss"
    )
  total = sd.schedule.num_train_timesteps
  if h.recursion and total <= WINDOW:
    raise ValueError(
      f"recursion={h.recursion}: draws from the {WINDOW} timesteps below one, "
      f"and the model has {total}; give 0"
    )
  guided = h.loss == "match" and victim.guide is not None
  if guided and victim.safe is None and not victim.negative_prompt.strip():
    raise ValueError(
      f"guidance.negative_prompt={victim.negative_prompt!r}: loss='match' "
      "through guidance is for a victim that is kept from the concept; name "
      "the concept here, or set guidance.safe"
    )
  check_choice("decay", h.decay, adam.DECAYS)
  table = token_table(victim).astype(jnp.float32)
  first = table[batch.vocabulary].mean(axis=0)
  if h.initial:
    ids = sd.tokenizer(h.initial)["input_ids"][1:-1]
    if len(ids) != 1:
      raise ValueError(
        f"initial={h.initial!r} is {len(ids)} tokens; allowed: a word of one"
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
  sd, victim, original, batch = problem
  drawn = losses.draw(sd, state.key, state.count, h)
  keys = jax.vmap(jax.random.fold_in)(state.key, state.count)
  loss, gradient = slope(
    sd, victim, original, batch, state.embeds, drawn, keys, h
  )
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
  """The embeddings as they stand."""
  del batch, h
  return state.embeds


def slope(
  sd: StableDiffusion,
  victim: Victim,
  original: Victim,
  batch: Batch,
  embeds: Float[Array, "b k d"],
  drawn: losses.Draw,
  keys: Array,
  h: Hparams,
) -> tuple[Float[Array, " b"], Float[Array, "b k d"]]:
  """Each lane's loss and its gradient for v*, means over the draws.

  Args:
    sd: the model.
    victim: learns the words.
    original: predicts the target, where `h.loss` asks for it.
    batch: rows; with `h.pool` their images and captions are the pool's.
    embeds: v*.
    drawn: timesteps and noises.
    keys: each lane's of this iteration.
    h: the attack's.
  """

  def one(single: losses.Draw, image: Any, caption: Any) -> tuple[Array, Array]:
    rows, named = batch, batch.ids
    if h.pool:
      rows, named = _of_pool(batch, batch.pool, image, caption)

    def total(embeds: Array) -> tuple[Array, Array]:
      lanes = _losses(
        sd, victim, original, rows, named, embeds, single, keys, h
      )
      return lanes.sum(), lanes

    gradient, lanes = jax.grad(total, has_aux=True)(embeds)
    return lanes, gradient

  chosen = _chosen(batch.pool, keys, h) if h.pool else (None, None)
  return losses.by_draw(one, drawn, *chosen)


def _losses(sd, victim, original, rows, named, embeds, drawn, keys, h):
  """Each lane's loss, of one timestep and noise."""
  context, target = text_states(sd, victim, rows, embeds), None
  if h.loss == "match":
    # The caption as it names the concept, without the new word.
    target = text_states(sd, original, rows._replace(ids=named))
  models = (sd, victim, original, context, target, rows.latents)
  if not h.recursion:
    return losses.residuals(*models, drawn, h.criterion)
  total = sd.schedule.num_train_timesteps
  below = jax.vmap(falling, (0, None, 0, None))
  t = below(keys, h.recursion, drawn.t[:, 0], total)
  return losses.recursion(*models, t, drawn.noise[:, 0])


def falling(
  key: Array, count: int, t: Int[Array, ""], total: int
) -> Int[Array, " n"]:
  """`count` different timesteps just below `t`, the last the smallest.

  Args:
    key: of the draw.
    count: how many, at most `WINDOW`.
    t: drawn anew, from `WINDOW` on, where there is no room below it.
    total: training timesteps.
  """
  key = jax.random.fold_in(key, t)
  below = jax.random.permutation(key, WINDOW)[:count]
  # Of an even draw from all this makes an even draw from those with room.
  anew = jax.random.randint(jax.random.fold_in(key, 1), (), WINDOW, total)
  return jnp.where(t < WINDOW, anew, t) - 1 - jnp.sort(below)


def _chosen(pool, keys, h) -> tuple[Array, Array]:
  """Which of the pool's images and captions each draw of a lane is of."""

  def draw(number: int, size: int) -> Array:
    some = jax.vmap(lambda k: jax.random.fold_in(k, number))(keys)
    return jax.vmap(lambda k: jax.random.randint(k, (h.draws,), 0, size))(some)

  image = draw(3, len(pool.latents))
  return image, image if h.pool == "own" else draw(4, len(pool.ids))


def _of_pool(rows, pool, image, caption) -> tuple[Batch, Array]:
  """Rows with the pool's images and captions, and what these name it by."""
  rows = rows._replace(
    latents=pool.latents[image],
    ids=pool.ids[caption],
    source=pool.source[caption],
  )
  return rows, pool.named[caption]
