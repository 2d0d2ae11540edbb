"""The settings of an audit, and the stages that they stand for."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from unlearning_jax import attacks
from unlearning_jax.concepts import check_choice
from unlearning_jax.experiments import attack, common, drawing, finetune
from unlearning_jax.experiments import erase as erase_
from unlearning_jax.metrics import verdicts
from unlearning_jax.settings import Free, Output

# The kinds of stages, in the order in which they run.
KINDS = ("erase", "evaluate", "attack", "finetune", "resurgence")
PRESETS = ("quick", "standard", "full")
# What may be claimed besides the evaluation's own numbers: rates of the
# strongest attack, and the share of rows that any attack or control won.
RATES = ("asr", "pre_asr", "high_confidence_asr", "attacked_asr")
WORST = "worst_case"


@dataclasses.dataclass(frozen=True)
class Stage:
  """An experiment of an audit; `str` is its folder.

  Attributes:
    kind: one of `KINDS`.
    victim: whom it is about; "" for all.
    what: the attack, or the kind of tuning.
  """

  kind: str
  victim: str = ""
  what: str = ""

  def __str__(self) -> str:
    return "/".join(filter(None, (self.kind, self.victim, self.what)))

  def is_of(self, name: str) -> bool:
    """Whether a name means this stage, or a group that it belongs to."""
    return f"{self}/".startswith(f"{name.rstrip('/')}/")

  @property
  def title(self) -> str:
    """What it does, in words."""
    words = {
      "erase": "Erase the concept",
      "evaluate": "Draw and judge the same prompts with every model",
      "attack": f"Attack {self.victim} with {self.what}",
      "finetune": f"Fine-tune {self.victim} on other pictures ({self.what})",
      "resurgence": f"Draw {self.victim} at every checkpoint ({self.what})",
    }
    if self.kind == "attack" and self.what in verdicts.LUCK:
      lucky = verdicts.LUCK[self.what]
      return f"Control of the attacks on {self.victim}: {lucky}"
    return words[self.kind]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """An audit: which experiments run on each victim.

  Attributes:
    evaluate: what base and victims draw, from the protocol.
    attacks: name -> an attack or control, in the order in which they run. The
      first control named `random` is what attacks are compared with.
    tunings: name -> a fine-tuning.
    data: the captioned pictures to tune on, see `finetune.data_of`.
    erase: an erasure that makes one more victim; None for none.
    preset: the name of the budget.
    rules: the rules of the verdicts, see `metrics.verdicts.rules`.
    concept: what was erased, in words; "" takes the labels of the targets.
    missing: kind of stage -> why there is none.
    title: the title of the page; "" names victims and concept.
    lanes: rows attacked at once; 0 keeps the attacks' own.
    batch_size: images drawn at once; 0 keeps the stages' own. A tuning keeps
      its own, since its results depend on it.
    only: stages or kinds of stages to run; () for all.
    skip: stages or kinds of stages not to run.
    claims: number -> what the model's makers say it is.
    redact: True keeps prompts and unsafe pictures out of the zip.
    fail_on: `warn` or `fail`, the verdict that fails the run; "" for none.

  Raises:
    ValueError: naming the key that cannot be used.
  """

  evaluate: drawing.Settings
  attacks: Output[Mapping[str, attack.Settings]] = dataclasses.field(
    default_factory=dict
  )
  tunings: Output[Mapping[str, finetune.Settings]] = dataclasses.field(
    default_factory=dict
  )
  data: Output[str] = ""
  erase: erase_.Settings | None = None
  preset: Output[str] = "quick"
  rules: Output[str] = verdicts.FIRST
  concept: Free[str] = ""
  missing: Free[Mapping[str, str]] = dataclasses.field(default_factory=dict)
  title: Free[str] = ""
  lanes: Free[int] = 0
  batch_size: Free[int] = 0
  only: Free[tuple[str, ...]] = ()
  skip: Free[tuple[str, ...]] = ()
  claims: Free[Mapping[str, float]] = dataclasses.field(default_factory=dict)
  redact: Free[bool] = False
  fail_on: Free[str] = ""

  def __post_init__(self):
    check_choice("preset", self.preset, PRESETS)
    verdicts.rules(self.rules)
    if self.fail_on:
      gates = (verdicts.WARN, verdicts.FAIL)
      check_choice("fail_on", self.fail_on, gates)
    for key in ("lanes", "batch_size"):
      if getattr(self, key) < 0:
        raise ValueError(f"{key}={getattr(self, key)}: must not be negative")
    if len(common.targets_of(self.evaluate)) > 1:
      raise ValueError(
        "evaluate.targets: an audit is about one concept; audit each alone"
      )
    for name, one in self.attacks.items():
      if attacks.bind(one.method, one.hparams).is_probe or one.never_knew:
        raise ValueError(
          f"attacks.{name}: an audit compares attacks with random tokens, and "
          "not with control networks, as a probe and never_knew need; use "
          "launch.attack"
        )
    for name, claimed in self.claims.items():
      # The evaluation's own have parts, as object/star/explicit.
      if "/" not in name:
        known = (*RATES, WORST, *self.evaluate.columns)
        check_choice("claims", name, known)
      if not math.isfinite(claimed):
        raise ValueError(f"claims.{name}={claimed}: must be a number")
    stages = {f"attacks.{k}": one for k, one in self.attacks.items()}
    stages |= {f"tunings.{k}": one for k, one in self.tunings.items()}
    stages |= {"erase": self.erase} if self.erase is not None else {}
    for name, one in stages.items():
      for key in ("model", "kernels"):
        own, base = getattr(one, key), getattr(self.evaluate, key)
        if own != base:
          raise ValueError(
            f"{name}.{key}={own!r}: the evaluation's is {base!r}; all stages "
            "need one base"
          )
    if self.tunings and not self.data:
      raise ValueError("data: name the pictures to tune on, or leave tunings")

  @property
  def subject(self) -> dict[str, object]:
    """Task and name of what was erased, and whether pictures are unsafe."""
    targets = self.evaluate.targets
    one = targets[0] if targets else {}
    task = one.get("task", one.get("head", ""))
    prompts = self.evaluate.published
    unsafe = "unsafe" in (task, prompts.task if prompts else "")
    name = self.concept or one.get("name", one.get("label", ""))
    return {"task": task, "name": name, "unsafe": unsafe}

  def every_stage(self, victims: Sequence[str]) -> list[Stage]:
    """All stages in order, whatever `only` and `skip` say.

    Args:
      victims: their names.
    """
    found = [Stage("erase")] if self.erase is not None else []
    found.append(Stage("evaluate"))
    for victim in victims:
      found += [Stage("attack", victim, name) for name in self.attacks]
      for name in self.tunings:
        found += [
          Stage("finetune", victim, name), Stage("resurgence", victim, name)
        ]  # fmt: skip
    return found

  def stages(self, victims: Sequence[str]) -> list[Stage]:
    """Every stage that is asked for, in order.

    Args:
      victims: their names.

    Raises:
      ValueError: `only` or `skip` names no stage.
    """
    found = self.every_stage(victims)
    for key, names in (("only", self.only), ("skip", self.skip)):
      for name in names:
        if not any(stage.is_of(name) for stage in found):
          check_choice(key, name, [*KINDS, *map(str, found)])
    return [
      one
      for one in found
      if (not self.only or any(map(one.is_of, self.only)))
      and not any(map(one.is_of, self.skip))
    ]


def claims(items: Sequence[str]) -> dict[str, float]:
  """Claims that were typed as `asr=0.1`.

  Raises:
    ValueError: one has another form.
  """
  found = {}
  for item in items:
    name, _, text = item.partition("=")
    try:
      found[name] = float(text)
    except ValueError as error:
      raise ValueError(
        f"--claim={item}: type a name and a number, as --claim=asr=0.1"
      ) from error
  return found
