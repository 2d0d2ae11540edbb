"""Tunes the whole UNet of a model, erased or not, on images with captions.

  python -m launch.finetune --edit=runs/uce --workdir=runs/tuned \
    --config=configs/finetune_full.py:tiny,without=object/star
  python -m launch.finetune --edit=runs/uce --workdir=runs/tuned \
    --config=configs/finetune_full.py:sd14 --config.data.path=my/images

The full protocol of the concept-resurgence study at full size. `only` and
`without` choose renders of the Shapes world, as `only=object/circle+square`.
`tiny` is for a CPU: one core takes 0.18 s for a step of 16 images, and a batch
here is 48. `sd14` needs an accelerator or several, README has the memory; its
time was not measured.
Metric: loss; then `launch.evaluate` on the edits in `steps/`.
"""

from unlearning_jax.configs import finetunes


def get_config(argument: str = "tiny"):
  size, config = finetunes.parse("full", argument)
  config.batch_size, config.accumulate = 32, 4
  config.optimizer.schedule = "constant"
  config.optimizer.learning_rate = 1e-5
  config.ema_decay = 0.9999
  if size == "tiny":
    # The prototype's, for a network that learns ten times faster.
    config.optimizer.learning_rate = 1e-4
    config.batch_size, config.accumulate = 48, 1
    config.ema_decay = None
    config.num_steps = 150
    config.checkpoints = (5, 10, 20, 50, 100, 150)
  return config
