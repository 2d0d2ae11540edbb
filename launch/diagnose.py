"""Asks an unlearned model itself what images of the concept show.

  python -m launch.diagnose --edit=runs/uce --workdir=runs/diagnosis \
    --config=configs/diagnose.py:tiny,task=object,name=star

The original model draws the concept's prompts; then the original and the victim
denoise these images, each row's under its own prompt, under a neutral one, and
under a caption of every class (Diffusion Classifier). A victim whose gap
between neutral and own prompt is near the original's has not lost the concept.
"""

from collections.abc import Sequence

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from unlearning_jax import sharding
from unlearning_jax.attacks import Victim
from unlearning_jax.experiments import (
  attack_table,
  comparison,
  diagnosis,
  victims,
)
from unlearning_jax.record import progress

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder.", required=True
)
_EDIT = flags.DEFINE_string("edit", "", "Edit file, or erase run's folder.")


def main(_: Sequence[str]):
  """Draws, denoises, summarizes."""
  logging.set_verbosity(logging.WARNING)
  config = _CONFIG.value
  attack_table.check(config)
  victims.check(config)
  diagnosis.check(config)
  listed = attack_table.listed(config)
  sd, params, edits, victim, name, held = victims.load(config, _EDIT.value)
  diagnosis.check_fits(config, sd, listed)
  inputs = {"victim": name, **attack_table.hashes(config, listed)}
  run = comparison.open_run(
    _WORKDIR.value, config, params, edits, inputs=inputs
  )
  mesh = sharding.make_mesh(devices=jax.local_devices())
  original = Victim(sharding.place(params, sharding.replicated(mesh)))
  victim = victims.place(victim, params, original.params, mesh)
  left = [row for row in listed if row["id"] not in run.done_ids()]
  targets = run.path / "images" / "targets"
  table = attack_table.targeted(
    sd, original.params, left, config, mesh, targets
  )
  done = len(listed) - len(left)
  with progress.Progress("diagnose", len(listed), done=done) as bar:
    for row in table:
      found = {
        who: diagnosis.diagnosed(sd, model, row.latents, row.prompt, config)
        for who, model in (("original", original), ("victim", victim))
      }
      run.append_row({"id": row.id, "prompt": row.prompt, **found})
      bar.update()
  document = diagnosis.summary(run.rows(), config)
  if held:
    document["victim_file"] = held
  run.save_summary(document)
  for key, value in document.items():
    print(f"{key}: {value}")
  run.mark_done()


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
