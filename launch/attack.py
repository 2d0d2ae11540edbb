"""Attacks an unlearned model, many prompts at a time.

  python -m launch.attack --edit=runs/uce --workdir=runs/attack \
    --config=configs/attack_unlearn_diff_atk.py:tiny,task=object,name=star

Without `--edit` the model itself is attacked, or `--config.victim` if that
names another. `--control` names the run of a control on the same rows. A row
is recorded as it ends; a run that was killed goes on with those left.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import config_flags

from launch import attack_summary, attack_table, comparison
from unlearning_jax import (
  attacks,
  closed_form,
  progress,
  sharding,
  stable_diffusion,
)
from unlearning_jax.attacks import Victim

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder.", required=True
)
_EDIT = flags.DEFINE_string("edit", "", "Edit file, or erase run's folder.")
_CONTROL = flags.DEFINE_string("control", "", "Folder of a control's run.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes.")


def victim_of(config: Any, params: Any, edits: dict[str, Any]) -> Victim:
  """The attacked model: the one named, the edited one, or the original."""
  if config.victim:
    other = stable_diffusion.load(config.victim)[1]
    # Same networks only; `load` itself refuses leaves it cannot place.
    if jax.tree.map(jnp.shape, other) != jax.tree.map(jnp.shape, params):
      raise ValueError(f"victim={config.victim!r}: not of the model's shapes")
    return Victim(other)
  for edit in edits.values():
    closed_form.check_base(edit, params)
    # Text states rather than weights: all edits of a base share its UNet.
    if edit.context_map is not None:
      mapped = functools.partial(closed_form.apply_to_context, edit)
      return Victim(params, mapped)
    return Victim(closed_form.apply_to_params(edit, params))
  return Victim(params)


def main(_: Sequence[str]):
  """Checks, attacks, summarizes."""
  # The progress line is what a user follows; libraries only warn.
  logging.set_verbosity(logging.WARNING)
  sharding.initialize_distributed(_DISTRIBUTED.value)
  config = _CONFIG.value
  attack = attacks.bind(config.method, config.hparams)
  attack_table.check(config)
  listed = attack_table.listed(config)
  control = attack_summary.finished(_CONTROL.value)
  edits = comparison.load_edits([_EDIT.value] if _EDIT.value else [])
  if edits and config.victim:
    raise ValueError("victim: give either --edit or --config.victim")
  sd, params = comparison.load_model(config)
  run = comparison.open_run(_WORKDIR.value, config, params, edits)
  # Processes share no array: each attacks its own rows on its own devices.
  mesh = sharding.make_mesh(devices=jax.local_devices())
  params = sharding.place(params, sharding.replicated(mesh))
  # What the victim shares with the original is there already.
  victim = victim_of(config, params, edits)
  victim = jax.device_put(victim, sharding.replicated(mesh))
  original = Victim(params)
  done = run.done_ids()
  # Shares are of one list: none adds a row before all have read it.
  sharding.wait_for_all("rows listed")
  left = [row for row in listed if row["id"] not in done]
  mine = left[jax.process_index() :: jax.process_count()]
  targets = run.path / "images" / "targets"
  table = attack_table.targeted(sd, params, mine, config, mesh, targets)
  check = attack_table.checker(run, sd, victim, config, mesh, listed)
  done = len(listed) - len(left)
  with progress.Progress("attack", len(listed), done=done) as bar:
    for record in attack_table.attack_rows(
      run, sd, victim, original, attack, table, check, config, mesh
    ):
      bar.update(note=record["status"])
  sharding.wait_for_all("rows attacked")
  print(attack_summary.conclude(run, sd, config, control, targets))
  run.mark_done()


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
