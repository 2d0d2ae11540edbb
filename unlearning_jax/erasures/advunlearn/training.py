"""AdvUnlearn's loss: attacks the phrases, then scores them and what is held."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unlearning_jax import finetune, models, stable_diffusion
from unlearning_jax.erasures.advunlearn import attack, bank
from unlearning_jax.erasures.advunlearn.options import PRESETS, Hparams
from unlearning_jax.stable_diffusion import Params, StableDiffusion


def encode(
  sd: StableDiffusion,
  params: Params,
  ids: Int[Array, "b l"],
  embeds: Float[Array, "b l d"],
) -> Float[Array, "b l d"]:
  """Text states of token embeddings; `ids` say where a text ends."""
  with jax.default_matmul_precision("highest"):
    return models.apply(sd.text_encoder, params["text_encoder"], ids, embeds)[0]


def erasing_loss(
  predicted: Float[Array, "n h w c"],
  scored: bank.Scored,
  retained: bank.Scored | None,
  eta: float,
  retain_weight: float,
) -> tuple[Float[Array, ""], finetune.Metrics]:
  """The objective above, a mean over rows and elements of each part.

  Args:
    predicted: f at the rows of `scored`, then at those of `retained`.
    scored: where the concepts are erased.
    retained: where the base is held.
    eta: the strength.
    retain_weight: weight of `retained`.
  """
  empty = scored.empty
  # Only retained trajectories lack it.
  assert empty is not None
  target = empty - eta * (scored.towards - empty)
  rows = len(target)
  erased = jnp.square(predicted[:rows] - target).mean()
  if retained is None:
    return erased, {}
  held = jnp.square(predicted[rows:] - retained.towards).mean()
  return erased + retain_weight * held, {"erased": erased, "retained": held}


def student(
  sd: StableDiffusion,
  params: Params,
  base: Params,
  ids: Int[Array, "b l"],
  embeds: Float[Array, "b l d"],
  latents: Float[Array, "b h w c"],
  t: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
  """f: the base's UNet on the edited text states of token embeddings."""
  states = encode(sd, params, ids, embeds)
  return stable_diffusion.predict_noise(sd, base, latents, t, states)


def _table(params: Params) -> Float[Array, "v d"]:
  """The embedding of every token."""
  embeddings = params["text_encoder"]["text_model"]["embeddings"]
  return embeddings["token_embedding"]["embedding"]


def _loss(
  sd: StableDiffusion,
  join: Callable[[Params, Params], Params],
  h: Hparams,
  trained: Params,
  frozen: Mapping[str, Any],
  batch: Mapping[str, Array],
  key: PRNGKeyArray,
) -> tuple[Float[Array, ""], finetune.Metrics]:
  params = join(trained, frozen["params"])
  table, base = _table(params), frozen["base"]
  keys, concept = jax.random.split(key, 4), batch["concept"]
  indices = jax.random.randint(keys[0], (h.updates + 1,), 0, h.walk.steps)

  def draw(name: str, phrase: Array, index: Array, key: Array) -> bank.Scored:
    """One of the phrases' trajectories, at the index."""
    own: bank.Bank = frozen[name]
    number = jax.random.randint(key, phrase.shape, 0, own.each)
    number += own.each * phrase
    return bank.look(sd, base, h.walk, own, frozen["empty"], number, index)

  ids = frozen["ids"][concept]
  read = table[ids]
  if h.updates:
    attacked = functools.partial(
      _attacked, sd, h, jax.lax.stop_gradient(params), base, ids,
      frozen["source"][concept], functools.partial(draw, "concepts", concept),
      indices[1:], keys[1],
    )  # fmt: skip
    read = jax.lax.cond(batch["attacked"].all(), attacked, lambda: table[ids])
  scored = draw("concepts", concept, indices[0], keys[2])
  retained, parts = None, [scored]
  if h.retain_weight:
    phrase = batch["retained"].reshape(-1)
    # The release has one timestep in a step, too.
    retained = draw("retained", phrase, indices[0], keys[3])
    parts.append(retained)
    own = frozen["retained_ids"][phrase]
    ids = jnp.concatenate([ids, own])
    read = jnp.concatenate([read, table[own]])
  latents, t = (
    jnp.concatenate([getattr(part, name) for part in parts])
    for name in ("latents", "t")
  )
  predicted = student(sd, params, base, ids, read, latents, t)
  return erasing_loss(predicted, scored, retained, h.eta, h.retain_weight)


def _attacked(
  sd: StableDiffusion,
  h: Hparams,
  params: Params,
  base: Params,
  ids: Int[Array, "b l"],
  source: Int[Array, "b l"],
  draw: Callable[[Array, Array], bank.Scored],
  indices: Int[Array, " u"],
  key: PRNGKeyArray,
) -> Float[Array, "b l d"]:
  """Token embeddings of the phrases with adversarial tokens before them."""
  table, keys = _table(params), jax.random.split(key)
  shape = (len(ids), h.num_tokens)
  start = table[jax.random.randint(keys[0], shape, 0, len(table))]

  def loss(new: Array, drawn: tuple[Array, Array]) -> Array:
    scored = draw(*drawn)
    read = attack.spliced(table[ids], new, source)
    predicted = student(sd, params, base, ids, read, scored.latents, scored.t)
    return attack.distance(predicted, scored.towards)

  new = attack.adversarial(
    loss, start, (indices, jax.random.split(keys[1], len(indices))), h.attack,
    h.attack_learning_rate, PRESETS[h.preset].legacy_attack,
  )  # fmt: skip
  return attack.spliced(table[ids], new, source)


@dataclasses.dataclass(frozen=True)
class Draws:
  """Concepts at random and retained prompts in turn, for each step."""

  concepts: int
  retained: int
  h: Hparams
  seed: int

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    rows, each = self.h.batch_size, self.h.retain_batch
    rng = np.random.default_rng((self.seed, step))
    drawn = rng.integers(self.concepts, size=rows, dtype=np.int32)
    attacked = np.full(rows, step >= self.h.warmup_steps)
    found = {"concept": drawn, "attacked": attacked}
    if self.retained:
      turn = step * rows * each + np.arange(rows * each)
      epochs, places = np.divmod(turn, self.retained)
      order = {
        e: np.random.default_rng((self.seed, 0, e)).permutation(self.retained)
        for e in np.unique(epochs)
      }
      now = [order[e][i] for e, i in zip(epochs, places, strict=True)]
      found["retained"] = np.array(now, np.int32).reshape(rows, each)
    return found


@functools.lru_cache(maxsize=8)
def prepared(
  sd: StableDiffusion, join: Callable[[Params, Params], Params], h: Hparams
) -> tuple[finetune.Loss, optax.GradientTransformation]:
  """Loss and optimizer; cached, so that a second call compiles nothing.

  A jitted step is keyed by these objects' identity.
  """
  tx = finetune.optimizer(
    h.learning_rate, h.num_steps, schedule="constant", warmup=0,
    weight_decay=0, clip_norm=None, b2=0.999,
  )  # fmt: skip
  return functools.partial(_loss, sd, join, h), tx
