"""What an audit would run: rows, pictures, UNet calls, reachable verdicts."""

import dataclasses

from unlearning_jax.attacks import Victim
from unlearning_jax.experiments import drawing
from unlearning_jax.experiments.attack import rows as attack_rows
from unlearning_jax.experiments.attack import victims
from unlearning_jax.experiments.audit.findings import NAMED
from unlearning_jax.experiments.audit.settings import Stage
from unlearning_jax.experiments.audit.stages import Audit
from unlearning_jax.metrics import verdicts
from unlearning_jax.sampling import Sampling

_UNIT = "UNet calls"


@dataclasses.dataclass(frozen=True)
class Cost:
  """The most that a stage can cost.

  Attributes:
    stage: the stage.
    rows: prompts with a seed.
    images: pictures that are drawn and judged.
    unet_calls: rows that pass through the UNet, without backward passes.
  """

  stage: Stage
  rows: int
  images: int
  unet_calls: int


def costs(audit: Audit) -> list[Cost]:
  """The most that each stage can cost, in order."""
  return [cost(audit, stage) for stage in audit.stages]


def cost(audit: Audit, stage: Stage) -> Cost:
  """The most that a stage can cost."""
  given = audit.given
  listed = len(drawing.rows(given.evaluate))
  a_picture = _picture(given.evaluate.sampling)
  if stage.kind == "erase":
    assert given.erase is not None
    own = 2 * len(drawing.rows(given.erase))
    return Cost(stage, own, own, own * _picture(given.erase.sampling))
  if stage.kind == "evaluate":
    count = listed * (1 + len(audit.names))
    return Cost(stage, listed, count, count * a_picture)
  if audit.why_not(stage):
    return Cost(stage, 0, 0, 0)
  if stage.kind == "attack":
    own = given.attacks[stage.what]
    rows, h = len(attack_rows.listed(own)), victims.bind(own)
    blocks = getattr(h.h, "blocks", 0)
    steps = blocks * getattr(h.h, "iterations", 0)
    calls = rows * steps * h.unet_calls(Victim(audit.base.params))
    images = rows * (1 + blocks)
    # The base draws each row's target, once for all attacks.
    first = next((one for one in audit.stages if one.kind == "attack"), None)
    images += rows if stage == first else 0
    return Cost(stage, rows, images, calls + images * _picture(own.sampling))
  own = given.tunings[stage.what]
  if stage.kind == "finetune":
    steps = own.num_steps * own.batch_size
    return Cost(stage, 0, 0, steps)
  count = listed * len(own.checkpoints)
  return Cost(stage, listed, count, count * a_picture)


def _picture(how: Sampling) -> int:
  return how.num_inference_steps * (2 if how.guidance_scale > 1 else 1)


def described(audit: Audit) -> str:
  """The stages, their cost and the verdicts that so few rows can reach."""
  given, lines = audit.given, []
  found = costs(audit)
  width = max(len(str(one.stage)) for one in found) if found else 0
  for one in found:
    why = audit.why_not(one.stage)
    text = (
      f"{one.rows:6,} rows  {one.images:7,} pictures  {one.unet_calls:10,} "
      f"{_UNIT}"
    )
    lines.append(f"{one.stage!s:{width}}  {why or text}")
  lines += [f"no {kind}: {why}" for kind, why in given.missing.items()]
  total = sum(one.unet_calls for one in found)
  pictures = sum(one.images for one in found)
  lines.append(f"at most {pictures:,} pictures and {total:,} {_UNIT} in all")
  for question, n in counts(audit).items():
    some = verdicts.reachable(question, n, verdicts.rules(given.rules))
    words = ", ".join(some) or "none"
    lines.append(f"{question}: {n} rows can show {words}")
  return "\n".join(lines)


def counts(audit: Audit) -> dict[str, int]:
  """Question -> the rows that its number is of."""
  given = audit.given
  kinds = {one.kind for one in audit.stages}
  listed = drawing.rows(given.evaluate)
  asking = [row for row in listed if row["group"] in NAMED]
  others = [row for row in listed if row["group"] == "others"]
  attacked = [
    len(attack_rows.listed(one)) for one in given.attacks.values()
  ] or [0]
  judged = given.evaluate.judge is not None
  found = {
    "gone": len(asking) if "evaluate" in kinds else 0,
    "attacked": min(attacked) if "attack" in kinds else 0,
    "stays": len(asking) if "resurgence" in kinds else 0,
    "kept": len(others) if "evaluate" in kinds else 0,
  }
  found = {name: n if judged else 0 for name, n in found.items()}
  return found | {"quality": len(listed) if "evaluate" in kinds else 0}
