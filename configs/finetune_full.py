"""Fine-tunes the whole UNet of a model, erased or not, on captioned images.

  python -m launch.finetune --edit=runs/uce --workdir=runs/tuned \
    --config=configs/finetune_full.py:tiny,without=object/star
  python -m launch.finetune --edit=runs/uce --workdir=runs/tuned \
    --config=configs/finetune_full.py:sd14 --config.data.path=my/images

Full size has the full protocol of the concept-resurgence study. `only` and
`without` choose renders of the Shapes world, as `only=object/circle+square`.
`tiny` is for a CPU: a step of 16 images takes 0.18 s on one core, and a batch
here has 48. `sd14` needs one accelerator or several
(docs/performance.md has the memory); it was not timed.
"""

from unlearning_jax.configs import finetunes


def get_config(argument: str = "tiny"):
  size, config = finetunes.parse("full", argument)
  config.batch_size, config.accumulate = 32, 4
  config.optimizer.schedule = "constant"
  config.optimizer.learning_rate = 1e-5
  config.ema_decay = 0.9999
  if size == "tiny":
    # The Shapes network learns at ten times the published rate.
    config.optimizer.learning_rate = 1e-4
    config.batch_size, config.accumulate = 48, 1
    config.ema_decay = None
    config.num_steps = 150
    config.checkpoints = (5, 10, 20, 50, 100, 150)
  return config
