"""Compares a model with erased ones made of it, image by image.

  python -m launch.evaluate --config=configs/evaluate_shapes.py:tiny \
    --edits=runs/uce,runs/rece --workdir=runs/evaluation
  python -m launch.evaluate --protocol=shapes-star --edits=runs/uce \
    --workdir=runs/star

Every model draws the same prompts from the same noise. Without `--edits` the
base alone is measured. A protocol is a frozen preset;
`shapes-star~rows_per_group=2` is another one, with its own name.
"""

from absl import flags as absl_flags

from . import flags

_CONFIG = flags.config()
_WORKDIR = flags.workdir()
_EDITS = absl_flags.DEFINE_list("edits", [], "Edits, or erase runs' folders.")
_PROTOCOL = absl_flags.DEFINE_string(
  "protocol", None, "A protocol's name, in place of a config."
)
_JUDGE = absl_flags.DEFINE_string(
  "judge", None, "Another judge than the config's, as package.module:name."
)
_METRICS = absl_flags.DEFINE_list(
  "metrics", [], "More metrics, named likewise."
)


def main(_):
  """Builds the settings, reads the models, evaluates."""
  from unlearning_jax.experiments import common, evaluate
  from unlearning_jax.report import comparison
  from unlearning_jax.settings import build

  given = _CONFIG.value.to_dict() if _CONFIG.value else None
  config = evaluate.config(given, _PROTOCOL.value, _JUDGE.value, _METRICS.value)
  settings = build(evaluate.Settings, config)
  models = evaluate.read_models(settings, _EDITS.value)
  run = common.workdir(_WORKDIR.value, config, evaluate.Settings)
  document = evaluate.run(settings, run, models)
  if run.is_writer:
    print(comparison.text_table(document))
    print(f"report: {run.path / 'report.html'}")


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
