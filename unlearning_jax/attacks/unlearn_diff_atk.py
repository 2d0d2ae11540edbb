"""UnlearnDiffAtk (Zhang et al., ECCV 2024): gradients find tokens for a target.

A diffusion model is also a classifier (Li et al. 2023): an image most likely
shows what the prompt says under which it is denoised best. So the attack looks
for the adversarial prompt

  min_c'  E_{t, eps} |eps - eps_v(x_t, c')|^2 ,

where x_0 is an image of the concept. c' is the row's prompt and k more tokens,
each relaxed to a distribution P_j over the vocabulary. One iteration

  1. draws a token from each distribution, z_j ~ P_j, with embedding e_j;
  2. passes the gradient straight through to the distributions,
     G_j = clip(E dL/de_j, -1, 1), where E is the token table;
  3. takes a step of Adam and projects every P_j onto the simplex.

After a block of iterations, an image is drawn from z_j = argmax P_j.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax.attacks.engine import adam, lane_state, losses, simplex
from unlearning_jax.attacks.engine.victim import Batch, Problem, token_table
from unlearning_jax.concepts import check_choice

FINDS = "prompt"
UNET_CALLS = 1


@dataclasses.dataclass(frozen=True)
class Hparams(losses.Budget):
  """The attack's hyperparameters, besides its budget.

  Attributes:
    num_tokens: the number of adversarial tokens. The paper has 5 for nudity,
      violence and illegal acts, 3 for styles and objects.
    insertion: where they go, see `engine.insertion`.
    learning_rate: Adam's alpha.
    weight_decay: Adam's lambda. The published 0.1 draws P towards uniform, and
      holds it there where gradients are small.
    decay: `coupled` (Adam with L2, the release) or `decoupled` (AdamW, the
      paper's text).
  """

  num_tokens: int = 5
  insertion: str = "prefix_k"
  learning_rate: float = 0.01
  weight_decay: float = 0.0
  decay: str = "coupled"


class State(NamedTuple):
  """The lanes: key, iterations done, alive, P, and Adam's moments."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  probs: Float[Array, "b k v"]
  moments: adam.Moments


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """Uniform distributions over the vocabulary.

  Raises:
    ValueError: an unusable hyperparameter or model, see `losses.check`.
  """
  sd, batch = problem.sd, problem.batch
  losses.check(h, "denoise", sd.schedule)
  check_choice("decay", h.decay, adam.DECAYS)
  lanes, size = len(batch.number), len(batch.vocabulary)
  probs = jnp.full((lanes, h.num_tokens, size), 1 / size, jnp.float32)
  return State(*lane_state.begin(key, batch), probs, adam.start(probs))


def step(
  problem: Problem, state: State, h: Hparams
) -> tuple[State, dict[str, Array]]:
  """One iteration of every lane; a lane that is not finite stays as it was."""
  keys = losses.draw_key(state.key, state.count, h)
  keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)
  # z_j ~ P_j; with frozen noise every block draws with the same keys.
  tokens = jax.vmap(jax.random.categorical)(keys, jnp.log(state.probs))
  drawn = losses.draw(problem.sd, state.key, state.count, h)
  loss, gradient = token_gradient(problem, tokens, drawn, h.criterion)
  probs, moments = descend(state.probs, gradient, state.moments, h)
  finite = (loss, gradient, probs)
  new = lane_state.advance(state, finite, probs=probs, moments=moments)
  info = {
    "loss": loss,
    "gradient_rms": lane_state.rms(gradient),
    "confidence": probs.max(axis=2).mean(axis=1),
  }
  return new, info


def token_gradient(
  problem: Problem,
  tokens: Int[Array, "b k"],
  drawn: losses.Draw,
  criterion: str = "l2",
) -> tuple[Float[Array, " b"], Float[Array, "b k v"]]:
  """Each lane's loss, and its gradient G for every token in every slot.

  Args:
    problem: the lanes' rows and the victim.
    tokens: z, as positions in the batch's vocabulary.
  """
  table, vocabulary = token_table(problem.victim), problem.batch.vocabulary
  tried = table[vocabulary[tokens]]
  loss, gradient = losses.gradient(problem, tried, drawn, criterion)
  # Straight through: dL/dP_j(v) = E_v . dL/de_j for every token v.
  per_token = jnp.einsum(
    "bkd,vd->bkv", gradient, table, precision=jax.lax.Precision.HIGHEST
  )
  return loss, jnp.clip(per_token[..., vocabulary], -1, 1)


def descend(
  probs: Float[Array, "b k v"],
  gradient: Float[Array, "b k v"],
  moments: adam.Moments,
  h: Hparams,
) -> tuple[Float[Array, "b k v"], adam.Moments]:
  """A step of Adam, then the projection onto the simplex."""
  values, moments = adam.update(
    probs,
    gradient,
    moments,
    learning_rate=h.learning_rate,
    weight_decay=h.weight_decay,
    decay=h.decay,
  )
  return simplex.project(values), moments


def prompt(batch: Batch, state: Any, h: Hparams) -> Int[Array, "b k"]:
  """The likeliest token of every slot."""
  del h
  return batch.vocabulary[state.probs.argmax(axis=2)]
