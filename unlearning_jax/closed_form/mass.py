"""Edits of thousands of phrases: their sums, streamed, sharded and cached.

An edit depends on its phrases only through A and D, two d x d matrices. So each
device encodes a fixed number of phrases at a time and adds up its own share in
float64; the shares are added once, at the end. Memory does not grow with the
list, except for the anchors' states (0.24 MB each at SD 1.4's size; most edits
have one anchor).

Each device always encodes `PER_DEVICE` phrases, padded with weight 0. So the
same phrases go through the same compiled program on any number of devices, and
their float32 states are equal to the last bit. Eight devices differ from one
only in the order in which float64 numbers are added.

A long list costs quality rather than time. The rows of a few hundred concepts
span all d dimensions, so the edit also overwrites what nobody meant to erase
(UCE's published FID rises from 14 to 78 at 100 artists). Holding text as it
really occurs counters that: `held_sums` of captions is one more d x d matrix.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from unlearning_jax import durable, sharding, stable_diffusion
from unlearning_jax.closed_form.solve import Sums, check_scales, solve
from unlearning_jax.concepts import (
  Concept,
  check_concepts,
  preserved_phrases,
)
from unlearning_jax.edits import Edit, make_edit
from unlearning_jax.projections import (
  cross_attention_kernels,
  leaves_digest,
  leaves_of,
  projection_gram,
  text_width,
)
from unlearning_jax.stable_diffusion import Params, StableDiffusion
from unlearning_jax.tokens import check_tokens

PER_DEVICE = 16
_FORMAT = "unlearning_jax preserve sums 1"


def last_tokens(
  sd: StableDiffusion, ids: Int[np.ndarray, "n l"]
) -> Int[np.ndarray, " n"]:
  """Index of each phrase's last token, which the end of text follows.

  It is 0 for an empty phrase. Padding may have the id of the end of text;
  argmax finds the first.
  """
  return np.argmax(ids == sd.tokenizer.eos_token_id, axis=1) - 1


def _batches(
  mesh: sharding.Mesh,
  columns: dict[str, np.ndarray],
  report: Callable[[int], None],
) -> Iterator[dict[str, Any]]:
  """Batches of one size over all devices; `weight` is 0 for padding."""
  count = len(columns["ids"])
  size = PER_DEVICE * mesh.size
  local = PER_DEVICE * sharding.local_rows_multiple(mesh)
  # A mesh of this process's devices alone holds all rows of a batch.
  skipped = 0 if local == size else local * jax.process_index()
  for start in range(0, count, size):
    first = start + skipped
    rows = np.arange(first, first + local)
    batch = {k: v[np.minimum(rows, count - 1)] for k, v in columns.items()}
    batch["weight"] = (rows < count).astype(np.float32)
    yield sharding.global_batch(mesh, batch)
    report(min(start + size, count))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(
  mesh: sharding.Mesh, sd: StableDiffusion, params: Params, ids: Array
) -> Array:
  """Text states; each device encodes its own phrases, without the others."""
  return sharding.map_rows(
    mesh,
    lambda same, rows: stable_diffusion.encode_text(sd, same, rows),
  )(params, ids)


def _window(states: Array, first: Array, length: int) -> Array:
  """`length` states from `first` on; past the end, the last one again."""
  rows = first[:, None] + jnp.arange(length)[None]
  rows = jnp.minimum(rows, states.shape[1] - 1)
  return jnp.take_along_axis(states, rows[:, :, None], axis=1)


def _gram(left: Array, right: Array) -> Array:
  """left^T right over all rows, in float64."""
  left, right = (x.reshape(-1, x.shape[-1]) for x in (left, right))
  return jnp.matmul(left.T, right, precision=jax.lax.Precision.HIGHEST)


def _erase(same: dict[str, Array], rows: dict[str, Array], tail: bool) -> Any:
  length = rows["states"].shape[1] if tail else 1
  source = _window(rows["states"], rows["last"], length).astype(jnp.float64)
  anchors = same["anchors"][rows["anchor"]]
  target = _window(anchors, rows["anchor_last"], length).astype(jnp.float64)
  # Rows are paired until the phrase that starts later reaches the end; what
  # follows repeats the last row and gets weight 0.
  start = jnp.maximum(rows["last"], rows["anchor_last"])
  real = jnp.arange(length)[None] < rows["states"].shape[1] - start[:, None]
  weight = (real * rows["weight"][:, None])[:, :, None].astype(jnp.float64)
  return {
    "gram": _gram(weight * source, source),
    "cross": _gram(weight * (target - source), source),
    "rows": weight.sum(),
  }


def _hold(same: object, rows: dict[str, Array], tail: bool) -> Any:
  del same
  states = rows["states"]
  if not tail:
    states = _window(states, rows["last"], 1)
  states = states.astype(jnp.float64)
  weight = rows["weight"][:, None, None].astype(jnp.float64)
  gram = _gram(weight * states, states)
  count = weight.sum() * states.shape[1]
  return {"gram": gram, "cross": jnp.zeros_like(gram), "rows": count}


# Cached, so that one compiled program serves every list.
_adding = functools.lru_cache(maxsize=8)(sharding.add_row_sums)
_erase_rule, _hold_rule = (
  {tail: functools.partial(rule, tail=tail) for tail in (True, False)}
  for rule in (_erase, _hold)
)


@functools.lru_cache(maxsize=8)
def _together(mesh: sharding.Mesh) -> Callable[..., Any]:
  """A function that adds up the devices' shares."""
  return jax.jit(
    lambda shares: jax.tree.map(lambda leaf: leaf.sum(0), shares),
    out_shardings=sharding.replicated(mesh),
  )


def _stream(
  sd: StableDiffusion,
  params: Params,
  mesh: sharding.Mesh,
  columns: dict[str, np.ndarray],
  function: Callable[..., Any],
  same: dict[str, Any],
  report: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray, int]:
  """Encodes and sums batch by batch; (gram, cross, rows)."""
  width = text_width(params)
  encoder = {"text_encoder": params["text_encoder"]}
  encoder = sharding.place(encoder, sharding.replicated(mesh))
  # Text states stay float32: only sums are made in float64.
  with jax.enable_x64(True):
    add = _adding(mesh, function)
    split = sharding.batch_sharding(mesh)
    totals = sharding.place(
      {
        "gram": np.zeros((mesh.size, width, width)),
        "cross": np.zeros((mesh.size, width, width)),
        "rows": np.zeros(mesh.size),
      },
      split,
    )
  same = sharding.place(same, sharding.replicated(mesh))
  for batch in _batches(mesh, columns, report):
    rows = {k: v for k, v in batch.items() if k != "ids"}
    rows["states"] = _encode(mesh, sd, encoder, batch["ids"])
    with jax.enable_x64(True):
      totals = add(totals, same, rows)
  with jax.enable_x64(True):
    total = _together(mesh)(totals)
    gram, cross = np.asarray(total["gram"]), np.asarray(total["cross"])
    if not (np.isfinite(gram).all() and np.isfinite(cross).all()):
      raise ValueError("text states of the list: NaN or infinity")
    return gram, cross, int(total["rows"])


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights of the parts of the objective.

  Attributes:
    tail: True takes rows as uce2023 and holds the empty prompt; False takes
      them as uce2025.
    erase_scale: e.
    preserve_scale: p.
    lamb: the ridge.
    caption_scale: weight of all captions together, relative to that of all
      erased rows.
  """

  tail: bool = True
  erase_scale: float = 1.0
  preserve_scale: float = 0.1
  lamb: float = 0.5
  caption_scale: float = 1.0

  def __post_init__(self):
    check_scales(
      erase_scale=self.erase_scale,
      preserve_scale=self.preserve_scale,
      lamb=self.lamb,
      caption_scale=self.caption_scale,
    )


def erase(
  sd: StableDiffusion,
  params: Params,
  mesh: sharding.Mesh,
  concepts: Sequence[Concept],
  weights: Weights,
  captions: Sequence[str] = (),
  cache: str | pathlib.Path | None = None,
  report: Callable[[int], None] = lambda done: None,
) -> Edit:
  """UCE for a long list: the edit that `erasures.uce` makes of a short one.

  Args:
    captions: more text to hold, as it really occurs.
    cache: as in `held_sums`.
    report: as in `erased_sums`.

  Raises:
    ValueError: as `erased_sums`; a concept is not usable; the system is not
      positive definite; the edit changes nothing.
  """
  tail, scale = weights.tail, weights.erase_scale
  check_concepts(concepts)
  check_tokens(sd.tokenizer, concepts)
  kernels = cross_attention_kernels(params)
  held = [*([""] if tail else []), *preserved_phrases(concepts)]
  pairs = [(concept.erase, concept.anchor) for concept in concepts]
  # Refuses a phrase that is too long before hours of encoding.
  for texts in ([text for pair in pairs for text in pair], held, captions):
    stable_diffusion.tokenize(sd, texts)
  keep = functools.partial(
    held_sums, sd, params, mesh, tail=tail, cache=cache, report=report
  )
  sums = weights.preserve_scale * keep(held)
  erased = erased_sums(sd, params, mesh, pairs, tail=tail, report=report)
  sums += scale * erased
  if captions:
    usual = keep(captions)
    share = weights.caption_scale * scale * erased.erased / usual.preserved
    sums += share * usual
  context_map, diagnostics = solve(sums, weights.lamb)
  return make_edit(
    context_map,
    params,
    projection_gram(kernels),
    method="uce2023" if tail else "uce2025",
    concepts=concepts,
    diagnostics={
      **diagnostics,
      "erased_rows": sums.erased,
      "preserved_rows": sums.preserved,
      "preserve_scale": weights.preserve_scale,
      "captions": len(captions),
      "caption_scale": weights.caption_scale,
    },
  )


def erased_sums(
  sd: StableDiffusion,
  params: Params,
  mesh: sharding.Mesh,
  pairs: Sequence[tuple[str, str]],
  *,
  tail: bool = True,
  report: Callable[[int], None] = lambda done: None,
) -> Sums:
  """The sums of (phrase, anchor) pairs, each row with weight 1.

  The sums are the same on every process.

  Args:
    tail: True takes each phrase's states from its last token on (uce2023),
      False that of the last token alone (uce2025).
    report: gets the number of phrases done, after every batch.

  Raises:
    ValueError: there is no pair; a phrase is too long, or is to be erased and
      has no tokens; states are not finite.
  """
  if not pairs:
    raise ValueError("no concept to erase")
  ids = stable_diffusion.tokenize(sd, [erased for erased, _ in pairs])
  last = last_tokens(sd, ids)
  if (last < 1).any():
    raise ValueError(f"{pairs[int(np.argmin(last))][0]!r} has no tokens")
  anchors = sorted({anchor for _, anchor in pairs})
  anchor_ids = stable_diffusion.tokenize(sd, anchors)
  index = {anchor: i for i, anchor in enumerate(anchors)}
  which = np.array([index[anchor] for _, anchor in pairs], np.int32)
  states = [
    np.asarray(stable_diffusion.encode_text(sd, params, row[None]))
    for row in anchor_ids
  ]
  columns = {
    "ids": ids,
    "last": last.astype(np.int32),
    "anchor": which,
    "anchor_last": last_tokens(sd, anchor_ids)[which].astype(np.int32),
  }
  same = {"anchors": np.concatenate(states)}
  function = _erase_rule[tail]
  gram, cross, rows = _stream(sd, params, mesh, columns, function, same, report)
  return Sums(gram, cross, erased=rows)


def held_sums(
  sd: StableDiffusion,
  params: Params,
  mesh: sharding.Mesh,
  phrases: Sequence[str],
  *,
  tail: bool = True,
  cache: str | pathlib.Path | None = None,
  report: Callable[[int], None] = lambda done: None,
) -> Sums:
  """The sums of phrases to preserve (captions, names), with weight 1.

  Args:
    tail: True takes all states of a phrase (uce2023), False that of its last
      token (uce2025).
    cache: a folder to keep the sums of lists in, 4.7 MB a list at SD 1.4's
      size; a file's name depends on text encoder, token ids and `tail`.
    report: as in `erased_sums`.

  Raises:
    ValueError: as `erased_sums`; a file in the cache is damaged.
  """
  if not phrases:
    return Sums.zero(text_width(params))
  ids = stable_diffusion.tokenize(sd, phrases)
  path = None
  if cache is not None:
    path = pathlib.Path(cache) / f"held-{_key(params, ids, tail)}.safetensors"
    # Processes on different nodes may see different folders. If only some
    # found the file, the others would wait for them in a collective for ever.
    if sharding.on_all_processes(path.exists()):
      return _read(path, text_width(params))
  last = last_tokens(sd, ids).astype(np.int32)
  function = _hold_rule[tail]
  columns = {"ids": ids, "last": last}
  gram, cross, rows = _stream(sd, params, mesh, columns, function, {}, report)
  if path is not None and jax.process_index() == 0:
    metadata = {"format": _FORMAT, "rows": str(rows)}
    durable.save_tensors(path, {"gram": gram}, metadata)
  return Sums(gram, cross, preserved=rows)


def _key(params: Params, ids: Int[np.ndarray, "n l"], tail: bool) -> str:
  """SHA-256 of everything that preserve sums depend on."""
  encoder = leaves_digest(leaves_of(params["text_encoder"]))
  known = f"{tail} {ids.shape} {encoder}"
  digest = hashlib.sha256(known.encode())
  digest.update(np.ascontiguousarray(ids).tobytes())
  return digest.hexdigest()[:32]


def _read(path: pathlib.Path, width: int) -> Sums:
  try:
    tensors, metadata = durable.load_tensors(path, _FORMAT)
  except ValueError as error:
    raise ValueError(f"{path} is damaged, delete it: {error}") from error
  gram: Any = tensors.get("gram")
  if gram is None or gram.shape != (width, width):
    raise ValueError(f"{path} holds no preserve sums of width {width}")
  return Sums(gram, np.zeros_like(gram), preserved=int(metadata["rows"]))
