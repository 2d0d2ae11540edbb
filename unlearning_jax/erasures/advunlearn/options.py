"""AdvUnlearn's presets and hyperparameters."""

import dataclasses
import math
import re
from collections.abc import Callable

from unlearning_jax.concepts import check_choice
from unlearning_jax.erasures.advunlearn.attack import ATTACKS
from unlearning_jax.erasures.advunlearn.bank import Walk
from unlearning_jax.settings import check_numbers


@dataclasses.dataclass(frozen=True)
class Preset:
  """Where the paper and the release differ."""

  legacy_attack: bool  # see `attack.adversarial`
  legacy_words: bool  # see `attack.layout`
  too_clean: bool  # see `bank.Walk`
  fast_steps: int  # updates of the attack "fast"


PRESETS = {
  "fixed": Preset(False, False, False, 1),
  "reference": Preset(True, True, True, 30),
}
TEXT = "text_encoder/text_model"


@dataclasses.dataclass(frozen=True)
class Hparams:
  """AdvUnlearn's hyperparameters.

  Attributes:
    preset: "fixed" or "reference".
    attack: "pgd", or "fast" for adversarial training with one signed step.
    attack_steps: updates of the attack; None for 30, or for "fast" the
      preset's. With 0 nothing is attacked.
    attack_learning_rate: Adam's, or the size of the signed step.
    num_tokens: k, the new tokens before the phrase.
    warmup_steps: training steps before the first attack.
    eta: the strength, as ESD's.
    retain_weight: weight of the retained prompts; the paper has 0.3 for nudity,
      0.5 for styles and objects.
    retain_batch: retained prompts in one step, for each row of the batch.
    layers: train the first so many layers of the text encoder; None for all and
      the last norm.
    start_guidance: guidance scale of the trajectories.
    num_inference_steps: DDIM steps of a whole trajectory.
    num_trajectories: trajectories towards all concepts, and as many towards all
      retained prompts; each phrase has one at least.
    banked: draw trajectories once, and not anew at every update.
    bank: a file to keep the trajectories in; one that is there is read.
    num_steps: training steps.
    learning_rate: Adam's, of the text encoder.
    batch_size: attacked phrases in one step. With 1, only one device trains.
  """

  preset: str = "fixed"
  attack: str = "pgd"
  attack_steps: int | None = None
  attack_learning_rate: float = 1e-3
  num_tokens: int = 1
  warmup_steps: int = 200
  eta: float = 1.0
  retain_weight: float = 0.3
  retain_batch: int = 5
  layers: int | None = None
  start_guidance: float = 3.0
  num_inference_steps: int = 50
  num_trajectories: int = 128
  banked: bool = True
  bank: str | None = None
  num_steps: int = 1000
  learning_rate: float = 1e-5
  batch_size: int = 1

  def __post_init__(self):
    check_choice("preset", self.preset, PRESETS)
    check_choice("attack", self.attack, ATTACKS)
    least = {
      "num_tokens": 1, "retain_batch": 1, "num_inference_steps": 2,
      "num_trajectories": 1, "num_steps": 1, "batch_size": 1,
      "warmup_steps": 0, "updates": 0, "eta": 0, "retain_weight": 0,
    }  # fmt: skip
    for name, low in least.items():
      value = getattr(self, name)
      if not (math.isfinite(value) and value >= low):
        name = "attack_steps" if name == "updates" else name
        raise ValueError(f"{name}={value}; allowed: from {low}")
    check_numbers(
      self, positive=("learning_rate", "attack_learning_rate"),
      finite=("start_guidance",),
    )  # fmt: skip
    if self.bank is not None and not self.banked:
      raise ValueError(
        f"bank={self.bank!r} and banked=False: nothing would be kept; leave "
        "one of them out"
      )

  @property
  def updates(self) -> int:
    """Updates of one attack."""
    if self.attack_steps is not None:
      return self.attack_steps
    return PRESETS[self.preset].fast_steps if self.attack == "fast" else 30

  @property
  def walk(self) -> Walk:
    """How trajectories are drawn."""
    too_clean = PRESETS[self.preset].too_clean
    return Walk(self.num_inference_steps, self.start_guidance, too_clean)


def trains(layers: int | None) -> Callable[[str], bool]:
  """Says of a parameter's path whether it trains; embeddings never do."""

  def wanted(path: str) -> bool:
    layer = re.match(rf"{TEXT}/encoder/layers_(\d+)/", path)
    if layer is None:
      return layers is None and path.startswith(f"{TEXT}/final_layer_norm/")
    # A key's bias adds the same to all scores of a query. Its gradient is
    # rounding alone, which Adam would turn into steps.
    if path.endswith("k_proj/bias"):
      return False
    return layers is None or int(layer[1]) < layers

  return wanted
