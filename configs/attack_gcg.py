"""GCG (Zou et al., 2023): greedy coordinate gradient.

  python -m launch.attack --edit=runs/uce --workdir=runs/gcg \
    --config=configs/attack_gcg.py:tiny,task=object,name=star

An iteration costs one gradient and `candidates` forward passes, so give it
fewer iterations than UnlearnDiffAtk. `preset=published` attacks the text
encoder at the published sizes: twenty free tokens get the prompt's text state,
and the UNet is not used. `preset=fitness` searches for Ring-A-Bell's target in
the same way, and `published+fitness` does so with as many candidates.
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
