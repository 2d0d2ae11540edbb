"""GCG (Zou et al. 2023): greedy coordinate gradient, on any of four losses.

The k tokens are kept discrete. An iteration takes the loss' gradient for every
token in every slot, G_j = E dL/de_j, draws candidates that each replace one
slot's token by one of its `top` most promising, evaluates all of them, and
keeps the best of them and the prompt as it was:

  z <- argmin_{z' in candidates + z} L(z')

  denoise    |eps - eps_v(x_t, c(z'))|^2             as UnlearnDiffAtk's
  match      |eps_o(x_t, c) - eps_v(x_t, c(z'))|^2     as P4D's
  feature    1 - cos(f_v(z'), f_o)                   as MMA-Diffusion's
  fitness    |target - tau_v(z')|^2                    as Ring-A-Bell's

with the same (t, eps) for all candidates. f is the text state at the end of the
text, of the prompt itself by the original model in f_o, after the victim's edit
in f_v; tau_v are all of the victim's states, and the target Ring-A-Bell's. With
a diffusion loss a candidate costs a pass of the UNet, so there are few: 8 by
default. `feature` and `fitness` need no UNet, and can have the published 512.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax.attacks import ring_a_bell
from unlearning_jax.attacks.engine import insertion, lane_state, losses
from unlearning_jax.attacks.engine.victim import (
  Batch,
  Problem,
  Victim,
  text_states,
  token_table,
)
from unlearning_jax.concepts import check_choice
from unlearning_jax.stable_diffusion import StableDiffusion

FINDS = "prompt"
UNET_CALLS = 1
# Those that need no UNet.
TEXT_LOSSES = ("feature", "fitness")
LOSSES = (*losses.LOSSES, *TEXT_LOSSES)


@dataclasses.dataclass(frozen=True)
class Hparams(losses.Budget):
  """What the attack can be told, besides its budget.

  Attributes:
    num_tokens: adversarial tokens.
    insertion: where they go, see `engine.insertion`.
    top: tokens of the largest negative gradient that a slot chooses from.
    candidates: prompts that are tried in an iteration.
    loss: `denoise`, `match`, `feature` or `fitness`.
    pairs: of `fitness`, phrases with and without the concept.
    eta: of `fitness`, how far along the concept.
  """

  timesteps: str = "random"
  num_tokens: int = 5
  insertion: str = "prefix_k"
  top: int = 64
  candidates: int = 8
  loss: str = "denoise"
  pairs: tuple[tuple[str, str], ...] = ()
  eta: float = 3.0

  def __post_init__(self):
    check_choice("loss", self.loss, LOSSES)
    for key in ("top", "candidates"):
      if getattr(self, key) < 1:
        raise ValueError(f"{key}={getattr(self, key)}: must be at least 1")


class State(NamedTuple):
  """A lane: its key, iterations done, whether it is finite, its tokens."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  tokens: Int[Array, "b k"]


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """Tokens drawn at random.

  Raises:
    ValueError: a hyperparameter, or a model, that the loss is not made for;
      no pairs, or a phrase that is too long.
  """
  sd, _, original, batch = problem
  text = h.loss in TEXT_LOSSES
  losses.check(h, "denoise" if text else h.loss, sd.schedule)
  if text and h.draws > 1:
    raise ValueError(
      f"draws={h.draws}: loss={h.loss!r} has no timesteps; give 1"
    )
  if h.loss == "fitness":
    # For its errors: a step makes the target.
    ring_a_bell.concept(sd, original, h.pairs)
  lanes = lane_state.begin(key, batch)
  return State(
    *lanes, lane_state.random_tokens(lanes[0], batch, (h.num_tokens,))
  )


def step(
  problem: Problem, state: State, h: Hparams
) -> tuple[State, dict[str, Array]]:
  """One iteration of every lane; a lane that is not finite stays as it was."""
  sd, victim, original, batch = problem
  drawn = losses.draw(sd, state.key, state.count, h)
  target = None
  if h.loss == "fitness":
    # Once, and not for every candidate.
    target = ring_a_bell.target(sd, original, batch, h.pairs, h.eta)
  of = functools.partial(loss, sd, victim, original, batch, h=h, target=target)
  table = token_table(victim)
  before, gradient = token_gradient(table, batch, state.tokens, of, drawn)
  keys = losses.draw_key(state.key, state.count, h)
  keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)
  choose = functools.partial(substitutes, h=h)
  tried = jax.vmap(choose)(keys, state.tokens, gradient)
  after = evaluate(table, batch, tried, of, drawn)
  # Where none is better, the prompt stays.
  every = jnp.concatenate([before[:, None], after], axis=1)
  options = jnp.concatenate([state.tokens[:, None], tried], axis=1)
  best = every.argmin(axis=1)
  tokens = jnp.take_along_axis(options, best[:, None, None], axis=1)[:, 0]
  new = lane_state.advance(state, (gradient, every), tokens=tokens)
  info = {
    "loss": before,
    "best_loss": every.min(axis=1),
    "gradient_rms": lane_state.rms(gradient),
    "replaced": (best > 0).astype(jnp.float32),
  }
  return new, info


def substitutes(
  key: Array,
  tokens: Int[Array, " k"],
  gradient: Float[Array, "k v"],
  h: Hparams,
) -> Int[Array, "m k"]:
  """One lane's candidates: the tokens with one of them replaced.

  Args:
    key: the lane's.
    tokens: positions in the vocabulary.
    gradient: for every token in every slot.
    h: how many, and of how many the tokens are drawn.
  """
  top = min(h.top, gradient.shape[1])
  promising = jax.lax.top_k(-gradient, top)[1]
  which, rank = jax.random.split(key)
  # Evenly over the slots, from a random one on.
  slots = jax.random.randint(which, (), 0, h.num_tokens) + jnp.arange(
    h.candidates
  )
  slots = slots % h.num_tokens
  ranks = jax.random.randint(rank, (h.candidates,), 0, top)
  new = promising[slots, ranks]
  here = jnp.arange(h.num_tokens)[None] == slots[:, None]
  return jnp.where(here, new[:, None], tokens[None])


def loss(
  sd: StableDiffusion,
  victim: Victim,
  original: Victim,
  batch: Batch,
  embeds: Float[Array, "b k d"],
  drawn: losses.Draw,
  h: Hparams,
  target: Float[Array, "b l d"] | None = None,
) -> Float[Array, " b"]:
  """The loss of every lane's prompt with these embeddings in its slots.

  `target` is that of `fitness`, made anew if it is not given.
  """
  if h.loss == "fitness":
    if target is None:
      target = ring_a_bell.target(sd, original, batch, h.pairs, h.eta)
    states = text_states(sd, victim, batch, embeds)
    return jnp.square(states - target).sum(axis=(1, 2))
  if h.loss != "feature":
    wanted = text_states(sd, original, batch) if h.loss == "match" else None
    return losses.of_embeddings(
      sd, victim, original, batch, embeds, drawn, h.criterion, wanted
    )
  end = sd.tokenizer.eos_token_id
  slots = jnp.zeros((len(embeds), h.num_tokens), batch.ids.dtype)
  ids = insertion.splice(batch.ids, slots, batch.source)
  found = _at_end(text_states(sd, victim, batch, embeds), ids, end)
  wanted = _at_end(text_states(sd, original, batch), batch.ids, end)
  norms = jnp.linalg.norm(found, axis=1) * jnp.linalg.norm(wanted, axis=1)
  return 1 - (found * wanted).sum(axis=1) / norms


def _at_end(states: Array, ids: Array, end: int) -> Array:
  """The state of the first end of text in every lane."""
  first = (ids == end).argmax(axis=1)
  return jnp.take_along_axis(states, first[:, None, None], axis=1)[:, 0]


def token_gradient(
  table: Float[Array, "w d"],
  batch: Batch,
  tokens: Int[Array, "b k"],
  of_embeddings: Callable[..., Array],
  drawn: losses.Draw,
) -> tuple[Float[Array, " b"], Float[Array, "b k v"]]:
  """Each lane's loss, and its gradient for every token in every slot.

  Args:
    table: E, the victim's.
    batch: gives the vocabulary.
    tokens: positions in it.
    of_embeddings: each lane's loss of embeddings (b, k, d) and of a draw.
    drawn: timesteps and noises, which take turns.
  """

  def total(embeds: Array, single: losses.Draw) -> tuple[Array, Array]:
    lanes = of_embeddings(embeds, single)
    return lanes.sum(), lanes

  def one(single: losses.Draw) -> tuple[Array, Array]:
    slope, lanes = jax.grad(total, has_aux=True)(embeds, single)
    return lanes, slope

  embeds = table[batch.vocabulary[tokens]]
  lanes, slope = losses.by_draw(one, drawn)
  every = jnp.einsum(
    "bkd,vd->bkv", slope, table[batch.vocabulary],
    precision=jax.lax.Precision.HIGHEST,
  )  # fmt: skip
  return lanes, every


def evaluate(
  table: Float[Array, "w d"],
  batch: Batch,
  tried: Int[Array, "b m k"],
  of_embeddings: Callable[..., Array],
  drawn: losses.Draw,
) -> Float[Array, "b m"]:
  """The loss of every candidate, one candidate of each lane at a time."""

  def one(tokens: Array) -> Array:
    embeds = table[batch.vocabulary[tokens]]
    return losses.by_draw(functools.partial(of_embeddings, embeds), drawn)

  return jax.lax.map(one, tried.swapaxes(0, 1)).swapaxes(0, 1)


def prompt(batch: Batch, state: State, h: Hparams) -> Int[Array, "b k"]:
  """The tokens as they stand."""
  del h
  return batch.vocabulary[state.tokens]
