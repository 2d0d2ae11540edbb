"""Trains one part of the Shapes model; resumes from its last checkpoint."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from unlearning_jax import checkpoints, finetune, sharding
from unlearning_jax.concepts import check_choice
from unlearning_jax.data import Batches
from unlearning_jax.record import Recorder, training_log
from unlearning_jax.settings import Free, Output
from unlearning_jax.shapes import dataset, judge, tasks, vocabulary

# Stage -> the settings that it needs.
STAGES = {
  "judge": (),
  "vae": ("vae", "loss"),
  "clip": ("text_encoder", "tower", "tokenizer_captions"),
  "unet": ("unet", "scheduler", "loss"),
}
Part = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """The renders to train on.

  Attributes:
    size: the number of renders.
    seed: draws them.
    without: classes to leave out, as `object/star+cross,style/neon`.
  """

  size: Output[int] = 60_000
  seed: Output[int] = 0
  without: Output[str] = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """AdamW with a cosine schedule; see `finetune.optimizer`."""

  learning_rate: Output[float] = 1e-3
  weight_decay: Output[float] = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """One stage of the Shapes model's training.

  Attributes:
    stage: a name in `STAGES`.
    num_steps: training steps.
    seed: draws weights and batches.
    init: a model folder whose weights to start from; "" for new ones.
    data: the renders to train on.
    batch_size: renders in a step.
    optimizer: AdamW's settings.
    ema_decay: decay of the averaged weights, which are the result.
    log_every: steps between lines of metrics.
    checkpoint_every: steps between checkpoints.
    loss: options of the stage's loss, see `training`.
    vae: the autoencoder's config, as in a diffusers folder.
    unet: the UNet's config, likewise.
    text_encoder: the text encoder's config, likewise.
    scheduler: the noise schedule's config, likewise.
    tower: options of `Projections`.
    tokenizer_captions: the number of captions that the tokenizer learns from.
  """

  stage: Output[str]
  num_steps: Output[int]
  seed: Output[int] = 0
  init: Output[str] = ""
  data: Data = Data()
  batch_size: Output[int] = 64
  optimizer: Optimizer = Optimizer()
  ema_decay: Output[float] = 0.995
  log_every: Free[int] = 50
  checkpoint_every: Free[int] = 500
  loss: Output[Part | None] = None
  vae: Output[Part | None] = None
  unet: Output[Part | None] = None
  text_encoder: Output[Part | None] = None
  scheduler: Output[Part | None] = None
  tower: Output[Part | None] = None
  tokenizer_captions: Output[int | None] = None

  def __post_init__(self):
    check_choice("stage", self.stage, STAGES)
    vocabulary.parse_classes(self.data.without, "data.without")
    for key in ("num_steps", "batch_size", "log_every", "checkpoint_every"):
      if getattr(self, key) < 1:
        raise ValueError(f"{key}={getattr(self, key)}: must be at least 1")
    for key in STAGES[self.stage]:
      if getattr(self, key) is None:
        raise ValueError(f"{key}=None: stage={self.stage!r} needs it; set it")


def renders(given: Data, cache: pathlib.Path) -> dict[str, np.ndarray]:
  """The training set, rendered once and kept in the folder `cache`."""
  path = cache / f"renders-{given.size}-{given.seed}.npz"
  if not path.exists():
    drawn = dataset.dataset(
      given.size, given.seed, "train", processes=os.cpu_count() or 1
    )
    labels = {f"label_{k}": v for k, v in drawn["labels"].items()}
    part = path.with_suffix(".part.npz")
    np.savez(part, images=drawn["images"], captions=drawn["captions"], **labels)
    part.rename(path)
  with np.load(path) as stored:
    return dict(stored)


def without(data: dict[str, np.ndarray], what: str) -> dict[str, np.ndarray]:
  """The training set without some classes, for a model that never saw them.

  Such a model is the control of Concept Inversion: whatever the inversion draws
  with it, the inversion itself taught.

  Args:
    data: from `renders`.
    what: classes, as `object/star+cross,style/neon`; "" leaves nothing out.

  Raises:
    ValueError: an unknown head or class.
  """
  if not what:
    return data
  barred = vocabulary.parse_classes(what, "data.without")
  kept = ~np.any(
    [np.isin(data[f"label_{h}"], list(v)) for h, v in barred.items()], axis=0
  )
  return {key: values[kept] for key, values in data.items()}


def _judge(
  given: Settings, data: Mapping[str, np.ndarray], folder: pathlib.Path
) -> tasks.Task:
  """The judge's `Task`."""
  del given
  heads = {name: tuple(classes) for name, classes in vocabulary.HEADS.items()}
  net = judge.ShapesNet(tuple((n, len(c)) for n, c in heads.items()))
  return tasks.Task(
    init=lambda key: net.init(key, np.zeros((1, 32, 32, 3), "f4"))["params"],
    loss=lambda *args: judge.loss(net, *args),
    frozen=(),
    arrays={k: v for k, v in data.items() if k != "captions"},
    finish=lambda params: judge.save(folder / "judge", params, heads),
  )


def run(given: Settings, opener: Callable[[], Recorder], folder: pathlib.Path):
  """Trains one stage.

  Args:
    given: the settings.
    opener: opens the run's record.
    folder: the model folder, with what earlier stages wrote; the renders are
      kept beside it.
  """
  record = opener()
  folder.mkdir(parents=True, exist_ok=True)
  record.record_provenance(
    devices=sharding.describe_devices(), seeds={"seed": given.seed}
  )
  data = without(renders(given.data, folder.parent), given.data.without)
  make = _judge if given.stage == "judge" else getattr(tasks, given.stage)
  task: tasks.Task = make(given, data, folder)
  here = jax.process_index(), jax.process_count()
  batches = Batches(task.arrays, given.batch_size, given.seed, here)
  key, last = jax.random.key(given.seed), given.num_steps
  tx = finetune.optimizer(num_steps=last, **dataclasses.asdict(given.optimizer))
  state = jax.jit(lambda key: finetune.init_state(task.init(key), tx))(key)
  saved = record.path / "checkpoints"
  if checkpoints.latest_step(saved) is not None:
    state = checkpoints.restore(saved, state)

  def on_state(step: int, state: finetune.TrainState):
    if step % given.checkpoint_every == 0 or step == last:
      checkpoints.save(saved, step, state)

  log = training_log.TrainingLog(
    record, f"train {given.stage}", last, int(state.step)
  )
  with log:
    state = finetune.train(
      state, finetune.make_step(task.loss, tx, given.ema_decay), task.frozen,
      batches, key, mesh=sharding.make_mesh(), num_steps=last,
      watch=finetune.Watch(
        every=given.log_every,
        on_metrics=log,
        on_state=on_state,
        on_stop=functools.partial(checkpoints.save_new, saved),
      ),
    )  # fmt: skip
  task.finish(jax.tree.map(np.asarray, state.ema))
  record.save_summary({"stage": given.stage, "steps": int(state.step)})
  record.mark_done()
