"""R_norm as a metric: of each tuned model, whatever batches rows come in."""

import json

import numpy as np
import pytest

from unlearning_jax import metrics
from unlearning_jax.metrics import resurgence

METRIC = metrics.load("r_norm")
BITS = {"base": "1111", "erased": "0001", "full": "1101", "lora": "0001"}


def rows(model, bits, group="explicit"):
  return [
    {"id": f"{i}-{group}", "model": model, "group": group, "prompt": f"p{i}",
     "seed": i, "shown": bit == "1"}
    for i, bit in enumerate(bits)
  ]  # fmt: skip


def computed(*batches):
  states = [METRIC.update(METRIC.init(), (), batch) for batch in batches]
  whole = METRIC.init()
  for state in states:
    # As another process would hand it over.
    whole = METRIC.merge(whole, json.loads(json.dumps(state)))
  return METRIC.compute(whole)


def test_each_tuned_model_has_its_own():
  batches = [rows(model, bits) for model, bits in BITS.items()]
  full, lora = computed(*batches)
  assert (full.model, full.name, full.n) == ("full", "r_norm/explicit", 4)
  bits = {k: np.array([b == "1" for b in v]) for k, v in BITS.items()}
  wanted = resurgence.normalized(
    bits["base"], bits["erased"], bits["full"], [f"p{i}" for i in range(4)]
  )
  assert (full.value, full.low, full.high) == tuple(wanted)
  assert lora.model == "lora" and lora.value == 0 and lora.clusters == 4
  # The order of batches, and rows that ask for something else, change nothing.
  others = rows("full", "0000", "others")
  assert computed(others, *batches[::-1]) == [full, lora]


def test_a_judged_row_is_right_under_its_head():
  judged = {
    "id": 0, "model": "full", "group": "explicit", "prompt": "p", "head": "o",
    "attributes": {"o": "star"}, "judged": {"o": "star"},
  }  # fmt: skip
  state = METRIC.update(METRIC.init(), (), [judged])
  assert state == {"full": {"0": ("explicit", "p", True)}}
  del judged["judged"]
  with pytest.raises(ValueError, match="row 0 is not judged; set a judge"):
    METRIC.update(METRIC.init(), (), [judged])


def test_what_has_no_value_says_why():
  (one,) = computed(rows("full", "11"))
  assert one.value is None and "the same rows of base, erased" in one.failed
  same = [rows(model, "11") for model in ("base", "erased", "full")]
  (one,) = computed(*same)
  assert one.value is None and "resurgence is undefined" in one.failed
  assert computed(*same[:2]) == []


@pytest.mark.parametrize("broken", ["erased", "full"])
def test_a_model_that_draws_no_pictures_has_no_value(broken):
  """It would be erased, or would have stayed so."""
  batches = [rows(model, BITS[model]) for model in ("base", "erased", "full")]
  for row in (row for batch in batches for row in batch):
    flat = row["model"] == broken
    row["pixels"] = {"spread": 0.5 if flat else 60.0, "grain": 0.9}
  (one,) = computed(*batches)
  assert one.value is None and one.model == "full"
  assert f"{broken} collapsed" in one.failed
  assert "4 of 4 pictures have one color" in one.failed
