"""PEZ (Wen et al., NeurIPS 2023): hard prompts from continuous embeddings.

Each slot holds a free embedding e_j. An iteration finds the nearest token,

  p_j = argmax_v cos(e_j, E_v),

takes the gradient of the loss at E_{p_j}, and applies it to e_j (Algorithm 1).
As an attack, PEZ minimizes a loss of `engine.losses`; with `match` it is P4D.
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
  Victim,
  text_states,
  token_table,
)
from unlearning_jax.concepts import check_choice

FINDS = "prompt"
UNET_CALLS = 1


@dataclasses.dataclass(frozen=True)
class Hparams(losses.Budget):
  """The attack's hyperparameters, besides its budget.

  Attributes:
    num_tokens: the number of adversarial tokens; `every_three` may use fewer.
    insertion: where they go, see `engine.insertion`.
    learning_rate: Adam's alpha.
    weight_decay: Adam's lambda. Coupled, it turns e into an average of the
      negative gradients.
    decay: `coupled` (Adam with L2) or `decoupled` (AdamW).
    loss: `denoise` or `match`, see `engine.losses`.
  """

  num_tokens: int = 5
  insertion: str = "prefix_k"
  learning_rate: float = 0.01
  weight_decay: float = 0.1
  decay: str = "coupled"
  loss: str = "denoise"


class State(NamedTuple):
  """The lanes: key, iterations done, alive, e, p, target, Adam's moments."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  embeds: Float[Array, "b k d"]
  tokens: Int[Array, "b k"]
  target_context: Float[Array, "b l d"]
  moments: adam.Moments


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """Embeddings of random tokens.

  Raises:
    ValueError: an unusable hyperparameter or model, see `losses.check`.
  """
  sd, victim, base, batch = problem
  losses.check(h, h.loss, sd.schedule)
  check_choice("decay", h.decay, adam.DECAYS)
  lanes = lane_state.begin(key, batch)
  tokens = lane_state.random_tokens(lanes[0], batch, (h.num_tokens,))
  embeds = token_table(victim)[batch.vocabulary[tokens]].astype(jnp.float32)
  # The target never changes: encode it once.
  target = text_states(sd, base, batch)
  return State(*lanes, embeds, tokens, target, adam.start(embeds))


def step(
  problem: Problem, state: State, h: Hparams
) -> tuple[State, dict[str, Array]]:
  """One iteration of every lane; a lane that is not finite stays as it was."""
  drawn = losses.draw(problem.sd, state.key, state.count, h)
  loss, gradient = embedding_gradient(problem, state, drawn, h)
  embeds, moments = adam.update(
    state.embeds,
    gradient,
    state.moments,
    learning_rate=h.learning_rate,
    weight_decay=h.weight_decay,
    decay=h.decay,
  )
  tokens = nearest(problem.victim, problem.batch, embeds)
  finite = (loss, gradient, embeds)
  new = lane_state.advance(
    state, finite, embeds=embeds, tokens=tokens, moments=moments
  )
  info = {"loss": loss, "gradient_rms": lane_state.rms(gradient)}
  return new, info


def embedding_gradient(
  problem: Problem, state: State, drawn: losses.Draw, h: Hparams
) -> tuple[Float[Array, " b"], Float[Array, "b k d"]]:
  """Each lane's loss and its gradient at the nearest tokens' embeddings."""
  target = state.target_context if h.loss == "match" else None
  ids = problem.batch.vocabulary[state.tokens]
  projected = token_table(problem.victim)[ids]
  return losses.gradient(problem, projected, drawn, h.criterion, target)


def nearest(
  victim: Victim, batch: Batch, embeds: Float[Array, "b k d"]
) -> Int[Array, "b k"]:
  """p, the position in the vocabulary of the token with the largest cosine."""
  table = token_table(victim)
  # The length of e does not change which token is nearest.
  table = table / jnp.linalg.norm(table, axis=1, keepdims=True)
  cosine = jnp.einsum(
    "bkd,vd->bkv", embeds, table, precision=jax.lax.Precision.HIGHEST
  )
  return cosine[..., batch.vocabulary].argmax(axis=2)


def prompt(batch: Batch, state: State, h: Hparams) -> Int[Array, "b k"]:
  """The nearest token of every slot."""
  del h
  return batch.vocabulary[state.tokens]
