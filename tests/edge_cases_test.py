"""What closed forms refuse, a row a case, by every method that can meet it."""

import warnings

import jax
import numpy as np
import pytest

from tests.support import closed_form_cases as cases
from unlearning_jax.concepts import Concept, make_concepts
from unlearning_jax.erasures import rece, time, uce

METHODS = [uce, rece, time]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return cases.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=METHODS, ids=lambda m: m.__name__.split(".")[-1])
def erase(request):
  """A method, called with its hyperparameters by name."""
  method = request.param

  def call(sd, params, concepts, **hparams):
    return method.erase(sd, params, concepts, None, method.Hparams(**hparams))

  return call


@pytest.mark.parametrize(
  "concepts, message",
  [
    (lambda: [], "no concept"),
    (lambda: make_concepts(" "), "is blank"),
    (lambda: make_concepts(["a", "b"], ["c", "d", "e"]), "3 anchors for 2"),
    (lambda: make_concepts("a " * 60), "prompt .* tokens.*Shorten"),
    (lambda: make_concepts("a", "b " * 60), "prompt .* tokens.*Shorten"),
    (lambda: make_concepts("a", preserve=["b " * 60]), "Shorten"),
    (lambda: [Concept("dog"), Concept(" DOG ")], "is given twice"),
    (lambda: [Concept("dog", "a"), Concept("dog", "b")], "'a' and 'b'"),
    (lambda: [Concept("dog"), Concept("a", "", ("Dog",))], "both erased and"),
    (lambda: make_concepts("dog", "Dog"), "equals its anchor"),
    (lambda: make_concepts("a", preserve="b"), "is one string"),
    (lambda: make_concepts("a", preserve=[" "]), "blank phrase in preserve"),
  ],
)
def test_phrases(erase, model, concepts, message):
  with pytest.raises(ValueError, match=message):
    erase(*model, concepts())


@pytest.mark.parametrize("name", ["lamb", "erase_scale", "preserve_scale"])
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_scales(erase, model, name, value):
  concepts = make_concepts("dog", preserve=["cat"])
  with pytest.raises(ValueError, match=f"{name}="):
    erase(*model, concepts, **{name: value})


def test_no_ridge_and_few_rows(model):
  # One row in 24 dimensions: A has rank 1.
  with pytest.raises(ValueError, match="lamb=0.0.*rank 1 of 24.*larger ridge"):
    uce.erase(
      *model,
      make_concepts("dog"),
      None,
      uce.Hparams(preset="uce2025", lamb=0.0),
    )


def test_nothing_to_do(model):
  with pytest.raises(ValueError, match="changes nothing"):
    uce.erase(*model, make_concepts("dog"), None, uce.Hparams(erase_scale=0.0))


def test_a_chain_is_told_and_not_followed(erase, model):
  chain = [Concept("dog", "cat"), Concept("cat", "owl")]
  with pytest.warns(UserWarning, match="'cat' of 'dog' is erased too"):
    erase(*model, chain)


def test_a_conflict_that_is_allowed_ends_in_between(model):
  conflict = [Concept("dog", "cat", ("Dog",))]
  options = {"preset": "uce2025", "erase_scale": 2.0, "preserve_scale": 3.0}
  edit = uce.erase(
    *model,
    conflict,
    None,
    uce.Hparams(allow_conflict=True, lamb=0.5, **options),
  )
  dog, cat = (
    state.rows[state.last].astype(float)
    for state in uce.encode(*model, ["dog", "cat"])
  )
  # One row: e |x - c*|^2 + p |x - c|^2 + lamb / |c|^2 |x - c|^2 is least at
  stays = 3.0 + 0.5 / (dog @ dog)
  wanted = (2.0 * cat + stays * dog) / (2.0 + stays)
  assert cases.relative(edit.context_map @ dog, wanted) < 1e-6


def test_separators_are_told():
  with pytest.warns(UserWarning, match="holds a separator"):
    Concept("a, b")
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    make_concepts(["a", "b"])


def spoiled(params, path, change):
  """`params` with one leaf changed, or dropped where `change` gives None."""

  def walk(tree, keys):
    if not keys:
      return change(tree)
    child = walk(tree[keys[0]], keys[1:])
    rest = {k: v for k, v in tree.items() if k != keys[0]}
    return rest if child is None else rest | {keys[0]: child}

  return walk(params, path.split("/"))


KERNEL = "unet/up_blocks_0/attn2/to_v/kernel"


@pytest.mark.parametrize(
  "path, change, message",
  [
    (KERNEL, lambda x: x * np.nan, "up_blocks_0/attn2/to_v/kernel holds NaN"),
    (KERNEL, lambda x: x[:-1], "shape .23, 28.* 24 wide: they belong to diff"),
    (KERNEL, lambda _: None, "to_k/kernel is there, .*to_v/kernel is not"),
    ("unet", lambda _: {"a": {"to_k": np.ones(3)}}, "no cross-attention"),
    (
      "text_encoder/text_model/final_layer_norm/bias",
      lambda x: x * np.inf,
      "text states of 'dog'|text states of ''",
    ),
  ],
)
def test_weights(erase, model, path, change, message):
  sd, params = model
  with pytest.raises(ValueError, match=message):
    erase(sd, spoiled(params, path, change), make_concepts("dog"))


def test_half_precision_weights_are_edited_in_full(erase, model):
  sd, params = model
  halves = {**params, "unet": jax.tree.map(np.float16, params["unet"])}
  wide = {**params, "unet": jax.tree.map(np.float32, halves["unet"])}
  maps = [
    erase(sd, p, make_concepts("dog")).context_map for p in (halves, wide)
  ]
  assert np.array_equal(*maps)
