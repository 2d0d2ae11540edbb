"""Compares a model with erased ones, image by image.

  python -m launch.evaluate --config=configs/evaluate_shapes.py:tiny \
    --edits=runs/uce,runs/rece --workdir=runs/evaluation
  python -m launch.evaluate --protocol=udm-nudity --prompts=nudity.csv \
    --model=my/sd14 --erased=esd.pt --attack=runs/attack --workdir=runs/row

Every model, also the base, draws the same prompts from the same noise.
"""

import functools

from absl.flags import DEFINE_integer, DEFINE_list, DEFINE_string

from . import flags

_CONFIG, _WORKDIR = flags.config(), flags.workdir()
_EDITS = DEFINE_list("edits", [], "Edits, or folders of erase runs.")
_ERASED = DEFINE_list("erased", [], "Models of others, or parts of one.")
_ASKED = {
  "protocol": DEFINE_string("protocol", None, "A protocol, not a config."),
  "judge": DEFINE_string("judge", None, "Another judge, package.module:name."),
  "more": flags.metrics("More metrics, also your own, package.module:name."),
  "model": DEFINE_string("model", "", "The base, for a published protocol."),
  "prompts": DEFINE_string("prompts", "", "Its table of prompts."),
  "reference": DEFINE_string("reference", "", "Its photographs, for FID."),
  "batch_size": DEFINE_integer("batch_size", None, "Images drawn at once."),
}
_ATTACK = DEFINE_list("attack", [], "Folders of attacks, for ASR.")
_UTILITY = DEFINE_string("utility", "", "The folder of a udm-utility run.")


def main(_):
  """Builds the settings, reads the models, evaluates."""
  from unlearning_jax.experiments import common, evaluate
  from unlearning_jax.report import comparison

  asked = {name: flag.value for name, flag in _ASKED.items()}
  given = _CONFIG.value.to_dict() if _CONFIG.value else None
  config, path = evaluate.config(given, **asked), _WORKDIR.value
  settings = flags.settings(evaluate.Settings, config)
  models = evaluate.read_models(settings, _EDITS.value, _ERASED.value)
  beside = evaluate.Beside(tuple(_ATTACK.value), _UTILITY.value)
  opened = functools.partial(common.workdir, path, config, evaluate.Settings)
  document = evaluate.run(settings, opened, models, beside)
  if common.is_first():
    print(f"{comparison.text_table(document)}\nreport: {path}/report.html")


def listed() -> list[str]:
  """What there is to evaluate with."""
  from unlearning_jax import judges, metrics, protocols

  kinds = {"protocol": protocols, "judge": judges, "metric": metrics}
  return [f"{k:9} {name}" for k, one in kinds.items() for name in one.names()]


if __name__ == "__main__":
  flags.run(main, listed)
