"""Edits of other runs, typed as `--edits=<kind>/<name>=<path>,...`."""

from collections.abc import Sequence


def listed(items: Sequence[str], form: str) -> dict[tuple[str, str], str]:
  """Paths of edits, keyed by the two names before them.

  Args:
    items: the items of the flag, as typed.
    form: the names that are expected, such as `<task>/<name>`, for messages.

  Raises:
    ValueError: an item has another form, or is repeated.
  """
  found: dict[tuple[str, str], str] = {}
  for item in items:
    names, _, path = item.partition("=")
    first, _, second = names.partition("/")
    if not (first and second and path) or (first, second) in found:
      raise ValueError(f"--edits: {item!r} is not a new {form}=<path>")
    found[first, second] = path
  return found
