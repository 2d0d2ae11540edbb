"""What a resurgence study consists of: its cells, and what they will cost."""

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax import erasures
from unlearning_jax.concepts import (
  Concept,
  check_choice,
  check_concepts,
  same_phrase,
)
from unlearning_jax.durable import JsonLines
from unlearning_jax.edits import Edit
from unlearning_jax.experiments import comparison, tuning
from unlearning_jax.schedules import SAMPLERS
from unlearning_jax.shapes import captions, tuning_sets
from unlearning_jax.shapes import prompts as erasure

_AXES = ("methods", "concepts", "sets", "algorithms", "defences", "seeds")

# Methods that solve for the weights; MACE trains adapters, and then solves.
_CLOSED = ("uce", "rece", "mace", "time")


@dataclasses.dataclass(frozen=True)
class Cell:
  """One tuning run of a study; `id` names it in every row of its."""

  method: str
  concept: str
  tuning_set: str
  algorithm: str
  defence: str
  seed: int

  @property
  def erasure(self) -> str:
    """The erased model that it starts from."""
    return f"{self.method}/{self.concept}/{self.seed}"

  @property
  def condition(self) -> str:
    """What it shares with the same run under another seed."""
    return "/".join(dataclasses.astuple(self)[:-1])

  @property
  def id(self) -> str:
    """Its name."""
    return f"{self.condition}/{self.seed}"


def cells(config: Any) -> list[Cell]:
  """Every cell once: by block, in it by seed, and then by concept.

  So a study that is cut short has fewer seeds and concepts, and compares all
  methods on those that it has.
  """
  found: dict[Cell, None] = {}
  for block in config.blocks:
    crossed = itertools.product(*(block[axis] for axis in _AXES))
    concepts = list(block["concepts"])
    for cell in sorted(
      (Cell(*values) for values in crossed),
      key=lambda cell: (cell.seed, concepts.index(cell.concept)),
    ):
      found.setdefault(cell)
  return list(found)


def packs(config: Any, wanted: Sequence[Cell]) -> list[list[Cell]]:
  """The cells, up to `config.pack` that tune in one program at a time.

  Together go LoRA runs of one method and algorithm: their adapters are small,
  and the erased models differ in the same parameters. A pack comes where its
  first cell would.
  """
  found: list[list[Cell]] = []
  open_packs: dict[tuple[str, ...], list[Cell]] = {}
  for cell in wanted:
    # Defences that train with bases or anchors of their own have other shapes.
    plain = cell.defence in ("none", "reassert")
    alone = config.algorithms[cell.algorithm].train != "lora" or not plain
    kind = (cell.method, cell.algorithm, cell.defence)
    pack = [] if alone else open_packs.setdefault(kind, [])
    if not pack:
      found.append(pack)
    pack.append(cell)
    if len(pack) == config.pack:
      open_packs.pop(kind, None)
  return found


def with_edits(config: Any, listed: Sequence[str]):
  """Makes a study of given edits alone, each tuned in all ways of its concept.

  Args:
    config: the study's, changed in place.
    listed: of `<name>/<concept>=<path>`; where empty, nothing is changed.

  Raises:
    ValueError: not of that form; the name is a method of the study's, or the
      concept none of its.
  """
  blocks: list[dict[str, Any]] = []
  methods = {name.split("/")[0] for name in config.erasures}
  taken: dict[str, dict[str, str]] = {}
  for item in listed:
    key, _, path = item.partition("=")
    name, _, concept = key.partition("/")
    if not (name and concept and path) or key in taken:
      raise ValueError(
        f"--edits: {item!r} is not a new <name>/<concept>=<path>"
      )
    check_choice("--edits: concept", concept, config.concepts)
    if name in methods:
      raise ValueError(
        f"--edits: {item!r}: the study itself makes {name!r}; choose another "
        "name"
      )
    taken[key] = {"edit": path}
    blocks += [
      {**block, "methods": (name,), "concepts": (concept,)}
      for block in config.blocks
      if concept in block["concepts"]
    ]
  if listed:
    with config.unlocked():
      config.erasures, config.blocks = taken, tuple(blocks)


def given(config: Any) -> dict[str, Edit]:
  """Those of `config.erasures` that are read, not made, by their names there.

  Raises:
    ValueError: no such file; it erases other classes than its concept has.
  """
  found = {}
  for name, entry in config.erasures.items():
    if "edit" not in entry:
      continue
    (edit,) = comparison.load_edits([entry["edit"]]).values()
    wanted = [
      same_phrase(word)
      for target in targets(config, name.split("/")[1])
      for group in ("explicit", "synonyms")
      for word in captions.phrases(target.task, target.name)[group]
    ]
    if set(tuning_sets.words(edit)) != set(wanted):
      erased = [concept.erase for concept in edit.concepts]
      raise ValueError(
        f"erasures.{name}: {entry['edit']} erases {erased[:5]}, which is not "
        f"what the concept is, {wanted}; name another edit or concept"
      )
    found[name] = edit
  return found


def check(config: Any):
  """Finds what is wrong with a study before anything is loaded.

  Raises:
    ValueError: naming the key.
  """
  if not config.blocks:
    raise ValueError("blocks: the study has no cells")
  known = {
    "sets": tuning_sets.KINDS, "algorithms": config.algorithms,
    "concepts": config.concepts, "defences": tuning.DEFENCES,
  }  # fmt: skip
  for block in config.blocks:
    for axis in block:
      check_choice("blocks key", axis, _AXES)
    for axis in _AXES:
      if not block.get(axis):
        raise ValueError(f"blocks: {axis!r} is missing or empty in {block}")
      for value in block[axis] if axis in known else ():
        check_choice(f"blocks.{axis}", value, known[axis])
    for pair in itertools.product(block["methods"], block["concepts"]):
      check_choice("blocks.methods", "/".join(pair), config.erasures)
  for name, concept in config.concepts.items():
    targets(config, name)
    if not concept["names"]:
      raise ValueError(f"concepts.{name}: no class to erase")
    if len(set(concept["names"])) < len(concept["names"]):
      raise ValueError(f"concepts.{name}: a class is listed twice")
  for entry in config.erasures.values():
    if "edit" in entry:
      continue
    erasures.bind(entry["method"], entry["hparams"])
    concepts_of(entry)
  for name, algorithm in config.algorithms.items():
    with _of_algorithm(name):
      tuning.check(algorithm)
    if algorithm.train == "text_encoder":
      raise ValueError(
        f"algorithms.{name}.train='text_encoder': a study keeps the text "
        "states of its captions, which would move; tune another part, or use "
        "launch.finetune"
      )
    if algorithm.checkpoints[-1] != algorithm.num_steps:
      raise ValueError(
        f"algorithms.{name}.checkpoints={algorithm.checkpoints}: the last must "
        f"be num_steps={algorithm.num_steps}"
      )
    if algorithm.batch_size > algorithm.data.count:
      raise ValueError(
        f"algorithms.{name}.batch_size={algorithm.batch_size} is more than "
        f"data.count={algorithm.data.count} images"
      )
  for key in ("explicit", "words", "others", "tuned"):
    if config.counts[key] < 1:
      raise ValueError(f"counts.{key}={config.counts[key]}: at least 1")
  if config.judge != "shapes" or config.model != "shapes":
    raise ValueError(
      f"model={config.model!r}, judge={config.judge!r}: allowed is 'shapes', "
      "the one world whose judge knows every concept"
    )
  check_choice("sampling.sampler", config.sampling.sampler, SAMPLERS)
  for key in ("batch_size", "neighbours", "pack"):
    if config[key] < 1:
      raise ValueError(f"{key}={config[key]}: must be at least 1")


def check_devices(config: Any, mesh: Any):
  """Finds an algorithm whose batch the devices of a process cannot share.

  Packed runs are whole on a device, but any of them may come to be alone.

  Raises:
    ValueError: naming the algorithm, with the sizes that can.
  """
  for name, algorithm in config.algorithms.items():
    with _of_algorithm(name):
      tuning.check_batch(algorithm, algorithm.data.count, mesh, 1)


@contextlib.contextmanager
def _of_algorithm(name: str):
  """Says in an error whose key it is."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"algorithms.{name}: {error}") from error


def targets(config: Any, concept: str) -> list[erasure.Target]:
  """The classes of a concept, as the judge knows them."""
  return [erasure.Target(**one) for one in given_targets(config, concept)]


def given_targets(config: Any, concept: str) -> list[dict[str, str]]:
  """The task and name of each class of a concept."""
  entry = config.concepts[concept]
  return [{"task": entry["task"], "name": name} for name in entry["names"]]


def concepts_of(entry: Mapping[str, Any]) -> tuple[Concept, ...]:
  """The concepts of one of `config.erasures`.

  Raises:
    ValueError: a blank, repeated or contradictory phrase.
  """
  held = tuple(entry["preserve"])
  found = tuple(
    Concept(erase, anchor, held, entry["task"])
    for erase, anchor in entry["pairs"]
  )
  check_concepts(found)
  return found


def kind(config: Any, cell: Cell) -> str:
  """Whether its erasure solves for weights or trains them, where it is known.

  Returns:
    One of `study.AMONG`; of a given edit nothing.
  """
  entry = config.erasures[f"{cell.method}/{cell.concept}"]
  if "edit" in entry:
    return ""
  return "closed forms" if entry["method"] in _CLOSED else "trained"


def images(config: Any, concept: str) -> int:
  """Images of one measurement, those of the tuning set left out."""
  counts = config.counts
  words = 3 if config.concepts[concept]["task"] == "unsafe" else 2
  return counts.explicit + words * counts.words + counts.others


def cost(
  config: Any, wanted: Sequence[Cell], rates: Mapping[str, float]
) -> dict[str, float]:
  """Seconds of a study by kind of work.

  Args:
    config: the study's.
    wanted: its cells.
    rates: seconds of one image (`image`), of a step by algorithm, of an
      erasure by method; see `measured_rates`.
  """
  spent: dict[str, float] = dict.fromkeys(("erase", "tune", "measure"), 0.0)
  for made in {cell.erasure: cell for cell in wanted}.values():
    if "edit" not in config.erasures[f"{made.method}/{made.concept}"]:
      spent["erase"] += rates[made.method]
    spent["measure"] += rates["image"] * images(config, made.concept)
  for _, concept in {(c.seed, c.concept) for c in wanted}:
    spent["measure"] += rates["image"] * images(config, concept)
  for cell in wanted:
    tuned = config.algorithms[cell.algorithm]
    spent["tune"] += rates[cell.algorithm] * tuned.num_steps
    each = images(config, cell.concept) + config.counts.tuned
    spent["measure"] += rates["image"] * each * len(tuned.checkpoints)
    spent["measure"] += rates["image"] * config.counts.tuned
  return spent


def measured_rates(
  config: Any, folder: str | pathlib.Path
) -> tuple[dict[str, float], int]:
  """Seconds by kind of work: the config's, and a run's own where it has any.

  Returns:
    The rates, and how many of them the run has measured.
  """
  rates = dict(config.rates)
  sums: dict[str, list[float]] = {}
  for line in JsonLines(pathlib.Path(folder) / "metrics.jsonl").read():
    if "count" in line:
      total = sums.setdefault(line["what"], [0.0, 0.0])
      total[0] += line["seconds"]
      total[1] += line["count"]
  rates |= {what: seconds / n for what, (seconds, n) in sums.items()}
  return rates, len(sums)


def described(config: Any, folder: str, sizes: Mapping[str, int]) -> str:
  """The dry run's text.

  Args:
    config: the study's.
    folder: a run's, for its measured rates and for what is done.
    sizes: bytes of an edit by method, of a checkpoint by algorithm.
  """
  wanted = cells(config)
  rates, own = measured_rates(config, folder)
  spent = cost(config, wanted, rates)
  # Re-assertion happens after tuning: it is no other program.
  programs = {
    (f"{len(pack)} x " if len(pack) > 1 else "")
    + f"{pack[0].algorithm}/{pack[0].defence.replace('reassert', 'none')}"
    for pack in packs(config, wanted)
  }
  made = {cell.erasure: cell.method for cell in wanted}
  edits = sum(sizes[method] for method in made.values())
  peak = 2 * max(sizes[c.algorithm] for c in wanted)
  lines = [cell.id for cell in wanted]
  lines += [
    f"{len(wanted)} cells from {len(made)} erased models, "
    f"{len({c.condition for c in wanted})} conditions",
    f"{len(programs)} compiled tuning programs: " + ", ".join(sorted(programs)),
    "device-hours: "
    + ", ".join(f"{k} {v / 3600:.2f}" for k, v in spent.items())
    + f", together {sum(spent.values()) / 3600:.2f} "
    + f"({own} of {len(rates)} rates measured in {folder}, the others are the "
    "config's)",
    f"bytes: {edits / 2**20:.1f} MiB of edits, at most "
    f"{peak / 2**20:.1f} MiB of checkpoints at a time",
  ]
  return "\n".join(lines)
