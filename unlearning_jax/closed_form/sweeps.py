"""Many edits for little more than one: grids, batches, and their images.

A grid over one scale needs one eigendecomposition. With M V = B V diag(w) and
V^T B V = I, for B positive definite,

  (a M + b B)^-1 = V diag(1 / (a w + b)) V^T ,

so A^-1 = (lamb I + e E + p H)^-1 is a matter of d^2 for every further lamb
(M = e E + p H, B = I), e (M = E, B = the rest) or p (M = H, B = the rest).

Independent edits that share what they preserve share the factorisation of
A_b = lamb I + p H; a concept of r rows C adds an r x r system (Woodbury):

  T = I + (C* - C)^T G,   G = (I / e + C A_b^-1 C^T)^-1 C A_b^-1 .

And as W (T c) = (W T) c, any number of edited models draw in one batch of one
UNet: each row's text states go through its own model's map.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, Float64, Int, UInt8

from unlearning_jax import stable_diffusion
from unlearning_jax.closed_form.solve import Sums, check_scales
from unlearning_jax.concepts import check_choice
from unlearning_jax.noise import row_noise

Maps = Float64[np.ndarray, "n d d"]
_HIGHEST = jax.lax.Precision.HIGHEST


def grid(
  vary: str,
  values: Sequence[float] | Float[np.ndarray, " n"],
  erased: Sums,
  held: Sums,
  *,
  lamb: float = 0.5,
  erase_scale: float = 1.0,
  preserve_scale: float = 1.0,
) -> Maps:
  """The context maps of one edit at every value of one of its scales.

  Args:
    vary: "lamb", "erase_scale" or "preserve_scale".
    values: of that scale, instead of the one below.
    erased: sums of the rows to erase, with weight 1.
    held: sums of the preserved rows, with weight 1.
    lamb: the ridge.
    erase_scale: e.
    preserve_scale: p.

  Raises:
    ValueError: an unknown, negative or non-finite scale; a system that is not
      positive definite.
  """
  scales = {
    "lamb": lamb,
    "erase_scale": erase_scale,
    "preserve_scale": preserve_scale,
  }
  check_choice("vary", vary, scales)
  for value in values:
    check_scales(**(scales | {vary: value}))
  values = np.asarray(values, float)
  identity = np.eye(len(erased.gram))
  parts = {
    "lamb": identity,
    "erase_scale": erased.gram,
    "preserve_scale": held.gram,
  }
  fixed = np.zeros_like(identity)
  for name, part in parts.items():
    if name != vary:
      fixed += scales[name] * part
  if vary == "lamb":
    right = erase_scale * erased.cross.T
    return identity + ridge_grid(fixed, right, values).transpose(0, 2, 1)
  try:
    spectrum, vectors = scipy.linalg.eigh(parts[vary], fixed)
  except np.linalg.LinAlgError as error:
    raise ValueError(
      f"{vary} grid at lamb={lamb}: what stays fixed is not positive definite; "
      "a larger ridge helps"
    ) from error
  # D = e (C* - C)^T C, so e is in front as well where it is what varies.
  ahead = values if vary == "erase_scale" else np.full_like(values, erase_scale)
  weights = ahead[:, None] / (values[:, None] * spectrum + 1)
  left = erased.cross @ vectors
  return identity + (left * weights[:, None]) @ vectors.T


def ridge_grid(
  matrix: Float64[np.ndarray, "d d"],
  right: Float64[np.ndarray, "d k"],
  ridges: Sequence[float] | np.ndarray,
) -> Float64[np.ndarray, "n d k"]:
  """(matrix + ridge I)^-1 right for every ridge; `matrix` is symmetric.

  RECE's derivation at every lam_r is one of these.

  Raises:
    ValueError: a ridge at which the system is not positive definite.
  """
  values, vectors = np.linalg.eigh(matrix)
  shifted = np.asarray(ridges, float)[:, None] + values
  floor = len(values) * np.finfo(float).eps * np.abs(shifted).max(1)
  bad = np.flatnonzero(shifted.min(1) <= floor)
  if len(bad):
    raise ValueError(
      f"ridge={ridges[bad[0]]}: not safely positive definite, smallest "
      f"eigenvalue {shifted[bad[0]].min():.2e}"
    )
  turned = vectors.T @ right
  return vectors @ (turned / shifted[:, :, None])


@dataclasses.dataclass(frozen=True, eq=False)
class Singles:
  """Independent edits as low-rank factors: T_i = I + left_i^T right_i.

  Attributes:
    left: C* - C.
    right: G.
  """

  left: Float64[np.ndarray, "n r d"]
  right: Float64[np.ndarray, "n r d"]

  def __len__(self) -> int:
    return len(self.left)

  def context_map(self, index: int) -> Float64[np.ndarray, "d d"]:
    """One edit's T."""
    width = self.left.shape[-1]
    return np.eye(width) + self.left[index].T @ self.right[index]


def singles(
  source: Float[np.ndarray, "n r d"],
  target: Float[np.ndarray, "n r d"],
  held: Sums,
  *,
  lamb: float,
  erase_scale: float = 1.0,
  preserve_scale: float = 1.0,
) -> Singles:
  """Erases each of n concepts from the base by itself.

  Args:
    source: C of each; concepts of fewer rows are filled up with zeros.
    target: C*, filled up likewise.
    held: sums of the rows that all edits preserve, with weight 1.
    lamb: the ridge.
    erase_scale: e.
    preserve_scale: p.

  Raises:
    ValueError: shapes differ; a scale is out of range; e is 0; the shared
      system is not positive definite.
  """
  if source.shape != target.shape:
    raise ValueError(f"{source.shape} source rows, {target.shape} target rows")
  check_scales(
    lamb=lamb, erase_scale=erase_scale, preserve_scale=preserve_scale
  )
  if not erase_scale:
    raise ValueError("erase_scale=0 erases nothing; allowed: above 0")
  source, target = (np.asarray(x, np.float64) for x in (source, target))
  if not (np.isfinite(source).all() and np.isfinite(target).all()):
    raise ValueError("source or target text states hold NaN or infinity")
  shared = preserve_scale * held.gram + lamb * np.eye(source.shape[-1])
  try:
    factor = scipy.linalg.cho_factor(shared, lower=True)
  except np.linalg.LinAlgError as error:
    raise ValueError(f"lamb={lamb}: not positive definite") from error
  flat = source.reshape(-1, source.shape[-1])
  reach = scipy.linalg.cho_solve(factor, flat.T).T.reshape(source.shape)
  small = reach @ source.transpose(0, 2, 1)
  small += np.eye(source.shape[1]) / erase_scale
  return Singles(target - source, np.linalg.solve(small, reach))


@jax.jit
def map_rows(
  changes: Float[Array, "m d d"],
  which: Int[Array, " b"],
  context: Float[Array, "b l d"],
) -> Float[Array, "b l d"]:
  """Each row's text states through its own model's map; `changes` are T - I."""
  step = jnp.einsum(
    "bld,bed->ble",
    context.astype(jnp.float32),
    changes[which],
    precision=_HIGHEST,
  )
  return (context + step).astype(context.dtype)


def generate(
  sd: Any,
  params: Any,
  context_maps: Sequence[Float[np.ndarray, "d d"]] | Maps,
  prompts: Sequence[str],
  seeds: Sequence[int],
  *,
  negative_prompt: str = "",
  guidance_scale: float = 7.5,
  batch_size: int = 16,
  noise_source: str = "jax",
  place: Callable[[Any], Any] = jnp.asarray,
  fetch: Callable[[Any], np.ndarray] = np.asarray,
  **sampling: Any,
) -> Iterator[tuple[Int[np.ndarray, "b 2"], UInt8[np.ndarray, "b H W 3"]]]:
  """Images of every prompt by every edited model, from one UNet.

  Args:
    sd: the base model.
    params: its parameters.
    context_maps: a T for every model; the identity is the base itself.
    prompts: one for each row.
    seeds: one for each row; every model draws from the same noise.
    negative_prompt: steered away from; each model edits it too.
    guidance_scale: 1 or less leaves guidance out.
    batch_size: images in one compiled call, of whichever models.
    noise_source: as in `sampling.generate`.
    place: puts a batch's host arrays on the devices.
    fetch: brings this process's images back.
    **sampling: `num_steps`, `sampler`.

  Yields:
    (model, row) of every image in the batch, and the images; model by model.

  Raises:
    ValueError: no model, unequal lengths, a map of another width than the text
      states, or what `sampling.generate` refuses.
  """
  if len(prompts) != len(seeds):
    raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
  changes = _changes(context_maps, sd.context_shape[1])
  params = jax.tree.map(jnp.asarray, params)
  ids = stable_diffusion.tokenize(sd, [*prompts, negative_prompt])
  pairs = np.stack(
    np.meshgrid(range(len(context_maps)), range(len(prompts)), indexing="ij"),
    axis=-1,
  ).reshape(-1, 2)
  for start in range(0, len(pairs), batch_size):
    # The last batch is filled up, so that all are compiled as one.
    index = np.minimum(np.arange(start, start + batch_size), len(pairs) - 1)
    models, rows = pairs[index].T
    which = place(models)

    def edited(rows, which=which):
      context = stable_diffusion.encode_text(sd, params, place(ids[rows]))
      return map_rows(changes, which, context)

    negative = None
    if guidance_scale > 1:
      negative = edited(np.full(len(rows), len(prompts)))
    noise = row_noise(
      [seeds[row] for row in rows], sd.latent_shape, noise_source
    )
    images = stable_diffusion.sample(
      sd,
      params,
      edited(rows),
      negative,
      place(noise),
      guidance_scale=guidance_scale,
      **sampling,
    )
    count = min(batch_size, len(pairs) - start)
    yield pairs[start : start + count], fetch(images)[:count]


def _changes(
  context_maps: Sequence[Float[np.ndarray, "d d"]] | Maps, width: int
) -> Float[Array, "m d d"]:
  if not len(context_maps):
    raise ValueError("no context map: no model to draw with")
  for i, context_map in enumerate(context_maps):
    if np.shape(context_map) != (width, width):
      raise ValueError(
        f"context map {i} is {np.shape(context_map)}, the text states {width} "
        "wide"
      )
  return jnp.asarray(np.asarray(context_maps) - np.eye(width), jnp.float32)
