"""Torch tensor names and layouts <-> flax parameter paths and layouts.

The rule needs no table of layers. A path is the torch name with each list
index joined to its list by an underscore. The leaf's name decides the layout:

  weight, 2-D      kernel      (out, in)         -> (in, out)
  weight, 4-D      kernel      (out, in, h, w)   -> (h, w, in, out)
  weight, 1-D      scale       (c,)
  weight, lookup   embedding   (rows, width)
  bias             bias        (c,)
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from unlearning_jax import memory
from unlearning_jax.convert.lazy import Lazy

State = dict[str, np.ndarray]

_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "embedding": "weight",
  "bias": "bias",
  # Bare parameters of CLIP.
  "class_embedding": "class_embedding",
  "logit_scale": "logit_scale",
}
# These torch names end in a digit but are not entries of a list.
_NOT_LISTS = ("linear_1", "linear_2")
# Some versions of transformers stored this constant.
_BUFFERS = re.compile(r"(^|\.)embeddings?\.position_ids$")
# AdvUnlearn's module calls the embeddings `embedding`.
_UNPREFIXED_CLIP = re.compile(
  r"^(embeddings?(?=\.(token|position)_embedding)|encoder(?=\.layers)"
  r"|final_layer_norm)\."
)
# What torch.compile, DDP, FSDP and checkpointing put around a module.
_WRAPPERS = re.compile(
  r"(?:(?<=^)|(?<=\.))((_orig_mod|module|_fsdp_wrapped_module"
  r"|_checkpoint_wrapped_module)\.)+"
)
_VAE_ATTENTION = re.compile(r"^((?:en|de)coder\.mid_block\.attentions\.\d+)\.")
_OLD_ATTENTION = {
  "query": "to_q",
  "key": "to_k",
  "value": "to_v",
  "proj_attn": "to_out.0",
}


def torch_name(path: Iterable[str]) -> str:
  """The torch name, as `down_blocks.0.resnets.1.conv1.weight`, of a flax path.

  Args:
    path: keys from the model's root to the leaf, the leaf's own included.

  Raises:
    ValueError: the models have no leaf of this name.
  """
  *modules, leaf = path
  if leaf not in _LEAVES:
    raise ValueError(
      f"parameter {'/'.join((*modules, leaf))!r}: a leaf is one of "
      f"{', '.join(_LEAVES)}"
    )
  names = [
    m if m in _NOT_LISTS else re.sub(r"_(\d+)$", r".\1", m) for m in modules
  ]
  return ".".join((*names, _LEAVES[leaf]))


def renamed(
  state: Mapping[str, Any],
  rule: Callable[[str], str | None],
  source: str,
) -> dict[str, Any]:
  """Tensors by the names that `rule` gives them; without those it gives none.

  Args:
    state: tensors, or their headers.
    rule: of a name in the file, the new one or None.
    source: what to call the state in errors.

  Raises:
    ValueError: two tensors that differ get one name. A module that is an
      attribute of two modules is saved twice, and is the same both times.
  """
  out, origin = {}, {}
  for key, value in state.items():
    name = rule(key)
    if name is None:
      continue
    if name in out and not _same(out[name], value):
      raise ValueError(
        f"{source}: {name!r} is given twice, as {origin[name]!r} and {key!r}, "
        "and they differ"
      )
    out[name], origin[name] = value, key
  return out


def unwrapped(state: Mapping[str, Any], source: str) -> dict[str, Any]:
  """`renamed` by `plain`."""
  return renamed(state, plain, source)


def plain(key: str) -> str:
  """A name without what training code wraps modules in, as `_orig_mod.`."""
  return _WRAPPERS.sub("", key)


def _same(one: Any, other: Any) -> bool:
  if isinstance(one, np.ndarray | Lazy):
    return one is other or (
      one.dtype == other.dtype and np.array_equal(one, other)
    )
  return one.shape == other.shape


def canonical(state: Mapping[str, np.ndarray], source: str) -> State:
  """Gives every tensor the one name and shape that this package works with.

  Renames the VAE's attention where it has old names (`query`, `proj_attn`) or
  is stored as 1x1 convolutions, adds a missing `text_model.` to CLIP's keys,
  and drops CLIP's `position_ids`. Everything else stays.

  Args:
    state: tensors under diffusers names.
    source: what to call the state in errors.

  Raises:
    ValueError: two tensors that differ are given under one name.
  """
  flat = {
    key: as_shape(value, value.shape[:2])
    if value.ndim == 4 and _VAE_ATTENTION.match(key)
    else value
    for key, value in state.items()
  }
  return renamed(flat, _canonical_name, source)


def _canonical_name(key: str) -> str | None:
  if _BUFFERS.search(key):
    return None
  if _UNPREFIXED_CLIP.match(key):
    return "text_model." + re.sub(r"^embedding\.", "embeddings.", key)
  if attention := _VAE_ATTENTION.match(key):
    module, _, leaf = key[attention.end() :].partition(".")
    if module in _OLD_ATTENTION:
      return f"{attention.group()}{_OLD_ATTENTION[module]}.{leaf}"
  return key


def as_shape(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """`value` as 1x1 convolution or as linear weight, if that gives `shape`."""
  if value.shape + (1, 1) == shape or value.shape == shape + (1, 1):
    return value.reshape(shape)
  return value


def to_flax(
  state: Mapping[str, np.ndarray],
  template: Mapping[str, Any],
  source: str = "state dict",
) -> dict[str, Any]:
  """Lays a torch state dict out as flax parameters.

  Args:
    state: one component's tensors under torch (diffusers) names.
    template: tree of arrays or `jax.ShapeDtypeStruct`, as from
      `models.parameter_shapes`.
    source: what to call the state in errors.

  Returns:
    A tree like `template` of numpy arrays in its dtypes: views of the tensors
    in `state` where no cast is needed. Lazy tensors are read to where a CPU
    device takes them without a copy.

  Raises:
    ValueError: keys of `state` are missing, extra, misshaped or not floating
      point; the message names the first few of each.
  """
  state = canonical(state, source)
  flat: dict[Any, Any] = traverse_util.flatten_dict(dict(template))
  paths = {torch_name(path): path for path in flat}
  if len(paths) != len(flat):
    raise ValueError("template: two parameters have one torch name")
  leaves, misshaped = {}, []
  for name, path in paths.items():
    if name not in state:
      continue
    value = _flax_layout(state[name], path[-1], tuple(flat[path].shape))
    leaves[path] = value
    if value.shape != tuple(flat[path].shape):
      expected = _torch_shape(path[-1], tuple(flat[path].shape))
      misshaped.append(f"{name} {state[name].shape}, expected {expected}")
  report_mismatch(
    source,
    missing=[name for name in paths if name not in state],
    extra=[name for name in state if name not in paths],
    misshaped=misshaped,
    not_floating=[k for k, v in state.items() if not is_floating(v)],
  )
  cast = {
    path: _in_memory(leaf.astype(flat[path].dtype, copy=False))
    for path, leaf in leaves.items()
  }
  return traverse_util.unflatten_dict(cast)


# A CPU device shares memory that is in order and begins at such an address.
_ALIGNED = 64


def _in_memory(value: np.ndarray | Lazy) -> np.ndarray:
  if not isinstance(value, Lazy):
    return value
  size = value.size * value.dtype.itemsize
  raw = np.empty(size + _ALIGNED, np.uint8)
  start = -raw.ctypes.data % _ALIGNED
  array = raw[start : start + size].view(value.dtype).reshape(value.shape)
  array[...] = np.asarray(value)
  return memory.frozen(array)


def to_torch(params: Mapping[str, Any]) -> State:
  """Lays the parameters of one component out as a torch state dict.

  The arrays lie in order: safetensors' `save_file` writes memory as it lies,
  and scrambles a transposed view without an error.

  Raises:
    ValueError: a leaf has no torch counterpart.
  """
  return {k: np.ascontiguousarray(v) for k, v in torch_views(params).items()}


def torch_views(params: Mapping[str, Any]) -> State:
  """As `to_torch`, but views of the leaves, which cost no memory."""
  state = {}
  for path, leaf in traverse_util.flatten_dict(dict(params)).items():
    path = tuple(str(key) for key in path)
    name, value = torch_name(path), np.asarray(leaf)
    if name in state:
      raise ValueError(f"two parameters have the torch name {name!r}")
    if path[-1] == "kernel":
      if value.ndim not in (2, 4):
        raise ValueError(
          f"parameter {'/'.join(path)!r}: shape {value.shape}; a kernel has 2 "
          "or 4 axes"
        )
      value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
    state[name] = value
  return state


def report_mismatch(source: str, **sorts: list[str]) -> None:
  """Raises a ValueError with the first names of every sort that has any."""
  parts = []
  for sort, names in sorts.items():
    if names:
      shown = "; ".join(names[:5]) + ("; ..." if len(names) > 5 else "")
      parts.append(f"{len(names)} {sort.replace('_', ' ')}: {shown}")
  if parts:
    raise ValueError(
      f"{source}: weights do not fit the model\n  " + "\n  ".join(parts)
    )


def is_floating(value: np.ndarray) -> bool:
  """Whether the dtype is a float, those of ml_dtypes included."""
  name = value.dtype.name
  return value.dtype.kind == "f" or name.startswith(("bfloat", "float8"))


def _torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  if leaf != "kernel":
    return shape
  return shape[::-1] if len(shape) == 2 else shape[:1:-1] + shape[:2]


def _flax_layout(
  value: np.ndarray, leaf: str, shape: tuple[int, ...]
) -> np.ndarray:
  value = as_shape(value, _torch_shape(leaf, shape))
  if leaf != "kernel":
    return value
  axes = (2, 3, 1, 0) if value.ndim == 4 else tuple(range(value.ndim))[::-1]
  return value.transpose(axes)
