"""Erases concepts from a model and shows what it did.

  python -m launch.erase --config=configs/erase_uce.py:tiny --workdir=runs/uce

Writes `edit.safetensors` (apply it with `launch.evaluate --edits`); of UCE and
MACE `statistics.safetensors`, from which `launch.amend` adds, removes and
re-weights concepts; and, unless the config evaluates nothing, images before and
after and `report.html`. A method that trains says how far it is; a run that was
killed goes on from the last multiple of `--checkpoint_every` steps.
"""

from absl import app, flags, logging
from ml_collections import config_flags

from unlearning_jax import concepts, erasures, sharding
from unlearning_jax.closed_form import statistics
from unlearning_jax.edits import Edit
from unlearning_jax.experiments import common, comparison, erase
from unlearning_jax.model import Model
from unlearning_jax.record import training_log

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder.", required=True
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes.")
# No result depends on them, so no config has them.
_EVERY = flags.DEFINE_integer(
  "checkpoint_every", 100, "Steps between states to go on from.", lower_bound=1
)
_TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Write events too.")


def main(_):
  """Checks, erases, compares."""
  # The progress line is what a user follows; libraries only warn.
  logging.set_verbosity(logging.WARNING)
  sharding.initialize_distributed(_DISTRIBUTED.value)
  config = _CONFIG.value
  # Everything that can be wrong is found before anything is written or
  # compiled.
  made_by = erasures.bind(config.method, config.hparams)
  phrases = erase.wanted(
    config.concepts,
    config.preserve,
    config.hparams.get("allow_conflict", False),
  )
  pairs = concepts.phrase_pairs(
    phrases,
    expand=config.hparams.get("expand_prompts", False),
    template_anchors=False,
  )
  comparison.check(config)
  statistics.check_unedited(config.model)
  if _TENSORBOARD.value:
    training_log.events_package()
  sd, params = comparison.load_model(config)
  spoken = [
    *(text for pair in pairs for text in pair),
    *concepts.preserved_phrases(phrases),
  ]
  cut = config.hparams.get("truncate", False)
  comparison.check_fits(config, sd, () if cut else spoken)
  run = comparison.open_run(_WORKDIR.value, config, params)
  hooks = erase.recorded(run, _EVERY.value, tensorboard=_TENSORBOARD.value)
  path = run.path / common.EDIT
  model = Model(sd, params)
  edit = erase.made(
    path, model, made_by, phrases, config.seed, hooks, run.is_writer
  )
  erase.tidy(run)
  # Guidance is drawn by nobody yet.
  edits = {common.stage_name(edit): edit} if isinstance(edit, Edit) else {}
  comparison.compare(run, sd, params, edits, config)
  run.mark_done()


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
