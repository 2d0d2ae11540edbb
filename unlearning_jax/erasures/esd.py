"""ESD: Erasing Concepts from Diffusion Models (Gandikota et al., ICCV 2023).

The edited network f learns to predict what the base network f* predicts when it
is guided away from the concept:

  min  | f(x_t, t, c) - f*(x_t, t, a) + eta [f*(x_t, t, c) - f*(x_t, t, 0)] |^2

c is the concept and 0 the empty prompt. a is the empty prompt, as in the paper,
or with `use_anchor` the concept's anchor. x_t is the end of a partial
trajectory, sampled towards c with a little guidance. ESD needs no data. It
preserves other concepts only by the choice of what trains.

Three versions exist, each a preset:

  fixed          the paper. f itself samples x_t, and t is x_t's own timestep.
  reference      the first release. Its sampler leaves out the noisiest step and
                 runs two steps too far, so that x_t is 39 to 58 training steps
                 less noisy than t says.
  reference2025  the second release. f* samples x_t with the checkpoint's own
                 sampler; steps are fewer and larger; norms never train. Its eta
                 counts from f*(c), so that its 2 is the paper's 1.

Reference: https://arxiv.org/abs/2303.07345
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from unlearning_jax import finetune, samplers, stable_diffusion
from unlearning_jax.concepts import Concept, check_choice, check_concepts
from unlearning_jax.edits import Edit
from unlearning_jax.erasures import (
  NO_HOOKS,
  Hooks,
  check_predicts_noise,
  edit_of,
)
from unlearning_jax.stable_diffusion import Params, StableDiffusion


@dataclasses.dataclass(frozen=True)
class Preset:
  """Where the published versions differ."""

  learning_rate: float
  num_steps: int
  by_base: bool  # whether f* samples x_t, instead of f
  too_clean: bool  # whether x_t is less noisy than t says
  sampler: str | None  # None for the checkpoint's own
  norms: bool  # whether norms train with the layers around them


PRESETS = {
  "fixed": Preset(1e-5, 1000, False, False, "ddim", True),
  "reference": Preset(1e-5, 1000, False, True, "ddim", True),
  "reference2025": Preset(5e-5, 200, True, False, None, False),
}
_NORM = re.compile(r"/(norm\d?|conv_norm_out)/")
_ENDS = ("unet/time_embedding/", "unet/conv_norm_out/", "unet/conv_out/")
CHANGES = ("unet/*",)
NEEDS = "nothing"
# The parameters that train, by path. The paper advises ESD-x for styles and
# names, ESD-u for nudity and whole classes of objects.
TRAINED: dict[str, Callable[[str], bool]] = {
  "x": lambda path: "/attn2/" in path,
  "u": lambda path: "/attn2/" not in path,
  "strict": finetune.SUBSETS["kv"],
  "self": lambda path: "/attn1/" in path,
  "full": lambda path: True,
}


@dataclasses.dataclass(frozen=True)
class Hparams:
  """ESD's hyperparameters.

  Attributes:
    preset: "fixed", "reference" or "reference2025".
    train: "x" for cross-attention (ESD-x), "u" for everything else (ESD-u),
      "strict" for cross-attention's keys and values, "self" for self-attention,
      "full" for the whole UNet.
    eta: the strength, by the paper's convention under every preset.
    erase_from: erase the concept only from this wider one, as "cowboy hat" from
      "cowboy". Then f reads this phrase instead of c, a is this phrase, and
      1 + eta replaces eta.
    use_anchor: let a be each concept's anchor instead of the empty prompt.
    start_guidance: guidance scale of the partial trajectory.
    num_inference_steps: sampling steps of a whole trajectory.
    num_steps: training steps; None for the preset's.
    learning_rate: Adam's; None for the preset's.
    batch_size: trajectories in one step. With 1, only one device trains.
  """

  preset: str = "fixed"
  train: str = "x"
  eta: float = 1.0
  erase_from: str | None = None
  use_anchor: bool = False
  start_guidance: float = 3.0
  num_inference_steps: int = 50
  num_steps: int | None = None
  learning_rate: float | None = None
  batch_size: int = 1

  def __post_init__(self):
    check_choice("preset", self.preset, PRESETS)
    check_choice("train", self.train, TRAINED)
    eta, batch_size, erase_from = self.eta, self.batch_size, self.erase_from
    if not (math.isfinite(eta) and eta >= 0) or batch_size < 1:
      raise ValueError(
        f"{eta=}, {batch_size=}; allowed: eta from 0, batch_size from 1"
      )
    if self.use_anchor and erase_from is not None:
      raise ValueError(
        f"use_anchor=True and {erase_from=}: each replaces the empty prompt; "
        "give one of them"
      )


def trains(train: str, preset: Preset) -> Callable[[str], bool]:
  """Says of a parameter's path whether it trains in the preset's release."""
  check_choice("train", train, TRAINED)

  def wanted(path: str) -> bool:
    if not preset.norms and _NORM.search(path):
      return False
    # The first release's ESD-u does not train both ends of the network.
    if train == "u" and preset.norms and path.startswith(_ENDS):
      return False
    return TRAINED[train](path)

  return wanted


def erasing_loss(
  sd: StableDiffusion,
  params: Params,
  base: Params,
  latents: Float[Array, "b h w c"],
  t: Shaped[Array, "b"],
  contexts: Mapping[str, Float[Array, "b l d"]],
  eta: float,
) -> Float[Array, ""]:
  """The objective above at given x_t, a mean over rows and elements.

  Args:
    params: f.
    base: f*.
    latents: x_t, scaled as the network reads them.
    t: timesteps.
    contexts: text states `student` (what f reads), `start` (a), `concept` (c)
      and `empty` (0).
    eta: the strength.
  """
  ways = [contexts[name] for name in ("start", "concept", "empty")]
  by_base = stable_diffusion.predict_noise(
    sd, base, jnp.tile(latents, (3, 1, 1, 1)), jnp.tile(t, 3),
    jnp.concatenate(ways),
  )  # fmt: skip
  start, concept, empty = jnp.split(by_base, 3)
  target = jax.lax.stop_gradient(start - eta * (concept - empty))
  predicted = stable_diffusion.predict_noise(
    sd, params, latents, t, contexts["student"]
  )
  return jnp.square(predicted - target).mean()


def partial_trajectory(
  sd: StableDiffusion,
  params: Params,
  sampler: samplers.Sampler,
  noise: Float[Array, "b h w c"],
  contexts: Mapping[str, Float[Array, "b l d"]],
  first: int,
  stop: Int[Array, ""],
  guidance: float,
) -> samplers.State:
  """Samples with guidance towards `student`: steps `first` to `stop` - 1."""
  times = jnp.asarray(sampler.timesteps)
  both = jnp.concatenate([contexts["empty"], contexts["student"]])

  def body(i: Array, state: samplers.State) -> samplers.State:
    latents = sampler.scale(sampler.latents(state), i)
    t = jnp.full((len(both),), times[i])
    out = stable_diffusion.predict_noise(
      sd, params, jnp.concatenate([latents, latents]), t, both
    )
    empty, towards = jnp.split(out, 2)
    return sampler.step(state, i, empty + guidance * (towards - empty))

  start = sampler.init(noise * sampler.init_noise_sigma)
  return jax.lax.fori_loop(first, stop, body, start)


def _loss(
  sd: StableDiffusion,
  join: Callable[[Params, Params], Params],
  sampler: samplers.Sampler,
  h: Hparams,
  trained: Params,
  frozen: Mapping[str, Params],
  batch: Mapping[str, Array],
  key: PRNGKeyArray,
) -> tuple[Float[Array, ""], finetune.Metrics]:
  preset = PRESETS[h.preset]
  # PNDM calls the network once more than it has steps. t never stops there.
  count = h.num_inference_steps
  params = join(trained, frozen["params"])
  base = join(frozen["base"], frozen["params"])
  of_row = jax.tree.map(lambda leaf: leaf[batch["concept"]], frozen["contexts"])
  keys = jax.random.split(key, 3)
  rows = len(batch["concept"])
  noise = jax.random.normal(keys[0], (rows, *sd.latent_shape))
  if preset.too_clean:
    # The release counts its T from the clean end. It skips the noisiest step,
    # stops after the one of index T - 1, and draws t between the timesteps of
    # indices T and T + 1.
    index = jax.random.randint(keys[1], (), 0, count)
    first, stop = 1, count + 1 - jnp.maximum(index, 1)
    gap = sd.schedule.num_train_timesteps // count
    t = index * gap + jax.random.randint(keys[2], (), 0, gap)
    at = 0  # DDIM scales its input by one at every step.
  else:
    first, stop = 0, jax.random.randint(keys[1], (), 0, count)
    t = jnp.asarray(sampler.timesteps)[stop]
    at = stop
  walker = base if preset.by_base else params
  # No gradient flows through the sampler.
  walker = jax.lax.stop_gradient(walker)
  state = partial_trajectory(
    sd, walker, sampler, noise, of_row, first, stop, h.start_guidance
  )
  latents = sampler.scale(sampler.latents(state), at)
  latents = jax.lax.stop_gradient(latents)
  t = jnp.full((rows,), t)
  eta = h.eta if h.erase_from is None else 1 + h.eta
  return erasing_loss(sd, params, base, latents, t, of_row, eta), {}


@dataclasses.dataclass(frozen=True)
class Draws:
  """A random concept for each row of each step."""

  concepts: int
  rows: int
  seed: int

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng((self.seed, step))
    drawn = rng.integers(self.concepts, size=self.rows, dtype=np.int32)
    return {"concept": drawn}


def encode_contexts(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  erase_from: str | None = None,
  use_anchor: bool = False,
) -> dict[str, Float[Array, "n l d"]]:
  """The `contexts` of `erasing_loss`, with a row for each concept."""
  phrases = {
    "student": [erase_from or c.erase for c in concepts],
    "start": [erase_from or (c.anchor if use_anchor else "") for c in concepts],
    "concept": [c.erase for c in concepts],
    "empty": ["" for _ in concepts],
  }
  return {
    name: stable_diffusion.encode_text(
      sd, params, stable_diffusion.tokenize(sd, texts)
    )
    for name, texts in phrases.items()
  }


@functools.lru_cache(maxsize=8)
def _training(
  sd: StableDiffusion, join: Callable[[Params, Params], Params], h: Hparams
) -> tuple[finetune.Loss, optax.GradientTransformation, int]:
  """Loss, optimizer and steps; cached, so that a second call compiles nothing.

  A jitted step is keyed by these objects' identity.
  """
  version = PRESETS[h.preset]
  steps = version.num_steps if h.num_steps is None else h.num_steps
  rate = version.learning_rate if h.learning_rate is None else h.learning_rate
  tx = finetune.optimizer(
    rate, steps, schedule="constant", warmup=0, weight_decay=0,
    clip_norm=None, b2=0.999,
  )  # fmt: skip
  sampler = samplers.make_sampler(
    sd.schedule, h.num_inference_steps, version.sampler
  )
  return functools.partial(_loss, sd, join, sampler, h), tx, steps


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Edit:
  """Erases `concepts` by ESD, with a random one in each row of each step.

  Arguments as `Erasure`. ESD ignores what concepts preserve; it uses
  `hooks.trainer`.

  Raises:
    ValueError: an unusable concept, or a model that does not predict the noise.
    FloatingPointError: the training diverges.
  """
  check_concepts(concepts)
  check_predicts_noise(sd, "ESD")
  version = PRESETS[h.preset]
  part = finetune.subset(
    {"unet": params["unet"]}, trains(h.train, version), h.train
  )
  contexts = encode_contexts(sd, params, concepts, h.erase_from, h.use_anchor)
  loss, tx, steps = _training(sd, part.join, h)
  trained = hooks.trainer(
    loss,
    tx,
    part.trained,
    {"params": part.frozen, "base": part.trained, "contexts": contexts},
    Draws(len(concepts), h.batch_size, int(jax.random.bits(key))),
    key,
    batch_size=h.batch_size,
    num_steps=steps,
  )
  return edit_of(params, part, trained, "esd", concepts)
