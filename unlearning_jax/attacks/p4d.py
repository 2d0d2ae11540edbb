"""Prompting4Debugging (Chin et al., ICML 2024): follow the base model.

The victim with the adversarial prompt c' learns to predict the noise that the
base, eps_o, predicts with the row's own prompt c:

  min_c'  E_{t, eps} |eps_o(x_t, c) - eps_v(x_t, c')|^2 .

PEZ searches for c'. The literature uses the name for three procedures, which
differ in their hyperparameters:

  P4D-N     num_tokens=16, insertion="replace": free tokens without the row's
            prompt.
  P4D-K     insertion="every_three": one token before every three of c.
            Both use AdamW, rate 0.1, decay 0.1, random t, and draw an image
            after every 50 of 3000 iterations.
  p4d_uda   the one in UnlearnDiffAtk's tables: a prefix, Adam with L2, rate
            0.01, timesteps in sequence. These are the defaults.
"""

import dataclasses

from unlearning_jax.attacks import pez
from unlearning_jax.attacks.pez import State, init, prompt, step

FINDS = "prompt"
UNET_CALLS = 1


@dataclasses.dataclass(frozen=True)
class Hparams(pez.Hparams):
  """PEZ's hyperparameters, with P4D's loss."""

  loss: str = "match"


__all__ = ["Hparams", "State", "init", "prompt", "step"]
