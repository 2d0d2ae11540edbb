"""Every page in a real browser: narrow, wide and printed, light and dark."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.report import (
  attack_test,
  comparison_test,
  resurgence_test,
  sweep_test,
)
from tests.support import audit_documents
from tests.support.browser import Browser, find
from unlearning_jax import report
from unlearning_jax.report import (
  attack,
  attack_matrix,
  audit,
  resurgence,
  sweep,
)

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(find() is None, reason="there is no chromium here"),
]
AXE = "axe-core@4.14.1"
PAGES = ("audit", "unsafe", "least", "comparison", "attack", "matrix", "study")
PAGES += ("sweep",)
SERIOUS = """axe.run().then(found => JSON.stringify(
  found.violations.filter(v => ["serious", "critical"].includes(v.impact))
    .flatMap(v => v.nodes.map(n => [v.id, n.html.slice(0, 90),
                                    n.failureSummary]))))"""
LOOKS = [(390, "", True), (390, "", False), (1280, "", True)]
LOOKS += [(1280, "", False), (794, "print", False)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
  """name -> a page on disk, beside what it links to."""
  root = tmp_path_factory.mktemp("pages")
  found = {}
  for name in PAGES:
    (root / name).mkdir()
    found[name] = root / name / "report.html"

  def whole(name, **given):
    return audit.html(audit_documents.full(root / name, **given), root / name)

  frame = attack_test.won() | {"tokens": ["<t7></w>"], "images": {}}
  frame |= {"block": 1, "attack_seed": 3, "score": 0.9, "text": "a <b>c</b>"}
  for stage in ("base", "no attack", "attack"):
    array = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    Image.fromarray(array).save(root / "attack" / f"{stage}.png")
    frame["images"][stage] = f"{stage}.png"
  document = attack_test.make_document(gallery=[frame], unsafe=True)
  texts = {
    "audit": whole("audit"),
    "unsafe": whole("unsafe", unsafe=True, size=96),
    "least": audit.html(audit_documents.LEAST, root),
    "comparison": report.render_report(comparison_test.make_document()),
    "attack": attack.render(document, root / "attack", {"runs": []}),
    "matrix": attack_matrix.render(attack_test.matrix_document(root), root, {}),
    "study": resurgence.render(resurgence_test.make_document(), {}),
    "sweep": sweep.html(sweep_test.make_document(), root / "sweep"),
  }
  for name, text in texts.items():
    found[name].write_text(text)
  return found


@pytest.fixture(scope="module")
def browser():
  with Browser() as found:
    yield found


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
  """The checker of accessibility, as npm has it."""
  if shutil.which("npm") is None:
    pytest.skip("there is no npm here")
  folder = tmp_path_factory.mktemp("axe")
  done = subprocess.run(
    ["npm", "pack", AXE, "--silent"], cwd=folder, capture_output=True, text=True
  )
  if done.returncode:
    pytest.skip(f"npm has no {AXE} for this machine")
  shutil.unpack_archive(folder / done.stdout.strip(), folder)
  return (folder / "package/axe.min.js").read_text()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_at_every_width(browser, pages, name):
  browser.open(pages[name])
  texts = "Array.from(document.images, i => i.alt)"
  assert all(alt.strip() for alt in browser.run(texts))
  broken = "Array.from(document.images).filter(i => !i.naturalWidth).length"
  assert browser.run(broken) == 0
  for width, media, dark in LOOKS:
    browser.look(width, dark, media)
    inside = browser.run("document.documentElement.scrollWidth")
    assert inside <= width, (width, media)
  asked = [url for url in browser.requests if not url.startswith("data:")]
  assert asked == [pages[name].resolve().as_uri()]
  assert not browser.errors


@pytest.mark.parametrize("name", PAGES)
def test_everybody_can_read_a_page(browser, pages, axe, name):
  browser.open(pages[name])
  # What the reader opened is checked too.
  browser.run("document.querySelectorAll('details').forEach(d => d.open = 1)")
  browser.run(axe + ";0")
  for width, media, dark in LOOKS[:4]:
    browser.look(width, dark, media)
    serious = json.loads(browser.run(SERIOUS))
    assert not serious, (width, dark, serious[:5])


@pytest.mark.parametrize("name", ["unsafe", "attack"])
def test_a_blurred_picture_is_shown_when_it_is_asked_for(browser, pages, name):
  browser.open(pages[name])
  shown = (
    "Array.from(document.querySelectorAll('.veil > img'),"
    " i => i.checkVisibility() && i.getBoundingClientRect().height > 9)"
  )
  count = len(browser.run(shown))
  assert count and not any(browser.run(shown))
  assert browser.run("document.querySelectorAll('.shot > img').length") == 0
  browser.run("document.querySelectorAll('.veil summary')[0].click()")
  assert browser.run(shown) == [True] + [False] * (count - 1)
  browser.run("document.querySelectorAll('.veil summary')[1].focus()")
  browser.press("Enter", 13)
  assert browser.run(shown) == [True, True] + [False] * (count - 2)
  browser.press("Enter", 13)
  assert browser.run(shown) == [True] + [False] * (count - 1)


def test_links_of_an_audit_lead_somewhere(browser, pages):
  browser.open(pages["audit"])
  hrefs = browser.run("Array.from(document.links, a => a.getAttribute('href'))")
  anchors = [h for h in hrefs if h.startswith("#")]
  assert len(anchors) > 5
  for href in anchors:
    at = f"document.getElementById(decodeURIComponent('{href[1:]}'))"
    assert browser.run(f"{at} !== null"), href
  rows = [h for h in hrefs if h.endswith(".jsonl")]
  assert rows and all((pages["audit"].parent / h).is_file() for h in rows)
  browser.run("document.querySelector('a[href$=\".jsonl\"]').click()")
  opened = "document.readyState == 'complete' && location.href"
  while not str(browser.run(opened)).endswith(audit_documents.PATH):
    pass
