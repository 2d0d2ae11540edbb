"""Edits that come from elsewhere: `--edits=<kind>/<name>=<path>,...`."""

from collections.abc import Sequence


def listed(items: Sequence[str], form: str) -> dict[tuple[str, str], str]:
  """Paths of edits, by the two names before them.

  Args:
    items: as typed.
    form: what the names are, as `<task>/<name>`; for messages.

  Raises:
    ValueError: one that is not of that form, or stands there twice.
  """
  found: dict[tuple[str, str], str] = {}
  for item in items:
    names, _, path = item.partition("=")
    first, _, second = names.partition("/")
    if not (first and second and path) or (first, second) in found:
      raise ValueError(f"--edits: {item!r} is not a new {form}=<path>")
    found[first, second] = path
  return found
