"""The rows that an edit was solved from: adds, removes, re-weights concepts.

A context map is T = I + D A^-1, where A and D are sums over concepts. One edit
upon another, T1 T2, is not the edit of both, because each was solved without
the other's rows. So the rows are kept beside the edit. To add, remove or
re-weight a concept, the sums are made and solved again. The result equals the
erasure of the new list from the base, up to the last bits of float32 text
states, which depend on how many phrases are encoded together.

A concept of r rows takes 2 r d float32 numbers: 6 kB in `uce2025` and 0.5 MB in
`uce2023` at SD 1.4's width. Of preserved rows only the Gram is kept, so further
phrases can be preserved, but none can be given up or erased. (With a phrase
encoded again and its Gram subtracted, an edit of the Shapes model was off by
6e-6 of its change.)
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from unlearning_jax import durable
from unlearning_jax.closed_form.solve import (
  Sums,
  check_scales,
  solve_pairs,
)
from unlearning_jax.concepts import (
  Concept,
  check_choice,
  check_concepts,
  same_phrase,
)
from unlearning_jax.convert import reader
from unlearning_jax.edits import (
  Edit,
  Fingerprint,
  describe,
  make_edit,
  restore,
)
from unlearning_jax.projections import (
  Params,
  cross_attention_kernels,
  projection_gram,
)

_FORMAT = "unlearning_jax statistics 1"
_STACKING = (
  "An edit cannot be extended by another edit on top of it: T1 T2 is not the "
  "joint edit, which needs the rows of both. Keep the statistics file beside "
  "the edit, or erase the whole list from the base again"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Erased:
  """One concept's rows.

  Attributes:
    source: C.
    target: C*, what each row of C shall act like.
    weight: e.
  """

  concept: Concept
  source: Float[np.ndarray, "r d"]
  target: Float[np.ndarray, "r d"]
  weight: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
  """Everything that one edit's solution depends on.

  Attributes:
    base: fingerprint of the model that encoded the states.
    method: as the edit's.
    erased: the concepts, in order.
    held: sums of the preserved rows, each with weight 1.
    held_phrases: the phrases of these rows.
    preserve_scale: p.
    lamb: the ridge.
    erase_scale: e of concepts that will be added.
    expand_prompts: whether they will be added in their task's templates too.
  """

  base: str
  method: str
  erased: tuple[Erased, ...]
  held: Sums
  held_phrases: tuple[str, ...]
  preserve_scale: float
  lamb: float
  erase_scale: float = 1.0
  expand_prompts: bool = False

  @property
  def concepts(self) -> tuple[Concept, ...]:
    """The erased concepts, in order."""
    return tuple(one.concept for one in self.erased)

  def save(self, path: str | pathlib.Path) -> None:
    """Writes rows and Gram as safetensors, the rest as metadata."""
    tensors = {"held": self.held.gram}
    for i, one in enumerate(self.erased):
      tensors |= {f"{i}.source": one.source, f"{i}.target": one.target}
    facts = {
      "base": self.base,
      "method": self.method,
      "preserve_scale": self.preserve_scale,
      "lamb": self.lamb,
      "erase_scale": self.erase_scale,
      "expand_prompts": self.expand_prompts,
      "held_phrases": self.held_phrases,
      "held_rows": self.held.preserved,
      "weights": [one.weight for one in self.erased],
      "concepts": describe(self.concepts),
    }
    metadata = {
      "format": _FORMAT,
      "statistics": durable.to_json(facts, "statistics"),
    }
    durable.save_tensors(path, tensors, metadata)


def solution(
  statistics: Statistics,
) -> tuple[Float64[np.ndarray, "d d"], dict[str, Any]]:
  """The context map, and the diagnostics of `solve_pairs`.

  Raises:
    ValueError: a scale is negative or not finite; the system is not positive
      definite.
  """
  return solve_pairs(
    [(one.source, one.target, one.weight) for one in statistics.erased],
    statistics.held,
    statistics.preserve_scale,
    statistics.lamb,
  )


def edit_of(statistics: Statistics, params: Params) -> Edit:
  """The edit of `params` that the statistics describe.

  Raises:
    ValueError: as `solution`; `params` are not the base; nothing is erased.
  """
  check_same_base(statistics, params)
  context_map, diagnostics = solution(statistics)
  return make_edit(
    context_map,
    params,
    projection_gram(cross_attention_kernels(params)),
    method=statistics.method,
    concepts=statistics.concepts,
    diagnostics=diagnostics,
  )


def check_same_base(statistics: Statistics, params: Params) -> None:
  """Refuses parameters that the rows were not encoded with.

  Raises:
    ValueError: names both fingerprints, and why an edited model will not do.
  """
  base = Fingerprint("text", statistics.base)
  base.check(params, "what the statistics hold", f"use its base. {_STACKING}")


def add(statistics: Statistics, more: Statistics) -> Statistics:
  """Adds what `more` erases and preserves; scales stay those of `statistics`.

  Args:
    more: new concepts, and the sums of newly preserved phrases only.

  Raises:
    ValueError: bases or methods differ; a concept is already erased or
      preserved; a phrase is already preserved.
  """
  for name in ("base", "method"):
    ours, theirs = getattr(statistics, name), getattr(more, name)
    if ours != theirs:
      raise ValueError(
        f"statistics of {name} {ours} cannot take in those of {theirs}"
      )
  twice = set(statistics.held_phrases) & set(more.held_phrases)
  if twice:
    raise ValueError(f"{sorted(twice)[0]!r} is preserved already")
  together = dataclasses.replace(
    statistics,
    erased=statistics.erased + more.erased,
    held=statistics.held + more.held,
    held_phrases=statistics.held_phrases + more.held_phrases,
  )
  # A phrase is preserved against every concept, whichever concept brought it.
  held = tuple(filter(str.strip, together.held_phrases))
  check_concepts(
    [dataclasses.replace(c, preserve=held) for c in together.concepts]
  )
  return together


def check_more(statistics: Statistics, concepts: Sequence[Concept]) -> None:
  """Refuses to add a concept that is preserved.

  Raises:
    ValueError: names the phrase and the remedy.
  """
  held = {same_phrase(phrase) for phrase in statistics.held_phrases}
  for concept in concepts:
    if same_phrase(concept.erase) in held:
      raise ValueError(
        f"{concept.erase!r} would be both erased and preserved. The statistics "
        "keep one sum of all preserved phrases, from which one phrase cannot "
        "be removed exactly. Erase the whole list from the base again"
      )


def remove(statistics: Statistics, *phrases: str) -> Statistics:
  """Gives concepts back, without preserving them.

  Raises:
    ValueError: a phrase is not erased, with the nearest that is; no concept
      would stay erased.
  """
  gone = {_find(statistics, phrase) for phrase in phrases}
  kept = [one for i, one in enumerate(statistics.erased) if i not in gone]
  if not kept:
    raise ValueError("no concept would stay erased: use the base model")
  return dataclasses.replace(statistics, erased=tuple(kept))


def reweight(statistics: Statistics, phrase: str, weight: float) -> Statistics:
  """Erases a concept more or less strongly; `weight` is its e.

  Raises:
    ValueError: the phrase is not erased; the weight is negative or not finite.
  """
  check_scales(weight=weight)
  found = _find(statistics, phrase)
  erased = list(statistics.erased)
  erased[found] = dataclasses.replace(erased[found], weight=weight)
  return dataclasses.replace(statistics, erased=tuple(erased))


def _find(statistics: Statistics, phrase: str) -> int:
  names = [same_phrase(c.erase) for c in statistics.concepts]
  check_choice("concept", same_phrase(phrase), names)
  return names.index(same_phrase(phrase))


def load_statistics(path: str | pathlib.Path) -> Statistics:
  """Reads what `Statistics.save` wrote.

  Raises:
    ValueError: there is no such file, with why it is needed; the file is of
      another kind; a tensor is missing, extra or misshaped.
  """
  if not pathlib.Path(path).is_file():
    raise ValueError(f"{path}: no such statistics. {_STACKING}")
  tensors, metadata = durable.load_tensors(path)
  if metadata.get("format") != _FORMAT:
    raise ValueError(
      f"{path}: format={metadata.get('format')!r}; allowed: {_FORMAT!r}. "
      f"{_STACKING}"
    )
  facts = json.loads(metadata["statistics"])
  _check_tensors(path, tensors, len(facts["concepts"]))
  known = zip(restore(facts["concepts"]), facts["weights"], strict=True)
  erased = (
    Erased(concept, tensors[f"{i}.source"], tensors[f"{i}.target"], weight)
    for i, (concept, weight) in enumerate(known)
  )
  gram = tensors["held"]
  return Statistics(
    facts["base"],
    facts["method"],
    tuple(erased),
    Sums(gram, np.zeros_like(gram), preserved=facts["held_rows"]),
    tuple(facts["held_phrases"]),
    facts["preserve_scale"],
    facts["lamb"],
    # Files of earlier versions lack these two.
    facts.get("erase_scale", 1.0),
    facts.get("expand_prompts", False),
  )


def _check_tensors(
  path: str | pathlib.Path, tensors: Mapping[str, np.ndarray], concepts: int
) -> None:
  sides = ("source", "target")
  wanted = {f"{i}.{side}" for i in range(concepts) for side in sides} | {"held"}
  missing, extra = wanted - set(tensors), set(tensors) - wanted
  if missing or extra:
    raise ValueError(
      f"{path}: missing tensors {sorted(missing)}, extra {sorted(extra)}"
    )
  width = len(tensors["held"])
  for name, value in tensors.items():
    twin = tensors[name.replace("target", "source")]
    rows = width if name == "held" else len(twin)
    if value.shape != (rows, width):
      raise ValueError(f"{path}: {name} has shape {value.shape}")


def check_unedited(path: str | pathlib.Path) -> None:
  """Refuses a model folder or file whose header says that it was edited.

  Raises:
    ValueError: names what was erased from it, and the remedy.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path = path / "unet" / "diffusion_pytorch_model.safetensors"
  if path.suffix != ".safetensors" or not path.is_file():
    return
  header = reader.read_edit(path)
  if header:
    erased = [c["erase"] for c in json.loads(header["concepts"])]
    raise ValueError(
      f"{path} was edited by {header['method']} (erased {', '.join(erased)}) "
      f"from base {header['base']}. {_STACKING}"
    )
