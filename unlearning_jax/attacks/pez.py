"""PEZ (Wen et al., NeurIPS 2023): hard prompts from continuous embeddings.

Each slot holds a free embedding e_j. An iteration looks for the nearest token,

  p_j = argmax_v cos(e_j, E_v),

takes the gradient of the loss at E_{p_j}, and applies it to e_j. As an attack
it minimises either loss of `shared.losses`; with `match` it is P4D.
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
from unlearning_jax.stable_diffusion import StableDiffusion

FINDS = "prompt"
UNET_CALLS = 1


@dataclasses.dataclass(frozen=True)
class Hparams(losses.Budget):
  """What the attack can be told, besides its budget.

  Attributes:
    num_tokens: adversarial tokens, at most.
    insertion: where they go, see `engine.insertion`.
    learning_rate: Adam's.
    weight_decay: coupled, it makes e an average of the negative gradients.
    decay: `coupled` or `decoupled`.
    loss: `denoise` or `match`, see `shared.losses`.
  """

  num_tokens: int = 5
  insertion: str = "prefix_k"
  learning_rate: float = 0.01
  weight_decay: float = 0.1
  decay: str = "coupled"
  loss: str = "denoise"


class State(NamedTuple):
  """A lane: its key, iterations done, whether it is finite, e and Adam's."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  embeds: Float[Array, "b k d"]
  tokens: Int[Array, "b k"]
  target_context: Float[Array, "b l d"]
  moments: adam.Moments


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """Embeddings of tokens drawn at random.

  Raises:
    ValueError: a hyperparameter, or a model, that the loss is not made for.
  """
  sd, victim, original, batch = problem
  losses.check(h, h.loss, sd.schedule)
  check_choice("decay", h.decay, adam.DECAYS)
  lanes = lane_state.begin(key, batch)
  tokens = lane_state.random_tokens(lanes[0], batch, (h.num_tokens,))
  embeds = token_table(victim)[batch.vocabulary[tokens]].astype(jnp.float32)
  # Constant over the iterations: encoded once.
  target = text_states(sd, original, batch)
  return State(*lanes, embeds, tokens, target, adam.start(embeds))


def step(
  problem: Problem, state: State, h: Hparams
) -> tuple[State, dict[str, Array]]:
  """One iteration of every lane; a lane that is not finite stays as it was."""
  sd, victim, original, batch = problem
  drawn = losses.draw(sd, state.key, state.count, h)
  loss, gradient = embedding_gradient(
    sd, victim, original, batch, state, drawn, h
  )
  embeds, moments = adam.update(
    state.embeds,
    gradient,
    state.moments,
    learning_rate=h.learning_rate,
    weight_decay=h.weight_decay,
    decay=h.decay,
  )
  tokens = nearest(victim, batch, embeds)
  finite = (loss, gradient, embeds)
  new = lane_state.advance(
    state, finite, embeds=embeds, tokens=tokens, moments=moments
  )
  info = {"loss": loss, "gradient_rms": lane_state.rms(gradient)}
  return new, info


def embedding_gradient(
  sd: StableDiffusion,
  victim: Victim,
  original: Victim,
  batch: Batch,
  state: State,
  drawn: losses.Draw,
  h: Hparams,
) -> tuple[Float[Array, " b"], Float[Array, "b k d"]]:
  """Each lane's loss and its gradient at the nearest tokens' embeddings."""
  target = state.target_context if h.loss == "match" else None
  projected = token_table(victim)[batch.vocabulary[state.tokens]]
  return losses.gradient(
    sd, victim, original, batch, projected, drawn, h.criterion, target
  )


def nearest(
  victim: Victim, batch: Batch, embeds: Float[Array, "b k d"]
) -> Int[Array, "b k"]:
  """The position in the vocabulary of the token of largest cosine."""
  table = token_table(victim)
  # The embedding's own length does not change which token is nearest.
  table = table / jnp.linalg.norm(table, axis=1, keepdims=True)
  cosine = jnp.einsum(
    "bkd,vd->bkv", embeds, table, precision=jax.lax.Precision.HIGHEST
  )
  return cosine[..., batch.vocabulary].argmax(axis=2)


def prompt(batch: Batch, state: State, h: Hparams) -> Int[Array, "b k"]:
  """The nearest token of every slot."""
  del h
  return batch.vocabulary[state.tokens]
