"""What a training records, whatever the machine's clock does."""

import itertools
import json
import time

from unlearning_jax.record import Workdir
from unlearning_jax.record.training_log import TrainingLog


def test_a_clock_that_is_set_back(tmp_path, monkeypatch):
  hour = itertools.count(1e9, -3600)
  monkeypatch.setattr(time, "time", lambda: next(hour))
  # The second start is an hour before the first.
  for step in (1, 2):
    run = Workdir(tmp_path, {})
    with TrainingLog(run, "train", 2, step - 1) as log:
      for now in range(1, step + 1):
        log(now, {"loss": 1.0 / now})
    del run, log
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  found = [json.loads(line) for line in lines]
  assert [line["step"] for line in found] == [1, 2]
  assert all(0 <= line["seconds"] < 60 for line in found)
