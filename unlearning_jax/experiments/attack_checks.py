"""What rows and settings do not fit the model: told before a run begins."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_jax import attacks, samplers, stable_diffusion
from unlearning_jax.attacks import Victim
from unlearning_jax.attacks.engine import lanes, rows
from unlearning_jax.experiments import attack_pool, attack_table, victims
from unlearning_jax.stable_diffusion import StableDiffusion

Listed = Sequence[Mapping[str, Any]]


def check(
  config: Any,
  sd: StableDiffusion,
  listed: Listed,
  attack: attacks.Attack,
  victim: Victim,
  original: Victim,
):
  """Refuses what an attack would find out only after it has drawn images.

  Args:
    config: the run's.
    sd: the model.
    listed: all rows, from `attack_table.listed`.
    attack: from `attacks.bind`.
    victim: under attack.
    original: the model before unlearning.

  Raises:
    ValueError: as `check_drawing` and `lanes.check_attack`; rows that cannot
      be attacked, prompts that leave no room where these are not dropped; a
      guidance's text, a proxy or captions of a pool that do not fit the model.
  """
  check_drawing(config, sd, listed)
  lanes.check_attack(sd, victim, original, attack, config.vocabulary)
  latents = np.zeros(sd.latent_shape, np.float32)
  table = [rows.Row(**row, latents=latents) for row in listed]
  rows.check_rows(table, sd.latent_shape)
  h = attack.h
  rows.prepare(sd, table, h.insertion, h.k, config.too_long)
  for key in ("negative_prompt", "concept"):
    try:
      stable_diffusion.tokenize(sd, [config.guidance[key]])
    except ValueError as error:
      raise ValueError(f"guidance.{key}: {error}") from error
  victims.proxy_of(config, sd, victim, original)
  attack_pool.captions_of(config, sd, attack)


def check_drawing(config: Any, sd: StableDiffusion, listed: Listed):
  """Refuses target images, or a number of steps, that the model cannot take.

  Raises:
    ValueError: naming the file or the key.
  """
  own = config.get("target_sampling", {})
  for given in (config.sampling, {**config.sampling, **own}):
    samplers.make_sampler(sd.schedule, given["num_steps"], given["sampler"])
  attack_table.check_targets(config, sd, listed)
