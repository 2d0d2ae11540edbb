"""The report page: right numbers, no loose ends, nothing from outside."""

import base64
import csv
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from unlearning_jax import report
from unlearning_jax.metrics.accuracy import Change, Measure
from unlearning_jax.record.workdir import Workdir
from unlearning_jax.report import comparison
from unlearning_jax.statistics import wilson

VOID = {"meta", "img", "br"}


def rate(name, k, n):
  return Measure(name, k / n, *wilson(k, n), k, n)


def image(seed):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)


def make_document():
  measures = {
    stage: [
      rate("object/star/explicit", k, 200),
      rate("object/star/synonyms", 2 * k // 3, 100),
      rate("object/star/all", k, 300),
      rate("object/all/others", 490, 500),
      rate("object/ring/others", 97, 100),
      rate("colour/all/others", 480, 500),
    ]
    for stage, k in {"base": 144, "UCE": 3}.items()
  }
  pairs = [
    {
      "prompt": f"a star & <script>{group}</script>",
      "group": group,
      "seed": seed,
      "images": {"base": image(seed), "UCE": image(seed + 10)},
      "seen": {"base": "star", "UCE": "ring"},
    }
    for seed, group in enumerate(["explicit", "others"])
  ]
  run = {"command": "python -m launch.erase", "base_fingerprint": "9f86"}
  return {
    "title": "Erasing <star>",
    "erased": [{"head": "object", "class": "star"}],
    "models": ["base", "UCE"],
    "measures": measures,
    "changes": {
      "UCE": [Change("object/star/explicit", -0.705, -0.77, -0.64, None)]
    },
    "pairs": pairs,
    "diagnostics": {"UCE": {"condition_number": 812.5, "rows": 48}},
    "notes": ["Mind the gap."],
    "provenance": {"runs": [{**run, "seeds": {"noise": 7}}]},
  }


class Page(html.parser.HTMLParser):
  """Checks that elements nest; keeps text and attributes."""

  def __init__(self, text):
    super().__init__()
    self.open, self.texts, self.attributes = [], [], []
    self.feed(text)
    assert not self.open, f"never closed: {self.open}"

  def handle_starttag(self, tag, attrs):
    self.attributes += [(tag, *item) for item in attrs]
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, f"</{tag}> closes another element"

  def handle_data(self, data):
    if self.open and self.open[-1] != "style":
      self.texts.append(data)

  @property
  def text(self):
    return " ".join(" ".join(self.texts).split())

  def images(self):
    for tag, name, value in self.attributes:
      if (tag, name) == ("img", "src"):
        data = base64.b64decode(value.partition(";base64,")[2])
        yield np.array(Image.open(io.BytesIO(data)))


def test_the_page_says_what_was_measured():
  page = Page(report.render_report(make_document()))
  assert (
    "Asked for “star” by name, the model showed it in 72.0 % (144 of 200) of "
    "images before, and 1.5 % (3 of 200) after UCE."
  ) in page.text
  assert "Victim UCE Base 9f86 Concept “star” (object)" in page.text
  assert "0.5–4.3 % 3/200" in page.text  # Wilson's interval of 3 of 200
  assert "−70.5 [−77.0, −64.0]" in page.text
  for words in ("by a synonym", "seen: ring", "Mind the gap.", "812.5", "9f86"):
    assert words in page.text
  assert "python -m launch.erase" in page.text and "noise 7" in page.text
  assert (
    len([a for a in page.attributes if a[:2] == ("svg", "aria-label")]) == 10
  )


def test_what_it_shows_is_escaped():
  text = report.render_report(make_document())
  assert "<script" not in text and "<star>" not in text
  page = Page(text)
  assert "a star & <script>explicit</script>" in page.text
  assert "Erasing <star>" in page.text


def test_the_page_needs_no_other_file():
  text = report.render_report(make_document())
  page = Page(text)
  for _, name, value in page.attributes:
    assert name != "href"
    assert name != "src" or value.startswith("data:image/png;base64,")
  assert not re.search(r"https?:|url\(|@import", text)


def test_images_are_those_given():
  document = make_document()
  images = list(Page(report.render_report(document)).images())
  given = [a for p in document["pairs"] for a in p["images"].values()]
  assert len(images) == len(given) == 4
  for found, array in zip(images, given, strict=True):
    np.testing.assert_array_equal(found, array)


def test_large_images_are_shrunk():
  document = make_document()
  document["pairs"][0]["images"]["UCE"] = np.zeros((512, 1024, 3), np.uint8)
  _, found, *_ = Page(report.render_report(document)).images()
  assert found.shape == (128, 256, 3)


def test_unsafe_images_are_blurred_unless_asked():
  document = make_document()
  document["pairs"][0]["unsafe"] = True
  original = document["pairs"][0]["images"]["base"].astype(float)
  page = Page(report.render_report(document))
  blurred = next(page.images()).astype(float)
  assert "blurred" in page.text
  # The cover holds no more than 8 x 8 patches; the picture itself is closed.
  patches = original.reshape(8, 4, 8, 4, 3).mean((1, 3))
  np.testing.assert_allclose(blurred, patches, atol=1)
  assert ("details", "class", "veil") in page.attributes
  assert not [a for a in page.attributes if a[:2] == ("details", "open")]
  page = Page(report.render_report(document, show_unsafe=True))
  np.testing.assert_array_equal(next(page.images()), original)
  assert "blurred" not in page.text


def test_csv_has_every_measure():
  lines = list(csv.DictReader(io.StringIO(report.results_csv(make_document()))))
  assert len(lines) == 12
  found = {(r["model"], r["head"], r["class"], r["group"]): r for r in lines}
  star = found["UCE", "object", "star", "explicit"]
  assert (star["k"], star["n"]) == ("3", "200")
  assert float(star["value"]) == 0.015
  assert (float(star["low"]), float(star["high"])) == wilson(3, 200)


def test_a_workdir_is_a_report(tmp_path):
  workdir = Workdir(tmp_path, {"method": "uce"})
  workdir.record_provenance(devices={"platform": "cpu"}, seeds={"noise": 7})
  document = make_document()
  del document["provenance"]
  for i, pair in enumerate(document["pairs"]):
    pair["images"] = {
      stage: workdir.save_image(f"{stage}/{i}", array)
      for stage, array in pair["images"].items()
    }
  workdir.save_summary(document)
  page = Page(report.render_report(tmp_path))
  assert len(list(page.images())) == 4
  assert "noise 7" in page.text and "platform cpu" in page.text
  assert report.results_csv(tmp_path) == report.results_csv(make_document())


def test_little_data_makes_a_small_page():
  measures = {"model": [rate("object/all/others", 9, 10)]}
  document = {"models": ["model"], "measures": measures}
  page = Page(report.render_report(document))
  assert "90.0 %" in page.text
  assert "Before and after" not in page.text


@pytest.mark.parametrize(
  "change, message",
  [
    ({"models": []}, "'models' is missing or empty"),
    ({"models": ["base", "RECE"]}, "model 'RECE' has no measures"),
    ({"diagnostic": {}}, "unknown key 'diagnostic'; did you mean .'diagnos"),
  ],
)
def test_incomplete_documents_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    report.render_report({**make_document(), **change})


def test_images_stay_below_the_workdir(tmp_path):
  (tmp_path / "run").mkdir()
  Image.fromarray(image(0)).save(tmp_path / "secret.png")
  document = make_document()
  del document["pairs"][1]
  for path in ("../secret.png", str(tmp_path / "secret.png"), "none.png"):
    document["pairs"][0]["images"] = {"base": path, "UCE": path}
    (tmp_path / "run/summary.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="is not a file below"):
      report.render_report(tmp_path / "run")
  document["pairs"][0]["images"].pop("UCE")
  with pytest.raises(ValueError, match="model 'UCE' has no image of 'a star"):
    report.render_report(document)
  with pytest.raises(ValueError, match="holds no summary.json"):
    report.render_report(tmp_path / "none")


def test_a_collapsed_model_is_flagged_beside_its_rates():
  document = make_document()
  why = {"reasons": ["200 of 200 pictures are noise"], "figures": {}}
  clean = report.render_report(document | {"collapse": {}})
  assert "ollapsed" not in clean
  page = report.render_report(document | {"collapse": {"UCE": why}})
  # In the verdict and in the card of its numbers.
  assert page.count("ollapsed: 200 of 200 pictures are noise.") == 2
  assert "So its rates do not say that the concept alone is gone." in page
  fine = {"reasons": [], "figures": {}}
  said = comparison.collapsed({"collapse": {"UCE": why, "RECE": fine}})
  assert said == ["UCE collapsed: 200 of 200 pictures are noise"]


def test_the_judges_own_errors_have_counts():
  one = {"value": 0.02, "low": 0.01, "high": 0.05, "k": 4, "n": 200}
  errors = {"head": "object", "class": "star", "false_positives": one}
  page = report.render_report(
    make_document() | {"judge_errors": [errors | {"misses": {}}]}
  )
  assert "own errors" in page
  assert "4/200" in page


def test_p_is_corrected_for_several_models():
  document = make_document()
  models = ["base", "UCE", "RECE"]
  measures = document["measures"] | {"RECE": document["measures"]["UCE"]}
  change = document["changes"]["UCE"][0]
  changes = {
    "UCE": [change._replace(p=0.01)], "RECE": [change._replace(p=0.04)]
  }  # fmt: skip
  page = report.render_report(
    {"models": models, "measures": measures, "changes": changes}
    | {"erased": document["erased"]}
  )
  # Holm: 2 x 0.01, and 0.04 stays.
  assert "p = 0.02" in page and "p = 0.04" in page and "p = 0.01" not in page
