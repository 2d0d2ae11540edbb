"""A run that only checks: it ends where its work would begin.

What can be wrong with settings, files and devices has been read by then, and
nothing has been computed or written.
"""


class Checked(SystemExit):
  """Everything has been checked, and nothing is wrong.

  Attributes:
    given: the settings of the run; None if nobody has named them.
    sd: the static bundle of its model; None if none has been read.
    more: bytes of weights that the run puts beside its base's; None if nobody
      has said.
    safe: whether it draws with Safe Latent Diffusion.
  """

  def __init__(
    self,
    given: object = None,
    sd: object = None,
    more: int | None = None,
    safe: bool = False,
  ):
    super().__init__(0)
    self.given, self.sd, self.more, self.safe = given, sd, more, safe


class _Asked:
  only = False
  given: object = None
  sd: object = None
  more: int | None = None
  safe = False


def ask(only: bool = True):
  """From now on `passed` ends the run."""
  _Asked.only, _Asked.given, _Asked.sd = only, None, None
  _Asked.more, _Asked.safe = None, False


def is_only() -> bool:
  """Whether this run shall end where its work would begin."""
  return _Asked.only


def about(
  given: object = None,
  sd: object = None,
  *,
  more: int | None = None,
  safe: bool = False,
):
  """Says what is known of a run that only checks; the first word stays.

  Args:
    given, sd, more, safe: as of `Checked`.
  """
  if _Asked.only:
    _Asked.given = given if _Asked.given is None else _Asked.given
    _Asked.sd = sd if _Asked.sd is None else _Asked.sd
    _Asked.more = more if _Asked.more is None else _Asked.more
    _Asked.safe |= safe


def passed(given: object = None):
  """Ends a run that only checks; an experiment calls it before its work.

  Args:
    given: its settings, unless `about` has named them.

  Raises:
    Checked: it does so then.
  """
  about(given)
  if _Asked.only:
    raise Checked(_Asked.given, _Asked.sd, _Asked.more, _Asked.safe)
