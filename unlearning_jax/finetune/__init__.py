"""Training: one step and one loop for any loss, and the losses of diffusion.

loop        state, optimizer, step, loop
looped      gradients in a loop, on a CPU
packed      many runs in one program
together    trainings of several erasures, those of one kind in one program
partition   which parameters train, and how they join the others
drawn       images of a model's own, to train an erasure on
diffusion   the denoising loss, on cached latents and text states
defenses    tuning that keeps an erasure
drift       how far tuning moved an erased model

`help("unlearning_jax.api.finetune")` describes the verb `ul.finetune`.
"""

from unlearning_jax.finetune.diffusion import denoising_loss as denoising_loss
from unlearning_jax.finetune.diffusion import diffusion_loss as diffusion_loss
from unlearning_jax.finetune.diffusion import encode_examples as encode_examples
from unlearning_jax.finetune.drawn import draw_latents as draw_latents
from unlearning_jax.finetune.loop import Loss as Loss
from unlearning_jax.finetune.loop import Metrics as Metrics
from unlearning_jax.finetune.loop import TrainState as TrainState
from unlearning_jax.finetune.loop import Watch as Watch
from unlearning_jax.finetune.loop import init_state as init_state
from unlearning_jax.finetune.loop import make_step as make_step
from unlearning_jax.finetune.loop import optimizer as optimizer
from unlearning_jax.finetune.loop import train as train
from unlearning_jax.finetune.loop import train_erasure as train_erasure
from unlearning_jax.finetune.looped import in_loop as in_loop
from unlearning_jax.finetune.partition import SUBSETS as SUBSETS
from unlearning_jax.finetune.partition import TRAINABLE as TRAINABLE
from unlearning_jax.finetune.partition import Partition as Partition
from unlearning_jax.finetune.partition import partition as partition
from unlearning_jax.finetune.partition import subset as subset
