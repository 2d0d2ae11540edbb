"""Tunes low-rank adapters of a model, erased or not.

  python -m launch.finetune --edit=runs/uce --workdir=runs/tuned \
    --config=configs/finetune_lora.py:tiny,without=object/star
  python -m launch.finetune --edit=runs/uce --workdir=runs/tuned \
    --config=configs/finetune_lora.py:sd14 --config.data.path=my/images

The LoRA protocol of the concept-resurgence study at full size: rank 4 on all
attention, 1000 updates of 4 images. Writes `lora.safetensors` as well, which
torch diffusers loads. `tiny` is for a CPU: one core takes 0.15 s for a step of
16 images, and a batch here is 48. `sd14` is for one accelerator: an H200 took
0.17 s and 6.9 GiB for a step of 8 images; a batch of 4 in 4 parts, as here, was
not timed. Metric: as `finetune_full.py`.
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
