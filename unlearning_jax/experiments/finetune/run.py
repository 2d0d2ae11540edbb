"""The run: checks, cached data, training on from the last state, edits."""

import pathlib
from collections.abc import Callable

import jax

from unlearning_jax import checkpoints, data, finetune, sharding
from unlearning_jax.edits import save_edit
from unlearning_jax.experiments import common
from unlearning_jax.experiments.finetune import images, parts
from unlearning_jax.experiments.finetune.settings import (
  DEFENSES,
  Settings,
  sources,
)
from unlearning_jax.model import Model
from unlearning_jax.record import Recorder, training_log


def listed() -> list[str]:
  """Lines: what may be said for `train`, `defense.kind`, `data.source`."""
  choices = {
    "train": finetune.TRAINABLE,
    "defense.kind": DEFENSES,
    "data.source": sources(),
  }
  return [f"{key}: {', '.join(names)}" for key, names in choices.items()]


def run(
  settings: Settings, opener: Callable[[], Recorder], model: Model
) -> dict[int, pathlib.Path]:
  """Tunes a model and keeps what it is at every checkpoint.

  Writes `steps/<n>.safetensors`, an edit of the base for every step in
  `settings.checkpoints`, and a LoRA run's adapters. A run that was killed goes
  on from its last state, if its data and the number of its processes are the
  same.

  Args:
    settings: the run's.
    opener: opens its record, once everything is checked.
    model: what is tuned: a base, or an erased one. If it is erased, captions
      must not say of what.

  Returns:
    Each kept step and its edit's file.

  Raises:
    ValueError: settings that do not fit the data, the model or the devices; or
      the record is of another run.
    FloatingPointError: the loss is not finite.
  """
  here = jax.process_index(), jax.process_count()
  mesh = sharding.make_mesh(settings.mesh.data, settings.mesh.fsdp)
  sd = parts.with_remat(model.sd, settings.remat)
  base, params, edit = model.params, model.weights, model.edit
  if edit is not None:
    parts.check_start(base, params, edit.method)
  found = _examples(settings, model, mesh)
  part, step, state, frozen = parts.prepare(sd, params, edit, settings, mesh)
  record = opener()
  made = {common.stage_name(edit): edit} if edit else {}
  # Each process shuffles its own share: other processes, other batches.
  inputs = {"data": data.fingerprint(found), "processes": str(here[1])}
  common.begin(record, settings, base, made, inputs)
  arrays = images.encode(sd, params, data.share(found, *here), settings)
  batches = data.Batches(arrays, settings.batch_size // here[1], settings.seed)
  saved, last = record.path / "checkpoints", settings.num_steps
  if checkpoints.latest_step(saved) is not None:
    state = checkpoints.restore(saved, state)
  saves = {*settings.checkpoints, last}
  saves.update(range(0, last, settings.checkpoint_every))

  def on_state(now: int, state: finetune.TrainState):
    if now in settings.checkpoints:
      tuned = parts.tuned_params(sd, params, part, state, edit, settings)
      kept = parts.as_edit(base, tuned, edit, f"{settings.train}@{now}")
      if record.is_writer:
        save_edit(kept, record.path / "steps" / f"{now:06}.safetensors")
    if now in saves:
      checkpoints.save(saved, now, state)

  log = training_log.TrainingLog(
    record, "finetune", last, int(state.step), tensorboard=settings.tensorboard
  )
  with log:
    state = finetune.train(
      state, step, frozen, batches, jax.random.key(settings.seed + 1),
      mesh=mesh, num_steps=last,
      watch=finetune.Watch(
        every=settings.log_every, at=saves, on_metrics=log, on_state=on_state
      ),
    )  # fmt: skip
  parts.export(record, part, state, settings)
  record.save_summary({"steps": int(state.step), "examples": len(found)})
  record.mark_done()
  return edits(record)


def _examples(
  settings: Settings, model: Model, mesh: sharding.Mesh
) -> list[data.Example]:
  """What is tuned on, found to be innocent."""
  if model.guidance is not None:
    raise ValueError(
      "finetune: guidance changes no weight, so there is nothing of it to tune "
      "away; tune model.base, and give the result its guidance again"
    )
  found = images.examples(settings.data)
  images.check_batch(settings, len(found), mesh, jax.process_count())
  world = common.world_of(settings)
  words = world.words(model.edit) if world else ()
  images.check_overlap(found, model.edit, settings.allow_overlap, words)
  return found


def edits(record: Recorder) -> dict[int, pathlib.Path]:
  """Each kept step of a run and its edit's file, in order."""
  files = sorted((record.path / "steps").glob("*.safetensors"))
  return {int(file.stem): file for file in files}
