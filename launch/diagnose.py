"""Asks an unlearned model itself what images of the concept show.

  python -m launch.diagnose --edit=runs/uce --workdir=runs/diagnosis \
    --config=configs/diagnose.py:tiny,task=object,name=star

The original model draws the concept's prompts; then the original and the victim
denoise these images, each row's under its own prompt, under a neutral one, and
under a caption of every class (Diffusion Classifier). A victim whose gap
between neutral and own prompt is near the original's has not lost the concept.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from launch.shared import attack_table, comparison, victims
from unlearning_jax import progress, sharding, stable_diffusion
from unlearning_jax.attacks import Victim
from unlearning_jax.attacks.shared import vocabulary
from unlearning_jax.evaluators import diffusion_classifier, statistics

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder.", required=True
)
_EDIT = flags.DEFINE_string("edit", "", "Edit file, or erase run's folder.")


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
  pair = race([config.neutral, prompt], ((config.timesteps, 1),))
  found: dict[str, Any] = {
    "neutral_error": float(pair.errors[0]),
    "error": float(pair.errors[1]),
    "gap": float(pair.errors[0] - pair.errors[1]),
  }
  if config.classes:
    captions = [config.caption.format(name) for name in config.classes]
    winner = race(captions, tuple(map(tuple, config.stages)))
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


def main(_: Sequence[str]):
  """Draws, denoises, summarizes."""
  logging.set_verbosity(logging.WARNING)
  config = _CONFIG.value
  attack_table.check(config)
  victims.check(config)
  listed = attack_table.listed(config)
  edits = comparison.load_edits([_EDIT.value] if _EDIT.value else [])
  if edits and config.victim:
    raise ValueError("victim: give either --edit or --config.victim")
  sd, params = comparison.load_model(config)
  victim = victims.victim_of(config, sd, params, edits)
  name = victims.fingerprint(victim, edits)
  run = comparison.open_run(
    _WORKDIR.value, config, params, edits, inputs={"victim": name}
  )
  mesh = sharding.make_mesh(devices=jax.local_devices())
  original = Victim(sharding.place(params, sharding.replicated(mesh)))
  victim = victims.place(victim, params, original.params, mesh)
  left = [row for row in listed if row["id"] not in run.done_ids()]
  targets = run.path / "images" / "targets"
  table = attack_table.targeted(
    sd, original.params, left, config, mesh, targets
  )
  done = len(listed) - len(left)
  with progress.Progress("diagnose", len(listed), done=done) as bar:
    for row in table:
      found = {
        who: diagnosed(sd, model, row.latents, row.prompt, config)
        for who, model in (("original", original), ("victim", victim))
      }
      run.append_row({"id": row.id, "prompt": row.prompt, **found})
      bar.update()
  document = summary(run.rows(), config)
  run.save_summary(document)
  for key, value in document.items():
    print(f"{key}: {value}")
  run.mark_done()


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
