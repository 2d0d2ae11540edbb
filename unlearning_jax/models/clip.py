"""The CLIP text encoder, and the layers its image tower shares."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from unlearning_jax.models.config import read_config
from unlearning_jax.models.flax_layers import Dense, Embed
from unlearning_jax.models.layers import layer_norm

# Training, generation and bookkeeping options: no effect on a forward pass.
IGNORED = (
  "attention_dropout", "dropout", "initializer_factor", "initializer_range",
  "projection_dim", "bos_token_id", "pad_token_id", "use_cache",
  "output_attentions", "output_hidden_states", "return_dict", "use_return_dict",
  "is_encoder_decoder", "chunk_size_feed_forward", "problem_type",
  "id2label", "label2id", "tie_word_embeddings",
)  # fmt: skip
# Old configs, Stable Diffusion 1's too, wrongly give 2 as the end-of-text id.
# The end is then the token with the highest id, as in transformers.
_LEGACY_EOS = 2


def _quick_gelu(x: Array) -> Array:
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
  "quick_gelu": _quick_gelu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


def check_activation(what: str, name: str):
  """Refuses a `hidden_act` that no tower here has.

  Args:
    what: the config, for the message.
    name: as transformers calls it.

  Raises:
    ValueError: naming the value and what is allowed.
  """
  if name not in ACTIVATIONS:
    raise ValueError(
      f"{what}: hidden_act={name!r} is not supported; "
      f"allowed: {', '.join(ACTIVATIONS)}"
    )


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
  """The keys of `text_encoder/config.json` that shape the network."""

  vocab_size: int = 49408
  hidden_size: int = 512
  intermediate_size: int = 2048
  num_hidden_layers: int = 12
  num_attention_heads: int = 8
  max_position_embeddings: int = 77
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5
  eos_token_id: int = 49407
  dtype: DTypeLike = jnp.float32

  def __post_init__(self):
    check_activation("ClipTextConfig", self.hidden_act)


class _SelfAttention(nn.Module):
  heads: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array, mask: Array | None) -> Array:
    width = x.shape[-1]

    def heads(name: str) -> Array:
      out = Dense(width, dtype=self.dtype, name=name)(x)
      return out.reshape(*out.shape[:-1], self.heads, width // self.heads)

    query, key, value = heads("q_proj"), heads("k_proj"), heads("v_proj")
    scores = jnp.einsum(
      "bqhd,bkhd->bhqk",
      query * query.shape[-1] ** -0.5,
      key,
      preferred_element_type=jnp.float32,
    )
    if mask is not None:
      scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
    return Dense(width, dtype=self.dtype, name="out_proj")(out)


class _Mlp(nn.Module):
  intermediate_size: int
  activation: str
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    hidden = Dense(self.intermediate_size, dtype=self.dtype, name="fc1")(x)
    hidden = ACTIVATIONS[self.activation](hidden)
    return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(hidden)


class ClipEncoderLayer(nn.Module):
  """A pre-norm transformer layer, shared by text and image towers."""

  heads: int
  intermediate_size: int
  activation: str
  epsilon: float
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b l d"], mask: Array | None = None
  ) -> Float[Array, "b l d"]:
    """Applies the layer; `mask` is True where a query may read a key."""
    norm1 = layer_norm("layer_norm1", self.epsilon)
    norm2 = layer_norm("layer_norm2", self.epsilon)
    attention = _SelfAttention(self.heads, self.dtype, name="self_attn")
    mlp = _Mlp(self.intermediate_size, self.activation, self.dtype, name="mlp")
    x = x + attention(norm1(x), mask)
    return x + mlp(norm2(x))


class ClipEncoder(nn.Module):
  """The layers of a tower, one after the other."""

  layers: int
  heads: int
  intermediate_size: int
  activation: str
  epsilon: float
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b l d"], mask: Array | None
  ) -> Float[Array, "b l d"]:
    """Applies every layer."""
    for i in range(self.layers):
      x = ClipEncoderLayer(
        self.heads,
        self.intermediate_size,
        self.activation,
        self.epsilon,
        self.dtype,
        name=f"layers_{i}",
      )(x, mask)
    return x


class _Embeddings(nn.Module):
  vocab_size: int
  positions: int
  width: int

  def setup(self):
    self.token_embedding = Embed(self.vocab_size, self.width)
    self.position_embedding = Embed(self.positions, self.width)

  def __call__(self, input_ids: Array | None, embeds: Array | None) -> Array:
    x: Any = self.token_embedding(input_ids) if embeds is None else embeds
    return x + self.position_embedding(jnp.arange(x.shape[1]))[None]


class _TextTransformer(nn.Module):
  config: ClipTextConfig

  @nn.compact
  def __call__(self, input_ids: Array | None, embeds: Array | None) -> Array:
    c = self.config
    x = _Embeddings(
      c.vocab_size, c.max_position_embeddings, c.hidden_size, name="embeddings"
    )(input_ids, embeds)
    tokens = x.shape[1]
    # Causal only: Stable Diffusion never masks the padding.
    mask = jnp.tril(jnp.ones((tokens, tokens), bool))[None, None]
    x = ClipEncoder(
      c.num_hidden_layers,
      c.num_attention_heads,
      c.intermediate_size,
      c.hidden_act,
      c.layer_norm_eps,
      c.dtype,
      name="encoder",
    )(x.astype(c.dtype), mask)
    return layer_norm("final_layer_norm", c.layer_norm_eps)(x)


class ClipTextModel(nn.Module):
  """Text to hidden states, as the UNet's cross-attention reads them."""

  config: ClipTextConfig

  @classmethod
  def from_config(
    cls, config: Mapping[str, Any], **overrides: Any
  ) -> "ClipTextModel":
    """The module that a `text_encoder/config.json` asks for; see `read_config`.

    Args:
      **overrides: `dtype` of the computation.
    """
    config = {k: v for k, v in config.items() if k not in IGNORED}
    return cls(read_config(ClipTextConfig, config, {}, **overrides))

  @nn.compact
  def __call__(
    self,
    input_ids: Int[Array, "b l"],
    inputs_embeds: Float[Array, "b l d"] | None = None,
  ) -> tuple[Float[Array, "b l d"], Float[Array, "b d"]]:
    """Encodes token ids.

    Args:
      input_ids: token ids; with `inputs_embeds` they only say where the text
        ends.
      inputs_embeds: token embeddings, without positions, to use instead of the
        table's rows: an attack optimizes them.

    Returns:
      The hidden states after the final layer norm, and the state at the first
      end-of-text token.
    """
    transformer = _TextTransformer(self.config, name="text_model")
    states = transformer(
      None if inputs_embeds is not None else input_ids, inputs_embeds
    )
    if self.config.eos_token_id == _LEGACY_EOS:
      end = jnp.argmax(input_ids, axis=-1)
    else:
      end = jnp.argmax(input_ids == self.config.eos_token_id, axis=-1)
    pooled = jnp.take_along_axis(states, end[:, None, None], axis=1)[:, 0]
    return states, pooled
