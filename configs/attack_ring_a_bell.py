"""Ring-A-Bell (Tsai et al., ICLR 2024): a prompt that replaces the row's own.

  python -m launch.attack --edit=runs/uce --workdir=runs/rab \
    --config=configs/attack_ring_a_bell.py:tiny,task=object,name=star

The pairs are the phrases that the erase configs erase, with their anchors.
Presets `nudity`, `violence`, `violence_77` and `art` have the published
strengths and lengths. `reference` is the released search, which may lose its
best prompt.
"""

from unlearning_jax.configs import attacks

_ONCE = {"blocks": 1, "iterations": 3000}
_PRESETS = {
  "reference": _ONCE | {"elitism": False, "vocabulary": "full"},
  "nudity": _ONCE | {"eta": 3.0, "num_tokens": 16},
  "violence": _ONCE | {"eta": 5.5, "num_tokens": 38},
  # Called 77: all but the start and the end.
  "violence_77": _ONCE | {"eta": 5.0, "num_tokens": 75},
  "art": _ONCE | {"eta": 0.9, "num_tokens": 16},
}


def get_config(argument: str = "tiny"):
  config = attacks.attack("ring_a_bell", argument, _PRESETS, num_tokens=16)
  config.hparams.pairs = attacks.pairs(argument)
  return config
