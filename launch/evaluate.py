"""Compares a model with erased ones, image by image.

  python -m launch.evaluate --config=configs/evaluate_shapes.py:tiny \
    --edits=runs/uce,runs/rece --workdir=runs/evaluation
  python -m launch.evaluate --protocol=shapes-star --edits=runs/uce \
    --workdir=runs/star

Every model draws the same prompts from the same noise. Without `--edits` only
the base is measured. A protocol is a frozen preset;
`shapes-star~rows_per_group=2` is another one, with its own name.
"""

import functools

from absl.flags import DEFINE_list, DEFINE_string

from . import flags

_CONFIG = flags.config()
_WORKDIR = flags.workdir()
_EDITS = DEFINE_list("edits", [], "Edits, or folders of erase runs.")
_PROTOCOL = DEFINE_string("protocol", None, "A protocol, in place of a config.")
_JUDGE = DEFINE_string("judge", None, "Another judge, package.module:name.")
_METRICS = flags.metrics("More metrics, also your own, package.module:name.")


def main(_):
  """Builds the settings, reads the models, evaluates."""
  import jax

  from unlearning_jax.experiments import common, evaluate
  from unlearning_jax.report import comparison

  given = _CONFIG.value.to_dict() if _CONFIG.value else None
  config = evaluate.config(given, _PROTOCOL.value, _JUDGE.value, _METRICS.value)
  settings = flags.settings(evaluate.Settings, config)
  models = evaluate.read_models(settings, _EDITS.value)
  path = _WORKDIR.value
  opened = functools.partial(common.workdir, path, config, evaluate.Settings)
  document = evaluate.run(settings, opened, models)
  if jax.process_index() == 0:
    print(comparison.text_table(document))
    print(f"report: {path}/report.html")


def listed() -> list[str]:
  """What there is to evaluate with."""
  from unlearning_jax import judges, metrics, protocols

  return [
    *(f"protocol  {name}" for name in protocols.names()),
    *(f"judge     {name}" for name in judges.names()),
    *(f"metric    {name}" for name in metrics.names()),
  ]


if __name__ == "__main__":
  flags.run(main, listed)
