"""The key and value projections of the text, and fingerprints of weights."""

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


def leaves_of(tree: Params) -> dict[str, Any]:
  """Path (`unet/conv_in/kernel`) -> leaf, of any tree of dicts."""
  return dict(traverse_util.flatten_dict(dict(tree), sep="/"))


def with_unet(params: Params, leaves: Mapping[str, Any]) -> dict[str, Any]:
  """`params` with other values for these leaves, by their path in the UNet."""
  every = leaves_of(params["unet"]) | dict(leaves)
  return {**params, "unet": traverse_util.unflatten_dict(every, sep="/")}


def text_width(params: Params) -> int:
  """The width of the text encoder's states."""
  embeddings = params["text_encoder"]["text_model"]["embeddings"]
  return embeddings["token_embedding"]["embedding"].shape[-1]


def cross_attention_kernels(params: Params) -> dict[str, Any]:
  """The key and value projections of the text: path in the UNet -> kernel.

  Kernels are (d, o): text width to inner width.

  Raises:
    ValueError: there are none; a block lacks one of the two; a kernel's d is
      not the text encoder's width; a value is not finite.
  """
  leaves = leaves_of(params["unet"])
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
        raise ValueError(f"unet/{path} is there, but unet/{twin} is not")
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
  """`params` with these kernels of the UNet, in the dtypes of the old ones."""
  old = leaves_of(params["unet"])
  cast = {k: np.asarray(v).astype(old[k].dtype) for k, v in kernels.items()}
  return with_unet(params, cast)


def base_fingerprint(params: Params) -> str:
  """SHA-256 of the text encoder and the cross-attention kernels.

  A context map is computed from these leaves and changes some of them, so an
  edited model has another fingerprint than its base.
  """
  leaves = leaves_of(params["text_encoder"])
  return leaves_digest(leaves | cross_attention_kernels(params))


@dataclasses.dataclass(frozen=True)
class Fingerprint:
  """Which weights something was made from.

  Attributes:
    kind: which leaves: "model" for all; "text" for those that a context map is
      computed from, see `base_fingerprint`.
    digest: SHA-256 of these leaves, in hex.
  """

  kind: str
  digest: str

  @classmethod
  def of(cls, params: Params, kind: str = "model") -> "Fingerprint":
    """The fingerprint of parameters.

    Raises:
      ValueError: the kind is unknown; "text" finds no text projections.
    """
    check_choice("fingerprint", kind, _KINDS)
    return cls(kind, _KINDS[kind](params))

  def check(self, params: Params, made: str, remedy: str):
    """Refuses parameters that have another fingerprint.

    Args:
      made: what was made from the right parameters, as "the uce2023 edit".
      remedy: what the reader of the message can do.

    Raises:
      ValueError: names both fingerprints.
    """
    found = Fingerprint.of(params, self.kind)
    if found != self:
      raise ValueError(
        f"{made} was made from base {self.digest}, but these parameters are "
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
  """S = sum of W^T W over all projections W: sum of |W x|^2 = x^T S x."""
  import scipy.linalg

  width = len(next(iter(kernels.values())))
  total = np.zeros((width, width), order="F")
  # syrk computes one half of a symmetric product: half of the work.
  (syrk,) = scipy.linalg.get_blas_funcs(("syrk",), (total,))
  for kernel in kernels.values():
    total = syrk(1.0, np.float64(kernel).T, 1.0, total, trans=1, overwrite_c=1)
  total = np.triu(total) + np.triu(total, 1).T
  # `once` returns the same array to every caller.
  total.flags.writeable = False
  return total
