"""What a study will cost: which cells tune together, seconds, bytes."""

from collections.abc import Iterable, Mapping, Sequence

import jax

from unlearning_jax.experiments.resurgence.keys import Cell
from unlearning_jax.experiments.resurgence.settings import Settings
from unlearning_jax.model import Model

# Methods that solve for the weights; MACE trains adapters, and then solves.
_CLOSED = ("uce", "rece", "mace", "time")


def packs(settings: Settings, wanted: Iterable[Cell]) -> list[list[Cell]]:
  """The cells, up to `settings.pack` that tune in one program at a time.

  Together go LoRA runs of one method and algorithm: their adapters are small,
  and the erased models differ in the same parameters. A pack comes where its
  first cell would.
  """
  found: list[list[Cell]] = []
  open_packs: dict[tuple[str, ...], list[Cell]] = {}
  for cell in wanted:
    # Defenses that train with bases or anchors of their own have other shapes.
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
  """Whether its erasure solves for weights or trains them, where it is known.

  Returns:
    One of `study.AMONG`; of a given edit nothing.
  """
  entry = settings.erasure(cell)
  if entry.edit:
    return ""
  return "closed forms" if entry.method in _CLOSED else "trained"


def cost(settings: Settings, rates: Mapping[str, float]) -> dict[str, float]:
  """Seconds of a study by kind of work.

  Args:
    settings: the study's.
    rates: seconds of one image (`image`), of a step by algorithm, of an
      erasure by method; see `measured_rates`.
  """
  wanted, counts = settings.cells, settings.counts
  spent: dict[str, float] = dict.fromkeys(("erase", "tune", "measure"), 0.0)
  for made in {cell.edit: cell for cell in wanted}.values():
    if not settings.erasure(made).edit:
      spent["erase"] += rates[made.method]
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


def measured_rates(
  settings: Settings, lines: Iterable[Mapping[str, float | str]]
) -> tuple[dict[str, float], int]:
  """Seconds by kind of work: the settings', and a run's own where it has any.

  Args:
    settings: the study's.
    lines: a run's metrics.

  Returns:
    The rates, and how many of them the run has measured.
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
  """Bytes of an edit by method and of a checkpoint by algorithm, at most."""
  unet = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params["unet"]))
  found = {}
  for cell in settings.cells:
    entry = settings.erasure(cell)
    # Maps of text states, in float64.
    maps = 8 * model.sd.context_shape[1] ** 2
    made = maps if cell.method in ("uce", "rece") else unet
    # One from elsewhere stays where it is.
    found[cell.method] = 0 if entry.edit else made
  # The parameters and Adam's two moments.
  return found | dict.fromkeys(settings.algorithms, 3 * unet)


def described(
  settings: Settings,
  folder: str,
  lines: Iterable[Mapping[str, float | str]],
  size: Mapping[str, int],
) -> str:
  """The dry run's text.

  Args:
    settings: the study's.
    folder: a run's.
    lines: its metrics, for its measured rates.
    size: of `sizes`.
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
      f"bytes: {edits / 2**20:.1f} MiB of edits, at most "
      f"{peak / 2**20:.1f} MiB of checkpoints at a time",
    ]
  )


def _programs(packs: Iterable[Sequence[Cell]]) -> list[str]:
  # Re-assertion happens after tuning: it is no other program.
  return sorted(
    {
      (f"{len(pack)} x " if len(pack) > 1 else "")
      + f"{pack[0].algorithm}/{pack[0].defense.replace('reassert', 'none')}"
      for pack in packs
    }
  )
