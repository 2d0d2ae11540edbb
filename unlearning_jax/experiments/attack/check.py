"""Draws a victim's images of prompts, and has a judge look at them."""

import hashlib
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_jax import samplers, sampling, stable_diffusion
from unlearning_jax.attacks import Victim
from unlearning_jax.attacks.engine import lanes, rows
from unlearning_jax.experiments.attack import pool, sharing, victims
from unlearning_jax.experiments.attack.rows import (
  Listed,
  check_targets,
  layout,
)
from unlearning_jax.experiments.attack.settings import Settings
from unlearning_jax.experiments.attack.victims import Setup
from unlearning_jax.judges import Judge, Target
from unlearning_jax.record import Recorder
from unlearning_jax.sampling import Request, Sampling
from unlearning_jax.stable_diffusion import StableDiffusion

# Gets every image; returns the path where it is kept, or None.
OnImage = Callable[[Request, rows.Verdict, np.ndarray], str | None]


def fits(setup: Setup, listed: Listed):
  """Refuses what an attack would find out only after it has drawn images.

  Args:
    setup: the attack, on the host.
    listed: all rows of the run.

  Raises:
    ValueError: as `drawing_fits` and `lanes.check_attack`; a row cannot be
      attacked or leaves no room; the text of the guidance, the diffusion
      classifier or a caption of the pool does not fit the model.
  """
  given, sd, h = setup.given, setup.sd, setup.attack.h
  victims.check_guidance(given, listed, setup.victim)
  sharing.check(given, setup.attack)
  drawing_fits(given, sd, listed)
  lanes.check_attack(
    sd, setup.victim, setup.original, setup.attack, given.vocabulary
  )
  latents = np.zeros(sd.latent_shape, np.float32)
  table = [rows.Row(**row, latents=latents) for row in listed]
  rows.check_rows(table, sd.latent_shape)
  fitting, left_out = rows.prepare(
    sd, table, h.insertion, h.num_tokens, given.long_prompts
  )
  if left_out and not fitting:
    name, reason = next(iter(left_out.items()))
    raise ValueError(
      f"no row can be attacked with hparams.num_tokens={h.num_tokens}, and a "
      f"rate of such rows says nothing: row {name}: {reason}"
    )
  for key in ("negative_prompt", "concept"):
    try:
      stable_diffusion.tokenize(sd, [getattr(given.guidance, key)])
    except ValueError as error:
      raise ValueError(f"guidance.{key}: {error}") from error
  _ = setup.diffusion_classifier
  pool.captions_of(setup)


def drawing_fits(given: Settings, sd: StableDiffusion, listed: Listed):
  """Refuses target images or numbers of steps that the model cannot take.

  Raises:
    ValueError: naming the file or the key.
  """
  for how in (given.sampling, given.target_drawing):
    samplers.make_sampler(sd.schedule, how.num_inference_steps, how.sampler)
  check_targets(given, sd, listed)


def checker(
  record: Recorder,
  setup: Setup,
  listed: Listed,
  known: Iterable[Mapping[str, Any]] = (),
) -> rows.Check:
  """Returns a function that draws and judges the requests of an attack.

  It keeps the images that a page can show: of the rows' own prompts, of those
  that show the concept, and all of the first `grid_rows` rows. It keeps every
  image where there is no judge, or a metric reads images. What `known` rows say
  of the victim's own images is taken from them.
  """
  given = setup.given
  every = setup.judge is None or bool(given.image_metrics)
  own = {(row["prompt"], row["seed"]) for row in listed}
  shown = {row["seed"] for row in listed[: given.grid_rows]}
  folder = f"{setup.network}/" if setup.network else ""

  def keep(request: Request, verdict: rows.Verdict, image: np.ndarray):
    # A probe's images all have their row's own prompt and seed.
    plain = request.latents is None
    wanted = plain and (request.prompt, request.seed) in own
    wanted = wanted or verdict.success
    if every or wanted or request.seed in shown:
      return record.save_image(folder + image_name(request), image)
    return None

  check = drawn(
    setup.sd, setup.victim, given.sampling, keep, setup.judge, setup.target,
    **layout(setup.mesh, given.batch_size),
  )  # fmt: skip
  return check if setup.network else remembering(check, known)


def drawn(
  sd: StableDiffusion,
  victim: Victim,
  how: Sampling,
  on_image: OnImage | None = None,
  judge: Judge | None = None,
  target: Target | None = None,
  **where: Any,
) -> rows.Check:
  """Returns a function that draws requests and judges the images.

  Args:
    victim: the model that draws.
    how: how images are drawn; a request may have a guidance_scale of its own.
    on_image: gets every image and returns where it is kept; None keeps none.
    judge: looks at the images; None leaves that for later.
    target: the target that the judge looks for.
    **where: of `sampling.draw`: `batch_size`, `place`, `fetch`.
  """

  def verdicts(images: np.ndarray) -> list[rows.Verdict]:
    if judge is None or target is None:
      return [rows.Verdict(None, None)] * len(images)
    return [rows.Verdict(*one) for one in judge.shows(judge(images), target)]

  def check(requests: Sequence[Request]) -> list[rows.Verdict]:
    found: dict[int, rows.Verdict] = {}
    for group in sampling.alike(requests, how.guidance_scale):
      part = [requests[i] for i in group]
      batches = sampling.draw(
        sd, victim.params, part, how, **victim.drawing, **where
      )
      images = np.concatenate(list(batches))
      for i, verdict, image in zip(
        group, verdicts(images), images, strict=True
      ):
        kept = on_image(requests[i], verdict, image) if on_image else None
        found[i] = verdict._replace(image=kept)
    return [found[i] for i in range(len(requests))]

  return check


def remembering(
  check: rows.Check,
  records: Iterable[Mapping[str, Any]],
  folder: str = "",
) -> rows.Check:
  """Answers from another attack's rows where it can; elsewhere asks `check`.

  Args:
    check: draws and judges what the rows do not know.
    records: rows of any attack on the same victim; each knows what its own
      prompt gave.
    folder: the other run's folder, relative to this run's; "" where the images
      are in this one.
  """
  known = {
    (r["prompt"], r["seed"], r["guidance"]): rows.Verdict(
      r["pre_success"],
      r["pre_score"],
      r["pre_image"] and str(pathlib.PurePosixPath(folder, r["pre_image"])),
    )
    for r in records
  }

  def checked(requests: Sequence[Request]) -> list[rows.Verdict]:
    plain = (r.context is None and r.latents is None for r in requests)
    found = [
      known.get(r[:3]) if own else None
      for r, own in zip(requests, plain, strict=True)
    ]
    new = [r for r, old in zip(requests, found, strict=True) if old is None]
    fresh = iter(check(new) if new else ())
    return [next(fresh) if old is None else old for old in found]

  return checked


def image_name(request: Request) -> str:
  """A file name for a request's image: its seed and a hash of the rest."""
  digest = hashlib.sha256(f"{request.prompt}\n{request.guidance}".encode())
  for given in (request.context, request.latents):
    if given is not None:
      digest.update(np.asarray(given).tobytes())
  return f"{request.seed}-{digest.hexdigest()[:12]}"
