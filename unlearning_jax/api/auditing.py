"""An audit from Python: one call, one page of verdicts."""

import dataclasses
import importlib
import json
import os
import pathlib
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax import protocols, settings
from unlearning_jax.api import given as given_
from unlearning_jax.api.judging import unique
from unlearning_jax.api.results import Table
from unlearning_jax.api.runs import Path, opener, page
from unlearning_jax.experiments import audit as experiment
from unlearning_jax.model import Model
from unlearning_jax.record import Recorder, read_rows
from unlearning_jax.report.comparison import BASE

_CONFIG = "unlearning_jax.configs.audit"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Audit(Table):
  """A finished audit: its verdicts, its rows, its page.

  Attributes:
    record: the record, which keeps its files for as long as this exists.
  """

  record: Recorder | None = None

  @property
  def verdicts(self) -> list[dict[str, Any]]:
    """A mapping for each victim and question, as in `summary.json`."""
    return list(self.summary["verdicts"])

  @property
  def path(self) -> pathlib.Path:
    """The audit's folder; a temporary one without `out`."""
    assert self.record is not None
    return self.record.path

  def show(self) -> "Audit":
    """Opens the page in a browser; in a notebook the cell shows it."""
    graphical = sys.platform in ("darwin", "win32") or bool(
      {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    )
    file = self.path / "report.html"
    # Without a screen a text browser could take over the terminal.
    if graphical and "ipykernel" not in sys.modules:
      webbrowser.open(file.absolute().as_uri())
    return self

  def _repr_html_(self) -> str:
    # A frame keeps the page's style from the notebook's.
    text = json.dumps(self.page).replace("</", "<\\/")
    return (
      '<iframe style="width: 100%; height: 48rem; border: 0"></iframe>'
      "<script>document.currentScript.previousElementSibling.srcdoc = "
      f"{text}</script>"
    )


def audit(
  erased: Model | Sequence[Model],
  *,
  protocol: str,
  base: Model | None = None,
  preset: str = "quick",
  prompts: Path = "",
  data: Path = "",
  claims: Mapping[str, float] | None = None,
  out: Path | None = None,
  **changes: Any,
) -> Audit:
  """Audits erased models: is the concept gone, and does it stay gone?

  It evaluates, attacks with two controls, fine-tunes on other pictures, and
  evaluates every checkpoint. In the Shapes world a quick audit of one model
  takes a few minutes on two cores.

  Args:
    erased: one model or several of one base.
    protocol: what is drawn and who judges, as `shapes-star`.
    base: the base; None takes the first model's own.
    preset: quick, standard or full.
    prompts: your table of prompts, for a published protocol.
    data: captioned pictures to tune on; "" takes a world's own.
    claims: number -> what the makers say, as {"asr": 0.1}.
    out: a folder that keeps the audit; None keeps it in memory.
    **changes: other fields of `experiments.audit.Settings`, as `skip`.

  Raises:
    ValueError: a protocol, preset or setting is unknown, or the models have
      not one base.
  """
  models = given_.models("audit: erased", erased)
  base = given_.model("audit: base", base or models[0]).base
  values = importlib.import_module(_CONFIG).values(
    protocol,
    preset,
    prompts=os.fspath(prompts),
    # A world's protocol names its own.
    model="" if protocols.find(protocol).prompts is None else base.source,
    data=os.fspath(data),
    claims=claims or {},
  )
  if "evaluate" in changes:
    # Other numbers than the protocol's must not carry its name.
    values["evaluate"] |= {"protocol": ""}
  parts = [*values["attacks"].values(), *values["tunings"].values()]
  for one in (values["evaluate"], *parts):
    one |= given_.computing(base)
  values = settings.changed(values, changes)
  given = settings.build(experiment.Settings, values)
  named = dict(zip(unique(models), models, strict=True))
  named = {name.replace(BASE, "model"): one for name, one in named.items()}
  opened = opener(out, given)
  found = experiment.run(given, opened, {BASE: base, **named})
  record = opened()
  drawn = record.path / "evaluate"
  lines = tuple(
    (one["victim"], one["title"], one["verdict"], one["reason"])
    for one in found.get("verdicts", ())
  )
  return Audit(
    found.get("title", ""),
    ("victim", "question", "verdict", "why"),
    lines,
    tuple(read_rows(drawn)) if drawn.is_dir() else (),
    found,
    page(record.path),
    record=record,
  )
