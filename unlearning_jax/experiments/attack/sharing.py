"""Rows that share words: later rows first try what won on earlier ones.

Rows are attacked in waves: a first one whose size is a setting, then each as
large as all before it. A row tries the words that won most often in all waves
before its own. Where none of them wins it searches, as long as few words are
known. So a row depends on rows of earlier waves, but on neither lanes, devices
nor kills: what is shared is read from the record.
"""

import dataclasses
import fractions
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_jax.attacks import Attack
from unlearning_jax.attacks.engine.options import Options, Words
from unlearning_jax.attacks.engine.rows import Prepared, Row, prepare
from unlearning_jax.experiments.attack.rows import listed
from unlearning_jax.experiments.attack.settings import Settings
from unlearning_jax.experiments.attack.victims import Setup
from unlearning_jax.record import Recorder


def check(given: Settings, attack: Attack):
  """Refuses to share what is no list of words of one length.

  Raises:
    ValueError: there is no judge; the attack finds no tokens, or a number of
      them that depends on the row; or tries leave no image to a row's own
      search.
  """
  own, h = given.sharing, attack.h
  if not own.wave:
    return
  if given.judge is None:
    raise ValueError(
      f"sharing.wave={own.wave}: rows share words that won, and without a "
      "judge none wins; name a judge, or set sharing.wave=0 and sharing.tries=0"
    )
  if attack.finds != "prompt" or h.num_tokens < 1:
    raise ValueError(
      f"sharing.wave={own.wave}: rows share tokens, and method="
      f"{attack.method!r} finds none here; set sharing.wave=0 and "
      "sharing.tries=0"
    )
  if h.insertion == "every_three":
    raise ValueError(
      f"hparams.insertion={h.insertion!r}: a row's number of tokens depends on "
      "its prompt, so rows cannot share them; set sharing.wave=0 and "
      "sharing.tries=0"
    )
  if own.tries >= h.blocks:
    raise ValueError(
      f"sharing.tries={own.tries}: leaves no image of hparams.blocks="
      f"{h.blocks} to a row's own search; must be below hparams.blocks"
    )


def waves(
  how: Options,
  setup: Setup,
  record: Recorder,
  table: Sequence[Row],
  meet: Callable[[str], object],
) -> Iterator[tuple[Sequence[Row], Options]]:
  """Yields the rows of each wave that are left, and how they are attacked.

  Args:
    how: how rows are attacked that share nothing.
    setup: the attack.
    record: has the rows of the waves before.
    table: this process's rows that are not recorded yet.
    meet: waits for the other processes of the run, by a name.
  """
  own = setup.given.sharing
  if not own.wave:
    yield table, how
    return
  every = [row["id"] for row in listed(setup.given)]
  layouts, start = _layouts(setup), 0
  while start < len(every):
    meet(f"rows before {start} attacked")
    end = max(own.wave, 2 * start)
    before, now = {*every[:start]}, {*every[start:end]}
    done = [row for row in record.rows() if row["id"] in before]
    mine = [row for row in table if row.id in now]
    words = best(done, layouts)[: own.tries]
    full = len(words) == own.tries
    yield mine, dataclasses.replace(how, starts=words, search=not full)
    start = end


def best(
  records: Sequence[Mapping[str, Any]], layouts: Mapping[str, Prepared]
) -> tuple[Words, ...]:
  """The words that won on any row, in the order in which to try them.

  The order falls with (wins + 1) / (tries + 2), Laplace's rule: words that won
  once of one try come before others that lost half of many. Among equal ones,
  those of the lower row number come first.

  Args:
    records: ended rows.
    layouts: where the tokens stand in each row's prompt, by the row's id.
  """
  tally: dict[Words, tuple[int, int]] = {}
  for record in sorted(records, key=lambda row: row["number"]):
    for block in record["blocks"]:
      words = layouts[record["id"]].words(block["ids"])
      wins, tries = tally.get(words, (0, 0))
      tally[words] = wins + bool(block.get("success")), tries + 1
  rank = {
    words: fractions.Fraction(wins + 1, tries + 2)
    for words, (wins, tries) in tally.items()
    if wins
  }
  # Sorting keeps the order of equal ones.
  return tuple(sorted(rank, key=lambda words: rank[words], reverse=True))


def _layouts(setup: Setup) -> dict[str, Prepared]:
  given, sd, h = setup.given, setup.sd, setup.attack.h
  latents = np.zeros(sd.latent_shape, np.float32)
  every = [Row(**row, latents=latents) for row in listed(given)]
  fitting, _ = prepare(sd, every, h.insertion, h.num_tokens, given.long_prompts)
  return {one.row.id: one for one in fitting}
