"""Which weights a closed form reads and changes, and which they are."""

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Float64

from unlearning_jax import convert
from unlearning_jax.concepts import check_choice
from unlearning_jax.memory import once

Params = Mapping[str, Any]
Kernels = Mapping[str, Float[Array | np.ndarray, "d o"]]


def text_width(params: Params) -> int:
  """The width of the text encoder's states."""
  embeddings = params["text_encoder"]["text_model"]["embeddings"]
  return embeddings["token_embedding"]["embedding"].shape[-1]


def cross_attention_kernels(params: Params) -> dict[str, Any]:
  """The key and value projections of the text: path in the UNet -> kernel.

  Kernels are (d, o): text width to inner width.

  Raises:
    ValueError: there is none; a block has only one of its two; a kernel's d is
      not the text encoder's; a value is not finite.
  """
  leaves = traverse_util.flatten_dict(params["unet"], sep="/")
  ends = ("attn2/to_k/kernel", "attn2/to_v/kernel")
  kernels = {k: v for k, v in sorted(leaves.items()) if k.endswith(ends)}
  if not kernels:
    near = difflib.get_close_matches(ends[0], leaves, n=3, cutoff=0.0)
    raise ValueError(
      f"no cross-attention kernel: no UNet leaf ends with {' or '.join(ends)}; "
      f"nearest of {len(leaves)}: {', '.join(near) or 'none'}"
    )
  width = text_width(params)
  for path, kernel in kernels.items():
    block = path.rsplit("/", 2)[0]
    for twin in (f"{block}/to_k/kernel", f"{block}/to_v/kernel"):
      if twin not in kernels:
        raise ValueError(f"unet/{path} is there, unet/{twin} is not")
    if kernel.shape[0] != width:
      raise ValueError(
        f"unet/{path} has shape {kernel.shape}, but the text encoder is "
        f"{width} wide: they belong to different models"
      )
  _check_finite(kernels)
  return kernels


@once
def _check_finite(kernels: Kernels) -> None:
  for path, kernel in kernels.items():
    if not np.isfinite(np.asarray(kernel)).all():
      raise ValueError(f"unet/{path} holds NaN or infinity")


def with_kernels(params: Params, kernels: Kernels) -> dict[str, Any]:
  """`params` with these text projections, in the type they are stored in."""
  leaves: dict[str, Any] = dict(
    traverse_util.flatten_dict(dict(params["unet"]), sep="/")
  )
  for path, kernel in kernels.items():
    leaves[path] = np.asarray(kernel).astype(leaves[path].dtype)
  return {**params, "unet": traverse_util.unflatten_dict(leaves, sep="/")}


def base_fingerprint(params: Params) -> str:
  """SHA-256 of what an edit is computed from and applied to.

  That is the text encoder and the cross-attention kernels: names, shapes,
  types and bytes. Every edited model has another fingerprint than its base.
  """
  leaves = traverse_util.flatten_dict(params["text_encoder"], sep="/")
  return leaves_digest(leaves | cross_attention_kernels(params))


@dataclasses.dataclass(frozen=True)
class Fingerprint:
  """Which weights something was made from.

  Attributes:
    kind: of what: `model`, every leaf; or `text`, what a context map is
      computed from, the text encoder and what projects its states.
    digest: SHA-256 of these leaves, in hex.
  """

  kind: str
  digest: str

  @classmethod
  def of(cls, params: Params, kind: str = "model") -> "Fingerprint":
    """The fingerprint of parameters.

    Raises:
      ValueError: another kind; for `text`, there is no text projection.
    """
    check_choice("fingerprint", kind, _KINDS)
    return cls(kind, _KINDS[kind](params))

  def check(self, params: Params, made: str, remedy: str):
    """Refuses parameters that have another fingerprint.

    Args:
      params: should be those that something was made from.
      made: what that is, for the message.
      remedy: what to do, for the message.

    Raises:
      ValueError: with both fingerprints.
    """
    found = Fingerprint.of(params, self.kind)
    if found != self:
      raise ValueError(
        f"{made} was made from base {self.digest}, these parameters are "
        f"{found.digest}; {remedy}"
      )


_KINDS = {"model": convert.params_fingerprint, "text": base_fingerprint}


@once
def leaves_digest(leaves: Mapping[str, Any]) -> str:
  """SHA-256 of leaves: their paths, shapes, types and bytes."""
  digest = hashlib.sha256()
  for path, leaf in sorted(leaves.items()):
    leaf = np.ascontiguousarray(leaf)
    digest.update(f"{path} {leaf.shape} {leaf.dtype}".encode())
    digest.update(leaf.view(np.uint8).data)
  return digest.hexdigest()


@once
def projection_gram(kernels: Kernels) -> Float64[np.ndarray, "d d"]:
  """S = sum over projections of W^T W, so that |W x|^2 sums to x^T S x."""
  import scipy.linalg

  width = len(next(iter(kernels.values())))
  total = np.zeros((width, width), order="F")
  # Half of a symmetric product is half of the work.
  (syrk,) = scipy.linalg.get_blas_funcs(("syrk",), (total,))
  for kernel in kernels.values():
    total = syrk(1.0, np.float64(kernel).T, 1.0, total, trans=1, overwrite_c=1)
  total = np.triu(total) + np.triu(total, 1).T
  # It may be shared with whoever asks next.
  total.flags.writeable = False
  return total
