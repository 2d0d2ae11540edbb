"""SPM: One-dimensional Adapter to Rule Them All (Lyu et al., CVPR 2024).

Adapters of rank one beside every kernel of the UNet's transformers learn what
the base f* predicts when it is guided away from the concept c, towards the
anchor a. They are held still on random text states s:

  min  | f(x_t, t, c) - f*(x_t, t, a) + g [f*(x_t, t, c) - f*(x_t, t, a)] |^2
       + w | f(x_t, t, s) - f*(x_t, t, s) |^2

x_t is the end of a partial trajectory of f towards c. The s are Gaussian, with
0.8 to 1.2 times the norm of c's states, and are kept with the probability
1 - cos(s, c). In so many dimensions the cosine is nearly 0, so nearly all are.

Two versions exist, each a preset:

  fixed      t is x_t's own timestep.
  reference  the release. It counts t on another grid than it samples on, so
             that x_t is 33 to 42 training steps less noisy than t says.

The release trains with AdamW in 8 bits; here it has 32. Its configs draw the
size of x_t at every step, 256 to 448 pixels a side; here it is the model's own.
When the release draws, it scales the adapters by how near the prompt is to the
concept (facilitated transport). An edit of this package has no such scale: the
adapters are merged, and act on every prompt at full strength.

Reference: https://arxiv.org/abs/2312.16145, and its release Con6924/SPM.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unlearning_jax import finetune, samplers, schedules, stable_diffusion
from unlearning_jax.concepts import Concept, check_choice, check_concepts
from unlearning_jax.edits import Edit, edit_between
from unlearning_jax.erasures import NO_HOOKS, Hooks, check_predicts_noise, esd
from unlearning_jax.finetune.partition import join_leaves
from unlearning_jax.projections import leaves_of
from unlearning_jax.settings import check_numbers
from unlearning_jax.stable_diffusion import Params, StableDiffusion

CHANGES = ("unet/*",)
NEEDS = "nothing"
PRESETS = ("fixed", "reference")
Adapters = Mapping[str, Mapping[str, Array]]
# The release warms up for 500 of 3,000 steps, and restarts twice.
_WARMUP, _CYCLES = 1 / 6, 3
# Candidates for a random text state; that all are refused has no chance.
_TRIES = 4


@dataclasses.dataclass(frozen=True)
class Hparams:
  """SPM's hyperparameters.

  Attributes:
    preset: "fixed" or "reference".
    rank: of the adapters.
    alpha: the adapters are scaled by alpha / rank.
    eta: g.
    anchor_weight: w.
    anchors: random text states in each row of a step.
    start_guidance: guidance scale of the partial trajectory.
    num_inference_steps: DDIM steps of a whole trajectory.
    num_steps: training steps.
    learning_rate: AdamW's peak; a sixth of the steps warms up, and three
      cosines follow.
    batch_size: trajectories in one step. With 1, only one device trains.
  """

  preset: str = "fixed"
  rank: int = 1
  alpha: float = 1.0
  eta: float = 1.0
  anchor_weight: float = 1000.0
  anchors: int = 4
  start_guidance: float = 3.0
  num_inference_steps: int = 30
  num_steps: int = 3000
  learning_rate: float = 1e-4
  batch_size: int = 1

  def __post_init__(self):
    check_choice("preset", self.preset, PRESETS)
    check_numbers(
      self, counts=("rank", "anchors", "num_steps", "batch_size"),
      positive=("alpha", "learning_rate"), from_zero=("eta", "anchor_weight"),
      finite=("start_guidance",),
    )  # fmt: skip
    if (num_inference_steps := self.num_inference_steps) < 2:
      raise ValueError(
        f"{num_inference_steps=}; allowed: from 2, for a trajectory that stops "
        "on its way"
      )


def adapted(unet: Params) -> dict[str, Any]:
  """The kernels of the transformers, by path: matrices and 1 x 1 convolutions.

  Raises:
    ValueError: there are none, or a convolution is wider.
  """
  found = {
    path: leaf
    for path, leaf in leaves_of({"unet": unet}).items()
    if "/attentions_" in path and path.endswith("/kernel")
  }
  wide = [p for p, leaf in found.items() if any(n > 1 for n in leaf.shape[:-2])]
  if wide or not found:
    raise ValueError(
      f"spm: the UNet has {len(found)} kernels in transformers, of which "
      f"{wide[:3]} are wider than 1 x 1; needed: some, and none wider"
    )
  return found


def fresh(kernels: Mapping[str, Any], rank: int, key: PRNGKeyArray) -> Any:
  """New adapters: down as torch draws a linear layer, up zero.

  Raises:
    ValueError: the rank is larger than a side of a kernel.
  """
  largest = min(min(leaf.shape[-2:]) for leaf in kernels.values())
  if rank > largest:
    raise ValueError(f"{rank=}; allowed: 1 to {largest}, the least width")
  made = {}
  for i, (path, leaf) in enumerate(sorted(kernels.items())):
    wide, out = leaf.shape[-2:]
    down = jax.random.uniform(
      jax.random.fold_in(key, i), (wide, rank), minval=-1.0, maxval=1.0
    )
    made[path] = {"down": down / wide**0.5, "up": jnp.zeros((rank, out))}
  return made


def merge(
  scale: float, adapters: Adapters, frozen: Mapping[str, Any]
) -> dict[str, Any]:
  """The parameters of leaves with kernel + scale down up."""
  moved = {}
  for path, pair in adapters.items():
    kernel = frozen[path]
    change = jnp.matmul(
      pair["down"], pair["up"], precision=jax.lax.Precision.HIGHEST
    )
    wide = kernel + scale * change.reshape(kernel.shape)
    moved[path] = wide.astype(kernel.dtype)
  return join_leaves(moved, dict(frozen))


def random_states(
  key: PRNGKeyArray, concept: Float[Array, "b l d"], count: int
) -> Float[Array, "b*n l d"]:
  """s: `count` random text states for each row.

  Args:
    concept: text states of c.
  """
  concept = jnp.repeat(concept, count, axis=0)
  keys = jax.random.split(key, 3)
  flat = concept.reshape(len(concept), 1, -1)
  noise = jax.random.normal(keys[0], (len(concept), _TRIES, flat.shape[-1]))
  noise /= jnp.linalg.norm(noise, axis=-1, keepdims=True)
  norm = jnp.linalg.norm(flat, axis=-1, keepdims=True)
  cosine = jnp.sum(noise * flat / norm, axis=-1)
  kept = jax.random.uniform(keys[1], cosine.shape) < 1 - cosine
  first = jnp.argmax(kept, axis=1)
  chosen = noise[jnp.arange(len(noise)), first]
  scale = jax.random.uniform(keys[2], (len(noise), 1), minval=0.8, maxval=1.2)
  return (scale * norm[:, 0] * chosen).reshape(concept.shape)


def losses(
  sd: StableDiffusion,
  params: Params,
  base: Params,
  latents: Float[Array, "b h w c"],
  t: Int[Array, " b"],
  contexts: Mapping[str, Float[Array, "_ l d"]],
  eta: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Both terms above without w, means over rows and elements.

  Args:
    params: f.
    base: f*.
    latents: x_t.
    contexts: text states `concept` (c), `student` (c too), `start` (a), and a
      multiple of as many `random` (s).
    eta: g.
  """
  # Here the anchor stands where ESD has the empty prompt.
  ways = dict(contexts) | {"empty": contexts["start"]}
  erased = esd.erasing_loss(sd, params, base, latents, t, ways, eta)
  states = contexts["random"]
  times = len(states) // len(latents)
  latents, t = (jnp.repeat(array, times, axis=0) for array in (latents, t))
  ours, wanted = (
    stable_diffusion.predict_noise(sd, own, latents, t, states)
    for own in (params, base)
  )
  held = jnp.square(ours - jax.lax.stop_gradient(wanted)).mean()
  return erased, held


def _loss(
  sd: StableDiffusion,
  sampler: samplers.Sampler,
  h: Hparams,
  trained: Adapters,
  frozen: Mapping[str, Any],
  batch: Mapping[str, Array],
  key: PRNGKeyArray,
) -> tuple[Float[Array, ""], finetune.Metrics]:
  base = join_leaves({}, frozen["params"])
  params = merge(h.alpha / h.rank, trained, frozen["params"])
  of_row = jax.tree.map(lambda leaf: leaf[batch["concept"]], frozen["contexts"])
  keys = jax.random.split(key, 3)
  rows = len(batch["concept"])
  noise = jax.random.normal(keys[0], (rows, *sd.latent_shape))
  stop = jax.random.randint(keys[1], (), 1, h.num_inference_steps)
  walker = jax.lax.stop_gradient(params)
  state = esd.partial_trajectory(
    sd, walker, sampler, noise, of_row, 0, stop, h.start_guidance
  )
  latents = jax.lax.stop_gradient(sampler.latents(state))
  t = jnp.asarray(sampler.timesteps)[stop]
  if h.preset == "reference":
    steps = sd.schedule.num_train_timesteps
    t = steps - 1 - stop * steps // h.num_inference_steps
  t = jnp.full((rows,), t)
  states = random_states(keys[2], of_row["concept"], h.anchors)
  erased, held = losses(
    sd, params, base, latents, t, of_row | {"random": states}, h.eta
  )
  return erased + h.anchor_weight * held, {"erased": erased, "held": held}


def rate(peak: float, num_steps: int, step: Any) -> Array:
  """A linear warm-up, then three cosines from the peak to zero."""
  rising = max(1, int(_WARMUP * num_steps))
  progress = (step - rising) / max(1, num_steps - rising)
  falling = 0.5 * (1 + jnp.cos(jnp.pi * (_CYCLES * progress % 1.0)))
  falling = jnp.where(progress >= 1, 0.0, falling)
  return peak * jnp.where(step < rising, step / rising, falling)


@functools.lru_cache(maxsize=8)
def _training(
  sd: StableDiffusion, h: Hparams
) -> tuple[finetune.Loss, optax.GradientTransformation]:
  """Loss and optimizer; cached, so that a second call compiles nothing.

  A jitted step is keyed by these objects' identity.
  """
  tx = optax.adamw(
    functools.partial(rate, h.learning_rate, h.num_steps), weight_decay=0.01
  )
  schedule = sd.schedule
  if h.preset == "reference":
    # Its own scheduler, whose offset is not the checkpoint's.
    config = schedule.with_sampler("ddim").to_config() | {"steps_offset": 0}
    schedule = schedules.Schedule.from_config(config)
  sampler = samplers.make_sampler(schedule, h.num_inference_steps, "ddim")
  return functools.partial(_loss, sd, sampler, h), tx


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Edit:
  """Erases `concepts` by SPM, with a random one in each row of each step.

  Arguments as `Erasure`. SPM ignores what concepts preserve; it uses
  `hooks.trainer`.

  Raises:
    ValueError: an unusable concept, a rank that does not fit, or a model that
      does not predict the noise.
    FloatingPointError: the training diverges.
  """
  check_concepts(concepts)
  check_predicts_noise(sd, "SPM")
  contexts = esd.encode_contexts(sd, params, concepts, use_anchor=True)
  unet = leaves_of({"unet": params["unet"]})
  keys = jax.random.split(key)
  adapters = fresh(adapted(params["unet"]), h.rank, keys[0])
  loss, tx = _training(sd, h)
  trained = hooks.trainer(
    loss, tx, adapters, {"params": unet, "contexts": contexts},
    esd.Draws(len(concepts), h.batch_size, int(jax.random.bits(keys[1]))),
    keys[1], batch_size=h.batch_size, num_steps=h.num_steps,
  )  # fmt: skip
  edited = merge(h.alpha / h.rank, trained, unet)
  return edit_between(
    params,
    {**params, **jax.tree.map(np.asarray, edited)},
    method="spm",
    concepts=concepts,
    diagnostics={},
  )
