"""Trains one part of the Shapes model: judge, vae, clip or unet.

  python -m launch.train --config=configs/train_shapes_vae.py \
    --workdir=runs/vae --model=runs/shapes
"""

import os
import pathlib

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from unlearning_jax import checkpoints, finetune, sharding
from unlearning_jax.data import Batches
from unlearning_jax.record import training_log, workdir
from unlearning_jax.shapes import dataset, judge, tasks, vocabulary

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder.", required=True
)
_MODEL = flags.DEFINE_string(
  "model", None, "Folder of the model being built.", required=True
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes.")


def renders(config, cache: pathlib.Path) -> dict[str, np.ndarray]:
  """The rendered training set, drawn once and kept beside the model."""
  path = cache / f"renders-{config.size}-{config.seed}.npz"
  if not path.exists():
    drawn = dataset.dataset(
      config.size, config.seed, "train", processes=os.cpu_count() or 1
    )
    labels = {f"label_{k}": v for k, v in drawn["labels"].items()}
    part = path.with_suffix(".part.npz")
    np.savez(part, images=drawn["images"], captions=drawn["captions"], **labels)
    part.rename(path)
  with np.load(path) as stored:
    return dict(stored)


def without(data: dict[str, np.ndarray], what: str) -> dict[str, np.ndarray]:
  """The training set without some classes: for a model that never saw them.

  What an attack on embeddings brings back from such a model, it taught it:
  the control of Concept Inversion.

  Args:
    data: from `renders`.
    what: as `object/star+cross,style/neon`; "" leaves nothing out.

  Raises:
    ValueError: no such head or class.
  """
  if not what:
    return data
  barred = vocabulary.parse_classes(what, "data.without")
  kept = ~np.any(
    [np.isin(data[f"label_{h}"], list(v)) for h, v in barred.items()], axis=0
  )
  return {key: values[kept] for key, values in data.items()}


def judge_task(config, data, folder: pathlib.Path) -> tasks.Task:
  """The judge, in the same form as the generator's parts."""
  heads = {name: tuple(classes) for name, classes in vocabulary.HEADS.items()}
  net = judge.ShapesNet(tuple((n, len(c)) for n, c in heads.items()))
  return tasks.Task(
    init=lambda key: net.init(key, np.zeros((1, 32, 32, 3), "f4"))["params"],
    loss=lambda *args: judge.loss(net, *args),
    frozen=(),
    arrays={k: v for k, v in data.items() if k != "captions"},
    finish=lambda params: judge.save(folder / "judge", params, heads),
  )


def main(_):
  """Trains one stage, from its last checkpoint if there is one."""
  # The progress line is what a user follows; libraries only warn.
  logging.set_verbosity(logging.WARNING)
  sharding.initialize_distributed(_DISTRIBUTED.value)
  config = _CONFIG.value
  vocabulary.parse_classes(config.data.without, "data.without")
  stages = {
    "judge": judge_task,
    "vae": tasks.vae,
    "clip": tasks.clip,
    "unet": tasks.unet,
  }
  run = workdir.Workdir(
    _WORKDIR.value,
    config,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  folder = pathlib.Path(_MODEL.value)
  folder.mkdir(parents=True, exist_ok=True)
  run.record_provenance(
    devices=sharding.describe_devices(), seeds={"seed": config.seed}
  )
  data = without(renders(config.data, folder.parent), config.data.without)
  task = stages[config.stage](config, data, folder)

  mesh = sharding.make_mesh()
  key = jax.random.key(config.seed)
  tx = finetune.optimizer(num_steps=config.num_steps, **config.optimizer)
  state = jax.jit(lambda key: finetune.init_state(task.init(key), tx))(key)
  saved = pathlib.Path(_WORKDIR.value) / "checkpoints"
  if checkpoints.latest_step(saved) is not None:
    state = checkpoints.restore(saved, state)

  def on_state(step: int, state: finetune.TrainState):
    if step % config.checkpoint_every == 0 or step == config.num_steps:
      checkpoints.save(saved, step, state)

  log = training_log.TrainingLog(
    run, f"train {config.stage}", config.num_steps, int(state.step)
  )
  with log:
    state = finetune.train(
      state,
      finetune.make_step(task.loss, tx, config.ema_decay),
      task.frozen,
      Batches(
        task.arrays,
        config.batch_size // jax.process_count(),
        config.seed,
        jax.process_index(),
        jax.process_count(),
      ),
      key,
      mesh=mesh,
      num_steps=config.num_steps,
      every=config.log_every,
      on_metrics=log,
      on_state=on_state,
    )
  task.finish(jax.tree.map(np.asarray, state.ema))
  run.save_summary({"stage": config.stage, "steps": int(state.step)})
  run.mark_done()


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
