"""What an audit gives to others: cards, a leaderboard row, a reviewer's zip."""

import importlib.metadata
import io
import json
import pathlib
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

from unlearning_jax.experiments.audit import claims
from unlearning_jax.experiments.audit.findings import Findings
from unlearning_jax.metrics import Estimate
from unlearning_jax.record import Recorder
from unlearning_jax.report import model_card, published, tables

# The public table of attacks on erased models.
_TABLE = "unlearned_dm"
# What a row of prompts holds that a redacted audit must not.
_WORDS = (
  "prompt", "prompts", "text", "words", "ids", "embeds", "tokens", "gallery",
)  # fmt: skip
_PICTURES = (".png", ".jpg", ".webp")
_HIDDEN = "(redacted)"
_NEVER = (".zip", ".safetensors", ".part")


def write(record: Recorder, summary: Mapping[str, Any], found: Findings):
  """Writes a card for each victim, the leaderboard's rows and the zip."""
  for victim in found.victims:
    more = "" if len(found.victims) == 1 else f"-{victim}"
    text = model_card.card(summary, victim)
    record.write(f"model-card{more}.md", text)
  lines = [leaderboard_row(found, victim) for victim in found.victims]
  columns = [*published.load(_TABLE)[0]]
  record.write(
    "leaderboard_row.csv", tables.to_csv(columns, lines, tables.short)
  )
  shows = not (found.given.redact and found.given.subject["unsafe"])
  data = packed(record.path, redact=found.given.redact, pictures=shows)
  record.write("audit.zip", data)


def leaderboard_row(found: Findings, victim: str) -> dict[str, Any]:
  """A victim's line with the columns of the public table, in its units."""
  asked = next(iter(found.asked(victim).values()), None)
  attack = claims.measured(found, victim, "asr")
  own = {
    one["name"].partition("/")[0]: one["value"]
    for one in found.evaluation.get("estimates", ())
    if one["model"] == victim
  }
  return {
    "method": victim,
    "concept": found.given.subject["name"],
    "n": attack.n if attack else asked.n if asked else None,
    "pre_asr": _percent(claims.measured(found, victim, "pre_asr") or asked),
    "asr": _percent(attack),
    "fid": own.get("fid"),
    "clip": own.get("clip-score"),
    "protocol": found.given.evaluate.protocol.partition(" ")[0],
    "source": "measured here",
    "version": f"unlearning_jax {importlib.metadata.version('unlearning_jax')}",
    "note": f"audit, {found.given.preset}",
  }


def _percent(one: Estimate | None) -> float | None:
  return None if one is None or one.value is None else 100 * one.value


def packed(
  root: pathlib.Path, *, redact: bool = False, pictures: bool = True
) -> bytes:
  """All that a reviewer needs to check a figure, as a zip.

  Records, tables, pages and pictures are in it, weights are not.

  Args:
    root: the audit's folder.
    redact: leaves out the prompts, and the pages, which show them.
    pictures: whether pictures are in it.
  """
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    for path in sorted(root.rglob("*")):
      name = path.relative_to(root)
      if not path.is_file() or path.suffix in _NEVER or _hidden(name):
        continue
      picture = path.suffix in _PICTURES
      if picture and not pictures:
        continue
      data = path.read_bytes()
      if redact and not picture:
        data = _redacted(path, data)
      if data is not None:
        # A fixed date: the same audit gives the same file.
        archive.writestr(zipfile.ZipInfo(name.as_posix()), data)
  return file.getvalue()


def _hidden(name: pathlib.Path) -> bool:
  """Whether a file is a writer's own, or weights to go on from."""
  parts = name.parts
  return any(p.startswith(".") or p == "checkpoints" for p in parts)


def _redacted(path: pathlib.Path, data: bytes) -> bytes | None:
  """A file without prompts; None for one that cannot do without them."""
  if path.suffix == ".json":
    return json.dumps(_without(json.loads(data)), indent=2).encode()
  if path.suffix == ".jsonl":
    return b"".join(_lines(data))
  # Tables have rates, no prompts.
  return data if path.suffix == ".csv" or path.name == "DONE" else None


def _lines(data: bytes) -> Iterator[bytes]:
  for line in data.splitlines():
    yield json.dumps(_without(json.loads(line))).encode() + b"\n"


def _without(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {
      key: _HIDDEN if key in _WORDS else _without(inner)
      for key, inner in value.items()
    }
  return [_without(one) for one in value] if isinstance(value, list) else value
