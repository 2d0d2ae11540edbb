"""Audits erased models: is the concept gone, and does it stay gone?

  python -m launch.audit --protocol=shapes-star --edits=runs/uce \
    --workdir=runs/audit

It evaluates, attacks with controls, fine-tunes, and writes a page of verdicts.
The exit status is 3 if a stage failed, and 4 if a verdict reached `--fail_on`.
"""

import functools
import importlib

from absl.flags import DEFINE_bool, DEFINE_enum, DEFINE_list, DEFINE_string

from . import flags

_CONFIG, _WORKDIR = flags.config(), flags.workdir()
_ASKED = flags.sizes() | {
  "protocol": DEFINE_string("protocol", None, "What is drawn, how, by whom."),
  "preset": DEFINE_string("preset", "quick", "quick, standard, full."),
  "prompts": DEFINE_string("prompts", "", "A published protocol's table."),
  "model": DEFINE_string("model", "", "The base, for a published protocol."),
  "redact": DEFINE_bool("redact", False, "No prompts in audit.zip."),
  "kernels": DEFINE_string("kernels", "", "On a CPU: exact or fast."),
  "data": DEFINE_string("data", "", "Captioned pictures to tune on."),
  "only": DEFINE_list("only", [], "Stages, or kinds of stages, to run."),
  "skip": DEFINE_list("skip", [], "Stages, or kinds, to leave out."),
  "claims": DEFINE_list("claim", [], "What its makers say, as asr=0.1."),
  "fail_on": DEFINE_enum("fail_on", "", ["", "warn", "fail"], "A gate for CI."),
}
_EDITS = DEFINE_list("edits", [], "Edits, or folders of erase runs.")
_ERASED = DEFINE_list("erased", [], "Models of others, or parts of one.")
_PLAN = DEFINE_bool("plan", False, "Only print what it would cost.")


def main(_):
  """Builds the settings, reads the victims, audits."""
  from unlearning_jax.experiments import audit, common, evaluate

  configs = importlib.import_module("unlearning_jax.configs.audit")
  asked = {name: flag.value for name, flag in _ASKED.items()}
  config = configs.values(**asked, erase=_CONFIG.value)
  given, path = flags.settings(audit.Settings, config), _WORKDIR.value
  models = evaluate.read_models(given.evaluate, _EDITS.value, _ERASED.value)
  if _PLAN.value:
    return print(audit.described(audit.Audit(given, models)))
  opened = functools.partial(common.workdir, path, config, audit.Settings)
  found = audit.run(given, opened, models)
  print(audit.printed(found, path))
  return audit.status(found, given.fail_on)


def listed():
  """The presets and the protocols."""
  return importlib.import_module("unlearning_jax.configs.audit").listed()


if __name__ == "__main__":
  flags.run(main, listed, polled=True)
