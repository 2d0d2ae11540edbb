"""What MACE's captions hold, however many there are: not the concept."""

import jax
import numpy as np
import pytest

from tests.support.closed_form_cases import relative
from unlearning_jax import shapes, stable_diffusion
from unlearning_jax.concepts import Concept
from unlearning_jax.erasures import mace
from unlearning_jax.erasures.mace import stages, text
from unlearning_jax.projections import cross_attention_kernels
from unlearning_jax.shapes import captions, vocabulary

CONCEPTS = (Concept("star", "circle"),)
TEMPLATES = ("a picture of a {}", "a {}", "this is a {}", "a red {}")


@pytest.fixture(scope="module")
def model():
  return stable_diffusion.load(shapes.model_folder())


@pytest.fixture(scope="module")
def many():
  rng = np.random.default_rng(0)
  scenes = (vocabulary.sample_scene(rng) for _ in range(1000))
  return [captions.caption(scene, rng) for scene in scenes]


def started(model, **hparams):
  """The words of the concept, and the statistics without adapters."""
  given, key = (
    mace.Hparams(
      templates={"object": TEMPLATES}, num_prompts=len(TEMPLATES), **hparams
    ),
    jax.random.key(0),
  )
  said = stages.speak(*model, CONCEPTS, key, given)
  return said, stages.start(*model, CONCEPTS, said, given)


def left(model, said, kernels):
  """What of the way from the concept to its anchor the kernels leave."""
  (words,), base = said, cross_attention_kernels(model[1])
  sources, targets = [], []
  for i, template in enumerate(TEMPLATES):
    old, new = (
      text.locate(model[0].tokenizer, template, phrase)
      for phrase in ("star", "circle")
    )
    length = model[0].context_shape[0]
    here, there = text.kept_tokens(old, new, length, by_ends=False)
    sources.append(words.states[i][here])
    targets.append(words.anchors[i][there])
  source, target = np.concatenate(sources), np.concatenate(targets)
  gaps = [
    (
      source @ kernels[path] - target @ base[path],
      (source - target) @ base[path],
    )
    for path in base
  ]
  one, other = (sum(np.sum(gap[i] ** 2) for gap in gaps) for i in (0, 1))
  return float(np.sqrt(one / other))


def test_many_captions_leave_the_concept_erased(model, many):
  """A thousand captions, of which some say the concept."""
  assert sum("star" in caption for caption in many) > 10
  found = {}
  for name, hparams in (
    ("none", {}),
    ("many", {"captions": many}),
    ("counted", {"captions": many, "preset": "reference"}),
  ):
    said, begun = started(model, **hparams)
    fused = cross_attention_kernels(begun.solve(model[1])[0])
    found[name] = [
      left(model, said, kernels)
      for kernels in (begun.refine(model[1])[0], fused)
    ]
  # Of the refinement, and after the fusion, which pulls towards the base.
  assert max(found["none"]) < 0.1
  assert max(found["many"]) < 0.2
  assert min(found["counted"]) > 0.7


def test_captions_weigh_as_the_concepts_do(model, many):
  sd, params = model
  said, ours = started(model, captions=many)
  _, theirs = started(model, captions=many, preset="reference")
  whole = mace.preserved_gram(sd, params, many)
  np.testing.assert_array_equal(theirs.prior, whole)
  rows = sum(words.sums.erased for words in said)
  share = rows / (len(many) * sd.context_shape[0])
  assert relative(ours.prior, share * whole) < 1e-14
  # Without captions nothing is weighed anew.
  one, other = (
    mace.preserved_gram(sd, params, (), ["moon", "a fish"], 3.0, rows=weight)
    for weight in (None, rows)
  )
  np.testing.assert_array_equal(one, other)
