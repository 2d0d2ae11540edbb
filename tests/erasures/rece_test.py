"""RECE against its authors' code and a loop over explicit weights."""

import numpy as np
import pytest

from tests.support import closed_form_cases as cases
from tests.support.closed_form_cases import relative
from unlearning_jax import closed_form, stable_diffusion
from unlearning_jax.closed_form import derivation
from unlearning_jax.concepts import Concept, make_concepts
from unlearning_jax.erasures import rece, uce
from unlearning_jax.projections import cross_attention_kernels, projection_gram

GOLDENS = ("nudity", "unsafe", "object")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return cases.tiny(tmp_path_factory.mktemp("tiny"))


def derive(gram, reached, *args):
  products = derivation.Products.of(gram, reached)
  return derivation.derive_from(products, *args)


def solve(golden, epochs):
  s = golden.settings
  return rece.solve(
    golden.task("uce2023", s["uce"]["preserve"]),
    golden.gram,
    s["preserve_scale"] * golden.held(s["preserve"]),
    rece.Epochs(epochs, s["lam_r"], s["erase_scale"], s["lamb"]),
    {},
  )


@pytest.mark.parametrize("name", GOLDENS)
def test_equals_the_authors_code_in_every_epoch(name):
  golden = cases.Golden(f"rece_{name}")
  rows = [golden.states[p].rows for p in golden.settings["erase"]]
  for epoch in range(4):
    context_map, _ = solve(golden, epoch)
    expected = golden.arrays["change"][epoch]
    assert relative(golden.change(context_map), expected) < 1e-9
    if epoch < 3:
      derived = derive(
        golden.gram, context_map, np.concatenate(rows), golden.settings["lam_r"]
      )
      expected = np.concatenate(golden.arrays["derived"][epoch])
      assert relative(derived, expected) < 1e-9


def explicit(weights, pairs, held, start, *, epochs, lam_r, e, p, lamb):
  """RECE on the projections themselves, in the textbook's form."""
  now = [w @ start for w in weights]
  d = weights[0].shape[1]
  for _ in range(epochs):
    m = lam_r * np.eye(d) + sum(w.T @ w for w in now)
    n = sum(w.T @ w0 for w, w0 in zip(now, weights, strict=True))
    derived = [c @ (np.linalg.inv(m) @ n).T for c, _ in pairs]
    right = lamb * np.eye(d) + p * sum(q.T @ q for q in held)
    right = right + e * sum(c.T @ c for c in derived)
    for i, w in enumerate(now):
      left = lamb * w + p * sum((w @ q.T) @ q for q in held)
      for c, (_, a) in zip(derived, pairs, strict=True):
        left = left + e * (w @ a.T) @ c
      now[i] = left @ np.linalg.inv(right)
  return now


def test_equals_a_loop_over_weights():
  rng = np.random.default_rng(0)
  d = 10
  weights = [rng.normal(size=(o, d)) for o in (6, 9, 5)]
  mean = 2 * rng.normal(size=d)
  pairs = [(rng.normal(size=(2, 4, d)) + mean) for _ in range(3)]
  held = [rng.normal(size=(4, d)) + mean for _ in range(2)]
  start = np.eye(d) + 0.1 * rng.normal(size=(d, d))
  scales = {"epochs": 3, "lam_r": 0.05, "lamb": 0.2}
  sums = closed_form.Sums.zero(d)
  for rows in held:
    sums += closed_form.preserve_sums(rows, 0.4)
  got, report = rece.refine(
    sum(w.T @ w for w in weights),
    start,
    [tuple(x) for x in pairs],
    sums,
    rece.Epochs(erase_scale=0.9, **scales),
  )
  expected = explicit(weights, pairs, held, start, e=0.9, p=0.4, **scales)
  for w, new in zip(weights, expected, strict=True):
    assert relative(w @ got - w, new - w) < 1e-10
  assert len(report) == 3


def test_derived_states_minimise_their_objective():
  rng = np.random.default_rng(1)
  d, lam_r = 8, 0.3
  weights = [rng.normal(size=(7, d)) for _ in range(2)]
  gram = sum(w.T @ w for w in weights)
  reached = rng.normal(size=(d, d))
  c = rng.normal(size=(3, d))
  got = derive(gram, reached, c, lam_r)
  gradient = lam_r * got
  for w in weights:
    gradient += (got @ (w @ reached).T - c @ w.T) @ (w @ reached)
  assert np.abs(gradient).max() < 1e-11
  # The identity reached: C' = C S^T (S + lam_r I)^-1.
  first = derive(gram, np.eye(d), c, lam_r)
  expected = c @ gram.T @ np.linalg.inv(gram + lam_r * np.eye(d))
  assert relative(first, expected) < 1e-11
  # No regularizer: the projections drop out.
  free = derive(gram, reached, c, 1e-9)
  assert relative(free, c @ np.linalg.inv(reached).T) < 1e-5
  # Each row stands for itself.
  assert relative(derive(gram, reached, c[1:2], lam_r), got[1:2]) < 1e-12


@pytest.mark.parametrize("regularizer", rece.REGULARIZERS[1:])
def test_regularizers_of_the_authors_code(regularizer):
  golden = cases.Golden("rece_nudity")
  found = np.load(cases.GOLDENS / "closed_form_rece_regularisers.npz")
  reached = np.linalg.lstsq(
    golden.weights, golden.weights + golden.arrays["change"][0]
  )[0]
  got = derive(
    golden.gram,
    reached,
    golden.states["nudity"].rows,
    0.1,
    regularizer,
    golden.states[" "].rows,
  )
  # surrogate_1 has no ridge, and its system a condition number of 1e6.
  assert relative(got, found[regularizer]) < 1e-9


def test_regularizers_minimise_their_objectives():
  rng = np.random.default_rng(1)
  d, lam = 8, 0.3
  weights = [rng.normal(size=(7, d)) for _ in range(2)]
  gram = sum(w.T @ w for w in weights)
  reached = rng.normal(size=(d, d))
  c, a = rng.normal(size=(2, 3, d))
  for regularizer in rece.REGULARIZERS:
    got = derive(gram, reached, c, lam, regularizer, a)
    gradient = np.zeros_like(got)
    for w in weights:
      gradient += (got @ (w @ reached).T - c @ w.T) @ (w @ reached)
      if regularizer in ("surrogate_1", "both"):
        gradient += lam * (got - c) @ (w @ reached).T @ (w @ reached)
    if regularizer in ("surrogate_2", "both"):
      gradient += lam * (got - c)
    gradient += {"zero": lam * got, "standard": lam * (got - a)}.get(
      regularizer, 0
    )
    assert np.abs(gradient).max() < 1e-10, regularizer
  with pytest.raises(ValueError, match="needs the anchors"):
    derive(gram, reached, c, lam, "standard")


def joint(golden, epochs, rows="sequential", **more):
  s = golden.settings
  return rece.solve(
    golden.task("uce2023", s["uce"]["preserve"]),
    golden.gram,
    s["preserve_scale"] * golden.held(s["preserve"]),
    rece.Epochs(epochs, s["lam_r"], **more),
    {},
    rows,
  )


def test_joint_rows_are_one_problem_of_the_base():
  golden = cases.Golden("rece_unsafe")
  task = golden.task("uce2023", golden.settings["uce"]["preserve"])
  states = [golden.states[p].rows for p in golden.settings["erase"]]
  anchors = [golden.states[p].rows for p in golden.settings["anchor"]]
  reached, found = uce.solve(task)
  pairs = [uce.paired_rows(*pair) for pair in task.pairs]
  for _ in range(3):
    derived = derive(golden.gram, reached, np.concatenate(states), 0.1)
    pairs.append((derived, np.concatenate(anchors)))
    sums = found["preserve_scale"] * task.held
    for pair in pairs:
      sums += closed_form.erase_sums(*pair, 1.0)
    reached = closed_form.solve(sums, 0.5)[0]
  golden.settings["lam_r"] = 0.1
  got, report = joint(golden, 3, rows="joint")
  assert relative(got, reached) < 1e-9
  assert len(report["epochs"]) == 3
  assert relative(got, joint(golden, 3)[0]) > 1e-2


def test_stops_where_derived_states_bring_little_back():
  golden = cases.Golden("rece_nudity")
  whole, report = joint(golden, 6)
  escapes = [epoch["escape"] for epoch in report["epochs"]]
  assert escapes[0] > escapes[-1] > 0
  # Between the third epoch's escape and the one before it.
  low, high = sorted(escapes[1:3])
  got, stopped = joint(golden, 6, tolerance=(low + high) / 2)
  last = next(i for i, e in enumerate(escapes) if e <= (low + high) / 2)
  assert len(stopped["epochs"]) == last + 1
  assert "erase_residual" not in stopped["epochs"][-1]
  assert np.array_equal(got, joint(golden, last)[0])
  assert not np.array_equal(got, whole)


def test_an_epoch_erases_what_it_derived():
  _, found = solve(cases.Golden("rece_nudity"), 3)
  for epoch in found["epochs"]:
    assert epoch["erase_residual"] < 0.5
    # It did bring the concept back, more than not at all.
    assert epoch["derive_residual"] < 1
    assert 0.1 < epoch["derived_norm"] < 10
    assert epoch["solve_error"] < 1e-12


def test_long_derived_states_are_told():
  golden = cases.Golden("rece_nudity")
  golden.settings["lam_r"] = 1e-6
  with pytest.warns(
    UserWarning, match="epoch 0: .* times as long.*lam_r=1e-06"
  ):
    solve(golden, 1)


def test_no_epoch_is_uce(model):
  sd, params = model
  concepts = make_concepts("dog", preserve=["cat"])
  start = uce.erase(sd, params, concepts, None, uce.Hparams())
  none = rece.erase(sd, params, concepts, None, rece.Hparams(epochs=0))
  assert np.array_equal(none.context_map, start.context_map)
  assert none.diagnostics["epochs"] == []
  one = rece.erase(sd, params, concepts, None, rece.Hparams(epochs=1))
  assert relative(one.context_map, start.context_map) > 1e-3


@pytest.mark.parametrize(
  "task, recipe, epochs, lam_r",
  [
    ("unsafe", None, 2, 0.1),
    ("unsafe", "nudity", 3, 0.1),
    ("art", None, 1, 1e-3),
    ("object", None, 1, 0.1),
    ("object", "objects_hard", 1, 1e-3),
    ("object", "objects_easy", 1, 0.1),
  ],
)
@pytest.mark.filterwarnings("ignore:epoch 0")
def test_published_recipes(model, task, recipe, epochs, lam_r):
  found = rece.erase(
    *model, make_concepts("dog", task=task), None, rece.Hparams(recipe=recipe)
  ).diagnostics
  assert (len(found["epochs"]), found["lam_r"]) == (epochs, lam_r)


@pytest.mark.parametrize(
  "task, recipe, erase, held",
  [
    ("object", None, ("dog", "cat"), ("", "moon")),
    ("unsafe", None, ("dog",), (" ", "moon")),
    # Once per concept, whatever the task is called.
    ("unsafe", None, ("dog", "cat", "owl"), (" ", " ", " ", "moon")),
    ("object", "nudity", ("dog", "cat"), (" ", " ", "moon")),
  ],
)
def test_erases_as_the_release_does(model, task, recipe, erase, held):
  sd, params = model
  concepts = make_concepts(erase, preserve=["moon"], task=task)
  hparams = rece.Hparams(epochs=2, lam_r=0.1, recipe=recipe)
  edit = rece.erase(sd, params, concepts, None, hparams)
  start = uce.erase(sd, params, concepts, None, uce.Hparams())

  def rows(phrase):
    return cases.states_of(sd, params, phrase)[0]

  kernels = cross_attention_kernels(params)
  weights = [np.float64(k).T for k in kernels.values()]
  expected = explicit(
    weights,
    [(rows(phrase), rows(" ")) for phrase in erase],
    [rows(phrase) for phrase in held],
    start.context_map,
    epochs=2,
    lam_r=0.1,
    e=1.0,
    p=0.1,
    lamb=0.1,
  )
  for w, new in zip(weights, expected, strict=True):
    # Text states of other batches differ in the last bit of float32.
    assert relative(w @ edit.context_map - w, new - w) < 1e-3


def test_presets_of_the_start(model):
  concepts = make_concepts("dog", preserve=["cat"])
  for kwargs, start in (
    ({}, {"lamb": 0.5, "preserve_scale": 0.5}),
    ({"preset": "paper"}, {"lamb": 0.1, "preserve_scale": 0.1}),
    (
      {"preset": "paper", "uce_lamb": 0.3, "uce_preserve_scale": 0.2},
      {"lamb": 0.3, "preserve_scale": 0.2},
    ),
  ):
    got = rece.erase(*model, concepts, None, rece.Hparams(epochs=0, **kwargs))
    expected = uce.erase(*model, concepts, None, uce.Hparams(**start))
    assert np.array_equal(got.context_map, expected.context_map)


def test_rho_is_free_of_units(model):
  sd, params = model
  concepts = make_concepts("dog")
  scaled = {**params, "unet": _times(params["unet"], 4.0)}
  maps = [
    rece.erase(sd, p, concepts, None, rece.Hparams(rho=0.05)).context_map
    for p in (params, scaled)
  ]
  assert relative(maps[1], maps[0]) < 1e-9
  gram = projection_gram(cross_attention_kernels(params))
  lam_r = 0.05 * np.trace(gram) / len(gram)
  same = rece.erase(
    sd, params, concepts, None, rece.Hparams(lam_r=lam_r)
  ).context_map
  assert relative(same, maps[0]) < 1e-12


def _times(tree, factor):
  if isinstance(tree, dict):
    return {k: _times(v, factor) for k, v in tree.items()}
  return factor * tree


def test_work_does_not_grow_with_epochs(model, monkeypatch):
  sd, params = model
  solves, phrases = [], []
  spd, encode = closed_form.solve_spd, stable_diffusion.encode_text
  inside = (closed_form.solve_spd.__globals__, vars(derivation))
  for module in (closed_form, *inside):
    target = module if isinstance(module, dict) else vars(module)
    monkeypatch.setitem(
      target, "solve_spd", lambda *a: (solves.append(1), spd(*a))[1]
    )
  monkeypatch.setattr(
    stable_diffusion,
    "encode_text",
    lambda *a: (phrases.extend(map(tuple, np.asarray(a[2]))), encode(*a))[1],
  )
  concepts = make_concepts(["dog", "cat"], preserve=["moon"])
  rece.erase(sd, params, concepts, None, rece.Hparams(epochs=3, lam_r=0.1))
  assert len(solves) == 1 + 2 * 3
  assert len(phrases) == len(set(phrases)) == 4  # dog cat moon and ""


def test_bad_input_is_refused_before_anything_is_encoded(model, monkeypatch):
  def never(*_):
    raise AssertionError("encoded")

  monkeypatch.setattr(stable_diffusion, "encode_text", never)
  dog = [Concept("dog")]
  for concepts, hparams, message in (
    ([], {}, "no concept"),
    ([*dog, Concept("cat", task="art")], {}, "tasks art, object: .*one task"),
    (dog, {"preset": "papers"}, "did you mean 'paper'"),
    (dog, {"recipe": "nudty"}, "did you mean 'nudity'"),
    (dog, {"epochs": -1}, "epochs=-1"),
    (dog, {"epochs": 1.5}, "epochs=1.5"),
    (dog, {"lam_r": 0.0}, "lam_r=0.0"),
    (dog, {"lam_r": np.nan}, "lam_r=nan"),
    (dog, {"rho": -1.0}, "rho=-1"),
    (dog, {"rows": "jiont"}, "did you mean 'joint'"),
    (dog, {"regularizer": "surrogate"}, "did you mean 'surrogate_"),
    (dog, {"tolerance": -0.1}, "tolerance=-0.1"),
    (dog, {"rho": 1.0, "lam_r": 1.0}, "give one of them"),
    (dog, {"lamb": -1.0}, "lamb=-1"),
    (dog, {"preserve_scale": np.inf}, "preserve_scale=inf"),
    (dog, {"uce_lamb": -1.0}, "uce_lamb=-1"),
    (dog, {"uce_preserve_scale": -1.0}, "uce_preserve_scale=-1"),
  ):
    with pytest.raises(ValueError, match=message):
      rece.erase(*model, concepts, None, rece.Hparams(**hparams))
  with pytest.raises(ValueError, match="lam_r=-1"):
    derive(np.eye(2), np.eye(2), np.ones((1, 2)), -1.0)
