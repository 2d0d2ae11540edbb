"""New words that stand for a concept, learnt from its images for FMN.

Textual inversion (Gal et al., ICLR 2023) trains the embeddings v of k words in
the concept's place in its prompt, with everything else frozen:

  min  | f(x_t, t, prompt of v) - n |^2

As in FMN's release the first words begin as the concept's own tokens and the
others at random. After each of AdamW's steps a word's norm goes part of the way
to 0.4. Concepts learn their words one after the other. The release draws the
sentence around the words from a list at every step, and mirrors half of its
images; here the sentence is the template, and no image is mirrored.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unlearning_jax import finetune, models
from unlearning_jax.data import Batches
from unlearning_jax.stable_diffusion import Params, StableDiffusion
from unlearning_jax.tokens import fitting

_NORM, _DECAY = 0.4, 0.1


def first_words(
  table: Float[Array, "v d"] | Float[np.ndarray, "v d"],
  tokens: Sequence[Sequence[int]],
  count: int,
  key: PRNGKeyArray,
) -> Float[np.ndarray, "n k d"]:
  """Where each concept's `count` words begin.

  Args:
    table: the text encoder's token embeddings.
    tokens: token ids of each concept.
  """
  drawn = jax.random.normal(key, (len(tokens), count, table.shape[1]))
  found = np.array(drawn, np.float32)
  for row, ids in enumerate(tokens):
    own = np.asarray(table)[[*ids][:count]]
    found[row, : len(own)] = own
  return found


def slotted(
  sd: StableDiffusion,
  template: str,
  tokens: Sequence[Sequence[int]],
  count: int,
) -> tuple[Int[np.ndarray, "n l"], int]:
  """Token ids of prompts with places for words, and the first place.

  Args:
    template: the sentence around "{}".
    tokens: token ids of each concept, which fill the places.
    count: places.

  Raises:
    ValueError: the prompt is too long.
  """
  length, tokenizer = sd.context_shape[0], sd.tokenizer
  before, _, after = template.partition("{}")
  # The tokenizer drops the spaces at the ends.
  ends = [
    tokenizer([text])["input_ids"][0] if text.strip() else [0, 0]
    for text in (before, after)
  ]
  around = [ids[1:-1] for ids in ends]
  rows = [
    [tokenizer.bos_token_id, *around[0], *([*own] * count)[:count], *around[1],
     tokenizer.eos_token_id]
    for own in tokens
  ]  # fmt: skip
  rows = fitting(
    tokenizer, [template] * len(rows), rows, length, truncate=False
  )
  pad = tokenizer.pad_token_id
  padded = [row + [pad] * (length - len(row)) for row in rows]
  return np.array(padded, np.int32), 1 + len(around[0])


def contexts(
  sd: StableDiffusion,
  text_encoder: Params,
  words: Float[Array, "n k d"] | Float[np.ndarray, "n k d"],
  ids: Int[Array, "n l"] | Int[np.ndarray, "n l"],
  first: int,
) -> Float[Array, "n l d"]:
  """Text states of the prompts with these words in them.

  Args:
    text_encoder: its parameters.
    words: v.
    ids: token ids of the prompts; those from `first` on are replaced.
    first: position of the first word.
  """
  table = text_encoder["text_model"]["embeddings"]["token_embedding"]
  embeds = jax.lax.dynamic_update_slice_in_dim(
    table["embedding"][ids], words, first, 1
  )
  with jax.default_matmul_precision("highest"):
    return models.apply(
      sd.text_encoder, text_encoder, ids, inputs_embeds=embeds
    )[0]


def pulled(learning_rate: float) -> optax.GradientTransformation:
  """AdamW, after which each norm N goes to N + min(1, 100 lr) (0.4 - N)."""
  adamw = optax.adamw(learning_rate, weight_decay=_DECAY)
  share = min(1.0, 100 * learning_rate)

  def update(
    updates: optax.Updates,
    state: optax.OptState,
    params: optax.Params | None = None,
  ) -> tuple[optax.Updates, optax.OptState]:
    updates, state = adamw.update(updates, state, params)

    def pull(leaf: Array, step: Array) -> Array:
      moved = leaf + step
      norm = jnp.linalg.norm(moved, axis=-1, keepdims=True)
      return moved * (1 + share * (_NORM - norm) / norm) - leaf

    return jax.tree.map(pull, params, updates), state

  return optax.GradientTransformation(adamw.init, update)


def _loss(
  sd: StableDiffusion,
  first: int,
  trained: Mapping[str, Array],
  frozen: Mapping[str, Any],
  batch: Mapping[str, Array],
  key: PRNGKeyArray,
) -> tuple[Float[Array, ""], finetune.Metrics]:
  keys, latents = jax.random.split(key), batch["latents"]
  noise = jax.random.normal(keys[0], latents.shape)
  steps = sd.schedule.num_train_timesteps
  t = jax.random.randint(keys[1], (len(latents),), 0, steps)
  context = contexts(
    sd, frozen["params"]["text_encoder"], trained["words"], frozen["ids"], first
  )
  return finetune.denoising_loss(
    sd, frozen["params"], latents, noise, t, context[batch["pair"]]
  )


# A jitted step is keyed by the identity of its loss and its optimizer.
_bound = functools.lru_cache(maxsize=4)(functools.partial)
_optimizer = functools.lru_cache(maxsize=4)(pulled)


def learn(
  sd: StableDiffusion,
  params: Params,
  tokens: Sequence[Sequence[int]],
  prompts: tuple[Int[np.ndarray, "n l"], int],
  drawn: Mapping[str, np.ndarray],
  key: PRNGKeyArray,
  collect: Callable[..., list[np.ndarray]],
  *,
  num_steps: int,
  learning_rate: float,
  count: int,
) -> Float[np.ndarray, "n k d"]:
  """Learns `count` words for each concept by itself, one image a step.

  Args:
    params: the base.
    tokens: token ids of each concept.
    prompts: token ids, and the position of the first word.
    drawn: see `finetune.draw_latents`.
    collect: `Hooks.collect`, which keeps each concept's words.
    num_steps: training steps of each concept; a killed run makes the last
      concept's again.
    learning_rate: AdamW's.
  """
  ids, first = prompts
  read = {name: params[name] for name in ("unet", "text_encoder")}
  embeddings = params["text_encoder"]["text_model"]["embeddings"]
  table = np.asarray(embeddings["token_embedding"]["embedding"])

  def make(concept: int) -> np.ndarray:
    keys = jax.random.split(jax.random.fold_in(key, concept))
    latents = drawn["latents"][drawn["pair"] == concept]
    own = {"latents": latents, "pair": np.zeros(len(latents), np.int32)}
    trained = finetune.train_erasure(
      _bound(_loss, sd, first), _optimizer(learning_rate),
      {"words": first_words(table, [tokens[concept]], count, keys[0])},
      {"params": read, "ids": ids[concept : concept + 1]},
      Batches(own, 1, int(jax.random.bits(keys[1]) >> 1)), keys[1],
      batch_size=1, num_steps=num_steps,
    )  # fmt: skip
    return np.asarray(trained["words"])

  return np.concatenate(collect("words", len(tokens), make))
