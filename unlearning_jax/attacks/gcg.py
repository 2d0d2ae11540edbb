"""GCG (Zou et al. 2023): greedy coordinate gradient, with four losses.

The k tokens z stay discrete. One iteration (Algorithm 1)

  1. takes the loss's gradient for every token in every slot, G_j = E dL/de_j;
  2. draws candidates, each of which replaces one slot's token by one of the
     `top` tokens with the largest -G_j;
  3. keeps the best of the candidates and z itself,
     z <- argmin_{z' in candidates + z} L(z').

  denoise    |eps - eps_v(x_t, c(z'))|^2             as UnlearnDiffAtk's
  match      |eps_o(x_t, c) - eps_v(x_t, c(z'))|^2     as P4D's
  feature    1 - cos(f_v(z'), f_o)                   as MMA-Diffusion's
  fitness    |target - tau_v(z')|^2                    as Ring-A-Bell's

All candidates see the same (t, eps). f is the text state at the end of text:
f_v of the victim with its edit, f_o of the base with the row's own prompt.
tau_v are all of the victim's text states, and the target is Ring-A-Bell's.

With a diffusion loss each candidate costs a pass through the UNet, hence the
default of 8. `feature` and `fitness` need no UNet and can afford the published
512.
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
  text_states,
  token_table,
)
from unlearning_jax.concepts import check_choice

FINDS = "prompt"
UNET_CALLS = 1
# These need no UNet.
TEXT_LOSSES = ("feature", "fitness")
LOSSES = (*losses.LOSSES, *TEXT_LOSSES)


@dataclasses.dataclass(frozen=True)
class Hparams(losses.Budget):
  """The attack's hyperparameters, besides its budget.

  Attributes:
    num_tokens: the number of adversarial tokens.
    insertion: where they go, see `engine.insertion`.
    top: how many tokens a slot chooses from, those with the largest -G_j.
    candidates: prompts that one iteration tries.
    loss: `denoise`, `match`, `feature` or `fitness`.
    pairs: phrases with and without the concept; for `fitness` only.
    eta: how far along the concept the target lies; for `fitness` only.
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
  """The lanes: key, iterations done, alive, and z as vocabulary positions."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  tokens: Int[Array, "b k"]


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """Random tokens.

  Raises:
    ValueError: an unusable hyperparameter or model, see `losses.check`; no
      pairs, or a phrase that is too long.
  """
  sd, _, base, batch = problem
  text = h.loss in TEXT_LOSSES
  losses.check(h, "denoise" if text else h.loss, sd.schedule)
  if text and h.draws > 1:
    raise ValueError(
      f"draws={h.draws}: loss={h.loss!r} has no timesteps; give 1"
    )
  if h.loss == "fitness":
    # Raises what is wrong with the pairs now; a step computes the target.
    ring_a_bell.concept(sd, base, h.pairs)
  lanes = lane_state.begin(key, batch)
  return State(
    *lanes, lane_state.random_tokens(lanes[0], batch, (h.num_tokens,))
  )


def step(
  problem: Problem, state: State, h: Hparams
) -> tuple[State, dict[str, Array]]:
  """One iteration of every lane; a lane that is not finite stays as it was."""
  batch, target = problem.batch, None
  drawn = losses.draw(problem.sd, state.key, state.count, h)
  if h.loss == "fitness":
    # Computed once here, not again for every candidate.
    target = ring_a_bell.target(problem, h.pairs, h.eta)
  of = functools.partial(loss, problem, h=h, target=target)
  table = token_table(problem.victim)
  before, gradient = token_gradient(table, batch, state.tokens, of, drawn)
  keys = losses.draw_key(state.key, state.count, h)
  keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)
  choose = functools.partial(substitutes, h=h)
  tried = jax.vmap(choose)(keys, state.tokens, gradient)
  after = evaluate(table, batch, tried, of, drawn)
  # The prompt comes first: argmin keeps it when no candidate is better.
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
  """One lane's candidates, each with one token replaced.

  Args:
    key: the lane's key of this iteration.
    tokens: z, as positions in the vocabulary.
    gradient: G.
    h: `candidates` and `top`.
  """
  top = min(h.top, gradient.shape[1])
  promising = jax.lax.top_k(-gradient, top)[1]
  which, rank = jax.random.split(key)
  # Candidates take the slots in turn, from a random one on.
  slots = jax.random.randint(which, (), 0, h.num_tokens) + jnp.arange(
    h.candidates
  )
  slots = slots % h.num_tokens
  ranks = jax.random.randint(rank, (h.candidates,), 0, top)
  new = promising[slots, ranks]
  here = jnp.arange(h.num_tokens)[None] == slots[:, None]
  return jnp.where(here, new[:, None], tokens[None])


def loss(
  problem: Problem,
  embeds: Float[Array, "b k d"],
  drawn: losses.Draw,
  h: Hparams,
  target: Float[Array, "b l d"] | None = None,
) -> Float[Array, " b"]:
  """Each lane's loss with these embeddings in its prompt's slots.

  Args:
    problem: the lanes' rows, the victim and the base.
    embeds: embeddings of z.
    drawn: timesteps and noises; the losses on text ignore them.
    h: `loss`, and its settings.
    target: the target of `fitness`; None computes it.
  """
  sd, victim, base, batch = problem
  if h.loss == "fitness":
    if target is None:
      target = ring_a_bell.target(problem, h.pairs, h.eta)
    states = text_states(sd, victim, batch, embeds)
    return jnp.square(states - target).sum(axis=(1, 2))
  if h.loss != "feature":
    wanted = text_states(sd, base, batch) if h.loss == "match" else None
    return losses.of_embeddings(problem, embeds, drawn, h.criterion, wanted)
  end = sd.tokenizer.eos_token_id
  slots = jnp.zeros((len(embeds), h.num_tokens), batch.ids.dtype)
  ids = insertion.splice(batch.ids, slots, batch.source)
  found = _at_end(text_states(sd, victim, batch, embeds), ids, end)
  wanted = _at_end(text_states(sd, base, batch), batch.ids, end)
  norms = jnp.linalg.norm(found, axis=1) * jnp.linalg.norm(wanted, axis=1)
  return 1 - (found * wanted).sum(axis=1) / norms


def _at_end(states: Array, ids: Array, end: int) -> Array:
  """Each lane's text state at the first end of text."""
  first = (ids == end).argmax(axis=1)
  return jnp.take_along_axis(states, first[:, None, None], axis=1)[:, 0]


def token_gradient(
  table: Float[Array, "w d"],
  batch: Batch,
  tokens: Int[Array, "b k"],
  of_embeddings: Callable[..., Array],
  drawn: losses.Draw,
) -> tuple[Float[Array, " b"], Float[Array, "b k v"]]:
  """Each lane's loss, and its gradient G for every token in every slot.

  Args:
    table: E, the victim's token table.
    batch: has the vocabulary.
    tokens: z, as positions in the vocabulary.
    of_embeddings: maps embeddings (b, k, d) and a draw to losses (b,).
    drawn: timesteps and noises, computed one draw at a time.
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
  """Every candidate's loss; each lane computes one candidate at a time."""

  def one(tokens: Array) -> Array:
    embeds = table[batch.vocabulary[tokens]]
    return losses.by_draw(functools.partial(of_embeddings, embeds), drawn)

  return jax.lax.map(one, tried.swapaxes(0, 1)).swapaxes(0, 1)


def prompt(batch: Batch, state: State, h: Hparams) -> Int[Array, "b k"]:
  """The ids of z."""
  del h
  return batch.vocabulary[state.tokens]
