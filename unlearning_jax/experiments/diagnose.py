"""Asks an unlearned model what images of the erased concept show.

`metrics.diffusion_classifier` does it. Rows and victims are those of `attack`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from unlearning_jax import attacks, stable_diffusion, statistics
from unlearning_jax.attacks import Victim
from unlearning_jax.attacks.engine import vocabulary
from unlearning_jax.concepts import check_choice
from unlearning_jax.experiments import attack, common
from unlearning_jax.experiments.attack import check, rows, victims
from unlearning_jax.metrics import diffusion_classifier
from unlearning_jax.model import Model
from unlearning_jax.record import Recorder
from unlearning_jax.settings import Output
from unlearning_jax.stable_diffusion import StableDiffusion


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(attack.Settings):
  """The images, and the prompts that they are compared with.

  Attributes:
    timesteps: timesteps over which the gap is measured.
    anchor: the neutral prompt of the gap.
    criterion: how noise errors are measured, `l2` or `l1`.
    stages: stages of the classifier, each (timesteps, prompts kept).
    classes: the classes to choose from; without any, no label is found.
    caption: the caption of a class, with {} where the class goes.
    concept: the one of `classes` that the images show.
  """

  timesteps: Output[int] = 50
  anchor: Output[str] = ""
  criterion: Output[str] = "l2"
  stages: Output[tuple[tuple[int, int], ...]] = ((50, 5), (500, 1))
  classes: Output[tuple[str, ...]] = ()
  caption: Output[str] = "{}"
  concept: Output[str] = ""

  def __post_init__(self):
    super().__post_init__()
    if not self.classes:
      return
    check_choice("concept", self.concept, self.classes)
    if self.caption.count("{}") != 1:
      raise ValueError(
        f"caption={self.caption!r}: must hold one {{}}, where the class goes"
      )

  @property
  def gap(self) -> tuple[tuple[int, int], ...]:
    """The single stage that compares the neutral and the row's own prompt."""
    return ((self.timesteps, 1),)

  @property
  def captions(self) -> list[str]:
    """The caption of each class."""
    return [self.caption.format(name) for name in self.classes]


def run(
  given: Settings,
  open_record: Callable[[], Recorder],
  *,
  edit: str = "",
  victim: Model | None = None,
) -> dict[str, Any]:
  """Draws the images, has both models denoise them, and summarizes.

  Args:
    given: the settings.
    open_record: opens the record once everything has been checked.
    edit: an edit file or the folder of an erasure; "" for none.
    victim: the victim itself; None takes what settings and `edit` name.

  Returns:
    The content of `summary.json`.

  Raises:
    ValueError: something cannot be done; nothing has been written.
  """
  listed = rows.listed(given)
  bound = attacks.bind(given.method, given.hparams)
  setup = victims.setup(given, bound, victim, edit)
  if setup.victim.negative_prompt or setup.victim.safe:
    raise ValueError(
      "diagnose: the victim acts by guidance, and noise is predicted without "
      "it: it would answer as if nothing were erased. Use attack or evaluate, "
      "or ask without guidance (--edit, --config.guidance)"
    )
  check_fits(given, setup.sd, listed)
  notes = rows.notes(given, setup.sd)
  record = open_record()
  common.say(notes)
  inputs = {"victim": setup.name, **rows.hashes(given, listed)}
  common.begin(record, given, setup.base.params, setup.edits, inputs)
  setup = victims.placed(setup)
  left = [row for row in listed if row["id"] not in record.done_ids()]
  targets = record.path / "images" / "targets"
  table = rows.targeted(setup.base, left, given, setup.mesh, targets)
  done = len(listed) - len(left)
  models = {"base": setup.original, "victim": setup.victim}
  with record.progress("diagnose", len(listed), done=done) as bar:
    for row in table:
      found = {
        who: diagnosed(setup.sd, model, row.latents, row.prompt, given)
        for who, model in models.items()
      }
      record.append_row({"id": row.id, "prompt": row.prompt, **found})
      bar.update()
  document = summary(record.rows(), given)
  if notes:
    document["notes"] = notes
  if setup.held:
    document["victim_file"] = dict(setup.held)
  record.save_summary(document)
  record.mark_done()
  return document


def check_fits(given: Settings, sd: StableDiffusion, listed: rows.Listed):
  """Refuses what the model cannot do, before anything is drawn.

  Raises:
    ValueError: as `attack.check.drawing_fits`; the model has fewer timesteps,
      the stages or the criterion cannot be used, or a caption is too long.
  """
  check.drawing_fits(given, sd, listed)
  diffusion_classifier.check(sd.schedule, given.gap, given.criterion)
  if given.classes:
    try:
      diffusion_classifier.check(sd.schedule, given.stages, given.criterion)
    except ValueError as error:
      raise ValueError(f"stages: {error}") from error
  stable_diffusion.tokenize(sd, [given.anchor, *given.captions])


def diagnosed(
  sd: StableDiffusion,
  who: Victim,
  latents: Float[np.ndarray, "h w c"],
  prompt: str,
  given: Settings,
) -> dict[str, Any]:
  """What a model makes of one image: `gap` and, given classes, `label`.

  Args:
    who: the original or the victim.
    latents: the image's latents x_0.
    prompt: the row's prompt.
    given: the settings.
  """
  key = jax.random.key(given.seed)

  def race(prompts: Sequence[str], stages: tuple[tuple[int, int], ...]):
    states = stable_diffusion.encode_prompts(
      sd, who.params, prompts, who.edit_context
    )
    return diffusion_classifier.classify(
      sd, who, jnp.asarray(latents), states, stages=stages, key=key,
      criterion=given.criterion,
    )  # fmt: skip

  # A long prompt is cut as it was when the image was drawn.
  length = sd.context_shape[0]
  prompt = vocabulary.shortened(sd.tokenizer, prompt, length)
  pair = race([given.anchor, prompt], given.gap)
  found: dict[str, Any] = {
    "anchor_error": float(pair.errors[0]),
    "error": float(pair.errors[1]),
    "gap": float(pair.errors[0] - pair.errors[1]),
  }
  if given.classes:
    winner = race(given.captions, given.stages)
    found["label"] = given.classes[winner.index]
  return found


def summary(
  records: Sequence[Mapping[str, Any]], given: Settings
) -> dict[str, Any]:
  """Mean gaps, the victim's share of the original's, and labels that fit."""
  document: dict[str, Any] = {"title": given.title, "n": len(records)}
  for who in ("base", "victim"):
    gaps = [record[who]["gap"] for record in records]
    document[f"{who}_gap"] = float(np.mean(gaps))
    if given.classes:
      k = sum(record[who]["label"] == given.concept for record in records)
      low, high = statistics.wilson(k, len(records))
      document[f"{who}_label"] = {
        "value": k / len(records), "low": low, "high": high, "k": k,
        "n": len(records),
      }  # fmt: skip
  if document["base_gap"] > 0:
    document["kept"] = document["victim_gap"] / document["base_gap"]
  return document
