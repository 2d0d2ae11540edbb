"""Plans a study: which cells tune together, and its seconds and bytes."""

from collections.abc import Iterable, Mapping, Sequence

import jax

from unlearning_jax.experiments.resurgence.keys import Cell
from unlearning_jax.experiments.resurgence.settings import Settings
from unlearning_jax.model import Model

# Methods that solve for the weights. MACE also trains adapters before.
_CLOSED = ("uce", "rece", "mace", "time")


def packs(settings: Settings, wanted: Iterable[Cell]) -> list[list[Cell]]:
  """Groups cells into packs; a pack tunes in one program.

  LoRA runs of one method and algorithm go together, up to `settings.pack` of
  them: their adapters are small, and their erased models differ in the same
  parameters. A pack stands where its first cell stood.
  """
  found: list[list[Cell]] = []
  open_packs: dict[tuple[str, ...], list[Cell]] = {}
  for cell in wanted:
    # Defenses with bases or anchors of their own have other shapes.
    plain = cell.defense in ("none", "reassert")
    alone = settings.algorithms[cell.algorithm].train != "lora" or not plain
    kind = (cell.method, cell.algorithm, cell.defense)
    pack = [] if alone else open_packs.setdefault(kind, [])
    if not pack:
      found.append(pack)
    pack.append(cell)
    if len(pack) == settings.pack:
      open_packs.pop(kind, None)
  return found


def kind(settings: Settings, cell: Cell) -> str:
  """Whether a cell's erasure solves for weights or trains them.

  Returns:
    One of `study.AMONG`; "" for an edit that another run made.
  """
  entry = settings.erasure(cell)
  if entry.edit:
    return ""
  return "closed forms" if entry.method in _CLOSED else "trained"


def cost(settings: Settings, rates: Mapping[str, float]) -> dict[str, float]:
  """Seconds of a study: for erasing, tuning and measuring.

  Args:
    settings: the settings of the study.
    rates: seconds of an image (`image`), of a step by algorithm, and of an
      erasure by method; from `measured_rates`. A method without one counts
      nothing; `unrated` names it.
  """
  wanted, counts = settings.cells, settings.counts
  spent: dict[str, float] = dict.fromkeys(("erase", "tune", "measure"), 0.0)
  for made in {cell.edit: cell for cell in wanted}.values():
    if not settings.erasure(made).edit:
      spent["erase"] += rates.get(made.method, 0.0)
    spent["measure"] += rates["image"] * settings.images_of(made.concept)
  for _, concept in {(c.seed, c.concept) for c in wanted}:
    spent["measure"] += rates["image"] * settings.images_of(concept)
  for cell in wanted:
    tuned = settings.algorithms[cell.algorithm]
    spent["tune"] += rates[cell.algorithm] * tuned.num_steps
    each = settings.images_of(cell.concept) + counts.tuned
    spent["measure"] += rates["image"] * each * len(tuned.checkpoints)
    spent["measure"] += rates["image"] * counts.tuned
  return spent


def unrated(settings: Settings, rates: Mapping[str, float]) -> list[str]:
  """The methods that a study erases by, of which nobody knows the seconds."""
  made = {c.method for c in settings.cells if not settings.erasure(c).edit}
  return sorted(made - set(rates))


def measured_rates(
  settings: Settings, lines: Iterable[Mapping[str, float | str]]
) -> tuple[dict[str, float], int]:
  """Seconds by kind of work: those a run has measured, else the settings'.

  Args:
    settings: the settings of the study.
    lines: the metrics of a run.

  Returns:
    The rates, and the number of rates that the run has measured.
  """
  sums: dict[str, list[float]] = {}
  for line in lines:
    if "count" in line:
      total = sums.setdefault(str(line["what"]), [0.0, 0.0])
      total[0] += float(line["seconds"])
      total[1] += float(line["count"])
  own = {what: seconds / n for what, (seconds, n) in sums.items()}
  return {**settings.rates, **own}, len(sums)


def sizes(settings: Settings, model: Model) -> dict[str, int]:
  """Upper bounds in bytes: of an edit by method, a checkpoint by algorithm."""
  unet = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params["unet"]))
  found = {}
  for cell in settings.cells:
    entry = settings.erasure(cell)
    # A map of text states is float64.
    maps = 8 * model.sd.context_shape[1] ** 2
    made = maps if cell.method in ("uce", "rece") else unet
    # An edit of another run is not copied.
    found[cell.method] = 0 if entry.edit else made
  # A checkpoint holds the parameters and Adam's two moments.
  return found | dict.fromkeys(settings.algorithms, 3 * unet)


def described(
  settings: Settings,
  folder: str,
  lines: Iterable[Mapping[str, float | str]],
  size: Mapping[str, int],
) -> str:
  """The text of a dry run.

  Args:
    settings: the settings of the study.
    folder: the folder of a run.
    lines: the metrics of that run, for its measured rates.
    size: from `sizes`.
  """
  wanted = settings.cells
  rates, own = measured_rates(settings, lines)
  spent = cost(settings, rates)
  programs = _programs(packs(settings, wanted))
  made = {cell.edit for cell in wanted}
  edits = sum(size[edit.method] for edit in made)
  peak = 2 * max(size[c.algorithm] for c in wanted)
  return "\n".join(
    [
      *map(str, wanted),
      f"{len(wanted)} cells from {len(made)} erased models, "
      f"{len({c.condition for c in wanted})} conditions",
      f"{len(programs)} compiled tuning programs: " + ", ".join(programs),
      "device-hours: "
      + ", ".join(f"{k} {v / 3600:.2f}" for k, v in spent.items())
      + f", together {sum(spent.values()) / 3600:.2f} "
      + f"({own} of {len(rates)} rates measured in {folder}, the others are "
      "the config's)",
      *(
        f"no time counted for erasing by {method}; the config's file can have "
        f"its seconds: config.rates['{method}'] = 60"
        for method in unrated(settings, rates)
      ),
      f"bytes: {edits / 2**20:.1f} MiB of edits, at most "
      f"{peak / 2**20:.1f} MiB of checkpoints at a time",
    ]
  )


def _programs(packs: Iterable[Sequence[Cell]]) -> list[str]:
  # Re-assertion happens after tuning, so it needs no program of its own.
  return sorted(
    {
      (f"{len(pack)} x " if len(pack) > 1 else "")
      + f"{pack[0].algorithm}/{pack[0].defense.replace('reassert', 'none')}"
      for pack in packs
    }
  )
