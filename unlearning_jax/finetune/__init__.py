"""Training: one step and one loop for any loss, and what diffusion adds.

loop        state, optimizer, step, loop
partition   which parameters train, and how they join the others
diffusion   the denoising loss, on cached latents and text states

`ul.finetune(...)`, the verb: help("unlearning_jax.api.finetune").
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
  Watch,
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
  "Watch",
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
