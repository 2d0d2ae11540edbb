"""Words that anyone understands: short sentences, no odd or empty ones."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
MODULES = sorted(
  path
  for folder in ("unlearning_jax", "launch", "configs")
  for path in (ROOT / folder).rglob("*.py")
)
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


def said(tree):
  """The docstrings and other texts of a module: (line, text)."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      yield node.lineno, node.value


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_odd_word_on_a_page(page):
  text = " ".join(prose(page.read_text()))
  assert not [m.group() for m in ODD_RE.finditer(text)]


def test_no_odd_word_in_docstrings_and_messages():
  found = [
    f"{path.relative_to(ROOT)}:{line}: {match.group()}"
    for path in MODULES
    for line, text in said(ast.parse(path.read_text()))
    for match in ODD_RE.finditer(text)
  ]
  assert not found, "\n".join(found)


# --- Args ---

# Words that add nothing to a name.
EMPTY = set(
  "a an the of to its it this that these their be is are for which what as in "
  "on with by from given used value one".split()
)
# And what a name is short for.
MEANS = {
  "sd": "stable diffusion model bundle networks static",
  "params": "parameters weights model models",
  "h": "hyperparameters method methods",
  "key": "random prng",
  "config": "configuration settings",
  "cls": "class",
  "n": "number",
}
ENTRY = re.compile(r"^(\s*)\*{0,2}(\w+)(?: \([^)]*\))?: +(.*)$")


def entries(docstring):
  """The lines of `Args`: (name, text)."""
  match = re.search(r"^ *Args:\n((?:(?: +.*)?\n?)*)", docstring, re.MULTILINE)
  if not match:
    return
  block = re.split(r"^\s*(?:Returns|Raises|Yields):", match[1], flags=re.M)[0]
  lines = [line for line in block.splitlines() if line.strip()]
  indent = min((len(li) - len(li.lstrip()) for li in lines), default=0)
  found = []
  for line in lines:
    one = ENTRY.match(line)
    if one and len(one[1]) == indent:
      found.append([one[2], one[3]])
    elif found:
      found[-1][1] += " " + line.strip()
  yield from found


def repeats(name, text):
  """Whether a line of `Args` says no more than the name does.

  What stands in `code`, a symbol of an equation and a number say something.
  """
  if "`" in text:
    return False
  known = {*name.lower().split("_"), *MEANS.get(name, "").split()}
  words = re.findall(r"\w+", text.lower())
  return all(
    word in EMPTY
    or word in known
    # A plural, or what the name is short for.
    or any(
      min(len(k), len(word)) > 2 and (word.startswith(k) or k.startswith(word))
      for k in known
    )
    for word in words
  )


def test_what_repeats_a_name():
  for name, text in (
    ("sd", "the model."),
    ("params", "its parameters."),
    ("edits", "the edits."),
    ("batch_size", "the size of the batch."),
    ("key", "a random key."),
  ):
    assert repeats(name, text), name
  for name, text in (
    ("path", "a folder with `model_index.json`."),
    ("key", "of the noise."),
    ("states", "text states, (n, d)."),
    ("seed", "of the shuffling."),
    ("preserve_scale", "p."),
    ("kind", "one of `KINDS`."),
  ):
    assert not repeats(name, text), name
  text = (
    "A.\n\n  Args:\n    sd: the model.\n    x: one\n      two.\n\n  Raises:\n"
  )
  assert list(entries(text)) == [["sd", "the model."], ["x", "one two."]]


def test_no_line_of_args_repeats_its_name():
  found = []
  for path in MODULES:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.FunctionDef | ast.ClassDef):
        for name, text in entries(ast.get_docstring(node) or ""):
          if repeats(name, text):
            found.append(
              f"{path.relative_to(ROOT)}: {node.name}: {name}: {text}"
            )
  assert not found, "\n".join(found)
