"""The model under attack, and the rows it is attacked with."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from unlearning_jax import guidance, models, stable_diffusion
from unlearning_jax.attacks.engine.insertion import splice
from unlearning_jax.model import Model
from unlearning_jax.stable_diffusion import StableDiffusion


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guide:
  """Guidance that is part of the attack's loss.

  Attributes:
    empty: the base's text states of the empty prompt.
    negative: the victim's text states of its negative prompt.
    concept: the victim's text states of Safe Latent Diffusion's concept.
    scale: g, the guidance scale; static.
    safe: Safe Latent Diffusion's settings; static.
  """

  empty: Float[Array, "1 l d"]
  negative: Float[Array, "1 l d"]
  concept: Float[Array, "1 l d"] | None
  scale: float = dataclasses.field(metadata={"static": True})
  safe: guidance.Safe | None = dataclasses.field(
    default=None, metadata={"static": True}
  )

  @property
  def rows(self) -> int:
    """UNet rows of one guided prediction."""
    return 2 if self.safe is None else 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Victim:
  """The model under attack, or its base.

  Attributes:
    params: {text_encoder, unet, vae}.
    edit_context: a closed-form edit as a map of text states, so that any number
      of edited models share one UNet; None for none. Static: each edit compiles
      a program.
    negative_prompt: images are guided away from it; static.
    safe: Safe Latent Diffusion of the images; static.
    guide: guidance inside the loss; None attacks the conditional prediction
      alone, as the published attacks do.
  """

  params: Any
  edit_context: Callable[[Array], Array] | None = dataclasses.field(
    default=None, metadata={"static": True}
  )
  negative_prompt: str = dataclasses.field(
    default="", metadata={"static": True}
  )
  safe: guidance.Safe | None = dataclasses.field(
    default=None, metadata={"static": True}
  )
  guide: Guide | None = None

  @classmethod
  def of(cls, model: Model) -> "Victim":
    """The victim of a `Model`, whose context map stays out of the weights."""
    return cls(model.drawn_params, **model.drawing)

  @property
  def drawing(self) -> dict[str, Any]:
    """Keyword arguments of `sampling.generate` that draw this model."""
    names = ("edit_context", "negative_prompt", "safe")
    return {name: getattr(self, name) for name in names}

  @property
  def is_guided(self) -> bool:
    """Whether it acts by how it samples or is attacked, not by its weights."""
    return bool(self.negative_prompt or self.safe or self.guide)

  @property
  def image_rows(self) -> int:
    """UNet rows of one guided sampling step."""
    return 2 if self.safe is None else 3


class Pool(NamedTuple):
  """Images of a concept that every row may learn from.

  Attributes:
    latents: x_0 of each image.
    ids: captions without adversarial tokens, padded.
    source: each caption's layout with adversarial tokens, see `insertion`.
    named: the same captions with the concept's name, padded.
  """

  latents: Float[Array, "n h w c"]
  ids: Int[Array, "m l"]
  source: Int[Array, "m l"]
  named: Int[Array, "m l"]


class Batch(NamedTuple):
  """One row in each lane, and what all lanes share.

  Attributes:
    vocabulary: token ids that an attack may use, rising; shared.
    number: the row's number, the only source of its randomness.
    ids: the row's prompt, padded.
    source: the prompt's layout with adversarial tokens, see `insertion`.
    latents: x_0 of the target image.
    pool: images that every row may learn from, or None; shared.
  """

  vocabulary: Int[Array, " v"]
  number: UInt32[Array, " b"]
  ids: Int[Array, "b l"]
  source: Int[Array, "b l"]
  latents: Float[Array, "b h w c"]
  pool: Pool | None = None

  def repeat(self, count: int) -> "Batch":
    """Each row `count` times; its copies stand side by side."""
    led = ("number", "ids", "source", "latents")
    return self._replace(
      **{name: jnp.repeat(getattr(self, name), count, axis=0) for name in led}
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
  """What the lanes solve; `sd, victim, base, batch = problem`.

  Attributes:
    sd: static.
    victim: the model under attack.
    base: the model before the erasure.
    batch: one row in each lane.
  """

  sd: StableDiffusion = dataclasses.field(metadata={"static": True})
  victim: Victim
  base: Victim
  batch: Batch

  def __iter__(self) -> Iterator[Any]:
    return iter((self.sd, self.victim, self.base, self.batch))


def through_guidance(
  sd: StableDiffusion,
  victim: Victim,
  base: Victim,
  scale: float,
) -> Victim:
  """The victim with its guidance inside the attack's loss.

  Args:
    scale: g, the guidance scale of the victim's images.

  Raises:
    ValueError: a scale of 1 or less, or a prompt that is too long.
  """
  if scale <= 1:
    raise ValueError(
      f"guidance.in_loss: guidance_scale={scale} guides nothing; must exceed 1"
    )

  def states(who: Victim, prompt: str) -> Array:
    return stable_diffusion.encode_prompts(
      sd, who.params, [prompt], who.edit_context
    )

  guide = Guide(
    states(base, ""),
    states(victim, victim.negative_prompt),
    states(victim, victim.safe.concept) if victim.safe else None,
    scale,
    victim.safe,
  )
  return dataclasses.replace(victim, guide=guide)


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
  """The text states that the UNet reads, in float32.

  Args:
    victim: its text encoder and its `edit_context` are used.
    batch: the prompts, with their layouts.
    embeds: embeddings of the adversarial tokens; None encodes the prompts
      unchanged.
  """
  states = token_table(victim)[batch.ids]
  if embeds is not None:
    states = splice(states, embeds, batch.source)
  with jax.default_matmul_precision("highest"):
    states = models.apply(
      sd.text_encoder, victim.params["text_encoder"], batch.ids, states
    )[0]
  return victim.edit_context(states) if victim.edit_context else states
