"""Guidance: classifier-free, and Safe Latent Diffusion away from a concept.

Classifier-free guidance (Ho & Salimans 2021), with 0 the empty or a negative
prompt:

  eps = eps(0) + g (eps(p) - eps(0)) .

Safe Latent Diffusion (Schramowski et al., CVPR 2023) changes no weight. It adds
a third prediction, of the concept S that shall not appear:

  eps  = eps(0) + g [ (eps(p) - eps(0)) - gamma_i ]
  gamma_i = mu (eps(S) - eps(0)) + s_m nu_i
  mu   = min(1, s_S |eps(p) - eps(S)|)   where eps(p) - eps(S) < lambda, else 0
  nu_{i+1} = b nu_i + (1 - b) gamma_i

element by element. gamma acts from step `warmup` on; nu grows from the first
step. (The paper prints max for min; its code and its text bound mu by 1.)

A copy of the code, that of OPTML-Group/Diffusion-MU-Attack, compares `warmup`
with the timestep, which falls from 999 to 0. There gamma acts from the first
step, and stops where the timestep is below `warmup`: the clock "legacy".
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unlearning_jax import durable, settings
from unlearning_jax.concepts import CONCEPT_SETS, Concept, check_choice

_FORMAT = "unlearning_jax guidance 1"
# The published settings: warmup, s_S, lambda, s_m, b. diffusers 0.42.1 has
# another s_S in its `SafetyConfig.WEAK`, whose name here says so.
PRESETS = {
  "weak": (15, 200.0, 0.0, 0.0, 0.0),
  "medium": (10, 1000.0, 0.01, 0.3, 0.4),
  "strong": (7, 2000.0, 0.025, 0.5, 0.7),
  "max": (0, 5000.0, 1.0, 0.5, 0.7),
  "weak_diffusers": (15, 20.0, 0.0, 0.0, 0.0),
}
CLOCKS = ("steps", "legacy")
# The published concept S.
CONCEPT = "an image showing " + ", ".join(CONCEPT_SETS["i2p"])


@dataclasses.dataclass(frozen=True)
class Safe:
  """Safe Latent Diffusion's settings; hashable, a static argument of jit.

  Attributes:
    concept: S, as a prompt.
    warmup: sampling steps before gamma acts.
    scale: s_S.
    threshold: lambda.
    momentum: s_m.
    beta: b.
    clock: what `warmup` counts, "steps" or "legacy".
  """

  concept: str = CONCEPT
  warmup: int = 10
  scale: float = 1000.0
  threshold: float = 0.01
  momentum: float = 0.3
  beta: float = 0.4
  clock: str = "steps"

  def __post_init__(self):
    check_choice("safe.clock", self.clock, CLOCKS)
    if not self.concept.strip():
      raise ValueError("safe.concept: is blank; name what shall not appear")
    # A threshold of minus infinity is allowed: no difference is below it.
    for key in ("warmup", "scale", "momentum", "beta"):
      value = getattr(self, key)
      if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"safe.{key}={value}: must be finite, 0 or more")
    if self.beta > 1:
      raise ValueError(f"safe.beta={self.beta}: must be at most 1")


@dataclasses.dataclass(frozen=True)
class Guidance:
  """How sampling avoids concepts, without a change of weights.

  Attributes:
    negative_prompt: takes the place of the empty prompt; images are steered
      away from it.
    safe: settings of Safe Latent Diffusion.
    method: name of the method, for reports.
    concepts: what is avoided.
  """

  negative_prompt: str = ""
  safe: Safe | None = None
  method: str = ""
  concepts: tuple[Concept, ...] = ()

  def __post_init__(self):
    if not self.negative_prompt.strip() and self.safe is None:
      raise ValueError(
        "guidance: guides nothing; give a negative_prompt or safe"
      )


def preset(name: str, concept: str = CONCEPT, clock: str = "steps") -> Safe:
  """Safe Latent Diffusion by a name of `PRESETS`.

  Raises:
    ValueError: the name is unknown, or the concept blank.
  """
  check_choice("safe preset", name, PRESETS)
  return Safe(concept, *PRESETS[name], clock)


def combine(
  predictions: Float[Array, "b n h w c"],
  scale: float | Float[Array, "b 1 1 1"],
  safe: Safe | None,
  momentum: Float[Array, "b h w c"] | None,
  step: int | Int[Array, ""],
  t: float | Array = math.inf,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"] | None]:
  """One guided prediction for each row, and the momentum of the next step.

  Args:
    predictions: n = 2 for the empty or negative prompt and the prompt, n = 3
      with the concept of `safe`.
    scale: g.
    safe: None for classifier-free guidance alone.
    momentum: nu, zeros before the first step; None without `safe`.
    step: number of earlier steps.
    t: the timestep, which the clock "legacy" reads.
  """
  empty, prompt = predictions[:, 0], predictions[:, 1]
  if safe is None or momentum is None:
    return empty + scale * (prompt - empty), None
  concept = predictions[:, 2]
  ahead = prompt - concept
  mu = jnp.minimum(1.0, safe.scale * jnp.abs(ahead))
  mu = jnp.where(ahead < safe.threshold, mu, 0.0)
  gamma = mu * (concept - empty) + safe.momentum * momentum
  momentum = safe.beta * momentum + (1 - safe.beta) * gamma
  now = step if safe.clock == "steps" else t
  acting = jnp.where(now >= safe.warmup, gamma, 0.0)
  return empty + scale * (prompt - empty - acting), momentum


def check(safe: Safe | None, negative: object, concept: object):
  """Refuses Safe Latent Diffusion without both states that it needs.

  Raises:
    ValueError: the states of the negative prompt or of the concept are None.
  """
  if safe is not None and (negative is None or concept is None):
    raise ValueError(
      "safe: needs guidance and its concept's states; take a guidance_scale "
      "above 1"
    )


def contexts(
  encode: Callable[[Sequence[str]], Array],
  scale: float,
  negative_prompt: str = "",
  safe: Safe | None = None,
) -> dict[str, Any]:
  """The arguments of `stable_diffusion.sample` that guidance adds.

  Args:
    encode: maps texts to text states, with the edit of the model that samples.
    scale: 1 or less leaves guidance out.

  Raises:
    ValueError: `safe` comes without guidance, or a prompt is too long.
  """
  negative = encode([negative_prompt]) if scale > 1 else None
  if safe is None:
    return {"negative_context": negative}
  concept = encode([safe.concept])
  check(safe, negative, concept)
  return {"negative_context": negative, "safe": safe, "safe_context": concept}


def save(guidance: Guidance, path: pathlib.Path):
  """Writes a guidance as JSON, whole or not at all."""
  facts = {"format": _FORMAT, **dataclasses.asdict(guidance)}
  with durable.replacing(path) as file:
    file.write(durable.to_json(facts, "guidance", indent=2).encode())


def load(path: pathlib.Path) -> Guidance:
  """Reads what `save` wrote.

  Raises:
    ValueError: the file is not a guidance, or holds a value that is refused;
      the message names it.
  """
  try:
    facts = durable.read_json(path)
    if facts.pop("format", None) != _FORMAT:
      raise ValueError(f"format: allowed is {_FORMAT!r}")
    facts["concepts"] = tuple(
      settings.build(Concept, row, "concepts") for row in facts["concepts"]
    )
    return settings.build(Guidance, facts)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{path}: not a guidance file: {error}") from error
