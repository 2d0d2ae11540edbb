"""Writes an edit in the formats that other tools open.

  context_map  this package's own, 768 x 768 (`save_edit`)
  delta        the edited projections, `<module>.weight`, as UCE's 2025 release
               writes them; torch `unet.load_state_dict(..., strict=False)`
  unet         the whole UNet's state dict, as the UCE and RECE releases and the
               attack benchmarks read it; `.pt` or `.safetensors`
  text_encoder the text encoder's, as AdvUnlearn's release is read
  folder       a diffusers folder
  single_file  the whole model in the original layout, as A1111, ComfyUI and
               code of 2022 read it; `.safetensors` or `.ckpt`
  lora         low-rank factors with the keys of diffusers and PEFT
  kohya        the same with the keys of ComfyUI and A1111

The header of every `.safetensors` says what was erased, how and from what. A
delta's header also names the model that it belongs to.

A context map is exactly a LoRA whose A all layers share: with T - I = D V^T,
W' = W + (W D) V^T. V holds the right singular vectors of S^1/2 (T - I), where
S is the sum of W^T W: cut after `rank`, they leave the least error in W' that
any shared A can.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from unlearning_jax import convert, lora
from unlearning_jax.concepts import check_choice
from unlearning_jax.convert import names, originals, output, torch_files
from unlearning_jax.convert.families import FINGERPRINT
from unlearning_jax.edits import (
  Edit,
  apply_to_params,
  check_base,
  header,
  save_edit,
)
from unlearning_jax.projections import (
  Params,
  cross_attention_kernels,
  projection_gram,
)
from unlearning_jax.stable_diffusion import StableDiffusion

# Float32 factors are no more exact below this relative error of the change.
EXACT = 1e-7


@dataclasses.dataclass(frozen=True, eq=False)
class Lora:
  """W' - W = up @ down for every projection.

  Attributes:
    down: (r, d), rows orthonormal, the same for every projection.
    up: a kernel's path in the UNet -> (out, r).
    error: |W' - W - up down| / |W' - W| over all projections, from the rank
      alone; rounding adds to it.
  """

  down: Float64[np.ndarray, "r d"]
  up: Mapping[str, Float[np.ndarray, "o r"]]
  error: float


def low_rank(edit: Edit, params: Params, rank: int | None = None) -> Lora:
  """The edit of its base `params` as low-rank factors.

  Args:
    rank: the largest; None for the least that is exact in float32.

  Raises:
    ValueError: the edit has no context map, or another base; rank < 1.
  """
  _check_rank(rank)
  if edit.context_map is None:
    raise ValueError(
      f"the {edit.method} edit has no context map, so it is not a LoRA; export "
      f"it as {' or '.join(_holding(edit))}"
    )
  check_base(edit, params)
  kernels = cross_attention_kernels(params)
  change = edit.context_map - np.eye(len(edit.context_map))
  values, vectors = np.linalg.eigh(projection_gram(kernels))
  root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
  _, singular, right = np.linalg.svd(root @ change)
  # The error that remains when the first 0, 1, ... directions are kept.
  left = np.sqrt(np.append(np.cumsum(singular[::-1] ** 2)[::-1], 0.0))
  needed = max(1, int(np.argmax(left <= EXACT * left[0])))
  rank = needed if rank is None else min(rank, needed)
  down = right[:rank]
  shared = change @ down.T
  up = {
    path: np.asarray(kernel, np.float64).T @ shared
    for path, kernel in kernels.items()
  }
  return Lora(down, up, float(left[rank] / left[0]))


# Format -> suffixes of its path; a folder may have any name.
FORMATS = {
  "context_map": (".safetensors",),
  "delta": (".safetensors",),
  "unet": (".pt", ".safetensors"),
  "text_encoder": (".pt", ".safetensors"),
  "folder": (),
  "single_file": (".safetensors", ".ckpt"),
  "lora": (".safetensors",),
  "kohya": (".safetensors",),
}


def check_export(
  path: str | os.PathLike,
  layout: str,
  *,
  dtype: str = "float32",
  rank: int | None = None,
  overwrite: bool = False,
) -> pathlib.Path:
  """Checks, before any weight is read, that `export` can write.

  Raises:
    ValueError: the format or dtype is unknown; the path has another suffix than
      the format, exists without `overwrite`, or is not writable; the rank is no
      whole number from 1, or the format has none.
  """
  check_choice("format", layout, FORMATS)
  output.check_dtype(dtype)
  endings = FORMATS[layout]
  if endings and pathlib.Path(path).suffix not in endings:
    raise ValueError(
      f"output={str(path)!r}: format {layout} ends in {' or '.join(endings)}"
    )
  if rank is not None and layout not in ("lora", "kohya"):
    raise ValueError(
      f"rank={rank}: format {layout} has none; lora and kohya do"
    )
  _check_rank(rank)
  if layout == "context_map" and dtype != "float32":
    raise ValueError(f"dtype={dtype}: a context map is always float64")
  return output.check_output(path, overwrite, folder=layout == "folder")


def export(
  path: str | os.PathLike,
  layout: str,
  sd: StableDiffusion,
  edit: Edit,
  params: Params,
  *,
  dtype: str = "float32",
  rank: int | None = None,
  overwrite: bool = False,
) -> dict[str, Any]:
  """Writes the edit to a file or folder.

  Args:
    layout: a name in `FORMATS`.
    sd: gives a folder its configs and tokenizer.
    params: the edit's base.
    dtype: of the tensors, one of `convert.output.DTYPES`.
    rank: the largest of a LoRA; None for an exact one.

  Returns:
    The number of `tensors` written; `storage_error`, the error from `dtype`
    relative to the change; of a LoRA also `rank` and `truncation_error`.

  Raises:
    ValueError: as `check_export`; the edit has another base, or changes more
      than the format holds; a tensor does not fit `dtype`.
  """
  path = check_export(path, layout, dtype=dtype, rank=rank, overwrite=overwrite)
  check_base(edit, params)
  if layout == "context_map":
    save_edit(edit, path)
    return {"tensors": 1}
  if layout in ("lora", "kohya"):
    factors = low_rank(edit, params, rank)
    tensors = _LAYOUTS[layout](factors)
    error = _rounding_of_lora(factors, dtype)
    facts = {"rank": len(factors.down), "truncation_error": factors.error}
  else:
    if layout not in _holding(edit):
      changed = next(iter(edit.leaves), "the UNet's keys and values")
      raise ValueError(
        f"format={layout!r} cannot hold the {edit.method} edit, which changes "
        f"{changed}; export it as "
        f"{' or '.join(_holding(edit))}"
      )
    edited = apply_to_params(edit, params)
    states, old = (
      {part: names.torch_views(tree) for part, tree in tree.items()}
      for tree in (edited, params)
    )
    tensors, facts = _tensors(layout, sd, states, old), {}
    error = output.rounding(states, dtype, old)
  facts["storage_error"] = error
  metadata = header(edit) | {name: str(value) for name, value in facts.items()}
  if layout == "delta":
    metadata[FINGERPRINT] = convert.params_fingerprint(params)
  if layout == "folder":
    files = dataclasses.replace(sd.files, states=states)
    convert.save_folder(
      path, files, dtype=dtype, overwrite=overwrite, metadata=metadata
    )
    return {"tensors": sum(map(len, states.values())), **facts}
  if layout == "kohya":
    # The web interfaces show these keys.
    metadata |= {
      "ss_network_module": "networks.lora",
      "ss_network_dim": str(facts["rank"]),
      "ss_network_alpha": str(facts["rank"]),
    }
  with output.replacing(path) as partial:
    torch_files.write_weights(partial, path.suffix, tensors, dtype, metadata)
  return {"tensors": len(tensors), **facts}


def _holding(edit: Edit) -> list[str]:
  """The formats of weights that can hold what an edit changes."""
  parts = {name.split("/")[0] for name in edit.leaves} or {"unet"}
  alone = [part for part in ("unet", "text_encoder") if parts == {part}]
  return ["delta", *alone, "folder", "single_file"]


def _tensors(
  layout: str,
  sd: StableDiffusion,
  states: Mapping[str, Mapping[str, np.ndarray]],
  old: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """The tensors of a file of weights by their names in it."""
  if layout == "single_file":
    scheduler = sd.files.configs.get("scheduler")
    return originals.to_original(states, scheduler)
  if layout != "delta":
    return dict(states.get(layout, {}))
  return {
    name: value
    for part, tensors in states.items()
    for name, value in tensors.items()
    if value is not old[part][name]
    and not np.array_equal(value, old[part][name])
  }


def _rounding_of_lora(factors: Lora, dtype: str) -> float:
  """|stored up stored down - up down| / |up down| over all projections."""
  down = factors.down.astype(dtype).astype(np.float64)
  off = size = 0.0
  for up in factors.up.values():
    exact = up @ factors.down
    stored = up.astype(dtype).astype(np.float64) @ down
    off += float(np.sum((stored - exact) ** 2))
    size += float(np.sum(exact**2))
  return float(np.sqrt(off / size))


def _peft(factors: Lora) -> dict[str, np.ndarray]:
  """Factors under the keys of diffusers and PEFT; the scale is 1."""
  down = factors.down.T
  return lora.to_torch(
    {path: {"down": down, "up": up.T} for path, up in factors.up.items()}
  )


def _kohya(factors: Lora) -> dict[str, np.ndarray]:
  """Factors under kohya's keys; the scale alpha / rank is 1."""
  alpha = np.array(len(factors.down), np.float32)
  tensors = {}
  for path, up in factors.up.items():
    module = convert.torch_name(path.split("/")).removesuffix(".weight")
    key = f"lora_unet_{module.replace('.', '_')}"
    tensors[f"{key}.lora_down.weight"] = factors.down
    tensors[f"{key}.lora_up.weight"] = up
    tensors[f"{key}.alpha"] = alpha
  return tensors


_LAYOUTS = {"lora": _peft, "kohya": _kohya}


def _check_rank(rank: int | None) -> None:
  if rank is not None and not (isinstance(rank, int) and rank >= 1):
    raise ValueError(f"rank={rank!r}; allowed: whole numbers from 1")
