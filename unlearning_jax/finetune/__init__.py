"""Training: one step and one loop for any loss, and the losses of diffusion.

loop        state, optimizer, step, loop
packed      many runs in one program
partition   which parameters train, and how they join the others
diffusion   the denoising loss, on cached latents and text states
defences    tuning that keeps an erasure
drift       how far tuning moved an erased model

`help("unlearning_jax.api.finetune")` describes the verb `ul.finetune`.
"""

from unlearning_jax.finetune.diffusion import (
  denoising_loss,
  diffusion_loss,
  encode_examples,
)
from unlearning_jax.finetune.loop import (
  Loss,
  Metrics,
  TrainState,
  init_state,
  make_step,
  optimizer,
  train,
  train_erasure,
)
from unlearning_jax.finetune.partition import (
  SUBSETS,
  TRAINABLE,
  Partition,
  partition,
  subset,
)

__all__ = [
  "Loss",
  "Metrics",
  "Partition",
  "SUBSETS",
  "TRAINABLE",
  "TrainState",
  "denoising_loss",
  "diffusion_loss",
  "encode_examples",
  "init_state",
  "make_step",
  "optimizer",
  "partition",
  "subset",
  "train",
  "train_erasure",
]
