"""UnlearnDiffAtk (Zhang et al., ECCV 2024): a prompt that denoises the target.

If a diffusion model is read as a classifier (Li et al. 2023), the prompt that
makes it most likely that an image shows the concept is the one under which the
image is denoised best:

  min_c'  E_{t, eps} |eps - eps_v(x_t, c')|^2 ,

with x_0 an image of the concept. The k tokens that c' adds to the prompt are
relaxed to distributions P_j over the vocabulary. An iteration draws one token
of each, z_j ~ P_j, takes the gradient at their embeddings e_j straight through
to the distributions, G_j = clip(E dL/de_j, -1, 1), steps with Adam, and puts
every P_j back on the simplex. A block of iterations ends with the prompt
z_j = argmax P_j, of which an image is made.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax.attacks.engine import adam, lane_state, losses, simplex
from unlearning_jax.attacks.engine.victim import (
  Batch,
  Problem,
  Victim,
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
    num_tokens: adversarial; 5 for nudity, violence and illegal acts, 3 for
      styles and objects in the paper.
    insertion: where they go, see `engine.insertion`.
    learning_rate: Adam's.
    weight_decay: 0.1 as published draws P towards uniform; with the small
      gradients of a mean over a latent it holds P there.
    decay: `coupled` (Adam with L2, the release) or `decoupled` (AdamW, the
      paper's text).
  """

  num_tokens: int = 5
  insertion: str = "prefix_k"
  learning_rate: float = 0.01
  weight_decay: float = 0.0
  decay: str = "coupled"


class State(NamedTuple):
  """A lane: its key, iterations done, whether it is finite, P and Adam's."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  probs: Float[Array, "b k v"]
  moments: adam.Moments


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """Uniform distributions over the vocabulary.

  Raises:
    ValueError: a hyperparameter, or a model, that the loss is not made for.
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
  sd, victim, original, batch = problem
  keys = losses.draw_key(state.key, state.count, h)
  keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)
  tokens = jax.vmap(jax.random.categorical)(keys, jnp.log(state.probs))
  drawn = losses.draw(sd, state.key, state.count, h)
  loss, gradient = token_gradient(
    sd, victim, original, batch, tokens, drawn, h.criterion
  )
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
  sd: StableDiffusion,
  victim: Victim,
  original: Victim,
  batch: Batch,
  tokens: Int[Array, "b k"],
  drawn: losses.Draw,
  criterion: str = "l2",
) -> tuple[Float[Array, " b"], Float[Array, "b k v"]]:
  """Each lane's loss, and its gradient for every token in every slot.

  Args:
    sd: the model.
    victim: under attack.
    original: unused by this loss.
    batch: rows.
    tokens: positions in `batch.vocabulary` of the tokens that are tried.
    drawn: timesteps and noises.
    criterion: of the loss.
  """
  table = token_table(victim)
  tried = table[batch.vocabulary[tokens]]
  loss, gradient = losses.gradient(
    sd, victim, original, batch, tried, drawn, criterion
  )
  per_token = jnp.einsum(
    "bkd,vd->bkv", gradient, table, precision=jax.lax.Precision.HIGHEST
  )
  return loss, jnp.clip(per_token[..., batch.vocabulary], -1, 1)


def descend(
  probs: Float[Array, "b k v"],
  gradient: Float[Array, "b k v"],
  moments: adam.Moments,
  h: Hparams,
) -> tuple[Float[Array, "b k v"], adam.Moments]:
  """Adam, then the projection."""
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
