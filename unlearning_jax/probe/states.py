"""The probe of keys and values: where phrases are after an edit of those.

With W and W' the key and value projections of base and edit, and c the text
states of an erased phrase and a of its anchor,

  left  = mean of <W' c - W a, W c - W a> / |W c - W a|^2
  moved = mean of |W' c - W c| / |W c - m| ,   m the mean of unrelated phrases.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from unlearning_jax import stable_diffusion
from unlearning_jax.edits import Edit
from unlearning_jax.model import Model
from unlearning_jax.probe import Probe
from unlearning_jax.probe.phrases import Asked, spread
from unlearning_jax.projections import cross_attention_kernels
from unlearning_jax.stable_diffusion import Params, StableDiffusion

MOST = (6, 6, 12)
# Tokens after a phrase's last one that are looked at: its end, and padding.
_TAIL = 4
# Layers that are looked at: more take longer and say the same.
_LAYERS = 4

Rows = Float[np.ndarray, "n o"]


def applies(edit: Edit) -> bool:
  """Whether an edit changes nothing but the text's keys and values."""
  ends = ("attn2/to_k/kernel", "attn2/to_v/kernel")
  return all(path.endswith(ends) for path in edit.leaves)


def measure(base: Model, edit: Edit, asked: Asked) -> Probe:
  """Asks for the keys and values of phrases, before and after an edit.

  Args:
    base: the model that was edited.
    edit: one that `applies`.
    asked: the phrases.
  """
  texts = [end for pair in asked.pairs for end in pair]
  texts = [*dict.fromkeys([*texts, *asked.preserved, *asked.unrelated])]
  states, lasts = _encode(base.sd, base.params, texts)
  before, after = _projected(base.params, edit, states)
  place = {text: i for i, text in enumerate(texts)}

  def tail(rows: np.ndarray, text: str) -> np.ndarray:
    start = lasts[place[text]]
    return rows[place[text], start : start + _TAIL]

  def left(erased: str, anchor: str) -> float:
    goal = tail(before, anchor)
    way, rest = tail(before, erased) - goal, tail(after, erased) - goal
    return float(np.sum(rest * way) / np.sum(way * way))

  middle = np.mean([before[place[p], 1:] for p in asked.unrelated], axis=0)

  def moved(phrases: Sequence[str]) -> float | None:
    found = []
    for phrase in phrases:
      old, new = before[place[phrase], 1:], after[place[phrase], 1:]
      found.append(np.linalg.norm(new - old) / np.linalg.norm(old - middle))
    return float(np.mean(found)) if found else None

  return Probe(
    "states",
    # Below 0 it went past its anchor: no more is left of it.
    max(0.0, float(np.mean([left(*pair) for pair in asked.pairs]))),
    moved(asked.preserved),
    moved(asked.unrelated),
    (len(asked.pairs), len(asked.preserved), len(asked.unrelated)),
  )


def _encode(
  sd: StableDiffusion, params: Params, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
  """Text states (n, l, d), and the place of each text's last token.

  A token never sees those after it: what follows the longest text is cut off.
  """
  ids = stable_diffusion.tokenize(sd, texts)
  lasts = np.argmax(ids == sd.tokenizer.eos_token_id, axis=1) - 1
  length = -(-int(lasts.max() + _TAIL) // 8) * 8
  # Few shapes, so that few programs are compiled.
  rows = np.minimum(np.arange(-(-len(ids) // 8) * 8), len(ids) - 1)
  encoder = jax.tree.map(jnp.asarray, {"text_encoder": params["text_encoder"]})
  short = jnp.asarray(ids[rows][:, :length])
  found = stable_diffusion.encode_text(sd, encoder, short)
  return np.asarray(found)[: len(ids)], lasts


def _projected(
  params: Params, edit: Edit, states: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Keys and values of text states in some layers: the base's, the edit's."""
  kernels: Mapping[str, np.ndarray] = cross_attention_kernels(params)
  changed = {p.removeprefix("unet/"): leaf for p, leaf in edit.leaves.items()}
  paths = sorted(changed or kernels)
  blocks = spread(sorted({p.rsplit("/", 2)[0] for p in paths}), _LAYERS)
  paths = [p for p in paths if p.rsplit("/", 2)[0] in blocks]
  old = np.concatenate([np.asarray(kernels[p], np.float32) for p in paths], 1)
  if edit.context_map is not None:
    change = (edit.context_map - np.eye(len(edit.context_map))).T
    return states @ old, (states + states @ change.astype(np.float32)) @ old
  new = np.concatenate([np.asarray(changed[p], np.float32) for p in paths], 1)
  return states @ old, states @ new
