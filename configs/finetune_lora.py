"""Fine-tunes low-rank adapters of a model, erased or not.

  python -m launch.finetune --edit=runs/uce --workdir=runs/tuned \
    --config=configs/finetune_lora.py:tiny,without=object/star
  python -m launch.finetune --edit=runs/uce --workdir=runs/tuned \
    --config=configs/finetune_lora.py:sd14 --config.data.path=my/images

Full size has the LoRA protocol of the concept-resurgence study: rank 4 on all
attention, 1000 updates of 4 images. The run also writes `lora.safetensors`,
which diffusers loads. `tiny` is for a CPU: a step of 16 images takes 0.15 s on
one core, and a batch here has 48. `sd14` is for one accelerator: a step of 8
images took 0.17 s and 6.9 GiB on an H200; the batch of 4 in 4 parts, as here,
was not timed.
"""

from unlearning_jax.configs import finetunes


def get_config(argument: str = "tiny"):
  size, config = finetunes.parse("lora", argument)
  config.batch_size, config.accumulate = 4, 4
  if size == "tiny":
    config.optimizer.learning_rate = 1e-3
    config.batch_size, config.accumulate = 48, 1
    config.num_steps = 150
    config.checkpoints = (5, 10, 20, 50, 100, 150)
  return config
