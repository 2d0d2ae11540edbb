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
  """Guidance that the attack's own loss goes through.

  Attributes:
    empty: the original's text states of the empty prompt.
    negative: the victim's of its negative prompt.
    concept: the victim's of what Safe Latent Diffusion keeps from it.
    scale: g; static, as what follows.
    safe: Safe Latent Diffusion's settings.
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
  """Parameters, and what is done to the text states before the UNet.

  Attributes:
    params: {text_encoder, unet, vae}.
    edit_context: a closed-form edit applied to the text states, so that any
      number of edited models share one UNet; None leaves them alone. Static:
      another edit compiles another program.
    negative_prompt: its images are steered away from; static.
    safe: Safe Latent Diffusion of its images; static.
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
    """A model as attacks read it; a context map stays out of its weights."""
    return cls(model.drawn_params, **model.drawing)

  @property
  def drawing(self) -> dict[str, Any]:
    """What `sampling.generate` is to be told of it."""
    names = ("edit_context", "negative_prompt", "safe")
    return {name: getattr(self, name) for name in names}

  @property
  def image_rows(self) -> int:
    """UNet rows of one guided sampling step."""
    return 2 if self.safe is None else 3


class Pool(NamedTuple):
  """Images of a concept, for attacks that learn from more than a row's own.

  Attributes:
    latents: x_0 of each image.
    ids: padded captions without the adversarial tokens.
    source: where these stand in each caption, see `insertion`.
    named: the captions as they name the concept, padded.
  """

  latents: Float[Array, "n h w c"]
  ids: Int[Array, "m l"]
  source: Int[Array, "m l"]
  named: Int[Array, "m l"]


class Batch(NamedTuple):
  """One row a lane, and the ids that all may use.

  Attributes:
    vocabulary: token ids, rising; not led by the lanes.
    number: the row's own number; its randomness comes from this alone.
    ids: the prompt, padded.
    source: where each token of the new prompt comes from, see `insertion`.
    latents: x_0 of the target image.
    pool: images that all rows learn from, if any; not led by the lanes.
  """

  vocabulary: Int[Array, " v"]
  number: UInt32[Array, " b"]
  ids: Int[Array, "b l"]
  source: Int[Array, "b l"]
  latents: Float[Array, "b h w c"]
  pool: Pool | None = None

  def repeat(self, count: int) -> "Batch":
    """Every row `count` times, one after the other."""
    led = ("number", "ids", "source", "latents")
    return self._replace(
      **{name: jnp.repeat(getattr(self, name), count, axis=0) for name in led}
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
  """What the lanes solve; `sd, victim, original, batch = problem`.

  Attributes:
    sd: the model; static.
    victim: under attack.
    original: the model before unlearning.
    batch: a row a lane.
  """

  sd: StableDiffusion = dataclasses.field(metadata={"static": True})
  victim: Victim
  original: Victim
  batch: Batch

  def __iter__(self) -> Iterator[Any]:
    return iter((self.sd, self.victim, self.original, self.batch))


def through_guidance(
  sd: StableDiffusion,
  victim: Victim,
  original: Victim,
  scale: float,
) -> Victim:
  """The victim with its guidance inside the attack's loss.

  Args:
    sd: the model.
    victim: under attack.
    original: the model before unlearning.
    scale: g of the victim's images.

  Raises:
    ValueError: a scale that guides nothing, or a prompt too long.
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
    states(original, ""),
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
