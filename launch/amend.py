"""Adds, removes and re-weights concepts of a UCE or MACE edit by one re-solve.

The first concepts, and later more, fewer, or at another strength:

  python -m launch.amend --model=shapes --add="star -> circle" --output=runs/a
  python -m launch.amend --model=shapes --statistics=runs/a \
    --add="heart -> circle" --weight="star = 0.5" --output=runs/b

`--statistics` may also be the folder of a `launch.erase` run; of MACE, which
trains an adapter for every concept, concepts can go and change weight but none
can come. Writes `edit.safetensors`, of UCE what erasing the resulting list from
the base gives, up to the last bits of float32 text states, and
`statistics.safetensors`, which the next change starts from. Concepts come with
the settings of the run; what it preserves cannot be erased, and what is removed
is not preserved instead. Seconds.
"""

import pathlib

from absl import app, flags, logging

from unlearning_jax import shapes, stable_diffusion
from unlearning_jax.closed_form import statistics
from unlearning_jax.concepts import DEFAULT_ANCHORS, make_concepts
from unlearning_jax.convert import output, reader
from unlearning_jax.edits import edit_between, load_edit, save_edit
from unlearning_jax.erasures import mace, uce

_MODEL = flags.DEFINE_string(
  "model", None, "The base: shapes, a folder or a hub id.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "A folder.", required=True)
_STATISTICS = flags.DEFINE_string(
  "statistics",
  None,
  "Folder of an earlier amendment or erasure; without it, a first one.",
)
_ADD = flags.DEFINE_multi_string("add", [], "'concept' or 'concept -> anchor'.")
_PRESERVE = flags.DEFINE_multi_string("preserve", [], "Phrase to hold.")
_REMOVE = flags.DEFINE_multi_string("remove", [], "Concept to give back.")
_WEIGHT = flags.DEFINE_multi_string("weight", [], "'concept = e'.")
_TASK = flags.DEFINE_enum(
  "task", "object", list(DEFAULT_ANCHORS), "Of the added concepts."
)
_PRESET = flags.DEFINE_enum(
  "preset", "uce2023", list(uce.PRESETS), "Of a first one."
)
_FILE = "statistics.safetensors"


def added():
  """The concepts that the flags add."""
  concepts = []
  for text in _ADD.value:
    erase, arrow, anchor = text.partition("->")
    concepts += make_concepts(
      erase.strip(),
      anchor.strip() if arrow else None,
      _PRESERVE.value,
      _TASK.value,
    )
  return concepts


def weights():
  """(concept, e) of every --weight.

  Raises:
    ValueError: a text of another form.
  """
  pairs = []
  for text in _WEIGHT.value:
    phrase, _, value = text.rpartition("=")
    try:
      pairs.append((phrase.strip(), float(value)))
    except ValueError as error:
      raise ValueError(f"--weight={text!r}; allowed: 'concept = e'") from error
  return pairs


def amended_fusion(params, folder, reweighted):
  """MACE's statistics without what goes, at the new weights, and its edit.

  Raises:
    ValueError: something is added; a concept that is not there.
  """
  if _ADD.value or _PRESERVE.value:
    raise ValueError(
      "--add, --preserve: MACE trains an adapter for each concept upon what is "
      "preserved; run launch.erase for the whole list"
    )
  known = mace.load_fusion(folder / _FILE)
  before = load_edit(folder / "edit.safetensors")
  for name in _REMOVE.value:
    known = known.drop(name)
  for name, weight in reweighted:
    known = known.reweight(name, weight)
  # The run's own: a mean of adapters is not solved, and has no diagnostics.
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


def amended(sd, params, known, concepts, reweighted):
  """UCE's statistics with every change, and its edit."""
  if known is None:
    known = uce.gather(sd, params, concepts, uce.Hparams(preset=_PRESET.value))
  elif concepts:
    known = uce.extend(sd, params, known, concepts)
  if _REMOVE.value:
    known = statistics.remove(known, *_REMOVE.value)
  for phrase, weight in reweighted:
    known = statistics.reweight(known, phrase, weight)
  return known, statistics.edit_of(known, params)


def main(argv: list[str]) -> None:
  """Checks the flags, then amends and solves once more."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  concepts, reweighted = added(), weights()
  if not concepts and _STATISTICS.value is None:
    raise ValueError("nothing to erase: give --add, or --statistics to change")
  if _PRESERVE.value and not concepts:
    raise ValueError(
      f"--preserve={_PRESERVE.value}: phrases are held beside a concept that "
      "comes; give --add too"
    )
  output.check_output(_OUTPUT.value, overwrite=False)
  known, before, fused = None, pathlib.Path(_STATISTICS.value or ""), False
  if _STATISTICS.value is not None:
    file = before / _FILE
    found = reader.read_metadata(file) if file.is_file() else {}
    fused = found.get("format") == mace.STATISTICS
    known = None if fused else statistics.load_statistics(file)
  if known is not None:
    statistics.check_more(known, concepts)
  path = _MODEL.value
  statistics.check_unedited(path)
  sd, params = stable_diffusion.load(
    shapes.model_folder() if path == "shapes" else path
  )
  if fused:
    known, edit = amended_fusion(params, before, reweighted)
  else:
    known, edit = amended(sd, params, known, concepts, reweighted)
  folder = pathlib.Path(_OUTPUT.value)
  known.save(folder / _FILE)
  save_edit(edit, folder / "edit.safetensors")
  logging.info(
    "%d concepts erased, relative change %.3g: %s",
    len(edit.concepts),
    edit.diagnostics["relative_change"],
    folder,
  )


if __name__ == "__main__":
  app.run(main)
