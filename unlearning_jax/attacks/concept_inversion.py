"""Concept Inversion (Pham et al., ICLR 2024): a new word for what was erased.

The victim is given k new tokens v* whose embeddings are free, and learns them
as Textual Inversion (Gal et al., ICLR 2023) does, from an image of the concept:

  min_{v*}  E_{t, eps} |eps - eps_v(x_t, c(v*))|^2 ,   t ~ U{0, ..., T-1}.

Here the image is the row's own target and c(v*) the row's prompt with v* in it,
as in the paper's experiment on unsafe prompts. With `insertion="replace"` the
words are v* alone, which is Textual Inversion. No text is found: what comes out
are embeddings, so it bounds what a prompt can do, and shows whether the UNet
still knows the concept. A model that has never seen the concept can learn it
this way too: compare with the same inversion on such a model.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax.attacks.shared import adam, lane_state, losses
from unlearning_jax.attacks.shared.victim import Batch, Victim, token_table
from unlearning_jax.concepts import check_choice
from unlearning_jax.stable_diffusion import StableDiffusion

UNET_CALLS = 1
# What `prompt` returns are embeddings: there is no text to decode.
SOFT = True


@dataclasses.dataclass(frozen=True)
class Hparams(losses.Budget):
  """What the attack can be told, besides its budget.

  Attributes:
    k: new tokens.
    insertion: where they go, see `shared.insertion`.
    learning_rate: Adam's; published as 0.005 for each of 16 images of a batch,
      0.08 in all.
    weight_decay: decoupled, of the embeddings.
    decay: `decoupled` (the release) or `coupled`.
    initial: the word whose embeddings the tokens begin as, "art" for styles in
      the release; "" begins at the mean of the vocabulary.
  """

  blocks: int = 5
  iterations: int = 200
  timesteps: str = "random"
  draws: int = 4
  k: int = 1
  insertion: str = "prefix_k"
  learning_rate: float = 0.08
  weight_decay: float = 0.01
  decay: str = "decoupled"
  initial: str = ""


class State(NamedTuple):
  """A lane: its key, iterations done, whether it is finite, v* and Adam's."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  embeds: Float[Array, "b k d"]
  moments: adam.Moments


def init(
  sd: StableDiffusion,
  victim: Victim,
  original: Victim,
  batch: Batch,
  key: Array,
  h: Hparams,
) -> State:
  """The initial word's embeddings, the same in every lane.

  Raises:
    ValueError: a hyperparameter, or a model, that the loss is not made for; an
      initial word of several tokens.
  """
  del original
  losses.check(h, "denoise", sd.schedule.prediction_type)
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
  embeds = jnp.broadcast_to(first[None, None], (lanes, h.k, first.shape[0]))
  return State(*lane_state.begin(key, batch), embeds, adam.start(embeds))


def step(
  sd: StableDiffusion,
  victim: Victim,
  original: Victim,
  batch: Batch,
  state: State,
  h: Hparams,
) -> tuple[State, dict[str, Array]]:
  """One iteration of every lane; a lane that is not finite stays as it was."""
  drawn = losses.draw(sd, state.key, state.count, h)
  loss, gradient = losses.gradient(
    sd, victim, original, batch, state.embeds, drawn, h.criterion
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
