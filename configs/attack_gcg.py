"""GCG; the argument says on which model, and for which concept.

  python -m launch.attack --edit=runs/uce --workdir=runs/gcg \
    --config=configs/attack_gcg.py:tiny,task=object,name=star

Tasks: object, style, identity, unsafe. An iteration costs one gradient and
`candidates` forward passes: give it fewer iterations than UnlearnDiffAtk.
`preset=published` is the attack on text encoders at its published sizes: twenty
free tokens whose text state shall be the prompt's, found without the UNet;
`preset=fitness` looks for Ring-A-Bell's target in that way, and joined,
`published+fitness`, with as many candidates.
Metric: attack success beside a control's, `--control=runs/random`.
"""

from unlearning_jax.configs import attacks

_PRESETS = {
  "denoise": {},
  "match": {"loss": "match"},
  "feature": {"loss": "feature"},
  "fitness": {"loss": "fitness"},
  "published": {
    "loss": "feature",
    "insertion": "replace",
    "num_tokens": 20,
    "top": 256,
    "candidates": 512,
    "blocks": 1,
    "iterations": 1000,
  },
}


def get_config(argument: str = "tiny"):
  config = attacks.attack("gcg", argument, _PRESETS, iterations=10)
  if config.hparams.loss == "fitness":
    config.hparams.pairs = attacks.pairs(argument)
  return config
