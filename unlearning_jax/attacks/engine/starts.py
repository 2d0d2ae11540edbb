"""Words that won on other rows, which a row tries before its own search.

A try is an image of the row's prompt with these words in its slots. It takes no
update, and it counts as a block: a row has as many images as without starts.
"""

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from unlearning_jax.attacks.engine.options import Options
from unlearning_jax.attacks.engine.rows import Check, Prepared
from unlearning_jax.stable_diffusion import StableDiffusion


def tried(
  sd: StableDiffusion,
  queue: deque[Prepared],
  records: dict[str, dict[str, Any]],
  check: Check,
  how: Options,
) -> Iterator[dict[str, Any]]:
  """Tries the words on every row in turn; yields the records of ended rows.

  Args:
    queue: the rows to try them on; rows that have ended leave it.
    records: a record of each row by its id, which gets a block for each try;
      those of rows that have ended leave it.
    check: draws and judges images.
    how: has the words, in the order in which to try them, and whether rows
      search after them.
  """
  if not how.search:
    # These rows may not have the images of a search.
    for one in queue:
      records[one.row.id]["budget"] = 1 + len(how.starts)
  for words in how.starts:
    rows = [queue.popleft() for _ in range(len(queue))]
    found = [one.text(sd, np.array(words, np.int32)) for one in rows]
    asked = [
      one.row.request(text["text"])
      for one, text in zip(rows, found, strict=True)
    ]
    began = time.monotonic()
    verdicts = check(asked) if asked else ()
    each = (time.monotonic() - began) / max(1, len(rows))
    for one, text, verdict in zip(rows, found, verdicts, strict=True):
      record = records[one.row.id]
      more = {"seed": one.row.seed, **verdict._asdict(), "start": True}
      record["blocks"].append(text | more)
      record["images"] += 1
      record["seconds"] = round(record["seconds"] + each, 3)
      record["success"] = verdict.success
      if verdict.success:
        yield records.pop(one.row.id) | {"status": "success"}
      else:
        queue.append(one)
  while queue and not how.search:
    record = records.pop(queue.popleft().row.id)
    lost = "unjudged" if record["success"] is None else "failure"
    yield record | {"status": lost}
