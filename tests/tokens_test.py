"""Phrases that are too long: refused, or cut off as the releases do."""

import warnings

import numpy as np
import pytest

from tests.support import closed_form_cases as cases
from unlearning_jax import stable_diffusion
from unlearning_jax.concepts import make_concepts
from unlearning_jax.erasures import rece, uce

# The tokenizer knows letters only, and each of these is a token.
KEPT = " ".join(("cdefghijk" * 5)[: cases.LENGTH - 2])
LONG = KEPT + " x y z"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return cases.tiny(tmp_path_factory.mktemp("tiny"))


def test_what_is_kept_is_told(model):
  sd, _ = model
  with pytest.warns(UserWarning, match=f"{LONG}.*43 tokens.*Kept: '{KEPT}'"):
    (ids,) = stable_diffusion.tokenize(sd, [LONG], truncate=True)
  # As the released tokenizers do: the first tokens, and the end.
  whole = sd.tokenizer(LONG)["input_ids"]
  assert ids.tolist() == whole[: cases.LENGTH - 1] + [sd.tokenizer.eos_token_id]
  cut = sd.tokenizer(LONG, truncation=True, max_length=cases.LENGTH)
  assert ids.tolist() == cut["input_ids"]


def test_short_phrases_are_left_alone(model):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    ids = stable_diffusion.tokenize(model[0], ["dog", ""], truncate=True)
  assert np.array_equal(ids, stable_diffusion.tokenize(model[0], ["dog", ""]))


@pytest.mark.parametrize("module", [uce, rece])
def test_is_what_the_kept_text_gives(module, model):
  anchor = {"uce": "a", "rece": ""}[module.__name__.split(".")[-1]]
  with pytest.raises(ValueError, match="43 tokens.*Shorten it"):
    module.erase(*model, make_concepts(LONG, anchor), None, module.Hparams())
  with pytest.warns(UserWarning, match="Kept"):
    edit = module.erase(
      *model, make_concepts(LONG, anchor), None, module.Hparams(truncate=True)
    )
  # Its last subject token is the last that is kept: two rows are left.
  short = module.erase(
    *model, make_concepts(KEPT, anchor), None, module.Hparams()
  )
  assert edit.diagnostics["erased_rows"] == 2
  assert np.array_equal(edit.context_map, short.context_map)


def test_phrases_that_differ_only_in_what_is_cut(model):
  with pytest.raises(ValueError, match="have the same tokens"):
    uce.erase(
      *model,
      make_concepts([LONG, KEPT + " l m"], "a"),
      None,
      uce.Hparams(truncate=True),
    )
  with pytest.raises(ValueError, match="its anchor have the same tokens"):
    uce.erase(
      *model, make_concepts(LONG, KEPT), None, uce.Hparams(truncate=True)
    )
  with pytest.raises(ValueError, match="is preserved, but has the tokens"):
    concepts = make_concepts(LONG, "a", preserve=[KEPT])
    uce.erase(*model, concepts, None, uce.Hparams(truncate=True))
