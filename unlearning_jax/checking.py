"""A run that only checks: it ends where its work would begin.

What can be wrong with settings, files and devices has been read by then, and
nothing has been computed or written.
"""


class Checked(SystemExit):
  """Everything has been checked, and nothing is wrong."""

  def __init__(self):
    super().__init__(0)


class _Asked:
  only = False


def ask(only: bool = True):
  """From now on `passed` ends the run."""
  _Asked.only = only


def is_only() -> bool:
  """Whether this run shall end where its work would begin."""
  return _Asked.only


def passed():
  """Ends a run that only checks; an experiment calls it before its work.

  Raises:
    Checked: it does so then.
  """
  if _Asked.only:
    raise Checked()
