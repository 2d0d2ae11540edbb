"""UCE against its authors' code and against the textbook solution."""

import jax
import numpy as np
import pytest

from tests.support import closed_form_cases as cases
from tests.support.closed_form_cases import relative
from unlearning_jax import closed_form, erasures, stable_diffusion
from unlearning_jax.concepts import Concept, make_concepts
from unlearning_jax.edits import apply_to_params
from unlearning_jax.erasures import uce
from unlearning_jax.projections import cross_attention_kernels


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return cases.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("preset", uce.PRESETS)
def test_equals_the_authors_code(preset):
  golden = cases.Golden(preset)
  task = golden.task(preset, golden.settings["preserve"])
  # No scale given: the preset must come to those of the release.
  context_map, found = uce.solve(task)
  scale = golden.settings["preserve_scale"]
  assert found["preserve_scale"] == pytest.approx(scale, abs=1e-12)
  assert relative(golden.change(context_map), golden.arrays["change"]) < 1e-10


def test_tensor_equals_the_authors_code():
  golden = cases.Golden("uce2023")
  task = golden.task("uce2023", golden.settings["preserve"])
  wanted = np.load(cases.GOLDENS / "closed_form_uce_tensor.npz")["change"]
  parts = np.split(golden.weights, golden.arrays["splits"])
  kernels = {str(i): part.T for i, part in enumerate(parts)}
  changed, found = uce.solve_tensor(task, kernels)
  got = np.concatenate([changed[name].T - k.T for name, k in kernels.items()])
  assert relative(got, wanted) < 1e-10
  assert found["preserve_scale"] == pytest.approx(1 / 3)
  # It is another method.
  assert relative(golden.change(uce.solve(task)[0]), wanted) > 0.1


def test_the_presets_are_different_methods():
  golden = cases.Golden("uce2023")
  task = golden.task("uce2025", golden.settings["preserve"])
  change = golden.change(uce.solve(task)[0])
  assert relative(change, golden.arrays["change"]) > 0.1


def state(last, length=77):
  return uce.TextState(np.arange(length)[:, None] * np.ones((1, 2)), last)


@pytest.mark.parametrize(
  "last, anchor_last, source, target",
  [
    (1, 0, (1, 76), (0, 75)),  # "nudity" -> "": 76 rows, start included
    (4, 1, (4, 76), (1, 73)),  # "kelly mckernan" -> "art"
    (1, 3, (1, 74), (3, 76)),  # a longer anchor
    (75, 0, (75, 76), (0, 1)),  # as long as a phrase can be
    (75, 75, (75, 76), (75, 76)),
  ],
)
def test_rows_of_the_tail(last, anchor_last, source, target):
  got = uce.paired_rows(state(last), state(anchor_last), "uce2023")
  assert [(int(x[0, 0]), int(x[-1, 0])) for x in got] == [source, target]
  one = uce.paired_rows(state(last), state(anchor_last), "uce2025")
  assert [x[:, 0].tolist() for x in one] == [[last], [anchor_last]]


def test_an_erased_phrase_has_tokens():
  for preset in uce.PRESETS:
    with pytest.raises(ValueError, match="no tokens"):
      uce.paired_rows(state(0), state(1), preset)


@pytest.mark.parametrize(
  "preset, held, scale",
  [
    ("uce2023", 1, 1.0),
    ("uce2023", 4, 0.25),
    ("uce2023", 1733, 0.1),
    ("uce2025", 0, 1.0),
    ("uce2025", 1733, 1.0),
  ],
)
def test_published_preserve_scale(preset, held, scale):
  rng = np.random.default_rng(0)
  erased, anchor = (uce.TextState(rng.normal(size=(6, 3)), 2) for _ in "ea")
  task = uce.Task(preset, [(erased, anchor)], closed_form.Sums.zero(3), held)
  assert uce.solve(task)[1]["preserve_scale"] == scale


def textbook(sd, params, pairs, held, *, tail, e, p, lamb):
  """W' = (lamb W + e V* C + p W Q^T Q) A^-1, a projection at a time."""
  kernels = cross_attention_kernels(params)
  out = {}
  for path, kernel in kernels.items():
    w = np.float64(kernel).T
    left, right = lamb * w, lamb * np.eye(cases.WIDTH)
    for erase, anchor in pairs:
      (c, k), (a, j) = (cases.states_of(sd, params, x) for x in (erase, anchor))
      n = cases.LENGTH - max(k, j) if tail else 1
      c, a = c[k : k + n], a[j : j + n]
      left = left + e * (w @ a.T) @ c
      right = right + e * c.T @ c
    for phrase in held:
      q, k = cases.states_of(sd, params, phrase)
      q = q if tail else q[k : k + 1]
      left = left + p * (w @ q.T) @ q
      right = right + p * q.T @ q
    out[path] = np.linalg.solve(right, left.T)
  return out


CONCEPTS = make_concepts(["ab c", "xyz"], ["art", "d"], ["moon"], "art")


@pytest.mark.parametrize(
  "preset, hparams, pairs, held, scales",
  [
    (
      "uce2023",
      {},
      [("ab c", "art"), ("xyz", "d")],
      ["", "moon"],
      {"e": 1.0, "p": 0.5, "lamb": 0.5},
    ),
    (
      "uce2025",
      {"erase_scale": 2.0, "preserve_scale": 0.7, "lamb": 0.2},
      [("ab c", "art"), ("xyz", "d")],
      ["moon"],
      {"e": 2.0, "p": 0.7, "lamb": 0.2},
    ),
    (
      "uce2025",
      {"expand_prompts": True},
      [
        (t.format(erase), t.format(anchor))
        for erase, anchor in (("ab c", "art"), ("xyz", "d"))
        for t in (
          "{}",
          "painting by {}",
          "art by {}",
          "artwork by {}",
          "picture by {}",
          "style of {}",
        )
      ],
      ["moon"],
      {"e": 1.0, "p": 1.0, "lamb": 0.5},
    ),
  ],
)
def test_erases_as_the_textbook_says(
  model, preset, hparams, pairs, held, scales
):
  sd, params = model
  edit = uce.erase(
    sd, params, CONCEPTS, None, uce.Hparams(preset=preset, **hparams)
  )
  expected = textbook(
    sd, params, pairs, held, tail=preset == "uce2023", **scales
  )
  new = cross_attention_kernels(apply_to_params(edit, params))
  old = cross_attention_kernels(params)
  assert edit.method == preset
  assert edit.concepts == CONCEPTS
  for path, kernel in expected.items():
    change = edit.context_map.T @ np.float64(old[path]) - old[path]
    # The textbook's own solve costs the last digits, float32 states the rest:
    # they are encoded in another batch.
    assert relative(change, kernel - old[path]) < 1e-4
    assert relative(np.asarray(new[path]), kernel) < 1e-4


def test_diagnostics(model):
  sd, params = model
  found = uce.erase(sd, params, CONCEPTS, None, uce.Hparams()).diagnostics
  # 3 and 3 tokens against anchors of 3 and 1: rows from there to the end.
  assert found["erased_rows"] == 2 * (cases.LENGTH - 3)
  assert found["preserved_rows"] == 2 * cases.LENGTH
  assert found["condition_number"] > 1 > found["solve_error"]
  assert 0 < found["residual"] < 1
  assert 0 < found["relative_change"]


def test_each_phrase_is_encoded_once(model, monkeypatch):
  sd, params = model
  seen = []
  encode = stable_diffusion.encode_text

  def spy(sd, params, ids):
    seen.extend(map(tuple, np.asarray(ids)))
    return encode(sd, params, ids)

  monkeypatch.setattr(stable_diffusion, "encode_text", spy)
  concepts = make_concepts(["a", "b", "c"], "d", ["e", "d"])
  uce.erase(sd, params, concepts, None, uce.Hparams())
  assert len(set(seen)) == 6  # a b c d e and ""
  assert len(seen) == 8  # filled up to a power of two


def test_long_lists_are_encoded_in_batches(model, monkeypatch):
  sd, params = model
  words = [" ".join("abcdefghi"[: i + 1]) for i in range(9)]
  whole = [s.rows for s in uce.encode(sd, params, words)]
  monkeypatch.setattr(uce.text, "_BATCH", 4)
  parts = list(uce.encode(sd, params, words))
  assert [s.last for s in parts] == list(range(1, 10))
  for one, other in zip(whole, parts, strict=True):
    assert np.abs(one - other.rows).max() < 1e-5


def test_bad_input_is_refused_before_anything_is_encoded(model, monkeypatch):
  sd, params = model

  def never(*_):
    raise AssertionError("encoded")

  monkeypatch.setattr(stable_diffusion, "encode_text", never)
  dog = make_concepts("dog")
  long = " ".join("a" * 20 for _ in range(2))
  for concepts, hparams, message in (
    ((), {}, "no concept"),
    (dog, {"preset": "uce2024"}, "preset='uce2024'.*did you mean 'uce202"),
    (dog, {"technique": "tensors"}, "technique=.tensors.*mean .tensor."),
    (dog, {"lamb": -1.0}, "lamb=-1"),
    (dog, {"erase_scale": np.nan}, "erase_scale=nan"),
    (dog, {"preserve_scale": -0.1}, "preserve_scale=-0.1"),
    (make_concepts(long), {}, f"'{long}' has 42 tokens.*allowed: 40"),
    (make_concepts("dog", preserve=[long]), {}, "has 42 tokens"),
    (make_concepts("x", task="unsafe"), {"expand_prompts": True}, "templates"),
  ):
    with pytest.raises(ValueError, match=message):
      uce.erase(sd, params, concepts, None, uce.Hparams(**hparams))


def test_an_edit_that_changes_nothing_is_refused(model):
  sd, params = model
  with pytest.raises(ValueError, match="changes nothing"):
    uce.erase(
      sd, params, make_concepts("dog"), None, uce.Hparams(erase_scale=0.0)
    )


def test_broken_weights_are_named(model):
  sd, params = model
  broken = jax.tree.map(np.array, params)
  broken["unet"]["up_blocks_0"]["attn2"]["to_k"]["kernel"][0, 0] = np.nan
  with pytest.raises(ValueError, match="unet/up_blocks_0/attn2/to_k/kernel"):
    uce.erase(sd, broken, make_concepts("dog"), None, uce.Hparams())
  broken = jax.tree.map(np.array, params)
  table = broken["text_encoder"]["text_model"]["embeddings"]["token_embedding"]
  table["embedding"][sd.tokenizer("dog")["input_ids"][1]] = np.inf
  with pytest.raises(ValueError, match="text states of 'dog': NaN"):
    uce.erase(sd, broken, make_concepts("dog"), None, uce.Hparams())


def test_is_chosen_by_name(model):
  sd, params = model
  assert {"uce", "rece"} <= set(erasures.methods())
  erase = erasures.bind("uce", {"lamb": 0.3})
  edit = erase(sd, params, [Concept("dog")], jax.random.key(0))
  again = uce.erase(sd, params, [Concept("dog")], None, uce.Hparams(lamb=0.3))
  assert np.array_equal(edit.context_map, again.context_map)
  with pytest.raises(ValueError, match="method='ucee'.*did you mean 'uce'"):
    erasures.bind("ucee", {})
  with pytest.raises(ValueError, match="hparams.lambda: no such.*mean lamb"):
    erasures.bind("uce", {"lambda": 0.3})
  with pytest.raises(ValueError, match="hparams.params: no such setting"):
    erasures.bind("uce", {"params": {}})
