"""TIME's alignment against tables, its edit against the textbook."""

import numpy as np
import pytest

from tests.support import closed_form_cases as cases
from tests.support.closed_form_cases import relative
from unlearning_jax.concepts import make_concepts
from unlearning_jax.erasures import time
from unlearning_jax.projections import cross_attention_kernels

START, END = 90, 91


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return cases.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
  "source, target, rows",
  [
    # roses -> blue roses: what follows moves along, the last row is repeated.
    ([START, 1, END], [START, 2, 1, END], [0, 2, 3, 4, 5, 6, 7, 7]),
    # a dog -> a brown big dog
    ([START, 1, 2, END], [START, 1, 8, 9, 2, END], [0, 1, 4, 5, 6, 7, 7, 7]),
    ([START, 1, END], [START, 1, END], [0, 1, 2, 3, 4, 5, 6, 7]),
    # The same word twice is matched to the next of its kind.
    ([START, 1, 1, END], [START, 1, 5, 1, END], [0, 1, 3, 4, 5, 6, 7, 7]),
  ],
)
def test_aligns_as_the_release_does(source, target, rows):
  for preset in time.PRESETS:
    assert time.align(source, target, 8, preset).tolist() == rows


@pytest.mark.parametrize(
  "source, target, rows",
  [
    # star -> circle: the token takes the anchor's next one.
    ([START, 1, END], [START, 2, END], [0, 1, 2, 3, 4, 5]),
    # red star -> circle: both do.
    ([START, 1, 3, END], [START, 2, END], [0, 1, 1, 2, 3, 4]),
    # star -> nothing: the end of text is what comes next.
    ([START, 1, END], [START, END], [0, 1, 1, 2, 3, 4]),
  ],
)
def test_an_anchor_without_the_concepts_tokens(source, target, rows):
  with pytest.raises(ValueError, match="token 1 of the phrase, id 1,"):
    time.align(source, target, 6, "reference")
  assert time.align(source, target, 6).tolist() == rows


def test_sentences_of_the_release():
  assert time.sentences("A dog") == (
    "A dog",
    "A photo of a dog",
    "An image of a dog",
    "A picture of a dog",
  )


@pytest.mark.parametrize("augment", [True, False])
def test_equals_the_textbook(model, augment):
  sd, params = model
  (concept,) = concepts = make_concepts("xyz", "ab c xyz")
  edit = time.erase(
    sd,
    params,
    concepts,
    None,
    time.Hparams(preset="reference", augment=augment, lamb=0.3),
  )
  pairs = [
    (sentence.format(concept.erase), sentence.format(concept.anchor))
    for sentence in ("{}", "A photo of {}", "An image of {}", "A picture of {}")
  ]
  left = {}
  right = 0.3 * np.eye(cases.WIDTH)
  kernels = cross_attention_kernels(params)
  for path, kernel in kernels.items():
    left[path] = 0.3 * np.float64(kernel).T
  for erased, anchor in pairs if augment else pairs[:1]:
    c, a = (cases.states_of(sd, params, p)[0] for p in (erased, anchor))
    tokens = [sd.tokenizer(p)["input_ids"] for p in (erased, anchor)]
    added = len(tokens[1]) - len(tokens[0])
    # All that is added stands before the subject's last word.
    first = len(tokens[0]) - 1 - len(sd.tokenizer("xyz")["input_ids"][1:-1])
    order = [*range(first), *range(first + added, cases.LENGTH)]
    order += [cases.LENGTH - 1] * added
    right += c.T @ c
    for path, kernel in kernels.items():
      left[path] = left[path] + np.float64(kernel).T @ a[order].T @ c
  for path, kernel in kernels.items():
    w = np.float64(kernel).T
    change = w @ edit.context_map - w
    expected = np.linalg.solve(right, left[path].T).T - w
    assert relative(change, expected) < 1e-3
  assert edit.method == "time reference"


def test_what_cannot_be_edited(model):
  for concepts, hparams, message in (
    (make_concepts("dog", "cat"), {"preset": "reference"}, "'dog' -> 'cat'"),
    (make_concepts("dog", "cat"), {"preset": "refrence"}, "did you mean"),
    (make_concepts("dog", "cat"), {"lamb": -1.0}, "lamb=-1"),
    ([], {}, "no concept"),
  ):
    with pytest.raises(ValueError, match=message):
      time.erase(*model, concepts, None, time.Hparams(**hparams))
