"""Fine-tunes a model, erased or not, and keeps what it is at every checkpoint.

  python -m launch.finetune --config=configs/finetune_full.py:tiny \
    --edit=runs/uce --workdir=runs/tuned

Writes `steps/<n>.safetensors`, an edit of the base for every step in
`config.checkpoints`: `launch.evaluate --edits=runs/uce,runs/tuned/steps/...`
draws the curve of what comes back. Without `--edit` the base itself is tuned. A
run that was killed goes on from the last of these steps or, where they lie far
apart, from the last multiple of `config.checkpoint_every`, if its data and the
number of its processes are the same.
"""

import pathlib

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from unlearning_jax import (
  checkpoints,
  convert,
  data,
  finetune,
  sharding,
)
from unlearning_jax.edits import apply_to_params, edit_hash, save_edit
from unlearning_jax.experiments import comparison, tuning
from unlearning_jax.record import training_log, workdir
from unlearning_jax.shapes import tuning_sets

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder.", required=True
)
_EDIT = flags.DEFINE_string("edit", None, "An edit, or an erase run's folder.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes.")


def main(_):
  """Checks, caches the data, trains on from the last checkpoint, if any."""
  # The progress line is what a user follows; libraries only warn.
  logging.set_verbosity(logging.WARNING)
  sharding.initialize_distributed(_DISTRIBUTED.value)
  config, here = _CONFIG.value, (jax.process_index(), jax.process_count())
  tuning.check(config)
  mesh = sharding.make_mesh(**config.mesh)
  sd, base = comparison.load_model(config)
  sd = tuning.with_remat(sd, config.remat)
  edits = comparison.load_edits([_EDIT.value] if _EDIT.value else [])
  edit = next(iter(edits.values()), None)
  params = base if edit is None else apply_to_params(edit, base)
  if edit is not None:
    tuning.check_start(base, params, str(_EDIT.value))
  listed = tuning.examples(config)
  tuning.check_batch(config, len(listed), mesh, here[1])
  words = tuning_sets.words(edit) if config.model == "shapes" else ()
  tuning.check_overlap(listed, edit, config.allow_overlap, words)
  rows = data.share(listed, *here)
  part, step, state, frozen = tuning.prepare(sd, params, edit, config, mesh)

  run = workdir.Workdir(
    _WORKDIR.value, config, process_index=here[0], process_count=here[1]
  )
  run.record_provenance(
    devices=sharding.describe_devices(),
    base_fingerprint=convert.params_fingerprint(base),
    seeds={"seed": config.seed},
    inputs={
      **{name: edit_hash(e) for name, e in edits.items()},
      "data": data.fingerprint(listed),
      # Each shuffles its own share: other processes, other batches.
      "processes": str(here[1]),
    },
  )
  arrays = tuning.encode(sd, params, rows, config)
  batches = data.Batches(arrays, config.batch_size // here[1], config.seed)
  saved, steps = run.path / "checkpoints", pathlib.Path("steps")
  if checkpoints.latest_step(saved) is not None:
    state = checkpoints.restore(saved, state)
  saves = {*config.checkpoints, config.num_steps}
  saves.update(range(0, config.num_steps, config.checkpoint_every))

  def on_state(now: int, state: finetune.TrainState):
    if now in config.checkpoints:
      tuned = tuning.tuned_params(sd, params, part, state, edit, config)
      kept = tuning.as_edit(base, tuned, edit, f"{config.train}@{now}")
      if run.is_writer:
        save_edit(kept, run.path / steps / f"{now:06}.safetensors")
    if now in saves:
      checkpoints.save(saved, now, state)

  log = training_log.TrainingLog(
    run, "finetune", config.num_steps, int(state.step),
    tensorboard=config.tensorboard,
  )  # fmt: skip
  with log:
    state = finetune.train(
      state,
      step,
      frozen,
      batches,
      jax.random.key(config.seed + 1),
      mesh=mesh,
      num_steps=config.num_steps,
      every=config.log_every,
      at=saves,
      on_metrics=log,
      on_state=on_state,
    )
  tuning.export(run, part, state, config)
  run.save_summary({"steps": int(state.step), "examples": len(listed)})
  run.mark_done()


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
