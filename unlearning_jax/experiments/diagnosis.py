"""What `launch.diagnose` asks of an image, and what the answers come to."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unlearning_jax import stable_diffusion, statistics
from unlearning_jax.attacks import Victim
from unlearning_jax.attacks.engine import vocabulary
from unlearning_jax.concepts import check_choice
from unlearning_jax.experiments import attack_checks
from unlearning_jax.metrics import diffusion_classifier


def check(config: Any):
  """Finds what is wrong with the classes before anything is loaded.

  Raises:
    ValueError: naming the key.
  """
  if not config.classes:
    return
  check_choice("concept", config.concept, config.classes)
  if config.caption.count("{}") != 1:
    raise ValueError(
      f"caption={config.caption!r}: must hold one {{}}, where the class goes"
    )


def check_fits(
  config: Any,
  sd: stable_diffusion.StableDiffusion,
  listed: Sequence[Mapping[str, Any]],
):
  """Finds what the model cannot do before it draws.

  Raises:
    ValueError: as `attack_checks.check_drawing`; more timesteps than the model
      has, stages that are none, another criterion, or a caption too long.
  """
  attack_checks.check_drawing(config, sd, listed)
  diffusion_classifier.check(sd.schedule, _gap(config), config.criterion)
  if config.classes:
    try:
      diffusion_classifier.check(sd.schedule, _stages(config), config.criterion)
    except ValueError as error:
      raise ValueError(f"stages: {error}") from error
  stable_diffusion.tokenize(sd, [config.neutral, *_captions(config)])


def diagnosed(
  sd: stable_diffusion.StableDiffusion,
  who: Victim,
  latents: np.ndarray,
  prompt: str,
  config: Any,
) -> dict[str, Any]:
  """What a model makes of one image: `gap` and, given classes, `label`.

  Args:
    sd: the model.
    who: the original or the victim.
    latents: x_0 of the image.
    prompt: the row's.
    config: `timesteps` and `neutral` of the gap, `classes`, their `caption`
      and `stages` of the classifier, `criterion`.
  """
  key = jax.random.key(config.seed)
  options = {"key": key, "criterion": config.criterion}

  def race(prompts: Sequence[str], stages: Sequence[tuple[int, int]]):
    states = stable_diffusion.encode_prompts(
      sd, who.params, prompts, who.edit_context
    )
    return diffusion_classifier.classify(
      sd, who, jnp.asarray(latents), states, stages=stages, **options
    )

  # As the image was drawn: a prompt that is too long is cut.
  length = sd.context_shape[0]
  prompt = vocabulary.shortened(sd.tokenizer, prompt, length)
  pair = race([config.neutral, prompt], _gap(config))
  found: dict[str, Any] = {
    "neutral_error": float(pair.errors[0]),
    "error": float(pair.errors[1]),
    "gap": float(pair.errors[0] - pair.errors[1]),
  }
  if config.classes:
    winner = race(_captions(config), _stages(config))
    found["label"] = config.classes[winner.index]
  return found


def summary(rows: Sequence[dict[str, Any]], config: Any) -> dict[str, Any]:
  """Mean gaps, the victim's share of the original's, and labels that fit."""
  document: dict[str, Any] = {"title": config.title, "n": len(rows)}
  for who in ("original", "victim"):
    document[f"{who}_gap"] = float(np.mean([row[who]["gap"] for row in rows]))
    if config.classes:
      k = sum(row[who]["label"] == config.concept for row in rows)
      low, high = statistics.wilson(k, len(rows))
      document[f"{who}_label"] = {
        "value": k / len(rows), "low": low, "high": high, "k": k,
        "n": len(rows),
      }  # fmt: skip
  if document["original_gap"] > 0:
    document["kept"] = document["victim_gap"] / document["original_gap"]
  return document


def _gap(config: Any) -> tuple[tuple[int, int], ...]:
  return ((config.timesteps, 1),)


def _stages(config: Any) -> tuple[tuple[int, int], ...]:
  return tuple(map(tuple, config.stages))


def _captions(config: Any) -> list[str]:
  return [config.caption.format(name) for name in config.classes]
