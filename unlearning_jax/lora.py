"""Low-rank adapters of the UNet's attention: kernel' = kernel + s down up.

LoRA (Hu et al., 2021) trains a product of two thin matrices instead of a
weight. Adapters are a plain tree beside the parameters,

  {"down_blocks_0/.../attn2/to_k/kernel": {"down": (d, r), "up": (r, o)}, ...}

keyed by the kernel's path in the UNet, as in `closed_form`. `merge` is
differentiable, so a loss of the merged parameters trains the factors. `pad`
raises ranks, and `stack` packs several runs for `vmap`.

Reference: https://arxiv.org/abs/2106.09685
"""

import difflib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from unlearning_jax import durable
from unlearning_jax.convert import read_lora, torch_name
from unlearning_jax.projections import Params, leaves_of, with_unet

Adapters = dict[str, dict[str, Float[Array, "_ _"]]]

_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out_0")
TARGETS = {
  "kv": ("attn2/to_k", "attn2/to_v"),
  "cross": tuple(f"attn2/{name}" for name in _PROJECTIONS),
  "attention": tuple(
    f"{block}/{name}" for block in ("attn1", "attn2") for name in _PROJECTIONS
  ),
}
_FACTORS = ("down", "up")


def init(
  params: Params,
  key: PRNGKeyArray,
  *,
  rank: int,
  targets: str | Sequence[str] = "kv",
) -> Adapters:
  """Fresh adapters, which change nothing yet: down ~ N(0, 1/r^2), up = 0.

  Args:
    params: the model to adapt; only shapes are read.
    key: draws the down factors.
    rank: r of every adapter.
    targets: "kv" for cross-attention's keys and values, "cross" for its four
      projections, "attention" for those of self-attention too; or the end of
      kernel paths, as "attn2/to_v" or "ff/net_2". Several in a sequence, or in
      one text, separated by commas.

  Raises:
    ValueError: a target is unknown or not a matrix; the rank is larger than a
      side of a kernel.
  """
  kernels = target_kernels(params, targets)
  largest = min(min(kernel.shape) for kernel in kernels.values())
  if not 1 <= rank <= largest:
    raise ValueError(f"rank={rank}; allowed: 1 to {largest}, the least width")
  keys = jax.random.split(key, len(kernels))
  return {
    path: {
      "down": jax.random.normal(k, (kernel.shape[0], rank)) / rank,
      "up": jnp.zeros((rank, kernel.shape[1])),
    }
    for k, (path, kernel) in zip(keys, kernels.items(), strict=True)
  }


def target_kernels(
  params: Params, targets: str | Sequence[str]
) -> dict[str, Any]:
  """The kernels that `targets` names, by path, sorted; see `init`.

  Raises:
    ValueError: no kernel has a target, with the nearest; a kernel is not a
      matrix.
  """
  names = targets.split(",") if isinstance(targets, str) else targets
  kernels = _kernels(params)
  found = {}
  for end in [end for name in names for end in TARGETS.get(name, (name,))]:
    wanted = f"/{end.removesuffix('/kernel')}/kernel"
    hits = {k: v for k, v in kernels.items() if f"/{k}".endswith(wanted)}
    if not hits:
      names = {k.removesuffix("/kernel") for k in kernels}
      ends_of = {"/".join(k.split("/")[-2:]) for k in names}
      near = difflib.get_close_matches(end, [*TARGETS, *sorted(ends_of)], n=3)
      raise ValueError(
        f"targets={end!r}: no kernel's path ends with it; allowed: "
        f"{', '.join(TARGETS)}, or ends of paths"
        + (f"; nearest: {', '.join(near)}" if near else "")
      )
    found |= hits
  if not found:
    raise ValueError(f"targets={targets!r}: nothing to adapt")
  for path, kernel in found.items():
    if len(kernel.shape) != 2:
      raise ValueError(f"targets: unet/{path} is not a matrix: {kernel.shape}")
  return dict(sorted(found.items()))


def merge(
  params: Params, adapters: Adapters, scale: float | Array = 1.0
) -> dict[str, Any]:
  """The adapted model: kernel + scale down up, in float32 and cast back.

  Leaves without an adapter are the same arrays.

  Args:
    scale: s; alpha / r where a paper has an alpha.

  Raises:
    ValueError: an adapter has no kernel, or another shape than its kernel.
  """
  leaves, adapted = leaves_of(params["unet"]), {}
  for path, factors in adapters.items():
    _check(path, factors, leaves)
    kernel = leaves[path]
    change = jnp.matmul(
      factors["down"].astype(jnp.float32),
      factors["up"].astype(jnp.float32),
      precision=jax.lax.Precision.HIGHEST,
    )
    adapted[path] = (kernel + scale * change).astype(kernel.dtype)
  return with_unet(params, adapted)


def pad(adapters: Adapters, rank: int) -> Adapters:
  """The same adapters at a larger rank, with zeros in the added entries.

  The product of the factors is the same. Gradients of the added entries stay
  zero.

  Raises:
    ValueError: an adapter's rank is larger than `rank`.
  """
  padded = {}
  for path, factors in adapters.items():
    extra = rank - factors["down"].shape[1]
    if extra < 0:
      raise ValueError(f"rank={rank}: unet/{path} already has {rank - extra}")
    padded[path] = {
      "down": jnp.pad(factors["down"], ((0, 0), (0, extra))),
      "up": jnp.pad(factors["up"], ((0, extra), (0, 0))),
    }
  return padded


def stack(runs: Sequence[Adapters]) -> Adapters:
  """Packs the adapters of R runs: every leaf led by R, at the largest rank.

  Raises:
    ValueError: there are no runs, or they adapt different kernels.
  """
  if not runs or any(run.keys() != runs[0].keys() for run in runs):
    raise ValueError("runs to pack must adapt the same kernels")
  rank = max(f["down"].shape[1] for run in runs for f in run.values())
  padded = [pad(run, rank) for run in runs]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded)


def save(
  path: str | pathlib.Path, adapters: Adapters, scale: float = 1.0
) -> None:
  """Writes the file that diffusers' `load_lora_weights` reads (PEFT's names).

  `up` includes the scale, so that all readers agree on it.
  """
  durable.save_tensors(path, to_torch(adapters, scale), {"format": "pt"})


def to_torch(
  adapters: Mapping[str, Mapping[str, Any]], scale: float = 1.0
) -> dict[str, np.ndarray]:
  """The factors under the keys of diffusers and PEFT; `up` includes `scale`."""
  tensors = {}
  for kernel, factors in adapters.items():
    module = torch_name(kernel.split("/")).removesuffix("weight")
    down, up = factors["down"], scale * factors["up"]
    tensors[f"unet.{module}lora_A.weight"] = np.asarray(down).T
    tensors[f"unet.{module}lora_B.weight"] = np.asarray(up).T
  return tensors


def load(path: str | pathlib.Path, params: Params) -> Adapters:
  """Reads adapters of `params` that `save`, diffusers, PEFT or kohya wrote.

  `up` includes alpha / rank, so the scale of what is returned is 1.

  Raises:
    ValueError: as `convert.read_lora`; an adapter has another shape than its
      kernel.
  """
  kernels = _kernels(params)
  names = {torch_name(kernel.split("/")): kernel for kernel in kernels}
  adapters: Adapters = {}
  for (_, name), factors in read_lora(path, {"unet": names}).items():
    pair = {"down": factors.down.T, "up": factors.up.T}
    _check(names[name], pair, kernels)
    adapters[names[name]] = jax.tree.map(jnp.asarray, pair)
  return dict(sorted(adapters.items()))


def _kernels(params: Params) -> dict[str, Any]:
  leaves = leaves_of(params["unet"]).items()
  return {path: leaf for path, leaf in leaves if path.endswith("/kernel")}


def _check(path: str, factors: Mapping[str, Any], leaves: Mapping[str, Any]):
  if path not in leaves:
    near = difflib.get_close_matches(path, leaves, n=1)
    hint = f"; nearest: {near[0]}" if near else ""
    raise ValueError(f"adapter of unet/{path}: there is no such kernel{hint}")
  if set(factors) != set(_FACTORS):
    raise ValueError(f"adapter of unet/{path}: has {sorted(factors)} only")
  down, up = (tuple(factors[name].shape) for name in _FACTORS)
  wanted = tuple(leaves[path].shape)
  if down[1:] != up[:1] or down[:1] + up[1:] != wanted or len(wanted) != 2:
    raise ValueError(
      f"adapter of unet/{path}: down {down} and up {up} do not make a kernel "
      f"of shape {wanted}"
    )
