"""Published protocols: their settings, checks, notes and table columns."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax import (
  attacks,
  convert,
  durable,
  metrics,
  protocols,
  sampling,
)
from unlearning_jax.attacks.engine.victim import Victim
from unlearning_jax.experiments import columns, common
from unlearning_jax.experiments.attack import victims
from unlearning_jax.experiments.drawing import Settings
from unlearning_jax.judges import weights
from unlearning_jax.metrics import Estimate
from unlearning_jax.model import Model, called, finished
from unlearning_jax.record import provenance, read_rows
from unlearning_jax.sampling import Sampling
from unlearning_jax.settings import build
from unlearning_jax.stable_diffusion import StableDiffusion

_UTILITY = "udm-utility"
_REFERENCE = "reference="


@dataclasses.dataclass(frozen=True)
class Beside:
  """Finished runs whose numbers belong in the same row.

  Attributes:
    attacks: folders of attacks on the models, for ASR.
    utility: the folder of an evaluation by udm-utility, for FID and CLIP score.
  """

  attacks: tuple[str, ...] = ()
  utility: str = ""


NOTHING = Beside()


def config(
  name: str,
  *,
  prompts: str = "",
  reference: str = "",
  model: str = "",
  batch_size: int | None = None,
) -> dict[str, Any]:
  """The plain settings of a protocol, published or a world's.

  Args:
    name: the protocol's, with changes.
    prompts: the user's table of prompts.
    reference: photographs for FID: a folder or an `.npz`.
    model: the base; "" for the protocol's.
    batch_size: images drawn at once; None for the protocol's.

  Raises:
    ValueError: as `Protocol.bound`; the photographs are wrong, or no metric of
      the protocol compares with photographs; or nothing of the protocol can be
      computed on this machine.
  """
  protocol = protocols.find(name)
  if protocol.prompts is None and (prompts or reference):
    raise ValueError(
      f"--prompts, --reference: protocol {name} has prompts and metrics of its "
      "own; leave the flags out"
    )
  values = protocol.bound(prompts).config()
  values |= {"model": model} if model else {}
  values |= {"batch_size": batch_size} if batch_size else {}
  if protocol.prompts is None:
    return values
  taking = [one for one in values["metrics"] if one.endswith(_REFERENCE)]
  if reference and not taking:
    raise ValueError(
      f"--reference={reference}: no metric of protocol {name} compares with "
      "photographs; leave the flag out"
    )
  values["metrics"], missing = _computable(values["metrics"], reference)
  if missing:
    values["missing"] = missing
  if not (values["metrics"] or values["judge"]):
    raise ValueError(
      f"protocol {name}: nothing of it can be computed here: "
      + "; ".join(f"{key}: {why}" for key, why in missing.items())
    )
  return values


def _computable(
  named: Sequence[str], reference: str
) -> tuple[tuple[str, ...], dict[str, str]]:
  """The metrics that can be computed here, and why others cannot."""
  found, missing = [], {}
  for name in named:
    if name.endswith(_REFERENCE) and not reference:
      missing[name] = "no photographs: give --reference=FOLDER"
      continue
    name += reference if name.endswith(_REFERENCE) else ""
    try:
      metrics.load(name)
    except weights.MissingError as error:
      # The page says so; what the machine has is computed all the same.
      missing[name] = str(error)
      continue
    found.append(name)
  return tuple(found), missing


def check(settings: Settings, model: Model, rows: Sequence[Mapping[str, Any]]):
  """Refuses rows that a model cannot draw.

  Raises:
    ValueError: a row's size is none of the model's, or it has no guidance where
      the model acts by guidance.
  """
  if settings.published is None:
    return
  for size in dict.fromkeys(row.get("size") for row in rows):
    sampling.latent_shape(model.sd, size)
  if model.guidance is None:
    return
  for row in rows:
    if row.get("guidance") is not None and row["guidance"] <= 1:
      raise ValueError(
        f"row {row['id']}: its guidance scale {row['guidance']} guides "
        f"nothing, and {model.name} acts by guidance; leave it out of the table"
      )


def check_beside(
  settings: Settings,
  models: Mapping[str, Model],
  rows: Sequence[Mapping[str, Any]],
  beside: Beside,
):
  """Refuses finished runs that do not fit, before anything is drawn.

  Raises:
    ValueError: no column reads them; or as `estimates`.
  """
  for flag, given, readers in (
    ("--attack", beside.attacks, {"asr"}),
    ("--utility", beside.utility, {"fid", "clip-score"}),
  ):
    if given and not readers & {*settings.columns}:
      raise ValueError(f"{flag}: no column of this run reads it; leave it out")
  _attacks(settings, models, rows, beside.attacks)
  _utility(settings, models, beside.utility, len(rows))


def notes(
  settings: Settings, sd: StableDiffusion, rows: Sequence[Mapping[str, Any]]
) -> list[str]:
  """What was left out or assumed, and what could not be computed."""
  if settings.published is None:
    return []
  found = settings.published.notes()
  if settings.model != protocols.BASE:
    found.append(
      f"The base is {settings.model}, and the protocol's is {protocols.BASE}. "
      "If that is another base, published numbers do not compare with these."
    )
  found += _spacing(settings, sd)
  prompts = [row["prompt"] for row in rows]
  every = sd.tokenizer(prompts)["input_ids"] if prompts else []
  cut = sum(len(ids) > sd.context_shape[0] for ids in every)
  if cut:
    found.append(
      f"{cut:,} rows are longer than the text encoder reads: their ends are "
      "cut, as published code does."
    )
  for name, why in settings.missing.items():
    found.append(f"{name.partition('~')[0]} is not computed: {why}.")
  return found


def _spacing(settings: Settings, sd: StableDiffusion) -> list[str]:
  """Whether the model's folder moves the timesteps of published runs."""
  if settings.sampling.sampler != "lms":
    return []
  spacing = sd.schedule.with_sampler("lms").timestep_spacing
  if spacing == "linspace":
    return []
  return [
    f"The model's folder sets timestep_spacing={spacing!r}, and published runs "
    "of LMS have 'linspace'. Set it so in scheduler/scheduler_config.json to "
    "draw as they do."
  ]


def estimates(
  settings: Settings,
  models: Mapping[str, Model],
  found: Sequence[Mapping[str, Any]],
  metrics_: Mapping[str, Sequence[Estimate]],
  beside: Beside = NOTHING,
) -> dict[str, list[Estimate]]:
  """The columns of every model, as `columns`; nothing without a protocol's.

  Args:
    settings: the protocol's.
    models: the models by name, the base first.
    found: all rows of the run, with `model`.
    metrics_: metric -> its estimates; they call the base `base`.
    beside: finished runs.

  Raises:
    ValueError: a finished run is of other rows, another judge, target, sampling
      or victim, or another protocol.
  """
  if not settings.columns:
    return {}
  judge, targets = common.load_judge(settings), common.targets_of(settings)
  base = next(iter(models))
  asr = _attacks(settings, models, found, beside.attacks)
  utility = _utility(
    settings, models, beside.utility, len(found) // len(models)
  )
  every = [one for some in metrics_.values() for one in some]
  columns_: list[Estimate] = []
  for name in models:
    called = "base" if name == base else name
    seen = columns.Seen(
      model=called,
      rows=[row for row in found if row["model"] == name],
      judge=judge,
      targets=targets,
      metrics=[one.plain() for one in every if one.model == called],
      asr=asr.get(name, "no finished attack on it: give --attack=RUN"),
      utility=utility.get(name, f"it is not in the run of {_UTILITY}")
      if isinstance(utility, Mapping)
      else utility,
      missing=settings.missing,
    )
    columns_ += columns.estimates(settings.columns, seen)
  return {"columns": columns_}


def definitions(settings: Settings) -> list[str]:
  """A sentence for each column, and one for what the judge must see."""
  judge, targets = common.load_judge(settings), common.targets_of(settings)
  return columns.definitions(settings.columns, judge, targets)


def _attacks(
  settings: Settings,
  models: Mapping[str, Model],
  found: Sequence[Mapping[str, Any]],
  folders: Sequence[str],
) -> dict[str, Mapping[str, Any]]:
  """Model -> the ASR of a finished attack on it."""
  if not folders:
    return {}
  named = {
    victim: name for name, one in models.items() for victim in _victims(one)
  }
  asr: dict[str, Mapping[str, Any]] = {}
  for folder in folders:
    where, given = f"--attack={folder}", finished(folder)
    path = pathlib.Path(folder)
    starts = provenance.starts(path / "provenance.json")
    victim = starts[0].get("inputs", {}).get("victim") if starts else None
    if victim is None:
      raise ValueError(
        f"{where}: is no attack; give the folder of unlearning-jax attack"
      )
    _check_attack(settings, found, folder, given)
    if victim not in named:
      raise ValueError(
        f"{where}: its victim is none of {', '.join(models)}; evaluate the "
        "model that was attacked"
      )
    with durable.explaining(path / "summary.json"):
      summary = durable.read_json(path / "summary.json")
      (asr[named[victim]],) = (
        one for one in summary["measures"] if one["name"] == "asr"
      )
  return asr


def _check_attack(
  settings: Settings,
  found: Sequence[Mapping[str, Any]],
  folder: str,
  given: Mapping[str, Any],
):
  """Refuses a finished attack that drew or judged otherwise than this run.

  Args:
    settings: the protocol's.
    found: rows of this run.
    folder: of the attack.
    given: its config.

  Raises:
    ValueError: it has another judge, target or sampling, or other rows.
  """
  where = f"--attack={folder}"
  if attacks.bind(given["method"], given["hparams"]).is_probe:
    raise ValueError(
      f"{where}: {given['method']} is a probe of the network and finds no "
      "prompt, so its rate is no ASR; give an attack, or leave it out"
    )
  if given.get("sharing", {}).get("wave"):
    raise ValueError(
      f"{where}: its rows shared words (sharing.wave="
      f"{given['sharing']['wave']}), which no published attack does; give one "
      "with sharing.wave=0 and sharing.tries=0"
    )
  if given.get("judge") != settings.judge:
    raise ValueError(
      f"{where}: judged by {given.get('judge')!r}, and this evaluation by "
      f"{settings.judge!r}; ASR and pre-ASR need one judge"
    )
  told = dataclasses.replace(settings, targets=tuple(given["targets"]))
  for key, theirs, ours in (
    ("targets", common.targets_of(told), common.targets_of(settings)),
    ("sampling", build(Sampling, given["sampling"]), settings.sampling),
  ):
    if theirs != ours:
      raise ValueError(
        f"{where}: has {key}={theirs}, and this evaluation {ours}; attack "
        "with the protocol's"
      )
  theirs, ours = _drawn(settings, read_rows(folder)), _drawn(settings, found)
  if theirs != ours:
    raise ValueError(
      f"{where}: {len(theirs - ours)} of its {len(theirs)} rows are not "
      f"evaluated here, and {len(ours - theirs)} of the {len(ours)} evaluated "
      "here are not attacked (prompt, seed, guidance); give both the same table"
    )


def _drawn(
  settings: Settings, rows: Sequence[Mapping[str, Any]]
) -> set[tuple[str, int, float]]:
  """What decides each row's image: prompt, seed and guidance."""
  scale = settings.sampling.guidance_scale
  own = ((row["prompt"], row["seed"], row.get("guidance")) for row in rows)
  return {(text, seed, scale if g is None else g) for text, seed, g in own}


def _victims(model: Model) -> set[str]:
  """What an attack calls a victim: guidance is hashed if a folder named it."""
  own: list[common.Made] = [model.edit] if model.edit is not None else []
  every = [*own, model.guidance] if model.guidance is not None else own
  victim = Victim.of(model)
  return {
    victims.fingerprint(victim, {called(one): one for one in made})
    for made in (own, every)
  }


def _utility(
  settings: Settings, models: Mapping[str, Model], folder: str, count: int
) -> Mapping[str, Sequence[Mapping[str, Any]]] | str:
  """Model -> estimates of a run of udm-utility, or why there are none."""
  if not folder:
    return (
      f"of {_UTILITY}'s 10,000 pictures, and the {count:,} of this run are "
      "too few and of other prompts: give --utility=RUN"
    )
  given = finished(folder)
  name = str(given.get("protocol", "")).partition(" ")[0]
  own = settings.protocol.partition(" ")[0]
  if name != _UTILITY and ("~" not in own or not name.startswith(_UTILITY)):
    raise ValueError(
      f"--utility={folder}: is of protocol {name or 'none'}; the row of "
      f"{own} needs {_UTILITY}"
    )
  path = pathlib.Path(folder)
  start = provenance.starts(path / "provenance.json")[0]
  summary = durable.read_json(path / "summary.json")
  base = next(iter(models.values()))
  if start["base_fingerprint"] != convert.params_fingerprint(base.params):
    raise ValueError(f"--utility={folder}: is of another base")
  inputs = start.get("inputs", {})
  theirs = {inputs.get(name, ""): name for name in summary["models"]}
  of_model = functools.partial(common.fingerprint, base=base)
  return {
    name: [
      one
      for one in summary.get("estimates", ())
      if one["model"] == theirs[of_model(model)]
    ]
    for name, model in models.items()
    if of_model(model) in theirs
  }
