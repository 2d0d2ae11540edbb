"""Concept Ablation trains a concept into its anchor, on the anchor's images.

  python -m launch.erase --workdir=runs/ablated \
    --config=configs/erase_concept_ablation.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/van_gogh --config.model=my/sd14 \
    --config=configs/erase_concept_ablation.py:sd14,task=style

Metric: accuracy on the erased concept and on everything else. On `tiny` the
star by name falls to 0 of 12 images, and the other objects to 9 of 14 (12 steps
of DPM-Solver++, one seed): a first look, and not yet gentle.
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
