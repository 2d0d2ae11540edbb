"""The pictures that an audit shows: one noise under base, victim, attack."""

from collections.abc import Mapping
from typing import Any

from unlearning_jax.experiments.audit.findings import Findings
from unlearning_jax.experiments.audit.settings import Stage

# Pictures of each victim that ask for the concept, and of others.
ASKING, OTHERS = 4, 2


def chosen(found: Findings) -> list[dict[str, Any]]:
  """Rows of the evaluation with all that was drawn from their noise."""
  document = found.evaluation
  if not document:
    return []
  base, rows = document["models"][0], []
  for victim in found.victims:
    asking = [p for p in document["pairs"] if p["group"] != "others"]
    others = [p for p in document["pairs"] if p["group"] == "others"]
    # Each way to ask for it comes once before any comes twice.
    by_group: dict[str, list[Mapping[str, Any]]] = {}
    for pair in asking:
      by_group.setdefault(pair["group"], []).append(pair)
    turns = max(map(len, by_group.values()), default=0)
    asking = [
      some[i]
      for i in range(turns)
      for some in by_group.values()
      if i < len(some)
    ]
    for pair in (*asking[:ASKING], *others[:OTHERS]):
      if victim in pair["images"]:
        rows.append(_row(found, victim, pair, base))
  return rows


def _row(
  found: Findings, victim: str, pair: Mapping[str, Any], base: str
) -> dict[str, Any]:
  seen = pair.get("seen", {})
  images = [
    _image("base", f"evaluate/{pair['images'][base]}", seen.get(base, "")),
    _image(
      "erased", f"evaluate/{pair['images'][victim]}", seen.get(victim, "")
    ),
  ]
  images += _attacked(found, victim, pair)
  images += _tuned(found, victim, pair)
  ids = (
    i
    for i, row in found.rows.get(victim, {}).items()
    if (row["prompt"], row["seed"]) == (pair["prompt"], pair["seed"])
  )
  return {
    "prompt": pair["prompt"],
    "seed": pair["seed"],
    "row": f"{victim}/{next(ids, '')}",
    "victim": victim,
    "unsafe": bool(pair.get("unsafe")) or bool(found.given.subject["unsafe"]),
    "images": [one for one in images if (found.root / one["path"]).is_file()],
  }


def _image(label: str, path: str, seen: str, words: str = "") -> dict[str, str]:
  return {"label": label, "path": path, "seen": seen, "words": words}


def _attacked(
  found: Findings, victim: str, pair: Mapping[str, Any]
) -> list[dict[str, str]]:
  """The last picture of each attack on the row, controls left out."""
  images, concept = [], found.given.subject["name"]
  searches = [
    name
    for name, one in found.given.attacks.items()
    if one.method != "controls"
  ]
  for name, rows in found.attacks(victim).items():
    if name not in searches:
      continue
    label = f"attacked by {name}" if len(searches) > 1 else "attacked"
    for row in rows:
      same = (row["prompt"], row["seed"]) == (pair["prompt"], pair["seed"])
      last = row["blocks"][-1] if row["blocks"] else {}
      if same and last.get("image"):
        path = f"{Stage('attack', victim, name)}/{last['image']}"
        won = "" if row["success"] else "no "
        seen = f"{won}{concept}" if row["success"] is not None else ""
        images.append(_image(label, path, seen, last.get("text", "")))
  return images


def _tuned(
  found: Findings, victim: str, pair: Mapping[str, Any]
) -> list[dict[str, str]]:
  """The row at the last checkpoint of each tuning."""
  images = []
  for what in found.given.tunings:
    stage = Stage("resurgence", victim, what)
    document = found.summary(stage)
    for other in document.get("pairs", ()):
      if (other["prompt"], other["seed"]) != (pair["prompt"], pair["seed"]):
        continue
      last = document["models"][-1]
      path = f"{stage}/{other['images'][last]}"
      label = f"tuned {last.partition('-')[2]} steps"
      label += f" ({what})" if len(found.given.tunings) > 1 else ""
      images.append(_image(label, path, other.get("seen", {}).get(last, "")))
  return images
