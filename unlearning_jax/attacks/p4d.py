"""Prompting4Debugging (Chin et al., ICML 2024): follow the original model.

The victim, given the adversarial prompt c', shall predict the noise that the
original model predicts, given the prompt itself:

  min_c'  E_{t, eps} |eps_o(x_t, c) - eps_v(x_t, c')|^2 ,

over hard prompts, found as PEZ finds them. The name stands for three things in
the literature, told apart by their hyperparameters:

  P4D-N     num_tokens=16, insertion="replace": free tokens, no prompt.
  P4D-K     insertion="every_three": one before every three tokens.
            Both: AdamW, rate 0.1, decay 0.1, random t, an image every 50
            of 3000 iterations.
  p4d_uda   what UnlearnDiffAtk's tables call P4D: a prefix, Adam with L2, rate
            0.01, timesteps in sequence. These are the defaults.
"""

import dataclasses

from unlearning_jax.attacks import pez
from unlearning_jax.attacks.pez import State, init, prompt, step

FINDS = "prompt"
UNET_CALLS = 1


@dataclasses.dataclass(frozen=True)
class Hparams(pez.Hparams):
  """As PEZ's, with P4D's loss."""

  loss: str = "match"


__all__ = ["Hparams", "State", "init", "prompt", "step"]
