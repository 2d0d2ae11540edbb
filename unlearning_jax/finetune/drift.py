"""How far tuning moved an erased model: numbers that may predict resurgence.

Let W be the UNet's weights before the erasure, W' after it, W_T after T steps
of tuning, D = W' - W, and the rows of E text states of erased prompts.

  reversion         <W_T - W', W - W'> / |D|^2: 1 undoes the edit, 0 moves at
                    right angles to it
  reversion_prompt  the same in the metric of E, over keys and values
  output_gap        |E (W_T - W)| / |E D|, over keys and values
  moved             |W_T - W'| / |D|
  noise_gap         E_t |eps_T - eps| / |eps' - eps| on erased prompts

Two numbers come before tuning. `pull` is the cosine between the first step of
gradient descent, -grad L(W'), and the way back, W - W'. `overlap` compares the
text states of tuning captions and of erased prompts.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from unlearning_jax import stable_diffusion
from unlearning_jax.finetune.diffusion import diffusion_loss
from unlearning_jax.finetune.partition import SUBSETS, join_leaves, subset
from unlearning_jax.projections import Params, leaves_of
from unlearning_jax.schedules import add_noise


def weight_drift(
  base: Params,
  erased: Params,
  tuned: Params,
  states: Float[np.ndarray, "n d"],
) -> dict[str, float | None]:
  """`reversion`, `reversion_prompt`, `output_gap` and `moved`, in float64.

  Args:
    base: parameters of W.
    erased: those of W'.
    tuned: those of W_T.
    states: E.

  Returns:
    The numbers by name; None for those over keys and values if the erasure
    changed none of these, and for all if it changed nothing of the UNet, as an
    edit of the text encoder.
  """
  trees = [_wide(tree) for tree in (base, erased, tuned)]
  size = along = moved = 0.0
  prompt_size = prompt_along = gap = 0.0
  rows = np.asarray(states, np.float64)
  for path, before in trees[0].items():
    change, step = trees[1][path] - before, trees[2][path] - trees[1][path]
    size += float(np.vdot(change, change))
    along -= float(np.vdot(step, change))
    moved += float(np.vdot(step, step))
    if SUBSETS["kv"](path):
      of_edit, of_step = rows @ change, rows @ step
      prompt_size += float(np.vdot(of_edit, of_edit))
      prompt_along -= float(np.vdot(of_step, of_edit))
      gap += float(np.sum((of_edit + of_step) ** 2))
  unet, prompts = size > 0, prompt_size > 0
  return {
    "reversion": along / size if unet else None,
    "moved": float(np.sqrt(moved / size)) if unet else None,
    "reversion_prompt": prompt_along / prompt_size if prompts else None,
    "output_gap": float(np.sqrt(gap / prompt_size)) if prompts else None,
  }


def edit_size(
  base: Params, erased: Params, states: Float[np.ndarray, "n d"]
) -> dict[str, float]:
  """How large an erasure is.

  Returns:
    `relative_change`, |D| / |W| over the whole UNet; `key_value_share`, the
    share of keys and values in |D|^2; `prompt_change`, |E D| / |E W| over keys
    and values.
  """
  before, after = _wide(base), _wide(erased)
  rows = np.asarray(states, np.float64)
  total = own = said = was = norm = 0.0
  for path, leaf in before.items():
    change = after[path] - leaf
    part = float(np.vdot(change, change))
    total, norm = total + part, norm + float(np.vdot(leaf, leaf))
    if SUBSETS["kv"](path):
      own += part
      said += float(np.sum((rows @ change) ** 2))
      was += float(np.sum((rows @ leaf) ** 2))
  return {
    "relative_change": float(np.sqrt(total / norm)),
    "key_value_share": own / total if total else 0.0,
    "prompt_change": float(np.sqrt(said / was)),
  }


def overlap(
  tuning: Float[np.ndarray, "n d"],
  erased: Float[np.ndarray, "m d"],
  mean: Float[np.ndarray, " d"] | None = None,
) -> float:
  """tr(G_t G_f) / (|G_t| |G_f|) of two sets of text states X, G = X^T X.

  Args:
    tuning: states of tuning captions.
    erased: states of erased prompts.
    mean: a state that all prompts share, subtracted first.
  """
  grams = []
  for states in (tuning, erased):
    rows = np.asarray(states, np.float64)
    rows = rows if mean is None else rows - np.asarray(mean, np.float64)
    grams.append(rows.T @ rows)
  norms = [np.linalg.norm(gram) for gram in grams]
  return float(np.vdot(*grams) / (norms[0] * norms[1]))


def noise_gap(
  sd: stable_diffusion.StableDiffusion,
  base: Params,
  erased: Params,
  tuned: Params,
  latents: Float[Array, "b h w c"],
  contexts: tuple[Float[np.ndarray, "b l d"], Float[np.ndarray, "b l d"]],
  key: PRNGKeyArray,
) -> float:
  """E |eps_T - eps| / E |eps' - eps| at the same x_t, t and erased prompts.

  Args:
    base: parameters before the erasure; `erased` are those after it.
    latents: clean; noise is added to them.
    contexts: text states of erased prompts, as the base reads them and as the
      erased model does; tuning leaves the text encoder as it is.
    key: draws noise and timesteps.
  """
  before, after = contexts
  said, gone, now = (
    np.asarray(_noise(sd, {"unet": tree["unet"]}, latents, context, key))
    for tree, context in ((base, before), (erased, after), (tuned, after))
  )
  norm = lambda x: np.sqrt(np.square(x).sum((1, 2, 3))).mean()  # noqa: E731
  with np.errstate(divide="ignore", invalid="ignore"):
    return float(norm(now - said) / norm(gone - said))


# Of one model: three in one program would compile, and be held, three times.
@functools.partial(jax.jit, static_argnums=0)
def _noise(sd, params, latents, context, key):
  keys = jax.random.split(key)
  noise = jax.random.normal(keys[0], latents.shape)
  steps = sd.schedule.num_train_timesteps
  t = jax.random.randint(keys[1], (len(latents),), 0, steps)
  noisy = add_noise(sd.schedule, latents, noise, t)
  return stable_diffusion.predict_noise(sd, params, noisy, t, context)


def pull(
  sd: stable_diffusion.StableDiffusion,
  base: Params,
  erased: Params,
  batch: Mapping[str, Array],
  empty: Float[Array, "1 l d"],
  key: PRNGKeyArray,
) -> float:
  """The cosine of -grad L(W') and W - W', with L the denoising loss of a batch.

  Args:
    base: parameters before the erasure; `erased` are those after it.
    batch: rows of a tuning set, from `encode_examples`.
    empty: text states of the empty prompt.
  """
  before, after = (
    subset({"unet": tree["unet"]}, SUBSETS["full"]).trained
    for tree in (base, erased)
  )
  return float(_pull(sd, before, after, dict(batch), empty, key))


@functools.partial(jax.jit, static_argnums=0)
def _pull(sd, before, after, batch, empty, key):
  frozen = {"params": {}, "empty": empty}
  gradient = jax.grad(
    lambda trained: diffusion_loss(
      sd, join_leaves, trained, frozen, batch, key
    )[0]
  )(after)
  dot = lambda a, b: sum(  # noqa: E731
    jnp.vdot(a[path], b[path]) for path in a
  )
  back = {path: before[path] - after[path] for path in after}
  # The minus is that of the step of descent, -gradient.
  return -dot(gradient, back) / jnp.sqrt(
    dot(gradient, gradient) * dot(back, back)
  )


def _wide(params: Params) -> dict[str, np.ndarray]:
  leaves = leaves_of(params["unet"]).items()
  return {path: np.asarray(leaf, np.float64) for path, leaf in leaves}
