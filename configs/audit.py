"""The audits that ship: what each preset draws, attacks and tunes.

  python -m launch.audit --protocol=shapes-star --preset=quick \
    --edits=runs/uce --workdir=runs/audit

`quick` is for a first look: few rows, 4 images a row for the attack. `standard`
has the protocol's own rows and the attack matrix's budget. `full` has more
attacks, and a full fine-tuning beside LoRA.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unlearning_jax import extensions, protocols, settings
from unlearning_jax.concepts import check_choice
from unlearning_jax.experiments import audit, published
from unlearning_jax.judges import load, weights
from unlearning_jax.metrics import verdicts

_UNDRAWN = {"rows_per_group": 0, "other_rows": 0}
# The same model, seeds, judge and sampler, so that rows compare.
_SHARED = (
  "model", "kernels", "judge", "targets", "sampling", "seed", "dtype",
)  # fmt: skip
# Controls run first: attacks are compared with `random`.
_CONTROLS = ("random", "seed")


def listed() -> list[str]:
  """Lines that list the presets with their budgets, and the protocols."""
  lines = [
    f"preset    {name}: {', '.join(one.attacks)} with {one.blocks} images and "
    f"{one.iterations} steps each; tunes {', '.join(one.tunings)}"
    for name, one in _BUDGETS.items()
  ]
  return lines + [f"protocol  {name}" for name in protocols.names()]


class _Budget(NamedTuple):
  """The budget of a preset.

  Attributes:
    changes: of a world's protocol; "" draws it as it ships.
    rows: of each attack, in a world.
    blocks: images of a row, besides that of its own prompt.
    iterations: steps for each image.
    attacks: their names.
    tunings: kind -> its steps and checkpoints in a world; () for its config's.
    at_once: rows attacked, and images drawn, at once in a world; 0 for what the
      configs say.
  """

  changes: str
  rows: int
  blocks: int
  iterations: int
  attacks: tuple[str, ...]
  tunings: Mapping[str, tuple[int, ...]]
  at_once: int = 0


_BUDGETS = {
  "quick": _Budget(
    "rows_per_group=20,other_rows=40", 20, 4, 20, ("unlearn_diff_atk",),
    # Half of the rows: no lane is left without a row for long, and every stage
    # draws with one program.
    {"lora": (15, 40)}, at_once=10,
  ),
  "standard": _Budget("", 50, 9, 25, ("unlearn_diff_atk",), {"lora": ()}),
  "full": _Budget(
    "", 50, 19, 25, ("unlearn_diff_atk", "p4d", "pez"),
    {"lora": (), "full": ()},
  ),
}  # fmt: skip


def values(
  protocol: str,
  preset: str = "quick",
  *,
  prompts: str = "",
  model: str = "",
  data: str = "",
  kernels: str = "",
  erase: Any = None,
  claims: Mapping[str, float] | Sequence[str] = (),
  **more: Any,
) -> dict[str, Any]:
  """The plain settings of an audit by a protocol.

  Args:
    protocol: its name, as `shapes-star` or `udm-nudity`; one with changes of
      its own, `shapes-star~rows_per_group=2`, keeps them in every preset.
    preset: quick, standard or full.
    prompts: the table of prompts of a published protocol.
    model: the base; "" for the protocol's.
    data: captioned pictures to tune on; "" takes a world's neighbors of the
      concept, and tunes nothing where no world knows the model.
    kernels: how networks compute on a CPU, see `models.fast`; "" takes what
      `erase` says, or else `exact`.
    erase: the config of an erasure that makes a victim; None for none.
    claims: number -> what the model's makers say it is, or such texts as
      `asr=0.1`.
    **more: fields of `experiments.audit.Settings`.

  Raises:
    ValueError: the preset or protocol is unknown, a claim has another form, or
      as `published.config`.
  """
  check_choice("preset", preset, audit.PRESETS)
  own = _BUDGETS[preset]
  named = protocols.find(protocol)
  world = named.prompts is None
  if world and model not in ("", named.model):
    raise ValueError(
      f"--model={model}: protocol {protocol} is of {named.model!r}; leave the "
      "flag out, or name a published protocol"
    )
  if world and own.changes and "~" not in protocol:
    protocol += f"~{own.changes}"
  found = published.config(protocol, prompts=prompts, model=model)
  missing = {}
  found |= {"judge": _judge(found, missing)}
  if world and own.at_once:
    found["batch_size"] = own.at_once
  found["kernels"] = kernels or (erase or {}).get("kernels", "exact")
  data = data or (f"{found['model']}:near" if world else "")
  attacks, tunings = {}, {}
  if not (world or prompts):
    missing["attack"] = (
      "the protocol makes its own prompts; attacks need a table"
    )
  else:
    attacks = _attacks(own, found, prompts)
  if data:
    tunings = _tunings(own, found, world)
  else:
    missing["finetune"] = "no pictures to tune on; give --data=FOLDER"
  if not isinstance(claims, Mapping):
    claims = audit.claims(claims)
  # The evaluation draws its victim too.
  erasure = erase and erase.to_dict() | (_UNDRAWN if world else {})
  if erasure:
    erasure["kernels"] = found["kernels"]
  return {
    "evaluate": found,
    "attacks": attacks,
    "tunings": tunings,
    "data": data,
    "erase": erasure,
    "preset": preset,
    "missing": missing,
    "claims": dict(claims),
    "rules": named.rules or verdicts.FIRST,
    **more,
  }


def _judge(found: Mapping[str, Any], missing: dict[str, str]) -> str | None:
  """The protocol's judge; None where this machine lacks its weights."""
  if found["judge"] is None:
    missing["judge"] = "the protocol has none"
    return None
  try:
    load(found["judge"])
  except weights.MissingError as error:
    missing["judge"] = str(error)
    return None
  return found["judge"]


def _attacks(
  own: _Budget, found: Mapping[str, Any], prompts: str
) -> dict[str, dict[str, Any]]:
  """Controls and attacks with the evaluation's model, judge and sampling."""
  shared = {key: found[key] for key in _SHARED if key in found}
  world = found["model"] in extensions.worlds()
  if world:
    target = found["targets"][0]
    argument = f"tiny,task={target['task']},name={target['name']}"
    shared["rows_per_group"] = min(own.rows, found["rows_per_group"])
    if own.at_once:
      shared |= {"lanes": own.at_once, "batch_size": own.at_once}
  else:
    task = (found["published"] or {}).get("task", "")
    argument = f"sd14,task={task if task == 'unsafe' else 'object'}"
    shared["prompt_table"] = prompts
  made = {}
  for name in (*_CONTROLS, *own.attacks):
    method = "controls" if name in _CONTROLS else name
    module = importlib.import_module(f"unlearning_jax.configs.attack_{method}")
    config = module.get_config(argument).to_dict()
    budget = {"blocks": own.blocks, "iterations": own.iterations}
    if name in _CONTROLS:
      budget = {"blocks": own.blocks, "kind": name}
    known = {k: v for k, v in budget.items() if k in config["hparams"]}
    made[name] = settings.changed(config, shared | {"hparams": known})
  return made


def _tunings(
  own: _Budget, found: Mapping[str, Any], world: bool
) -> dict[str, dict[str, Any]]:
  made = {}
  for kind, steps in own.tunings.items():
    module = importlib.import_module(f"unlearning_jax.configs.finetune_{kind}")
    config = module.get_config("tiny" if world else "sd14").to_dict()
    config |= {key: found[key] for key in ("model", "kernels")}
    if world and steps:
      config |= {"num_steps": steps[-1], "checkpoints": steps}
    made[kind] = config
  return made
