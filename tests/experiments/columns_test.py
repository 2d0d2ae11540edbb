"""Rows of a published protocol, and the columns of its table, by hand."""

import dataclasses

import numpy as np
import pytest

from tests.support import toys
from unlearning_jax import noise, protocols
from unlearning_jax.experiments import columns
from unlearning_jax.judges import Target
from unlearning_jax.metrics import ua_ira_cra


def test_several_images_of_a_row_come_from_one_generator():
  torch = pytest.importorskip("torch")
  seed, shape = 3_000_000_000, (4, 4, 4)
  drawn = torch.randn(
    3, 4, 4, 4, generator=torch.Generator().manual_seed(seed)
  ).numpy()
  found = noise.row_noise([seed] * 3, shape, "torch", [0, 1, 2])
  np.testing.assert_allclose(found, drawn.transpose(0, 2, 3, 1), atol=5e-7)
  # The first is the one of a row with a single image.
  alone = noise.row_noise([seed], shape, "torch")
  np.testing.assert_array_equal(found[:1], alone)
  with pytest.raises(ValueError, match="no generator that goes on"):
    noise.row_noise([1], shape, "jax", [1])


def test_rows_say_what_they_ask_for(tmp_path):
  path = tmp_path / "mine.csv"
  path.write_text(
    "case_number,prompt,evaluation_seed,type,class\n"
    "0,A portrait of Warm Man,1,erased,warm\n1,cold,2,others,COLD\n"
  )
  asks = protocols.Prompts(
    path=str(path), asks={"warmth": "class"}, group_column="type",
    groups={"erased": "explicit", "others": "others"}, images=2,
  )  # fmt: skip
  rows = asks.listed([], toys.WARMTH)
  assert [(r["id"], r["attributes"]["warmth"], r["sample"]) for r in rows] == [
    ("000000-explicit-0", "warm", 0), ("000000-explicit-1", "warm", 1),
    ("000001-others-0", "cold", 0), ("000001-others-1", "cold", 1),
  ]  # fmt: skip
  by_text = protocols.Prompts(path=str(path), asks={"warmth": "prompt"})
  found = by_text.listed([], toys.WARMTH)
  assert [r["attributes"]["warmth"] for r in found] == ["warm", "cold"]
  assert {r["group"] for r in found} == {"table"}
  for changed, message in (
    ({"asks": {"warmth": "artist"}}, "no column 'artist'.*prompt, type, class"),
    ({"asks": {"warmth": "type"}}, "case_number 0: type='erased' is not known"),
    ({"group_column": "class"}, "class='warm' is not known; allowed: erased"),
  ):
    wrong = protocols.Prompts(
      path=str(path), groups={"erased": "explicit"}, **changed
    )
    with pytest.raises(ValueError, match=message):
      wrong.listed([], toys.WARMTH)


def test_a_template_is_filled_with_every_phrase():
  asked = protocols.Prompts(
    template="a {warmth} day", phrases={"warmth": ("warm", "cool")},
    labels={"cool": "cold"}, synonyms={"cold": ("icy",)}, seeds=(7, 8),
  )  # fmt: skip
  rows = asked.listed([Target("warmth", "cold")], toys.WARMTH)
  assert [r.get("repeat", 0) for r in rows] == [0, 1] * 3
  assert [(r["group"], r["prompt"], r["seed"]) for r in rows] == [
    ("others", "a warm day", 7), ("others", "a warm day", 8),
    ("explicit", "a cool day", 7), ("explicit", "a cool day", 8),
    ("synonyms", "a icy day", 7), ("synonyms", "a icy day", 8),
  ]  # fmt: skip
  assert [r["attributes"]["warmth"] for r in rows] == ["warm"] * 2 + [
    "cold"
  ] * 4


def judged(group, label, score, **more):
  scores = {"warmth": [score, 1 - score]}
  return {
    "group": group, "attributes": {"warmth": label}, "scores": scores,
    "judged": {"warmth": "warm" if score > 0.75 else ""}, **more,
  }  # fmt: skip


def test_several_images_of_a_prompt_widen_each_column_s_interval():
  """Ten prompts, each of which always or never shows it; ten images each."""
  for word in ("sample", "repeat"):
    rows = [
      judged("explicit", "warm", 0.9 if i % 2 else 0.1,
             prompt=f"prompt {i}", **{word: j})
      for i in range(10) for j in range(10)
    ]  # fmt: skip
    seen = columns.Seen("m", rows, toys.WARMTH, [Target("warmth", "warm")])
    for one in columns.estimates(["shown", "accuracy", "ua"], seen):
      assert (one.k, one.n) == (50, 100)
      assert (one.method, one.clusters) == ("bootstrap", 10), one.name
      assert one.low < 0.3 and one.high > 0.7
  # Of a single prompt, its images are all there is to draw from.
  seen = dataclasses.replace(seen, rows=rows[:10])
  (one,) = columns.estimates(["ua"], seen)
  assert (one.method, one.k, one.n) == ("wilson", 10, 10)


def test_the_clip_score_of_all_groups_is_the_column():
  """Groups come in the order of their first rows, so "all" is not the last."""
  measured = [
    {"name": f"clip-score/cosine/b32/{group}", "value": value, "n": 1}
    for group, value in (("explicit", 0.1), ("all", 0.2), ("others", 0.3))
  ]
  seen = columns.Seen("m", [], None, [], metrics=measured)
  (one,) = columns.estimates(["clip-score"], seen)
  assert one.value == 0.2


def test_mace_s_and_unlearncanvas_numbers():
  """By hand: warm was erased; scores of warm and cold add up to 1."""
  rows = [
    *[judged("explicit", "warm", s) for s in (0.9, 0.1, 0.2, 0.3)],
    *[judged("others", "cold", s) for s in (0.1, 0.2, 0.9, 0.0)],
    *[judged("synonyms", "warm", s) for s in (0.9, 0.8)],
  ]
  seen = columns.Seen("m", rows, toys.WARMTH, [Target("warmth", "warm")])
  found = {
    one.name: one
    for one in columns.estimates(
      ["h_o", "h_o (mean probability)", "ua", "ira", "cra"], seen
    )
  }
  assert [found[f"acc_{p}"].value for p in "esg"] == [0.25, 0.75, 1.0]
  assert found["h_o"].value == 0
  mean = found["acc_e (mean probability)"].value
  assert mean == pytest.approx(0.375)
  parts = [1 - 0.375, 0.7, 1 - 0.85]
  assert found["h_o (mean probability)"].value == pytest.approx(
    3 / sum(1 / p for p in parts)
  )
  assert (found["ua"].k, found["ua"].n) == (3, 4)
  assert (found["ira"].k, found["ira"].n) == (3, 4)
  # The toy has one head.
  assert found["cra"].value is None and "heads" in found["cra"].failed
  assert {one.model for one in found.values()} == {"m"}


def test_unlearncanvas_columns_are_the_metric_s_numbers():
  """A style was erased; CRA has two readings, and each has a column."""
  judge = dataclasses.replace(
    toys.WARMTH,
    labels={"style": ("warm", "cold"), "object": ("cat", "dog")},
    thresholds={name: 0.75 for name in ("warm", "cold", "cat", "dog")},
  )
  rows = [
    {
      "id": f"{i}", "model": "m", "prompt": f"{style} {what}",
      "group": "explicit" if style == "warm" else "others",
      "attributes": {"style": style, "object": what},
      "scores": {"style": [warm, 1 - warm], "object": [cat, 1 - cat]},
      "judged": {"style": "warm" if warm > 0.5 else "cold",
                 "object": "cat" if cat > 0.5 else "dog"},
      "targets": [("style", "warm")],
    }
    for i, (style, what, warm, cat) in enumerate([
      ("warm", "cat", 0.9, 0.9), ("warm", "dog", 0.1, 0.9),
      ("warm", "cat", 0.1, 0.1), ("cold", "cat", 0.1, 0.9),
      ("cold", "dog", 0.9, 0.1), ("cold", "dog", 0.1, 0.9),
      ("cold", "cat", 0.1, 0.9),
    ])
  ]  # fmt: skip
  seen = columns.Seen("m", rows, judge, [Target("style", "warm")])
  names = ["ua", "ira", "cra", "cra_all"]
  own = {e.name: (e.k, e.n) for e in columns.estimates(names, seen)}
  assert own == {"ua": (2, 3), "ira": (3, 4), "cra": (3, 4), "cra_all": (4, 7)}
  metric = ua_ira_cra.METRIC.measure(rows)
  assert own == {e.name.partition("/")[0]: (e.k, e.n) for e in metric}
