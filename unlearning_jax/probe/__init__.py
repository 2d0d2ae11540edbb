"""A probe of every erasure: cheap figures that say when an edit has failed.

Two figures decide. `left` is how much of the concept is still there: 1 as much
as in the base, 0 nothing. `moved` is how far other phrases went: 0 nowhere, 1
to another phrase.

Closed forms, and whatever else changes only the text's keys and values, are
asked for those (`probe.states`); all others draw small, in four steps
(`probe.drawings`). `benchmarks/probe_calibration.py` chose the limits, and
`docs/probe.md` shows how often they are right.
"""

import dataclasses
import pathlib
import warnings
from typing import Any

from unlearning_jax import durable, settings
from unlearning_jax.concepts import check_choice
from unlearning_jax.record import seal

_FORMAT = "unlearning_jax probe 1"


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a working erasure stays below.

  Attributes:
    left: of the concept.
    moved: of phrases that nobody named.
  """

  left: float
  moved: float


LIMITS = {"states": Limits(0.564, 0.344), "drawings": Limits(0.4, 0.5)}
# Records without limits of their own were held to these.
_FIRST = {"states": Limits(0.43, 0.68), "drawings": Limits(0.4, 0.5)}


class ErasureWarning(UserWarning):
  """An erasure that seems to have failed, or that could not be probed."""


@dataclasses.dataclass(frozen=True)
class Probe:
  """What the probe of one erasure found.

  Attributes:
    instrument: "states" or "drawings", see the module; "" where neither ran.
    left: how much of the concept is left, 0 to 1.
    preserved: how far preserved phrases moved; None where there are none.
    unrelated: how far phrases moved that nobody named.
    phrases: how many phrases each of the three figures is a mean of.
    reason: why neither instrument ran.
    note: what was supplied that the caller had left out.
    limits: what `left` and `unrelated` were held to, in this order; () for
      `LIMITS` of the instrument.
  """

  instrument: str = ""
  left: float | None = None
  preserved: float | None = None
  unrelated: float | None = None
  phrases: tuple[int, ...] = ()
  reason: str = ""
  note: str = ""
  limits: tuple[float, ...] = ()

  def __post_init__(self):
    if not self.instrument:
      return
    check_choice("probe.instrument", self.instrument, LIMITS)
    if not self.limits:
      limits = dataclasses.astuple(LIMITS[self.instrument])
      object.__setattr__(self, "limits", limits)
    # A record with more or fewer numbers is none.
    Limits(*self.limits)

  @property
  def verdict(self) -> str:
    """One of ok, still there, damage, still there and damage, unknown."""
    if not self.instrument or self.left is None or self.unrelated is None:
      return "unknown"
    limits = Limits(*self.limits)
    # Preserved phrases move less than others do when an edit damages others,
    # and too few are drawn to decide.
    wrong = ["still there"] * (self.left > limits.left)
    wrong += ["damage"] * (self.unrelated > limits.moved)
    return " and ".join(wrong) or "ok"

  @property
  def sentence(self) -> str:
    """The verdict with its figures."""
    if self.verdict == "unknown":
      return (
        f"The probe could not run: {self.reason} Draw some images before you "
        "trust this edit: launch.evaluate, or ul.grid."
      )
    limits = Limits(*self.limits)
    held = "" if self.preserved is None else f"preserved {self.preserved:.2f}, "
    return (
      f"The probe says: {self.verdict}. Left of the concept: {self.left:.2f} "
      f"(limit {limits.left:.2f}). Other phrases moved: {held}unrelated "
      f"{self.unrelated:.2f} (limit {limits.moved:.2f})."
    )

  @property
  def remedy(self) -> str:
    """What to try; "" where nothing is wrong."""
    tips = {
      "still there": "To erase more, preserve fewer phrases, lower "
      "preserve_scale where the method has it, or erase the concept in "
      "sentences too. A method that trains can take more steps, and guidance a "
      "stronger preset.",
      "damage": "To spare others, preserve more phrases, or raise "
      "preserve_scale where the method has it. A method that trains can take "
      "fewer steps, and guidance a weaker preset.",
    }
    return " ".join(tip for key, tip in tips.items() if key in self.verdict)

  def facts(self) -> dict[str, Any]:
    """As records keep it: the figures, the verdict and the sentence."""
    own = dataclasses.asdict(self)
    return {**own, "verdict": self.verdict, "sentence": self.sentence}

  def check(self, method: str, strict: bool) -> None:
    """Warns of a failed erasure; with `strict`, refuses it.

    Args:
      method: who erased, for the message.
      strict: whether an erasure that may have failed is an error.

    Raises:
      ValueError: `strict`, and the verdict is not "ok".
    """
    if self.verdict == "ok":
      return
    said = f"{method}: {self.sentence} {self.remedy}".strip()
    if strict:
      raise ValueError(
        f"{said} Without strict the edit is kept, with a warning"
      )
    warnings.warn(said, ErasureWarning, stacklevel=4)

  def save(self, made: pathlib.Path) -> None:
    """Writes it as JSON beside what was probed, whole or not at all."""
    text = durable.to_json(
      {"format": _FORMAT, **self.facts()}, "probe", indent=2
    )
    with durable.replacing(beside(made)) as file:
      file.write(text.encode())


def beside(made: pathlib.Path) -> pathlib.Path:
  """The file of the probe of what an erasure made, whose file is `made`."""
  # A run calls it so whatever it makes.
  stem = "edit" if made.name == "guidance.json" else made.stem
  return made.with_name(f"{stem}.probe.json")


def of(made: pathlib.Path) -> Probe | None:
  """The probe of what an erasure made; None where it was not probed.

  Raises:
    ValueError: naming the file, if it is something else.
  """
  path = beside(made)
  if not path.exists():
    return None
  seal.check_file(path)
  facts = durable.read_json(path)
  if facts.pop("format", None) != _FORMAT:
    raise ValueError(f"{path}: not a probe's record")
  own = {f.name for f in dataclasses.fields(Probe)}
  try:
    first = _FIRST.get(facts.get("instrument", ""))
    if first and "limits" not in facts:
      facts["limits"] = dataclasses.astuple(first)
    return settings.build(Probe, {k: v for k, v in facts.items() if k in own})
  except (ValueError, TypeError) as error:
    raise ValueError(f"{path}: not a probe's record: {error}") from error
