"""The settings of a study of resurgence, checked before anything is loaded."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax import erasures, extensions, sharding
from unlearning_jax.concepts import (
  Concept,
  check_choice,
  check_concepts,
  same_phrase,
)
from unlearning_jax.edits import Edit
from unlearning_jax.experiments import common, finetune
from unlearning_jax.experiments.resurgence import keys
from unlearning_jax.judges import Target
from unlearning_jax.settings import Free, Output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
  """Cells of a study: every combination of the values on each axis.

  Attributes:
    methods: names of erasures; each exists for every concept in
      `Settings.erasures`.
    concepts: keys of `Settings.concepts`.
    sets: kinds of the world's tuning sets, such as `near`.
    algorithms: keys of `Settings.algorithms`.
    defenses: defenses, of `finetune.DEFENSES`.
    seeds: seeds of prompts, images, erasure and tuning.
  """

  methods: Output[tuple[str, ...]] = ()
  concepts: Output[tuple[str, ...]] = ()
  sets: Output[tuple[str, ...]] = ()
  algorithms: Output[tuple[str, ...]] = ()
  defenses: Output[tuple[str, ...]] = ()
  seeds: Output[tuple[int, ...]] = ()

  def __post_init__(self):
    for axis, values in dataclasses.asdict(self).items():
      if not values:
        raise ValueError(f"{axis!r} is missing or empty")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes:
  """A concept of a study: classes of one task that are erased together."""

  task: Output[str]
  names: Output[tuple[str, ...]]

  def __post_init__(self):
    if not self.names:
      raise ValueError("names: no class to erase")
    if len(set(self.names)) < len(self.names):
      raise ValueError(f"names={self.names}: a class is listed twice")

  @property
  def targets(self) -> list[dict[str, str]]:
    """Task and name of each class, in the form that the world reads."""
    return [{"task": self.task, "name": name} for name in self.names]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Erasure:
  """How a concept is erased: by a method here, or by another run.

  Attributes:
    edit: the edit's file or the folder of its run; "" erases here.
    method: the method, see `erasures.methods`.
    hparams: fields of the method's `Hparams`.
    task: the task of the concepts.
    pairs: a phrase to erase and its anchor, each.
    preserve: phrases that every concept preserves.
  """

  edit: Output[str] = ""
  method: Output[str] = ""
  hparams: Output[Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  task: Output[str] = ""
  pairs: Output[tuple[tuple[str, str], ...]] = ()
  preserve: Output[tuple[str, ...]] = ()

  def __post_init__(self):
    if not self.edit:
      erasures.bind(self.method, self.hparams)
      if not erasures.module(self.method).CHANGES:
        raise ValueError(
          f"method={self.method!r}: guides and changes no weight, so there "
          "is nothing to tune; choose a method that makes an edit"
        )
      check_concepts(self.concepts)

  @property
  def concepts(self) -> tuple[Concept, ...]:
    """The concepts to erase."""
    return tuple(
      Concept(erase, anchor, self.preserve, self.task)
      for erase, anchor in self.pairs
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
  """The number of images in one measurement.

  Attributes:
    explicit: prompts that name an erased concept.
    words: prompts of each other way to ask for one.
    others: prompts for other classes of the same head.
    tuned: prompts for the classes that are tuned on.
  """

  explicit: Output[int]
  words: Output[int]
  others: Output[int]
  tuned: Output[int]

  def __post_init__(self):
    for key, value in dataclasses.asdict(self).items():
      if value < 1:
        raise ValueError(f"counts.{key}={value}: must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(common.Drawn):
  """A study: what is erased, how it is tuned, what is measured.

  Attributes:
    blocks: the cells, in the order in which they run.
    concepts: name -> classes.
    erasures: `<method>/<concept>` -> how it is erased.
    algorithms: name -> how it is tuned. Data, defense and seed are the cell's.
    counts: the number of images in one measurement.
    neighbors: the number of classes in a set `near` or `far`.
    pack: LoRA runs that tune in one program; each ends as if it ran alone.
    rates: seconds of an erasure, a step, an image; for estimates of cost.
    revival_threshold: the R_norm from which a concept counts as back.
    floor: the least share of images in which the base must show a concept.
  """

  blocks: Output[tuple[Block, ...]]
  concepts: Output[Mapping[str, Classes]]
  erasures: Output[Mapping[str, Erasure]]
  algorithms: Output[Mapping[str, finetune.Settings]]
  counts: Counts
  neighbors: Output[int] = 4
  pack: Free[int] = 1
  rates: Free[Mapping[str, float]] = dataclasses.field(default_factory=dict)
  revival_threshold: Output[float] = 0.3
  floor: Output[float] = 0.5

  def __post_init__(self):
    super().__post_init__()
    check_choice(
      "model: a study's prompts are an embedded world's; model",
      self.model,
      extensions.worlds(),
    )
    if self.judge is None:
      raise ValueError("judge=None: a study counts what a judge sees; name one")
    for key in ("neighbors", "pack"):
      if getattr(self, key) < 1:
        raise ValueError(f"{key}={getattr(self, key)}: must be at least 1")
    self._check_blocks()
    for name in self.concepts:
      with _of(f"concepts.{name}"):
        self.targets_of(name)
    for name, algorithm in self.algorithms.items():
      with _of(f"algorithms.{name}"):
        _check_algorithm(algorithm)

  def _check_blocks(self):
    if not self.blocks:
      raise ValueError("blocks: the study has no cells")
    known = {
      "sets": self.world.SETS, "algorithms": self.algorithms,
      "concepts": self.concepts, "defenses": finetune.DEFENSES,
    }  # fmt: skip
    for block in self.blocks:
      for axis, names in known.items():
        for value in getattr(block, axis):
          check_choice(f"blocks.{axis}", value, names)
    for cell in self.cells:
      check_choice("blocks.methods", erasure_of(cell), self.erasures)
      try:
        keys.parse(str(cell))
      except ValueError as error:
        raise ValueError(
          f"blocks: {error}: names have no '/', '@' or '!', and seeds are not "
          "negative"
        ) from error

  @property
  def world(self) -> Any:
    """The world that draws prompts and tuning sets, see `shapes.world`."""
    return extensions.world(self.model)

  @property
  def cells(self) -> list[keys.Cell]:
    """Every cell once: by block, then by seed, then by concept.

    A study that is cut short has fewer seeds and concepts, but compares all
    methods on those that it has.
    """
    return list(
      dict.fromkeys(
        keys.Cell(method, concept, set_, algorithm, defense, seed)
        for block in self.blocks
        for seed in sorted(block.seeds)
        for concept in block.concepts
        for method in block.methods
        for set_ in block.sets
        for algorithm in block.algorithms
        for defense in block.defenses
      )
    )

  def erasure(self, cell: keys.Cell) -> Erasure:
    """How a cell's concept is erased."""
    return self.erasures[erasure_of(cell)]

  def targets_of(self, concept: str) -> list[Target]:
    """The classes of a concept, in the judge's words."""
    return self.world.targets(self.concepts[concept].targets)

  def words_of(self, concept: str) -> list[str]:
    """Names and synonyms of a concept's classes."""
    return [
      word
      for one in self.concepts[concept].targets
      for group in ("explicit", "synonyms")
      for word in self.world.phrases(**one)[group]
    ]

  def images_of(self, concept: str) -> int:
    """Images of one measurement, without those of the tuning set."""
    counts = self.counts
    words = 3 if self.concepts[concept].task == "unsafe" else 2
    return counts.explicit + words * counts.words + counts.others

  def check_devices(self, mesh: sharding.Mesh):
    """Refuses an algorithm whose batch a process's devices cannot share.

    A packed run lies whole on a device, but any run may end up alone.

    Raises:
      ValueError: naming the algorithm and the sizes that can be used.
    """
    for name, algorithm in self.algorithms.items():
      with _of(f"algorithms.{name}"):
        finetune.check_batch(algorithm, algorithm.data.count, mesh, 1)

  def given(self) -> dict[str, Edit]:
    """The edits of other runs, keyed as in `erasures`.

    Raises:
      ValueError: a file is missing, or erases other classes than its concept.
    """
    found = {}
    for name, entry in self.erasures.items():
      if not entry.edit:
        continue
      edit = common.read_edit(entry.edit)
      wanted = [same_phrase(word) for word in self.words_of(_concept(name))]
      if set(self.world.words(edit)) != set(wanted):
        erased = [concept.erase for concept in edit.concepts]
        raise ValueError(
          f"erasures.{name}: {entry.edit} erases {erased[:5]}, but the concept "
          f"is {wanted}; name another edit or concept"
        )
      found[name] = edit
    return found


def erasure_of(cell: keys.Cell) -> str:
  """The key of a cell's erasure in `Settings.erasures`."""
  return f"{cell.method}/{cell.concept}"


def _concept(erasure: str) -> str:
  return erasure.partition("/")[2]


def _check_algorithm(algorithm: finetune.Settings):
  if algorithm.train == "text_encoder":
    raise ValueError(
      "train='text_encoder': it would move the text states of the captions, "
      "which a study keeps; tune another part, or use launch.finetune"
    )
  if algorithm.checkpoints[-1] != algorithm.num_steps:
    raise ValueError(
      f"checkpoints={algorithm.checkpoints}: the last must be "
      f"num_steps={algorithm.num_steps}"
    )
  if algorithm.batch_size > algorithm.data.count:
    raise ValueError(
      f"batch_size={algorithm.batch_size} is more than "
      f"data.count={algorithm.data.count} images"
    )


@contextlib.contextmanager
def _of(key: str):
  """Puts a key in front of an error that is raised inside."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"{key}: {error}") from error


def with_edits(config: Mapping[str, Any], items: Sequence[str]) -> Any:
  """The config of a study that tunes given edits instead of its own.

  Args:
    config: the config of the study, plain values.
    items: `<name>/<concept>=<path>` each; empty changes nothing.

  Raises:
    ValueError: an item has another form, its name is a method of the study, or
      its concept is unknown.
  """
  found = common.read_items(items, "<name>/<concept>")
  if not found:
    return config
  methods = {name.partition("/")[0] for name in config["erasures"]}
  for name, concept in found:
    check_choice("--edits: concept", concept, config["concepts"])
    if name in methods:
      raise ValueError(
        f"--edits: '{name}/{concept}': the study itself makes {name!r}; choose "
        "another name"
      )
  blocks = [
    {**block, "methods": (name,), "concepts": (concept,)}
    for name, concept in found
    for block in config["blocks"]
    if concept in block["concepts"]
  ]
  taken = {"/".join(names): {"edit": path} for names, path in found.items()}
  return {**config, "erasures": taken, "blocks": tuple(blocks)}
