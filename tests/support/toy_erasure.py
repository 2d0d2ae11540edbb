"""A trained erasure of a user's own: all that one has to write."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax

from unlearning_jax import finetune, stable_diffusion
from unlearning_jax.concepts import check_concepts
from unlearning_jax.edits import edit_between

CHANGES, NEEDS = ("unet/conv_out/bias",), "nothing"
BATCHES = [{"wanted": np.full((1, 1), step, np.float32)} for step in range(9)]
TX = optax.sgd(0.1)


@dataclasses.dataclass(frozen=True)
class Hparams:
  num_steps: int = 2


def loss(trained, frozen, batch, key):
  (leaf,) = trained.values()
  return jnp.square(leaf - 1.0 - batch["wanted"][0]).mean(), {}


def erase(sd, params, concepts, key, h, hooks):
  check_concepts(concepts)
  stable_diffusion.tokenize(sd, [concept.erase for concept in concepts])
  part = finetune.subset(params, lambda path: path in CHANGES)
  trained = hooks.trainer(
    loss, TX, part.trained, {}, BATCHES, key, batch_size=1,
    num_steps=h.num_steps,
  )  # fmt: skip
  made = part.join(trained, part.frozen)
  return edit_between(
    params, made, method="toy", concepts=concepts, diagnostics={}
  )
