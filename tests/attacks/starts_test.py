"""Every attack that finds tokens can begin with words of other rows."""

import pytest

from tests.contracts.attacks_test import ROWS, run
from tests.support.attacks_cases import make_world
from unlearning_jax.attacks.engine import rows, vocabulary

pytestmark = pytest.mark.usefixtures("quickest_compiler")
FAST = ("unlearn_diff_atk-0", "controls-0")
# Those with a list of words of one length.
SHARING = [
  pytest.param(
    attack, id=row.id, marks=[pytest.mark.slow] * (row.id not in FAST)
  )
  for row in ROWS
  for attack in row.values
  if attack.finds == "prompt"
  and attack.h.num_tokens
  and attack.h.insertion != "every_three"
]


@pytest.fixture(scope="module")
def world():
  return make_world(small=True)


@pytest.mark.parametrize("attack", SHARING)
def test_words_of_other_rows_are_tried_before_the_search(attack, world):
  """The search is then the same, with as many images in all."""
  tokens = attack.h.num_tokens
  ids = vocabulary.attack_ids(world[0].tokenizer, "roundtrip")
  words = (tuple(ids[:tokens].tolist()), tuple(ids[-tokens:].tolist()))
  alone, found = run(world, attack), run(world, attack, starts=words)
  assert {row["status"] for row in found.values()} == {"failure"}
  for name, row in found.items():
    assert row["images"] == alone[name]["images"]
    assert row["iterations"] == (row["images"] - 3) * attack.h.iterations
    first, *rest = row["blocks"]
    assert first["start"] and rest[0]["start"]
    texts = [block["text"] for block in row["blocks"]]
    assert texts[2:] == [b["text"] for b in alone[name]["blocks"]][:-2]
    assert {*words[0]} <= {*first["ids"]} and {*words[1]} <= {*rest[0]["ids"]}
  lucky = {row["blocks"][1]["text"] for row in found.values()}
  won = run(
    world, attack,
    lambda asked: [rows.Verdict(a.prompt in lucky, 0.5) for a in asked],
    starts=words,
  )  # fmt: skip
  assert all(row["status"] == "success" for row in won.values())
  assert all(
    row["images"] == 3 and not row["iterations"] for row in won.values()
  )
