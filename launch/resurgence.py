"""Does it stay gone? Erases once, tunes many ways, measures what comes back.

  python -m launch.resurgence --workdir=runs/resurgence \
    --config=configs/finetune_resurgence_small.py

Every measurement is a row as soon as it is done: a run that was killed goes on
where it was, a cell that fails leaves the others alone, none is run twice. With
`--distributed` each process has its own cells, and no checkpoints within one.
`--dry_run` prints the cells and what they cost. The report is written at the
end, and with `--report` from what there is.

An erased model from elsewhere is tuned and measured as the config says of its
concept, instead of the study's own: `--edits=<name>/<concept>=<path>`.
"""

import shutil

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from unlearning_jax import sharding, stable_diffusion
from unlearning_jax.edits import check_base
from unlearning_jax.experiments import (
  comparison,
  resurgence_cells,
  resurgence_plan,
  resurgence_study,
  resurgence_table,
)
from unlearning_jax.record import progress

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder.", required=True
)
_EDITS = flags.DEFINE_list(
  "edits", [], "A study of these alone: <name>/<concept>=<path>."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only say what would be done.")
_REPORT = flags.DEFINE_bool("report", False, "Only write the report.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes.")


def sizes(config, sd, params) -> dict[str, int]:
  """Bytes of an edit by method and of a checkpoint by algorithm, at most."""
  unet = sum(leaf.nbytes for leaf in jax.tree.leaves(params["unet"]))
  found = {}
  for name, entry in config.erasures.items():
    method = name.split("/")[0]
    # Maps of text states, in float64.
    made = 8 * sd.context_shape[1] ** 2 if method in ("uce", "rece") else unet
    # One from elsewhere stays where it is.
    found[method] = 0 if "edit" in entry else made
  # The parameters and Adam's two moments.
  return found | dict.fromkeys(config.algorithms, 3 * unet)


def main(_):
  """Checks, runs what is left, reports."""
  # The progress line is what a user follows; libraries only warn.
  logging.set_verbosity(logging.WARNING)
  config = _CONFIG.value
  resurgence_plan.with_edits(config, _EDITS.value)
  resurgence_plan.check(config)
  given = resurgence_plan.given(config)
  cells = resurgence_plan.cells(config)
  if _DRY_RUN.value:
    sd, params = comparison.load_model(config)
    size = sizes(config, sd, params)
    print(resurgence_plan.described(config, _WORKDIR.value, size))
    return
  sharding.initialize_distributed(_DISTRIBUTED.value)
  if not _REPORT.value:
    # A cell that fails for want of it would never be tried again.
    resurgence_plan.check_devices(config, resurgence_study.own_mesh())
  sd, base = comparison.load_model(config)
  for edit in given.values():
    check_base(edit, base)
  phrases = [
    text
    for entry in config.erasures.values()
    for pair in entry.get("pairs", ())
    for text in pair
  ]
  stable_diffusion.tokenize(sd, phrases)
  run = comparison.open_run(_WORKDIR.value, config, base, given)
  mine = cells if not _REPORT.value else []
  study = resurgence_study.Study(run, config, sd, base, given=given)
  points = sum(len(config.algorithms[c.algorithm].checkpoints) for c in cells)
  with progress.Progress("measure", points, done=_points(study)) as bar:
    study.note = lambda key: bar.update(_is_point(key), key)
    # All cells that share a row are one process's: it is made once.
    shares = list(dict.fromkeys((cell.concept, cell.seed) for cell in mine))
    own = set(shares[jax.process_index() :: jax.process_count()])
    left = [c for c in mine if (c.concept, c.seed) in own]
    left = [c for c in left if not study.ended(c)]
    for pack in resurgence_plan.packs(config, left):
      resurgence_cells.finish(study, *pack)
  sharding.wait_for_all("cells done")
  if run.is_writer:
    resurgence_table.write(run, study, cells)
  # Whoever measured them: one that the runtime failed is left for a next start.
  done = run.done_ids()
  left = [c for c in cells if not study.ended(c, done)]
  if not _REPORT.value and not left:
    # A kill after a cell's last row leaves its checkpoints.
    shutil.rmtree(run.path / "cells", ignore_errors=True)
    run.mark_done()


def _points(study) -> int:
  return sum(map(_is_point, study.rows))


def _is_point(key: str) -> bool:
  """Whether a row is of a tuned model."""
  return "@" in key and not key.endswith("@0")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
