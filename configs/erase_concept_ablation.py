"""Concept Ablation trains a concept into its anchor, on the anchor's images.

  python -m launch.erase --workdir=runs/ablated \
    --config=configs/erase_concept_ablation.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/van_gogh --config.model=my/sd14 \
    --config=configs/erase_concept_ablation.py:sd14,task=style

Metric: accuracy on the erased concept and on everything else.

`tiny` leaves, by name of 70 images / others of 24 (8 steps of DPM-Solver++, one
seed): star 10 / 21, Quill Estane 0 / 24, neon 20 / 23, hazard 15 / 24.
"""

from configs import erasures


def get_config(argument: str = "tiny"):
  config = erasures.erase("concept_ablation", argument)
  if config.model == "shapes":
    # The phrases to erase are sentences already.
    config.hparams.expand_prompts = False
    config.hparams.images = 64
    config.hparams.num_inference_steps = 15
    config.hparams.guidance_scale = 4.0
    config.hparams.batch_size = 16
    config.hparams.num_steps = 140
    config.hparams.learning_rate = 1e-5
    # What the anchor means would drift along: it is what f says of it itself.
    config.hparams.regularization = 1.0
  return config
