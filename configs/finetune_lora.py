"""Tunes low-rank adapters of a model, erased or not.

  python -m launch.finetune --edit=runs/uce --workdir=runs/tuned \
    --config=configs/finetune_lora.py:tiny,without=object/star
  python -m launch.finetune --edit=runs/uce --workdir=runs/tuned \
    --config=configs/finetune_lora.py:sd14 --config.data.path=my/images

The LoRA protocol of the concept-resurgence study at full size: rank 4 on all
attention, 1000 updates of 4 images. Writes `lora.safetensors` as well, which
torch diffusers loads. Metric: as `finetune_full.py`.
"""

from configs import common


def get_config(argument: str = "tiny"):
  chosen = common.parse(argument, size="tiny", only="", without="")
  config = common.finetune(chosen["size"])
  config.train = "lora"
  config.data.only, config.data.without = chosen["only"], chosen["without"]
  config.batch_size, config.accumulate = 4, 4
  if chosen["size"] == "tiny":
    config.optimizer.learning_rate = 1e-3
    config.batch_size, config.accumulate = 48, 1
    config.num_steps = 150
    config.checkpoints = (5, 10, 20, 50, 100, 150)
  return config
