"""Attacks an unlearned model, many prompts at a time.

  python -m launch.attack --edit=runs/uce --workdir=runs/attack \
    --config=configs/attack_unlearn_diff_atk.py:tiny,task=object,name=star

Without `--edit` the model itself is attacked, or `--config.victim` if that
names another, or the UNet or text encoder of one; `--config.guidance` says what
it is kept from while it samples. `--control` names the run of a control on the
same rows. A row is recorded as it ends; a run that was killed goes on with
those left.
"""

from collections.abc import Sequence

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from unlearning_jax import sharding
from unlearning_jax.attacks import Victim
from unlearning_jax.experiments import (
  attack_checks,
  attack_pool,
  attack_summary,
  attack_table,
  comparison,
  victims,
)
from unlearning_jax.record import progress

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder.", required=True
)
_EDIT = flags.DEFINE_string("edit", "", "Edit file, or erase run's folder.")
_CONTROL = flags.DEFINE_string("control", "", "Folder of a control's run.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes.")


def main(_: Sequence[str]):
  """Checks, attacks, summarizes."""
  # The progress line is what a user follows; libraries only warn.
  logging.set_verbosity(logging.WARNING)
  sharding.initialize_distributed(_DISTRIBUTED.value)
  config = _CONFIG.value
  attack_table.check(config)
  victims.check(config)
  attack = victims.bind(config)
  listed = attack_table.listed(config)
  victims.check_guidance(config, listed)
  control = attack_summary.finished(_CONTROL.value)
  attack_summary.check_control(control, config, listed, bool(attack.soft))
  sd, params, edits, victim, name, held = victims.load(config, _EDIT.value)
  # Before the folder is taken: another config could not have it then.
  attack_summary.check_same_victim(control, name)
  attack_checks.check(config, sd, listed, attack, victim, Victim(params))
  inputs = {"victim": name, **victims.words_hash(attack)}
  inputs |= attack_table.hashes(config, listed)
  run = comparison.open_run(
    _WORKDIR.value, config, params, edits, inputs=inputs
  )
  # Processes share no array: each attacks its own rows on its own devices.
  mesh = sharding.make_mesh(devices=jax.local_devices())
  original = Victim(sharding.place(params, sharding.replicated(mesh)))
  victim = victims.place(victim, params, original.params, mesh)
  params = original.params
  done = run.done_ids()
  # Shares are of one list: none adds a row before all have read it.
  sharding.wait_for_all("rows listed")
  left = [row for row in listed if row["id"] not in done]
  mine = left[jax.process_index() :: jax.process_count()]
  targets = run.path / "images" / "targets"
  table = attack_table.targeted(sd, params, mine, config, mesh, targets)
  pool = attack_pool.pool_of(config, sd, params, attack, mesh) if mine else None
  check = attack_table.checker(run, sd, victim, config, mesh, listed)
  proxy = victims.proxy_of(config, sd, victim, original)
  done = len(listed) - len(left)
  share = -(-len(listed) // jax.process_count())
  with progress.Progress("attack", len(listed), done=done) as bar:
    for record in attack_table.attack_rows(
      run, sd, victim, original, attack, table, check, config, mesh,
      name=name, lanes=min(config.lanes, share), pool=pool, proxy=proxy,
    ):  # fmt: skip
      bar.update(note=record["status"])
  sharding.wait_for_all("rows attacked")
  print(attack_summary.conclude(run, sd, config, control, targets, held))
  run.mark_done()


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
