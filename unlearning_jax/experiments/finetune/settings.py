"""The settings of a fine-tuning, checked before anything is loaded."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from unlearning_jax import extensions, finetune
from unlearning_jax.concepts import check_choice
from unlearning_jax.finetune.loop import SCHEDULES
from unlearning_jax.record import tracking
from unlearning_jax.settings import Free, Output

# Sources of images besides the embedded worlds.
FILES = ("folder", "csv", "tfds")
DEFENSES = ("none", "project", "anchor", "reassert")


def sources() -> tuple[str, ...]:
  """The sources of captioned images."""
  return (*extensions.worlds(), *FILES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """The captioned images to tune on.

  Attributes:
    source: one of `sources`.
    path: a folder of captioned images or a WebDataset's `.tar`; a table; or the
      folder of a prepared dataset.
    caption: the key or column of the captions.
    split: the split of a tfds dataset.
    flip: True mirrors half of the images. A mirrored photo is as good as the
      photo, but a mirrored arrow points elsewhere.
    count: the number of a world's renders.
    seed: draws the renders.
    only: classes that the renders must show, as
      `object/circle+square,style/neon`; "" for any.
    without: classes that the renders must not show, in the same form.
  """

  source: Output[str] = "folder"
  path: Output[str] = ""
  caption: Output[str] = "text"
  split: Output[str] = "train"
  flip: Output[bool] = True
  count: Output[int] = 250
  seed: Output[int] = 1
  only: Output[str] = ""
  without: Output[str] = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
  """Low-rank adapters, for `train="lora"`; see `finetune.partition`."""

  rank: Output[int] = 4
  alpha: Output[float | None] = None
  targets: Output[str | tuple[str, ...]] = "attention"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """AdamW; see `finetune.optimizer`. A `clip_norm` of 0 clips nothing."""

  learning_rate: Output[float] = 1e-4
  schedule: Output[str] = "cosine"
  warmup: Output[float] = 0.0
  weight_decay: Output[float] = 0.01
  decay_all: Output[bool] = True
  clip_norm: Output[float | None] = 1.0
  b2: Output[float] = 0.999


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """The denoising loss; see `finetune.diffusion_loss`."""

  snr_gamma: Output[float | None] = None
  caption_dropout: Output[float] = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
  """How devices share the work; see `sharding.make_mesh`."""

  data: Free[int | None] = None
  fsdp: Free[int] = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defense:
  """What protects an erasure from tuning; see `finetune.defenses`.

  Attributes:
    kind: one of `DEFENSES`.
    num_directions: directions of the erased states that `project` protects;
      None takes as many as `energy` needs.
    energy: the share of the erased states in these directions, up to 1.
    center: True removes from the states what all prompts share.
    weight: the weight of the erased phrases in the loss of `anchor` and in what
      `reassert` solves.
  """

  kind: Output[str] = "none"
  num_directions: Output[int | None] = None
  energy: Output[float] = 0.99
  center: Output[bool] = True
  weight: Output[float] = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """A fine-tuning run.

  Attributes:
    train: what trains, one of `finetune.TRAINABLE`.
    model: the base: a world's name, a diffusers folder or a hub id.
    dtype: the type that networks compute in, float32 or bfloat16.
    attention: how attention is computed, see `models.attention`.
    kernels: how networks compute on a CPU, see `models.fast`.
    seed: seed of adapters, batches and noise.
    remat: True computes activations twice, to save memory.
    data: the captioned images.
    allow_overlap: True accepts captions that name what was erased.
    lora: the adapters of `train="lora"`.
    optimizer: the optimizer's settings.
    loss: the loss's settings.
    ema_decay: decay of the weights' average, which is then what is kept; None
      or 0 keeps no average.
    batch_size: images of a step, over all devices.
    accumulate: parts of a batch that are computed one after the other.
    num_steps: steps of the run.
    checkpoints: steps at which the model is kept. They are dense at first: most
      of what comes back does so in the first hundred steps.
    checkpoint_every: steps between further states to go on from.
    log_every: steps between lines of metrics.
    mesh: how devices share the work.
    defense: what protects the erasure.
    tensorboard: True writes TensorBoard events too.

  Raises:
    ValueError: naming the key that cannot be used.
  """

  train: Output[str]
  model: Output[str] = "shapes"
  dtype: Output[str] = "float32"
  attention: Output[str] = "auto"
  kernels: Output[str] = "exact"
  seed: Output[int] = 0
  remat: Free[bool] = False
  data: Data = Data()
  allow_overlap: Free[bool] = False
  lora: Lora = Lora()
  optimizer: Optimizer = Optimizer()
  loss: Loss = Loss()
  ema_decay: Output[float | None] = None
  batch_size: Output[int] = 4
  accumulate: Output[int] = 1
  num_steps: Output[int] = 1000
  checkpoints: Output[tuple[int, ...]] = (
    5, 10, 20, 40, 70, 100, 200, 300, 500, 700, 1000,
  )  # fmt: skip
  checkpoint_every: Free[int] = 200
  log_every: Free[int] = 10
  mesh: Mesh = Mesh()
  defense: Defense = Defense()
  tensorboard: Free[bool] = False

  def __post_init__(self):
    check_choice("train", self.train, finetune.TRAINABLE)
    check_choice("dtype", self.dtype, ("float32", "bfloat16"))
    check_choice("data.source", self.data.source, sources())
    check_choice("defense.kind", self.defense.kind, DEFENSES)
    check_choice("optimizer.schedule", self.optimizer.schedule, SCHEDULES)
    if self.defense.kind != "none" and self.train == "text_encoder":
      raise ValueError(
        f"defense.kind={self.defense.kind!r} protects what text states are "
        "mapped to; train='text_encoder' moves the states themselves"
      )
    for key, (fits, wanted) in _LIMITS.items():
      value: Any = functools.reduce(getattr, key.split("."), self)
      if value is not None and not (math.isfinite(value) and fits(value)):
        raise ValueError(f"{key}={value}: must be {wanted}")
    if self.tensorboard:
      tracking.package("tensorboardX", "tensorboard")
    late = [step for step in self.checkpoints if step > self.num_steps]
    if late:
      raise ValueError(
        f"checkpoints={late}: must not exceed num_steps={self.num_steps}"
      )
    if self.batch_size % self.accumulate:
      raise ValueError(
        f"batch_size={self.batch_size} is not a multiple of "
        f"accumulate={self.accumulate}"
      )


# Setting -> whether a value can be used, and what a usable one is. A setting
# that is None is not checked.
_LIMITS: dict[str, tuple[Callable[[float], bool], str]] = {
  "num_steps": (lambda x: x >= 1, "at least 1"),
  "batch_size": (lambda x: x >= 1, "at least 1"),
  "accumulate": (lambda x: x >= 1, "at least 1"),
  "log_every": (lambda x: x >= 1, "at least 1"),
  "checkpoint_every": (lambda x: x >= 1, "at least 1"),
  "optimizer.learning_rate": (lambda x: x >= 0, "at least 0"),
  # With 1 the rate would still rise at the last step.
  "optimizer.warmup": (
    lambda x: 0 <= x < 1,
    "the share of the steps that rise, from 0 to below 1",
  ),
  "optimizer.weight_decay": (lambda x: x >= 0, "at least 0"),
  "optimizer.clip_norm": (lambda x: x >= 0, "above 0, or 0 for no clipping"),
  "optimizer.b2": (lambda x: 0 <= x < 1, "from 0 to below 1"),
  "loss.snr_gamma": (lambda x: x > 0, "above 0; None weighs all steps alike"),
  "loss.caption_dropout": (lambda x: 0 <= x <= 1, "a share, from 0 to 1"),
  "ema_decay": (lambda x: 0 <= x <= 1, "up to 1, or 0 for no average"),
  "lora.rank": (lambda x: x >= 1, "at least 1"),
  "lora.alpha": (
    lambda x: x > 0,
    "above 0; None is the rank, for a scale of 1",
  ),
  "defense.num_directions": (
    lambda x: x >= 1,
    "at least 1; None goes by defense.energy",
  ),
  "defense.energy": (lambda x: 0 < x <= 1, "above 0, at most 1"),
  "defense.weight": (lambda x: x > 0, "above 0; defense.kind='none' is for 0"),
}
