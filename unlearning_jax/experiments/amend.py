"""Adds, removes and re-weights the concepts of a UCE or MACE edit."""

import dataclasses
import pathlib

from unlearning_jax.closed_form import statistics
from unlearning_jax.closed_form.statistics import Statistics
from unlearning_jax.concepts import (
  DEFAULT_ANCHORS,
  Concept,
  check_choice,
  make_concepts,
)
from unlearning_jax.convert import output, reader
from unlearning_jax.edits import Edit, edit_between, load_edit, save_edit
from unlearning_jax.erasures import mace, uce
from unlearning_jax.experiments import common
from unlearning_jax.experiments.erase import probed
from unlearning_jax.experiments.hooks import STATISTICS
from unlearning_jax.model import Model, load
from unlearning_jax.record import seal
from unlearning_jax.stable_diffusion import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The changes, and where the result is kept.

  Attributes:
    model: the base: a world's name, a folder or a hub id.
    output: a new folder for the edit and its statistics.
    statistics: the folder of an earlier amendment or erasure; None starts anew.
    add: concepts to erase, each "concept" or "concept -> anchor".
    preserve: phrases that the added concepts preserve.
    remove: erased concepts to give back.
    weight: new erase scales, each "concept = e".
    task: the task of the added concepts: object, art or unsafe.
    preset: a key of `uce.PRESETS`; used where `statistics` is None.
  """

  model: str
  output: str
  statistics: str | None = None
  add: tuple[str, ...] = ()
  preserve: tuple[str, ...] = ()
  remove: tuple[str, ...] = ()
  weight: tuple[str, ...] = ()
  task: str = "object"
  preset: str = "uce2023"

  def __post_init__(self):
    check_choice("--task", self.task, DEFAULT_ANCHORS)
    check_choice("--preset", self.preset, uce.PRESETS)
    self.weights()
    if not self.concepts() and self.statistics is None:
      raise ValueError(
        "nothing to erase: give --add, or --statistics to change an edit"
      )
    if self.preserve and not self.add:
      raise ValueError(
        f"--preserve={[*self.preserve]}: phrases are preserved with an added "
        "concept; give --add too"
      )

  def concepts(self) -> list[Concept]:
    """The concepts to add."""
    found = []
    for text in self.add:
      erase, arrow, anchor = text.partition("->")
      anchor = anchor.strip() if arrow else None
      found += make_concepts(erase.strip(), anchor, self.preserve, self.task)
    return found

  def weights(self) -> list[tuple[str, float]]:
    """(concept, erase scale) of every new weight.

    Raises:
      ValueError: a text is not of the form "concept = e".
    """
    pairs = []
    for text in self.weight:
      phrase, _, value = text.rpartition("=")
      try:
        pairs.append((phrase.strip(), float(value)))
      except ValueError as error:
        raise ValueError(
          f"--weight={text!r}: must be 'concept = e', as 'star = 0.5'"
        ) from error
    return pairs


def run(settings: Settings) -> Edit:
  """Solves again; keeps the edit and the statistics for the next change.

  Raises:
    ValueError: the output exists; the statistics are missing or of another
      base; a change is not possible.
  """
  output.check_output(settings.output, overwrite=False)
  before, known, fused = pathlib.Path(settings.statistics or ""), None, False
  if settings.statistics is not None:
    file = before / STATISTICS
    seal.check_file(file)
    found = reader.read_metadata(file) if file.is_file() else {}
    fused = found.get("format") == mace.STATISTICS
    known = None if fused else statistics.load_statistics(file)
  if known is not None:
    statistics.check_more(known, settings.concepts())
  statistics.check_unedited(settings.model)
  model = load(settings.model)
  if fused:
    changed, edit = of_fusion(settings, model.params, before)
  else:
    changed, edit = of_rows(settings, model, known)
  # Else a start that was killed would leave a folder that the next refuses.
  with output.replacing(pathlib.Path(settings.output).absolute()) as folder:
    changed.save(folder / STATISTICS)
    save_edit(edit, folder / common.EDIT)
    probed(folder / common.EDIT, model, edit, edit.concepts)
  return edit


def of_fusion(
  settings: Settings, params: Params, folder: pathlib.Path
) -> tuple[mace.Fusion, Edit]:
  """Changes MACE's statistics and solves them for an edit.

  Args:
    settings: the changes.
    params: the base's parameters.
    folder: the folder of the erasure.

  Raises:
    ValueError: something is added, or a concept is not among the erased ones.
  """
  if settings.add or settings.preserve:
    raise ValueError(
      "--add, --preserve: MACE trains an adapter for each concept with what is "
      "preserved; run launch.erase for the whole list"
    )
  known = mace.load_fusion(folder / STATISTICS)
  before = load_edit(folder / common.EDIT)
  for name in settings.remove:
    known = known.drop(name)
  for name, weight in settings.weights():
    known = known.reweight(name, weight)
  # As the run did it: a mean of adapters has no diagnostics.
  mean = before.diagnostics.get("fusion") == {}
  erased, found = known.solve(params, "mean" if mean else "closed_form")
  left = [part.name for part in known.parts]
  edit = edit_between(
    params,
    erased,
    method=before.method,
    concepts=[c for c in before.concepts if c.erase in left],
    diagnostics=found,
  )
  return known, edit


def of_rows(
  settings: Settings, model: Model, known: Statistics | None
) -> tuple[Statistics, Edit]:
  """Changes UCE's statistics and solves them for an edit."""
  sd, params, concepts = model.sd, model.params, settings.concepts()
  if known is None:
    h = uce.Hparams(preset=settings.preset)
    known = uce.gather(sd, params, concepts, h)
  elif concepts:
    known = uce.extend(sd, params, known, concepts)
  if settings.remove:
    known = statistics.remove(known, *settings.remove)
  for phrase, weight in settings.weights():
    known = statistics.reweight(known, phrase, weight)
  return known, statistics.edit_of(known, params)
