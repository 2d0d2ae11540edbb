"""The probe of keys and values: where phrases are after an edit of those.

With W and W' the key and value projections of base and edit, and c the text
states of an erased phrase in a sentence and a of its anchor in the same one,

  left  = mean of <W' c - W a, W c - W a> / |W c - W a|^2
  moved = median of d / (d + n) , with d = |W' c - W c| of another phrase c,
          n = min |W' c - W b| over the unrelated phrases b that are not c.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from unlearning_jax import stable_diffusion
from unlearning_jax.edits import Edit
from unlearning_jax.model import Model
from unlearning_jax.probe import Probe
from unlearning_jax.probe.phrases import Asked
from unlearning_jax.projections import cross_attention_kernels
from unlearning_jax.stable_diffusion import Params, StableDiffusion

MOST = (6, 6, 12)
# As of the prompts that ask for a concept, with words on both sides of it: a
# sentence that ends with the phrase reads as gone sooner.
SENTENCES = (
  "a picture of a red {} on white",
  "this is a drawing of a blue {} on black",
  "an image of a green {} on a white background",
)
# Tokens after a sentence's last one that are looked at: its end, and padding.
_TAIL = 3
# Tokens that are looked at of other phrases.
_SEEN = slice(1, 24)

Project = Callable[[np.ndarray], np.ndarray]


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
  place = {text: i for i, text in enumerate(texts)}
  ids, lasts, states = _encode(base.sd, base.params, texts)
  before, after = _projections(base.params, edit)

  def left(erased: str, anchor: str) -> float:
    both = [place[erased], place[anchor]]
    own, goals = _facing(ids[both], lasts[both], states.shape[1])
    goal = before(states[both[1], goals])
    way = before(states[both[0], own]) - goal
    rest = after(states[both[0], own]) - goal
    return float(np.sum(rest * way) / np.sum(way * way))

  seen = states[:, _SEEN]
  held = [place[phrase] for phrase in asked.preserved]
  others = [place[phrase] for phrase in asked.unrelated]
  olds = {i: before(seen[i]) for i in (*held, *others)}

  def moved(phrases: Sequence[int]) -> float | None:
    found = []
    for i in phrases:
      new = after(seen[i])
      far = {j: np.linalg.norm(new - old) for j, old in olds.items()}
      found.append(far[i] / (far[i] + min(far[j] for j in others if j != i)))
    return float(np.median(found)) if found else None

  return Probe(
    "states",
    # Below 0 it went past its anchor: no more is left of it.
    max(0.0, float(np.mean([left(*pair) for pair in asked.pairs]))),
    moved(held),
    moved(others),
    (len(asked.pairs), len(asked.preserved), len(asked.unrelated)),
  )


def _encode(
  sd: StableDiffusion, params: Params, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Token ids, the place of each text's last token, text states (n, l, d).

  A token never sees those after it: what nothing looks at is cut off.
  """
  ids = stable_diffusion.tokenize(sd, texts)
  lasts = np.argmax(ids == sd.tokenizer.eos_token_id, axis=1) - 1
  length = -(-max(int(lasts.max()) + _TAIL + 1, _SEEN.stop) // 8) * 8
  # Few shapes, so that few programs are compiled.
  rows = np.minimum(np.arange(-(-len(ids) // 8) * 8), len(ids) - 1)
  encoder = jax.tree.map(jnp.asarray, {"text_encoder": params["text_encoder"]})
  short = jnp.asarray(ids[rows][:, :length])
  found = stable_diffusion.encode_text(sd, encoder, short)
  return ids, lasts, np.asarray(found)[: len(ids)]


def _facing(
  ids: np.ndarray, lasts: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Places in two sentences, from their phrases' last tokens on.

  Two phrases may have different lengths: the sentences face from the end.
  """
  ends = [row[1 : last + 1][::-1] for row, last in zip(ids, lasts, strict=True)]
  pairs = zip(*ends, strict=False)
  same = [*itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
  tail = min(_TAIL, length - 1 - int(lasts.max()))
  steps = np.arange(-len(same), tail + 1)
  return lasts[0] + steps, lasts[1] + steps


def _projections(params: Params, edit: Edit) -> tuple[Project, Project]:
  """What makes keys and values of text states: the base's, the edit's."""
  kernels: Mapping[str, np.ndarray] = cross_attention_kernels(params)
  old = np.concatenate(
    [np.asarray(kernel, np.float32) for kernel in kernels.values()], 1
  )
  if edit.context_map is not None:
    change = (edit.context_map - np.eye(len(edit.context_map))).T
    change = change.astype(np.float32)
    return lambda rows: rows @ old, lambda rows: (rows + rows @ change) @ old
  changed = {p.removeprefix("unet/"): leaf for p, leaf in edit.leaves.items()}
  new = np.concatenate(
    [np.asarray(changed.get(p, kernels[p]), np.float32) for p in kernels], 1
  )
  return lambda rows: rows @ old, lambda rows: rows @ new
