"""Published tables: what they say of themselves, and where they do not."""

import pytest

import unlearning_jax as ul
from unlearning_jax import protocols, report
from unlearning_jax.metrics import harmonic
from unlearning_jax.report import published
from unlearning_jax.statistics import wilson


@pytest.mark.parametrize("name", published.names())
def test_each_line_has_source_version_and_numbers(name):
  found = published.load(name)
  assert published.numbers(found)
  for line in found:
    assert line["method"] and line["source"] and line["version"], line
  keys = [(one["method"], one["concept"], one["source"]) for one in found]
  assert len(set(keys)) == len(keys)


def test_harmonic_means_of_the_means_are_not_the_published_means():
  """MACE averages the ten classes' H_o. One class is in the paper's text."""
  differ = {}
  for line in published.load("mace_objects"):
    if line["h_o"] is None:
      continue
    parts = [line[key] / 100 for key in ("acc_e", "acc_s", "acc_g")]
    made = round(100 * harmonic.harmonic(*parts), 2)
    if made != line["h_o"]:
      differ[line["method"], line["concept"]] = (line["h_o"], made)
  assert differ == {
    ("FMN", "mean of 10"): (6.13, 7.56),
    ("AC", "mean of 10"): (3.63, 4.46),
    ("UCE", "mean of 10"): (85.48, 86.35),
    ("SLD-M", "mean of 10"): (26.32, 28.89),
    ("ESD-x", "mean of 10"): (76.91, 77.75),
    ("ESD-u", "mean of 10"): (83.69, 84.03),
    ("MACE", "mean of 10"): (92.61, 92.66),
  }


def test_artists_differ_by_their_two_scores():
  for line in published.load("mace_artists"):
    if line["h_a"] is not None:
      made = round(line["clip_s"] - line["clip_e"], 2)
      assert made == line["h_a"], line["method"]


def test_boxes_add_up():
  parts = ["armpits", "belly", "buttocks", "feet", "breasts_f"]
  parts += ["genitalia_f", "breasts_m", "genitalia_m"]
  for line in published.load("mace_i2p"):
    if line["method"] != "SA":
      assert sum(line[key] for key in parts) == line["boxes"], line["method"]


def test_rates_that_no_count_of_the_benchmark_gives():
  """A rate is k of 142, 50, 756 or 727 prompts, cut or rounded; but these."""
  odd = set()
  for line in published.load("unlearned_dm"):
    for key in ("pre_asr", "asr"):
      rate, n = line[key], line["n"]
      if None not in (rate, n) and not any(
        abs(100 * k / n - rate) <= 0.0101 for k in range(int(n) + 1)
      ):
        odd.add((line["method"], line["concept"], key, rate))
  assert odd == {
    ("AC", "van gogh", "asr", 77.0),
    ("MACE", "nudity", "pre_asr", 9.1),
    ("MACE", "nudity", "asr", 74.57),
    ("MACE", "van gogh", "asr", 58.53),
    ("RECE", "nudity", "asr", 75.42),
    ("RECE", "van gogh", "asr", 70.73),
    ("SAFREE", "nudity", "asr", 85.59),
    ("SAFREE", "van gogh", "asr", 87.8),
    ("ESD", "illegal", "pre_asr", 30.99),
    ("FMN", "illegal", "pre_asr", 32.83),
    ("FMN", "illegal", "asr", 88.66),
    ("SLD", "illegal", "pre_asr", 27.88),
    ("SLD", "violence", "pre_asr", 22.93),
  }
  for line in published.load("unlearned_dm"):
    if line["pre_asr"] is not None:
      assert line["pre_asr"] <= line["asr"], line


def test_shown_by_name():
  table = ul.published("unlearncanvas")
  assert table.columns[:5] == ("method", "concept", "ua", "ira", "cra")
  esd = next(r for r in table.rows if r["method"] == "ESD")
  assert (esd["ua"], esd["ira"], esd["cra"]) == (98.58, 80.97, 93.96)
  assert "UnlearnCanvas leaderboard" in repr(table)
  with pytest.raises(ValueError, match="did you mean 'mace_objects'"):
    ul.published("mace_object")


def document(protocol):
  k, n = 30, 142
  low, high = wilson(k, n)
  one = {"name": "asr", "value": k / n, "low": low, "high": high, "k": k}
  clip = {"name": "clip-score", "value": 0.3, "low": None, "high": None}
  return {
    "models": ["base", "OURS"],
    "measures": {"base": [], "OURS": []},
    "erased": [{"head": "class", "class": "nudity"}],
    "protocol": protocol,
    "estimates": [
      {**one, "n": n, "model": "OURS"},
      {**clip, "k": None, "n": 9, "model": "OURS", "method": "none"},
    ],
  }


def test_a_measured_row_stands_beside_its_own_protocol_alone():
  original = protocols.find("udm-nudity")
  page = report.render_report(document(original.signed))
  assert "Beside published numbers: unlearned dm" in page
  assert "21.13" in page and "measured here" in page and "30 of 142" in page
  # Of udm-nudity only: neither church nor what others sent in.
  assert "58.53" not in page and "13.38" not in page
  changed = protocols.find("udm-nudity~rows=2,steps=2")
  for signed in (
    changed.signed,
    f"udm-nudity {changed.hash}",
    f"shapes-star {original.hash}",
    "",
  ):
    assert "Beside published" not in report.render_report(document(signed))


def test_boxes_and_means_of_a_head_stand_beside_their_lines():
  count = {"name": "mace-8 boxes", "value": 77.0, "low": None, "high": None}
  count |= {"k": None, "n": 4703, "method": "none: a count", "model": "OURS"}
  made = document(protocols.find("i2p-full").signed) | {"estimates": [count]}
  page = report.render_report(made)
  assert "77" in page and "n 4703" in page
  assert "unless a source says otherwise" in page and "292" in page
  made = document(protocols.find("unlearncanvas/Van_Gogh").signed)
  made["erased"] = [{"head": "style", "class": "Van_Gogh"}]
  page = report.render_report(made)
  assert "Beside published numbers: unlearncanvas" in page
  # ESD's lines of styles alone, and what they are.
  assert "98.58" in page and "92.15" not in page
  assert "means of all such concepts" in page


def test_of_several_concepts_the_erased_one_is_shown():
  signed = protocols.find("udm-object/garbage_truck").signed
  found = published.beside(signed, ["garbage_truck"])
  assert {line["concept"] for line in found["unlearned_dm"]} == {
    "garbage truck"
  }
  assert published.beside(signed, ["n01440764 tench"])
  assert not published.beside(signed, ["dog"])
