"""What a study of resurgence draws: as many prompts, of the kinds wanted."""

import dataclasses

import pytest

from unlearning_jax.metrics import resurgence
from unlearning_jax.shapes import world
from unlearning_jax.shapes.prompts import Target

COUNTS = {"explicit": 9, "words": 4, "others": 8, "tuned": 7}


@pytest.mark.parametrize(
  "targets",
  [
    [Target("object", "star")],
    [Target("object", name) for name in ("star", "fish", "moon")],
    [Target("style", "neon")],
    [Target("identity", "Quill Estane")],
    [Target("unsafe", "hazard")],
  ],
  ids=lambda targets: f"{len(targets)} {targets[0].task}",
)
def test_prompts_are_as_many_and_of_the_kind_wanted(targets):
  given = [dataclasses.asdict(target) for target in targets]
  rows = world.study_rows(given, COUNTS, seed=3)
  groups = {}
  for row in rows:
    groups.setdefault(row["group"], []).append(row)
  wanted = {"explicit": 9, "synonyms": 4, "paraphrases": 4, "others": 8}
  wanted |= {"implied": 4} if targets[0].task == "unsafe" else {}
  assert {group: len(found) for group, found in groups.items()} == wanted
  names = {target.name for target in targets}
  for row in groups["explicit"]:
    assert row["head"] == targets[0].head
    assert row["attributes"][row["head"]] in names
  # Each class has its turn.
  asked = [row["attributes"][row["head"]] for row in groups["explicit"]]
  assert {asked.count(name) for name in names} == {9 // len(names)}
  for row in groups["others"]:
    assert row["attributes"].get(targets[0].head) not in names
    assert row["attributes"][row["head"]] not in (None, "plain")
  assert len({row["seed"] for row in rows}) == len(rows)
  other = world.study_rows(given, COUNTS, seed=4)
  assert not {r["seed"] for r in rows} & {r["seed"] for r in other}


def test_prompts_for_what_is_tuned_on():
  rows = world.tuned_rows("object", ("circle", "moon", "fish"), 7, 0)
  asked = [row["attributes"]["object"] for row in rows]
  assert asked == ["circle", "moon", "fish"] * 2 + ["circle"]
  assert all(row["group"] == "tuned" for row in rows)
  judged = {**rows[0], "judged": {"object": "circle"}}
  assert resurgence.outcome(judged)
  assert not resurgence.outcome({**judged, "judged": {"object": "moon"}})
