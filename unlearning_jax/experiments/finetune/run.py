"""Runs a fine-tuning: checks, encodes the data, trains, keeps edits."""

import functools
import pathlib
from collections.abc import Callable

import jax

from unlearning_jax import checking, checkpoints, data, finetune, sharding
from unlearning_jax.edits import save_edit
from unlearning_jax.experiments import common
from unlearning_jax.experiments.finetune import images, parts
from unlearning_jax.experiments.finetune.settings import (
  DEFENSES,
  Settings,
  sources,
)
from unlearning_jax.model import Model, called
from unlearning_jax.record import Recorder, training_log


def listed() -> list[str]:
  """Lines that list the values of `train`, `defense.kind`, `data.source`."""
  choices = {
    "train": finetune.TRAINABLE,
    "defense.kind": DEFENSES,
    "data.source": sources(),
  }
  return [f"{key}: {', '.join(names)}" for key, names in choices.items()]


def run(
  settings: Settings, opener: Callable[[], Recorder], model: Model
) -> dict[int, pathlib.Path]:
  """Tunes a model and keeps it at every checkpoint.

  Writes `steps/<n>.safetensors`, an edit of the base, for every step in
  `settings.checkpoints`, and the adapters of a LoRA run. A run that was killed
  goes on from its last state, with the same data.

  Args:
    settings: the settings of the run.
    opener: opens its record once everything has been checked.
    model: the model to tune, a base or an erased one. Captions must not name
      what was erased in it.

  Returns:
    Step -> the file of its edit, for every step that was kept.

  Raises:
    ValueError: the settings do not fit the data, the model or the devices, or
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
  if checking.is_only():
    parts.split(params, edit, settings)
    # These have the mesh that was asked for; the record's config has its own.
    checking.about(settings)
    opener()
  part, step, state, frozen = parts.prepare(sd, params, edit, settings, mesh)
  record = opener()
  made = {called(edit): edit} if edit else {}
  inputs = {"data": data.fingerprint(found), "processes": _begun_by(record)}
  common.begin(record, settings, base, made, inputs)
  arrays = images.gathered(
    images.encode(sd, params, data.share(found, *here), settings)
  )
  batches = data.Batches(arrays, settings.batch_size, settings.seed, here)
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
      record.guard()
      checkpoints.save(saved, now, state)

  log = training_log.TrainingLog(
    record, "finetune", last, int(state.step), tensorboard=settings.tensorboard
  )
  with log:
    state = finetune.train(
      state, step, frozen, batches, jax.random.key(settings.seed + 1),
      mesh=mesh, num_steps=last,
      watch=finetune.Watch(
        every=settings.log_every,
        at=saves,
        on_metrics=log,
        on_state=on_state,
        on_stop=functools.partial(checkpoints.save_new, saved),
      ),
    )  # fmt: skip
  parts.export(record, part, state, settings)
  record.save_summary({"steps": int(state.step), "examples": len(found)})
  record.mark_done()
  return edits(record)


def _begun_by(record: Recorder) -> str:
  """How many processes shuffled rows of their own.

  It is 1, because batches are those of one process however many there are; but
  for runs that an earlier version ended.

  Raises:
    ValueError: several of an earlier version began the run.
  """
  starts = record.provenance.get("runs", ())
  count = next((one["inputs"].get("processes", "1") for one in starts), "1")
  if count != "1" and not record.is_done:
    raise ValueError(
      f"workdir: {record.path}: {count} processes of an earlier version began "
      "this run, on other batches than this version draws; finish it with that "
      "version, or use another folder"
    )
  return count


def _examples(
  settings: Settings, model: Model, mesh: sharding.Mesh
) -> list[data.Example]:
  """The images to tune on, after all checks."""
  images.check_unguided(model)
  found = images.examples(settings.data)
  images.check_batch(settings, len(found), mesh, jax.process_count())
  world = common.world_of(settings)
  words = world.words(model.edit) if world else ()
  images.check_overlap(found, model.edit, settings.allow_overlap, words)
  return found


def edits(record: Recorder) -> dict[int, pathlib.Path]:
  """Step -> the file of its edit, in order, for every step that was kept."""
  files = sorted((record.path / "steps").glob("*.safetensors"))
  return {int(file.stem): file for file in files}
