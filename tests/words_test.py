"""Words that anyone understands: short sentences, no odd or empty ones."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
LONGEST = 35
# Each made a reader stop: the right word is "reports", "the person", ...
ODD = (
  "told", "hers", "of late", "of all that", "is said of", "not told from",
  "tells apart", "foretell", "foretells", "thereof", "whereof", "lest",
  "nought",
)  # fmt: skip
ODD_RE = re.compile(rf"\b({'|'.join(ODD)})\b", re.IGNORECASE)

# --- Sentences ---


def prose(text):
  """A page's paragraphs: no code, tables, headings, images, addresses."""
  text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
  text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
  text = re.sub(r"https?://\S+", "", text)
  lines = [
    "" if line.lstrip().startswith(("|", "#", ":::")) else line
    for line in text.splitlines()
  ]
  # An item of a list is a paragraph.
  return re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines))


def sentences(text):
  """The sentences of a page; a stretch of `code` is one word."""
  for paragraph in prose(text):
    plain = re.sub(r"`[^`]*`", "code", paragraph.replace("\n", " "))
    plain = re.sub(r"\*{1,2}", "", plain)
    # A dot ends a sentence where a capital, a digit or a quote follows.
    yield from re.split(r"(?<=[.!?])[)”\"]?\s+(?=[(“\"A-Z0-9]|code)", plain)


def length(sentence):
  """Its words: what holds a letter or a digit."""
  return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def test_how_sentences_are_counted():
  text = "# A title\n\nOne. Two `a b. c` words?\n\n- An item.\n- Two.\n"
  assert [s.strip() for s in sentences(text) if s.strip()] == [
    "One.", "Two code words?", "- An item.", "- Two.",
  ]  # fmt: skip
  assert length("p = 0.5, of `code` - or") == 5
  table = "| a table of any length at all |\n```\nsome code\n```\n"
  assert not "".join(sentences(table)).strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_sentence_is_long(page):
  found = [
    s.strip() for s in sentences(page.read_text()) if length(s) > LONGEST
  ]
  assert not found, "\n\n".join(found)


# --- Words ---


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_odd_word_on_a_page(page):
  text = " ".join(prose(page.read_text()))
  assert not [m.group() for m in ODD_RE.finditer(text)]
