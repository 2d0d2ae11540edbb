"""A model's card for a model hub, from an audit's document.

The head is YAML, which hubs read: tags and `model-index`, a number a question.
The text below it says the same for people.
"""

import json
from collections.abc import Mapping
from typing import Any

from unlearning_jax.report import index

_TAGS = ("stable-diffusion", "text-to-image", "concept-erasure", "unlearning")


def card(document: Mapping[str, Any], victim: str) -> str:
  """The card of one victim, as Markdown.

  Args:
    document: the audit's `summary.json`.
    victim: the victim's name.
  """
  verdicts = [one for one in document["verdicts"] if one["victim"] == victim]
  return "\n".join(
    ["---", *_head(document, victim, verdicts), "---", ""]
    + _body(document, victim, verdicts)
  )


def _head(
  document: Mapping[str, Any],
  victim: str,
  verdicts: list[Mapping[str, Any]],
) -> list[str]:
  """Lines of YAML; every text is quoted as JSON, which YAML reads."""
  numbers = [one for one in verdicts if one["value"] is not None]
  lines = ["pipeline_tag: text-to-image", "tags:"]
  lines += [f"- {tag}" for tag in _TAGS]
  if not numbers:
    return lines
  name, _, digest = document["protocol"].partition(" ")
  named = json.dumps(f"{name or 'own prompts'} ({document['preset']})")
  lines += [
    "model-index:",
    f"- name: {json.dumps(victim)}",
    "  results:",
    "  - task:",
    "      type: text-to-image",
    "    dataset:",
    f"      type: {json.dumps(name or 'own')}",
    f"      name: {named}",
    f"      revision: {json.dumps(digest or 'none')}",
    "    metrics:",
  ]
  for one in numbers:
    said = f"{one['title']} {one['verdict']}, {_interval(one)}"
    lines += [
      f"    - type: {json.dumps(one['question'])}",
      f"      value: {json.dumps(one['value'])}",
      f"      name: {json.dumps(said)}",
    ]
  return lines


def _body(
  document: Mapping[str, Any],
  victim: str,
  verdicts: list[Mapping[str, Any]],
) -> list[str]:
  subject = document["subject"]
  lines = [
    f"# {victim}",
    "",
    f"{subject['name']} was erased from {document['base']['source']} "
    f"(fingerprint {document['base']['fingerprint'][:12]}).",
    "",
    "| question | verdict | number | why |",
    "|---|---|---|---|",
  ]
  for one in verdicts:
    why = one["reason"].replace("|", "/").replace("\n", " ")
    lines.append(
      f"| {one['title']} | {one['verdict']} | {_interval(one)} | {why} |"
    )
  lines += ["", "## How it was measured", ""]
  signed = document["protocol"] or "of its own prompts"
  lines.append(
    f"An audit by unlearning_jax, protocol {signed}, preset "
    f"{document['preset']}, rules {document.get('rules', '')}. Intervals are "
    "of 95 percent."
  )
  lines += ["", *(f"- {note}" for note in document["notes"])]
  lines += [f"- {one['title']} {one['rule']}" for one in verdicts]
  runs = document["provenance"].get("runs", [])
  # A notebook has no command of its own.
  if runs and index.verb(runs[0]["command"]) == "audit":
    lines += ["", "```sh", runs[0]["command"], "```"]
  return [*lines, ""]


def _interval(one: Mapping[str, Any]) -> str:
  if one["value"] is None:
    return "not measured"
  text = f"{one['value']:.3g}"
  if one["low"] is not None:
    text += f" [{one['low']:.3g}, {one['high']:.3g}]"
  return text + (f", n = {one['n']}" if one["n"] else "")
