"""ESD: Erasing Concepts from Diffusion Models (Gandikota et al., ICCV 2023).

The edited network f is taught what the original f* says away from the concept:

  min  | f(x_t, t, c) - f*(x_t, t, a) + eta [f*(x_t, t, c) - f*(x_t, t, 0)] |^2

with c the concept, a the empty prompt 0 as in the paper (or, with `use_anchor`,
the concept's anchor), and x_t a partial trajectory, sampled towards c with a
little guidance. No data are needed. Nothing is preserved but by the choice of
what trains.

Three versions exist, each a preset:

  fixed          the paper: x_t by the edited network, at the timestep t that is
                 scored
  reference      the first release: its x_t is 39 to 58 training steps less
                 noisy than t says, since its sampler skips the noisiest step
                 and then runs two too far
  reference2025  the second: x_t by the original network and the checkpoint's
                 own sampler, fewer and larger steps; norms never train. Its eta
                 counts from f*(c): its default of 2 is the paper's 1

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
from unlearning_jax.edits import Edit, edit_between
from unlearning_jax.erasures import NO_HOOKS, Hooks, check_predicts_noise
from unlearning_jax.stable_diffusion import Params, StableDiffusion


@dataclasses.dataclass(frozen=True)
class Preset:
  """Where the published versions differ."""

  learning_rate: float
  num_steps: int
  by_original: bool  # whose trajectory x_t is
  too_clean: bool  # the first release's noise level
  sampler: str | None
  norms: bool  # whether norms train with what is around them


PRESETS = {
  "fixed": Preset(1e-5, 1000, False, False, "ddim", True),
  "reference": Preset(1e-5, 1000, False, True, "ddim", True),
  "reference2025": Preset(5e-5, 200, True, False, None, False),
}
_NORM = re.compile(r"/(norm\d?|conv_norm_out)/")
_ENDS = ("unet/time_embedding/", "unet/conv_norm_out/", "unet/conv_out/")
CHANGES = ("unet/*",)
NEEDS = "nothing"
# What is trained -> its paths. ESD-x is for styles and names, ESD-u for nudity
# and whole classes of objects.
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
    train: "x" cross-attention, "u" all but that, "strict" its keys and values,
      "self" self-attention, "full" everything.
    eta: strength, in the paper's convention whatever the preset.
    erase_from: erase the concept from this one only, as "cowboy hat" from
      "cowboy": f reads it, and 1 + eta is taken off f*(erase_from).
    use_anchor: start from each concept's anchor instead of the empty prompt.
    start_guidance: of the partial trajectory.
    num_inference_steps: of a whole trajectory.
    num_steps: of training; None for the preset's.
    learning_rate: of Adam; None for the preset's.
    batch_size: trajectories in one step; with one alone, one device trains.
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
        f"{eta=}, {batch_size=}; allowed: at least 0, at least 1"
      )
    if self.use_anchor and erase_from is not None:
      raise ValueError(f"use_anchor: {erase_from=} is where it starts from")


def trains(train: str, preset: Preset) -> Callable[[str], bool]:
  """Whether a parameter trains, by its path, as the preset's release has it."""
  check_choice("train", train, TRAINED)

  def wanted(path: str) -> bool:
    if not preset.norms and _NORM.search(path):
      return False
    # The first release's ESD-u leaves both ends of the network alone.
    if train == "u" and preset.norms and path.startswith(_ENDS):
      return False
    return TRAINED[train](path)

  return wanted


def erasing_loss(
  sd: StableDiffusion,
  params: Params,
  original: Params,
  latents: Float[Array, "b h w c"],
  t: Shaped[Array, "b"],
  contexts: Mapping[str, Float[Array, "b l d"]],
  eta: float,
) -> Float[Array, ""]:
  """The objective above at given x_t.

  Args:
    sd: the model.
    params: f.
    original: f*.
    latents: x_t, as the network reads them.
    t: timesteps.
    contexts: text states `student` (what f reads), `start` (a), `concept` (c)
      and `empty`.
    eta: how far to go.
  """
  ways = [contexts[name] for name in ("start", "concept", "empty")]
  by_original = stable_diffusion.predict_noise(
    sd, original, jnp.tile(latents, (3, 1, 1, 1)), jnp.tile(t, 3),
    jnp.concatenate(ways),
  )  # fmt: skip
  start, concept, empty = jnp.split(by_original, 3)
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
  """Guided sampling towards `student`: calls `first` to `stop` - 1."""
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
  # PNDM calls the network once more than it has steps; that is not drawn.
  count = h.num_inference_steps
  params = join(trained, frozen["params"])
  original = join(frozen["original"], frozen["params"])
  of_row = jax.tree.map(lambda leaf: leaf[batch["concept"]], frozen["contexts"])
  keys = jax.random.split(key, 3)
  rows = len(batch["concept"])
  noise = jax.random.normal(keys[0], (rows, *sd.latent_shape))
  if preset.too_clean:
    # Counted from the clean end: calls up to that of index T - 1 are made, the
    # noisiest left out, and t is anywhere between indices T and T + 1.
    index = jax.random.randint(keys[1], (), 0, count)
    first, stop = 1, count + 1 - jnp.maximum(index, 1)
    gap = sd.schedule.num_train_timesteps // count
    t = index * gap + jax.random.randint(keys[2], (), 0, gap)
    at = 0  # DDIM scales its input by one at every call.
  else:
    first, stop = 0, jax.random.randint(keys[1], (), 0, count)
    t = jnp.asarray(sampler.timesteps)[stop]
    at = stop
  walker = original if preset.by_original else params
  # Constants to the gradient: it does not go through the sampler.
  walker = jax.lax.stop_gradient(walker)
  state = partial_trajectory(
    sd, walker, sampler, noise, of_row, first, stop, h.start_guidance
  )
  latents = sampler.scale(sampler.latents(state), at)
  latents = jax.lax.stop_gradient(latents)
  t = jnp.full((rows,), t)
  eta = h.eta if h.erase_from is None else 1 + h.eta
  return erasing_loss(sd, params, original, latents, t, of_row, eta), {}


@dataclasses.dataclass(frozen=True)
class _Draws:
  """One concept for each row of each step."""

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
  """The text states that `erasing_loss` wants, a row for each concept."""
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
  """Loss, optimizer and steps: the same objects again, the same program."""
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
  """Erases `concepts` by ESD; several take turns, what they preserve is unused.

  Args:
    sd: the model.
    params: its parameters.
    concepts: what to erase.
    key: for noise, timesteps and turns.
    h: the hyperparameters.
    hooks: `trainer` is used.

  Raises:
    ValueError: a concept that is not usable; a model that predicts no noise.
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
    {"params": part.frozen, "original": part.trained, "contexts": contexts},
    _Draws(len(concepts), h.batch_size, int(jax.random.bits(key))),
    key,
    batch_size=h.batch_size,
    num_steps=steps,
  )
  return edit_between(
    params,
    {**params, **part.join(trained, part.frozen)},
    method="esd",
    concepts=concepts,
    diagnostics={},
  )
