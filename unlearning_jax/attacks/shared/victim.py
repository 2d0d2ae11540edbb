"""The model under attack, and the rows it is attacked with."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, UInt32

from unlearning_jax import models
from unlearning_jax.attacks.shared.insertion import splice
from unlearning_jax.stable_diffusion import StableDiffusion


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Victim:
  """Parameters, and what is done to the text states before the UNet.

  Attributes:
    params: {text_encoder, unet, vae}.
    edit_context: a closed-form edit applied to the text states, so that any
      number of edited models share one UNet; None leaves them alone. Static:
      another edit compiles another program.
  """

  params: Any
  edit_context: Callable[[Array], Array] | None = dataclasses.field(
    default=None, metadata={"static": True}
  )


class Batch(NamedTuple):
  """One row a lane, and the ids that all may use.

  Attributes:
    vocabulary: token ids, rising; the only leaf that is not led by the lanes.
    number: the row's own number; its randomness comes from this alone.
    ids: the prompt, padded.
    source: where each token of the new prompt comes from, see `insertion`.
    latents: x_0 of the target image.
  """

  vocabulary: Int[Array, " v"]
  number: UInt32[Array, " b"]
  ids: Int[Array, "b l"]
  source: Int[Array, "b l"]
  latents: Float[Array, "b h w c"]


def token_table(victim: Victim) -> Float[Array, "v d"]:
  """E, the text encoder's embedding of every token."""
  embeddings = victim.params["text_encoder"]["text_model"]["embeddings"]
  return embeddings["token_embedding"]["embedding"]


def text_states(
  sd: StableDiffusion,
  victim: Victim,
  batch: Batch,
  embeds: Float[Array, "b k d"] | None = None,
) -> Float[Array, "b l d"]:
  """What the victim's UNet reads, in float32.

  Args:
    sd: the model.
    victim: whose text encoder, and whose edit.
    batch: gives the prompts.
    embeds: adversarial token embeddings; None encodes the prompts unchanged.
  """
  states = token_table(victim)[batch.ids]
  if embeds is not None:
    states = splice(states, embeds, batch.source)
  with jax.default_matmul_precision("highest"):
    states = models.apply(
      sd.text_encoder, victim.params["text_encoder"], batch.ids, states
    )[0]
  return victim.edit_context(states) if victim.edit_context else states
