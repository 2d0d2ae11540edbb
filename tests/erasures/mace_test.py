"""MACE's closed forms: optimal, additive, and honest about bad input."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy

from tests.support import closed_form_cases as cases
from tests.support.closed_form_cases import relative
from unlearning_jax import closed_form
from unlearning_jax.concepts import Concept
from unlearning_jax.erasures.mace import fusion, text
from unlearning_jax.projections import base_fingerprint, cross_attention_kernels

D, OUT, ROWS = 12, 7, 40
RNG = np.random.default_rng(0)
# Not orthogonal to any row, as text states are not: a large mean.
MEAN = 3 * RNG.normal(size=D)


def rows(count=ROWS):
  return RNG.normal(size=(count, D)) + MEAN


@pytest.fixture(scope="module")
def kernels():
  return {name: RNG.normal(size=(D, OUT)) for name in ("to_k", "to_v")}


def adapters(kernels, rank=2):
  return {
    path: {
      "down": RNG.normal(size=(D, rank)),
      "up": RNG.normal(size=(rank, OUT)) / 5,
    }
    for path in kernels
  }


def gradient_vanishes(gradient, scale):
  assert np.abs(gradient).max() < 1e-8 * np.abs(scale).max()


# --- (i) Closed-form refinement ---


def objective(new, old, source, target, held, p, lamb):
  return (
    np.sum((source @ new - target @ old) ** 2)
    + p * np.sum((held @ (new - old)) ** 2)
    + lamb * np.sum((new - old) ** 2)
  )


@pytest.mark.parametrize("lamb, p", [(0.5, 0.0), (0.0, 0.3), (0.1, 2.0)])
def test_refinement_is_the_minimum(kernels, lamb, p):
  source, target, held = rows(), rows(), rows(60)
  sums = closed_form.erase_sums(source, target, 1.0)
  sums += closed_form.preserve_sums(held, p)
  refined, found = fusion.refine(kernels, sums, lamb)
  system = sums.gram + lamb * np.eye(D)
  for path, old in kernels.items():
    new = refined[path]
    naive = source.T @ target @ old + p * held.T @ held @ old + lamb * old
    gradient_vanishes(system @ new - naive, naive)
    # The textbook form, which loses what its inverse loses.
    assert relative(np.linalg.inv(system) @ naive - old, new - old) < 1e-8
    # Completed square: the objective is a bowl with its bottom here.
    other = new + RNG.normal(size=new.shape)
    bowl = np.sum((other - new) * (system @ (other - new)))
    args = (old, source, target, held, p, lamb)
    rise = objective(other, *args) - objective(new, *args)
    assert rise == pytest.approx(bowl, rel=1e-9)
  assert found["solve_error"] < 1e-10


def test_what_means_the_same_moves_nothing(kernels):
  source = rows()
  sums = closed_form.erase_sums(source, source, 1.0)
  refined, _ = fusion.refine(kernels, sums, 0.1)
  for path, kernel in kernels.items():
    np.testing.assert_array_equal(refined[path], kernel)


def test_a_heavy_ridge_or_prior_moves_little(kernels):
  sums = closed_form.erase_sums(rows(), rows(), 1.0)
  held = closed_form.preserve_sums(rows(60), 1e9)
  for total, lamb in ((sums, 1e12), (sums + held, 1e-3)):
    refined, _ = fusion.refine(kernels, total, lamb)
    for path, kernel in kernels.items():
      assert relative(refined[path], kernel) < 1e-6


def test_prompts_come_in_any_order_and_in_parts(kernels):
  source, target = rows(), rows()
  order = RNG.permutation(ROWS)
  parts = [order[:11], order[11:]]
  whole = closed_form.erase_sums(source, target, 1.0)
  split = closed_form.Sums.zero(D)
  for part in parts:
    split += closed_form.erase_sums(source[part], target[part], 1.0)
  one, other = (fusion.refine(kernels, s, 0.1)[0] for s in (whole, split))
  for path in kernels:
    assert relative(one[path], other[path]) < 1e-12


# --- (iii) Fusion ---


def part(kernels, name, count=ROWS, rank=2):
  source = rows(count)
  return fusion.Part(
    name,
    closed_form.erase_sums(source[: count // 2], rows(count // 2), 1.0),
    source.T @ source,
    adapters(kernels, rank),
  )


@pytest.mark.parametrize("lamb, s", [(0.5, 0.0), (0.0, 0.3), (0.1, 2.0)])
def test_fusion_is_the_minimum(kernels, lamb, s):
  parts = [part(kernels, name, rank=r) for name, r in (("a", 1), ("b", 3))]
  refined = {k: v + RNG.normal(size=v.shape) / 9 for k, v in kernels.items()}
  held = rows(60)
  prior = s * held.T @ held
  fused, found = fusion.fuse(kernels, refined, parts, prior, lamb)
  for path, new in fused.items():
    gradient = prior @ (new - kernels[path]) + lamb * (new - refined[path])
    for p in parts:
      factors = p.adapters[path]
      wanted = refined[path] + factors["down"] @ factors["up"]
      gradient = gradient + p.gram @ (new - wanted)
    gradient_vanishes(gradient, parts[0].gram @ new)
  assert found["solve_error"] < 1e-10


def test_one_adapter_alone(kernels):
  one = part(kernels, "a")
  none = np.zeros((D, D))
  for lamb in (0.0, 2.0):
    fused, _ = fusion.fuse(kernels, kernels, [one], none, lamb)
    share = np.linalg.solve(one.gram + lamb * np.eye(D), one.gram)
    for path, kernel in kernels.items():
      change = one.adapters[path]["down"] @ one.adapters[path]["up"]
      # Where its prompts span everything and nothing holds back, it is whole.
      change = share @ change if lamb else change
      assert relative(fused[path] - kernel, change) < 1e-8


def test_adapters_of_orthogonal_prompts_keep_out_of_each_others_way(kernels):
  basis = np.linalg.qr(RNG.normal(size=(D, D)))[0]
  spans = basis[:, : D // 2], basis[:, D // 2 :]
  parts = [
    dataclasses.replace(part(kernels, name), gram=span @ span.T)
    for name, span in zip("ab", spans, strict=True)
  ]
  fused, _ = fusion.fuse(kernels, kernels, parts, np.zeros((D, D)), 0.0)
  for one, span in zip(parts, spans, strict=True):
    for path, kernel in kernels.items():
      change = one.adapters[path]["down"] @ one.adapters[path]["up"]
      assert relative(span.T @ (fused[path] - kernel), span.T @ change) < 1e-12


# --- Statistics: adding and dropping concepts ---


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return cases.tiny(tmp_path_factory.mktemp("tiny"))


def concept_part(model, erase, anchor="moon"):
  sd, params = model
  concept = Concept(erase, anchor)
  words = text.encode_concept(
    sd, params, concept, ["a {}", "{} b", "c {} d"],
    tokens="phrase", by_ends=False,
  )  # fmt: skip
  kernels = cross_attention_kernels(params)
  rng = np.random.default_rng(len(erase))
  factors = {
    path: {
      "down": rng.normal(size=(kernel.shape[0], 1)),
      "up": rng.normal(size=(1, kernel.shape[1])) / 9,
    }
    for path, kernel in kernels.items()
  }
  return fusion.Part(erase, words.sums, words.gram, factors)


def statistics(model, *parts, **changes):
  held = np.random.default_rng(5).normal(size=(50, cases.WIDTH))
  return fusion.Fusion(
    base_fingerprint(model[1]), parts, held.T @ held, 0.1, 0.2, 0.5
  )


def solved(model, state):
  return cross_attention_kernels(state.solve(model[1])[0])


def test_dropping_is_solving_afresh(model):
  a, b, c = (concept_part(model, name) for name in ("ab", "xyz", "fish"))
  params = model[1]
  three = statistics(model, a, b, c)
  routes = (three.drop("xyz"), statistics(model, c, a, b))
  routes += (three.reweight("fish", 0.0),)
  for route, parts in zip(routes, ((a, c), (a, b, c), (a, b)), strict=True):
    one, other = (solved(model, s) for s in (route, statistics(model, *parts)))
    for path, kernel in one.items():
      np.testing.assert_allclose(kernel, other[path], atol=1e-7)
      assert relative(kernel, params_kernel(params, path)) > 1e-3


def params_kernel(params, path):
  return cross_attention_kernels(params)[path]


def test_statistics_survive_their_file(model, tmp_path):
  state = statistics(model, *(concept_part(model, n) for n in ("ab", "fish")))
  file = tmp_path / "fusion.safetensors"
  state.reweight("ab", 0.5).save(file)
  again = fusion.load_fusion(file)
  assert [(p.name, p.weight) for p in again.parts] == [("fish", 1), ("ab", 0.5)]
  one, other = (solved(model, s) for s in (state.reweight("ab", 0.5), again))
  for path, kernel in one.items():
    np.testing.assert_array_equal(kernel, other[path])
  whole = dict(safetensors.numpy.load_file(file))
  metadata = {"format": "unlearning_jax mace 1"}
  with safetensors.safe_open(file, "numpy") as opened:
    metadata |= opened.metadata()
  for change, message in (
    ({"0:gram": None}, "tensor '0:gram' is missing"),
    ({"prior": np.full((2, 2), np.nan)}, "'prior' holds NaN"),
    ({"7:gram": np.ones(2)}, "unknown tensors: .*7:gram"),
  ):
    spoiled = {k: v for k, v in (whole | change).items() if v is not None}
    safetensors.numpy.save_file(spoiled, file, metadata)
    with pytest.raises(ValueError, match=message):
      fusion.load_fusion(file)
  safetensors.numpy.save_file(whole, file)
  with pytest.raises(ValueError, match="format=None; allowed: 'unlearning_jax"):
    fusion.load_fusion(file)


def test_no_concepts_no_change(model):
  params = model[1]
  one = statistics(model, concept_part(model, "ab"))
  same, _ = one.drop("ab").solve(params)
  assert all(same[part] is params[part] for part in params)


def test_only_text_projections_change(model):
  params = model[1]
  state = statistics(model, concept_part(model, "ab"))
  erased, found = state.solve(params)
  assert erased["text_encoder"] is params["text_encoder"]
  for block, layer in params["unet"].items():
    mine = erased["unet"][block]["attn2"]
    assert mine["to_q"]["kernel"] is layer["attn2"]["to_q"]["kernel"]
    for name in ("to_k", "to_v"):
      assert mine[name]["kernel"].dtype == np.float32
      assert not np.array_equal(
        mine[name]["kernel"], layer["attn2"][name]["kernel"]
      )
  assert 0 < found["relative_change"] < 1
  assert found["refinement"]["condition_number"] > 1


# --- Prompts ---


def located(size, start, stop):
  return text.Located(tuple(range(size)), start, stop)


@pytest.mark.parametrize(
  "old, new, kept_old, kept_new",
  [
    # BOS a [x] b EOS pads, in ten places; the phrases are left out.
    ((5, 2, 3), (5, 2, 3), [0, 1, *range(3, 10)], [0, 1, *range(3, 10)]),
    ((7, 2, 5), (5, 2, 3), [0, 1, *range(5, 10)], [0, 1, *range(3, 8)]),
    ((5, 2, 3), (7, 2, 5), [0, 1, *range(3, 8)], [0, 1, *range(5, 10)]),
    ((5, 1, 3), (4, 1, 2), [0, *range(3, 10)], [0, *range(2, 9)]),  # at start
    ((5, 3, 4), (6, 3, 5), [0, 1, 2, *range(4, 9)], [0, 1, 2, *range(5, 10)]),
    ((4, 1, 3), (2, 1, 1), [0, *range(3, 10)], [0, *range(1, 8)]),  # no anchor
  ],
)
def test_tokens_that_correspond(old, new, kept_old, kept_new):
  got = text.kept_tokens(located(*old), located(*new), 10, by_ends=False)
  assert got == (kept_old, kept_new)
  phrases = (old[2] - old[1], new[2] - new[1])
  assert len(got[0]) == 10 - max(phrases)


def test_shared_words_stay_targets_unless_asked(model):
  tokenizer = model[0].tokenizer
  old, new = (text.locate(tokenizer, "a {}", p) for p in ("b x", "b z"))
  assert (old.start, old.stop) == (2, 4)
  fixed = text.kept_tokens(old, new, 8, by_ends=False)[0]
  theirs = text.kept_tokens(old, new, 8, by_ends=True)[0]
  assert (fixed, theirs) == ([0, 1, 4, 5, 6, 7], [0, 1, 2, 4, 5, 6, 7])


@pytest.mark.parametrize(
  "tokens, pads_are_eos, marked",
  [
    ("phrase", True, [2, 3]),
    ("phrase+eos", True, [2, 3, 5]),
    ("phrase+eos+pads", True, [2, 3, 5, 6, 7]),
    ("phrase+eos+pads", False, [2, 3, 5]),  # Stable Diffusion 2 pads with "!"
  ],
)
def test_target_positions(tokens, pads_are_eos, marked):
  prompt = text.Located((9, 1, 2, 3, 4, 8), 2, 4)
  found = text.target_positions(prompt, 8, tokens, pads_are_eos)
  assert np.flatnonzero(found).tolist() == marked


def test_own_templates_place_the_phrase_everywhere():
  for listed in text.TEMPLATES.values():
    assert len(set(listed)) == 30
    assert all(template.count("{}") == 1 for template in listed)
    ends = [t.startswith("{}") + 2 * t.endswith("{}") for t in listed]
    assert {0, 1, 2} <= set(ends)


def test_prompts_that_cannot_be_used(model):
  tokenizer = model[0].tokenizer
  rng = np.random.default_rng(0)
  for call, message in (
    (lambda: text.locate(tokenizer, "a photo", "b"), "exactly one '{}'"),
    (lambda: text.locate(tokenizer, "a{}", "b"), "'a{}'.*'b' has other tokens"),
    (
      lambda: text.choose_templates(Concept("b"), {"object": ["{}"]}, 2, rng),
      "num_prompts=2; allowed: 1 to 1.*'object'",
    ),
    (
      lambda: text.choose_templates(Concept("b"), {"art": ["{}"]}, 1, rng),
      "task 'object'",
    ),
    (
      lambda: text.check_phrases(tokenizer, [Concept("a" * 71)]),
      "has 71 tokens; allowed: 1 to 70",
    ),
    (
      lambda: text.check_phrases(tokenizer, [Concept("b", "a b c")]),
      "'a b c' contains the concept 'b'",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      call()
  with pytest.warns(UserWarning, match="share a word"):
    text.check_phrases(tokenizer, [Concept("b x", "b z")])


def test_statistics_refuse_what_does_not_fit(model):
  sd, params = model
  good = concept_part(model, "ab")
  path = "down_blocks_0/attn2/to_k/kernel"
  factors = good.adapters[path]

  def broken(**changes):
    adapted = {**good.adapters, path: {**factors, **changes}}
    return dataclasses.replace(good, adapters=adapted)

  other = {"down_blocks_0/attn2/to_q/kernel": factors}
  for bad, message in (
    (broken(up=np.ones((1, 5))), "to_k.*do not make a kernel of shape"),
    (broken(down=np.ones((24, 2))), "do not make"),
    (broken(down=np.ones((24, 17)), up=np.ones((17, 16))), "rank 17"),
    (broken(up=np.full((1, 16), np.nan)), "'ab' at unet/down.*NaN"),
    (dataclasses.replace(good, adapters=other), "attn2/to_q.*did you mean"),
  ):
    with pytest.raises(ValueError, match=message):
      statistics(model, bad).solve(params)
  with pytest.raises(ValueError, match="'ab' is there twice"):
    statistics(model, good, good)
  with pytest.raises(ValueError, match="weight of 'ab'=-1"):
    statistics(model, dataclasses.replace(good, weight=-1.0))
  with pytest.raises(ValueError, match="concept='abc'.*did you mean 'ab'"):
    statistics(model, good).drop("abc")
  assert not statistics(model, good).drop(" AB").parts
  with pytest.raises(ValueError, match="made from base"):
    statistics(model, good).solve(statistics(model, good).solve(params)[0])
  # Five token states do not span the space: nothing holds the rest.
  few = np.random.default_rng(0).normal(size=(5, cases.WIDTH))
  thin = dataclasses.replace(
    good, gram=few.T @ few, sums=closed_form.Sums.zero(cases.WIDTH)
  )
  alone = dataclasses.replace(
    statistics(model, thin), lamb=0.0, prior=np.zeros_like(good.gram)
  )
  with pytest.raises(
    ValueError, match="fusion with lamb=0.*rank 5 of 24.*ridge"
  ):
    alone.solve(params)
