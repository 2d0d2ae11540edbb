"""The algebra against independent float64 oracles, and the edit's life."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from unlearning_jax import closed_form as cf
from unlearning_jax.concepts import Concept

D, LAMB, E, P = 12, 0.3, 0.7, 1.9


def states(n, seed=0, width=D):
  """Rows with a large common part, as CLIP's have."""
  rng = np.random.default_rng(seed)
  return rng.normal(size=(n, width)) + 2 * rng.normal(size=width)


SOURCE, TARGET, HELD = states(5, 1), states(5, 2), states(4, 3)
WEIGHTS = [
  np.random.default_rng(i).normal(size=(o, D)) for i, o in enumerate((7, 9))
]


def problem(e=E, p=P, source=SOURCE, target=TARGET, held=HELD):
  return cf.erase_sums(source, target, e) + cf.preserve_sums(held, p)


def context_map(lamb=LAMB, **kwargs):
  return cf.solve(problem(**kwargs), lamb)[0]


def relative(a, b):
  return np.linalg.norm(a - b) / np.linalg.norm(b)


def gradient(w, new, lamb=LAMB):
  """Of half the objective, by the chain rule and nothing else."""
  return (
    E * (new @ SOURCE.T - w @ TARGET.T) @ SOURCE
    + P * ((new - w) @ HELD.T) @ HELD
    + lamb * (new - w)
  )


def loss(w, new):
  return (
    E * np.sum((new @ SOURCE.T - w @ TARGET.T) ** 2)
    + P * np.sum(((new - w) @ HELD.T) ** 2)
    + LAMB * np.sum((new - w) ** 2)
  )


@pytest.mark.parametrize("w", WEIGHTS)
def test_textbook_normal_equations(w):
  left = LAMB * w + E * w @ TARGET.T @ SOURCE + P * w @ HELD.T @ HELD
  right = LAMB * np.eye(D) + E * SOURCE.T @ SOURCE + P * HELD.T @ HELD
  expected = left @ np.linalg.inv(right)
  assert relative(w @ context_map(), expected) < 1e-12


@pytest.mark.parametrize("w", WEIGHTS)
def test_least_squares_on_stacked_rows(w):
  rows = [np.sqrt(E) * SOURCE, np.sqrt(P) * HELD, np.sqrt(LAMB) * np.eye(D)]
  wanted = [np.sqrt(E) * TARGET, np.sqrt(P) * HELD, np.sqrt(LAMB) * np.eye(D)]
  expected = np.linalg.lstsq(
    np.concatenate(rows), np.concatenate(wanted) @ w.T, rcond=None
  )[0].T
  assert relative(w @ context_map(), expected) < 1e-12


def test_textbook_at_the_width_of_stable_diffusion():
  source, target, held = (10 * states(76, i, 768) for i in range(3))
  w = np.random.default_rng(9).normal(size=(8, 768))
  system = 0.5 * np.eye(768) + source.T @ source + held.T @ held
  left = 0.5 * w + w @ target.T @ source + w @ held.T @ held
  expected = np.linalg.solve(system, left.T).T
  got, found = cf.solve(
    cf.erase_sums(source, target, 1.0) + cf.preserve_sums(held, 1.0), 0.5
  )
  change = relative(w @ got - w, expected - w)
  assert change < 1e-8
  true = np.linalg.cond(system, 1)
  assert true / 3 < found["condition_number"] < true * 1.001
  assert found["solve_error"] < 1e-12


def test_one_row_has_a_formula():
  c, a = SOURCE[0], TARGET[0]
  expected = np.eye(D) + E * np.outer(a - c, c) / (LAMB + E * c @ c)
  got = cf.solve(cf.erase_sums(c[None], a[None], E), LAMB)[0]
  assert relative(got, expected) < 2e-13
  # The residual of the old meaning is lamb / (lamb + e |c|^2).
  left = cf.residual(got, [(c[None], a[None])])
  assert np.isclose(left, LAMB / (LAMB + E * c @ c), rtol=1e-10)


@pytest.mark.parametrize("w", WEIGHTS)
def test_is_the_minimum(w):
  new = w @ context_map()
  scale = np.linalg.norm(gradient(w, w))
  assert np.linalg.norm(gradient(w, new)) < 1e-12 * scale
  noise = np.random.default_rng(5).normal(size=w.shape)
  assert loss(w, new) < min(loss(w, w), loss(w, new + 1e-3 * noise))


def test_limits():
  eye = np.eye(D)
  assert np.array_equal(context_map(target=SOURCE), eye)
  assert np.abs(context_map(e=1e-14) - eye).max() < 1e-10
  assert np.abs(context_map(lamb=1e14) - eye).max() < 1e-9
  strong = context_map(e=1e6, p=0.0, lamb=1e-1)
  assert relative(SOURCE @ strong.T, TARGET) < 1e-6
  firm = context_map(p=1e6)
  assert relative(HELD @ firm.T, HELD) < 1e-5


def test_changes_nothing_outside_the_rows():
  rows = np.concatenate([SOURCE, HELD])
  away = np.linalg.svd(rows)[2][-1]
  got = context_map()
  assert np.abs(got @ away - away).max() < 1e-12
  rank = np.linalg.matrix_rank(got - np.eye(D), tol=1e-10)
  assert rank <= len(SOURCE)


def test_sums_add_up_in_any_order():
  base = context_map()
  turned = np.array([3, 1, 4, 0, 2])
  split = (
    cf.preserve_sums(HELD, P)
    + cf.erase_sums(SOURCE[3:], TARGET[3:], E)
    + cf.erase_sums(SOURCE[:3], TARGET[:3], E)
  )
  twice = np.concatenate([SOURCE, SOURCE]), np.concatenate([TARGET, TARGET])
  padded = [np.concatenate([x, np.zeros((3, D))]) for x in (SOURCE, TARGET)]
  for other in (
    context_map(source=SOURCE[turned], target=TARGET[turned]),
    cf.solve(split, LAMB)[0],
    context_map(e=E / 2, source=twice[0], target=twice[1]),
    context_map(source=padded[0], target=padded[1]),
    cf.solve(3.0 * problem(), 3 * LAMB)[0],
  ):
    assert relative(other, base) < 1e-12
  assert (split.erased, split.preserved) == (5, 4)
  # A concept that is added and taken away again leaves no trace.
  more = problem() + cf.erase_sums(states(2, 8), states(2, 9), E)
  less = more + (-1.0) * cf.erase_sums(states(2, 8), states(2, 9), E)
  assert relative(cf.solve(less, LAMB)[0], base) < 1e-12


def test_stacking_is_not_the_joint_edit():
  def one(rows):
    sums = cf.erase_sums(SOURCE[rows], TARGET[rows], E)
    return cf.solve(sums, LAMB)[0]

  joint = one(slice(0, 4))
  stacked = one(slice(0, 2)) @ one(slice(2, 4))
  assert relative(stacked, joint) > 1e-2


def test_follows_a_change_of_basis():
  turn = np.linalg.qr(np.random.default_rng(4).normal(size=(D, D)))[0]
  turned = context_map(
    source=SOURCE @ turn.T, target=TARGET @ turn.T, held=HELD @ turn.T
  )
  assert relative(turned, turn @ context_map() @ turn.T) < 1e-12


def test_refuses_systems_that_are_not_positive_definite():
  with pytest.raises(ValueError, match="lamb=0.*rank 9 of 12.*smallest"):
    cf.solve(problem(), 0.0)
  # Subtracted once too often.
  with pytest.raises(ValueError, match="not safely positive definite"):
    cf.solve((-1.0) * problem(), LAMB)
  with pytest.raises(ValueError, match="condition number"):
    cf.solve(problem(), 1e-10)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_refuses_scales(bad):
  with pytest.raises(ValueError, match="erase_scale="):
    problem(e=bad)
  with pytest.raises(ValueError, match="preserve_scale="):
    problem(p=bad)
  with pytest.raises(ValueError, match="lamb="):
    cf.solve(problem(), bad)


def test_refuses_states_that_are_not_finite():
  bad = SOURCE.copy()
  bad[2, 1] = np.nan
  with pytest.raises(ValueError, match="source.*row=2"):
    problem(source=bad)
  with pytest.raises(ValueError, match="target.*row=2"):
    problem(target=bad)
  with pytest.raises(ValueError, match="4 target|source rows"):
    problem(target=TARGET[:4])


# Weights and edits.


def params(seed=0, width=D):
  rng = np.random.default_rng(seed)

  def kernel(out):
    return {"kernel": np.float32(rng.normal(size=(width, out)))}

  def attention(out):
    names = "to_q", "to_k", "to_v"
    return {
      "attn1": {name: kernel(out) for name in names},
      "attn2": {name: kernel(out) for name in names},
    }

  return {
    "text_encoder": {
      "text_model": {
        "embeddings": {
          "token_embedding": {"embedding": np.zeros((5, width), np.float32)}
        }
      }
    },
    "unet": {
      "down_blocks_0": {"attentions_0": attention(6)},
      "mid_block": {"attentions_0": attention(8)},
    },
    "vae": {"quant_conv": {"bias": np.zeros(3, np.float32)}},
  }


CONCEPT = Concept("star", "circle", ("moon",))


def edit_of(base, context_map):
  gram = cf.projection_gram(cf.cross_attention_kernels(base))
  return cf.make_edit(
    context_map,
    base,
    gram,
    method="test",
    concepts=[CONCEPT],
    diagnostics={"condition_number": 3.0},
  )


def test_selects_keys_and_values_of_the_text():
  base = params()
  kernels = cf.cross_attention_kernels(base)
  assert sorted(kernels) == [
    f"{block}/attentions_0/attn2/to_{kind}/kernel"
    for block in ("down_blocks_0", "mid_block")
    for kind in "kv"
  ]
  w = [np.float64(k).T for k in kernels.values()]
  expected = sum(x.T @ x for x in w)
  assert relative(cf.projection_gram(kernels), expected) < 1e-13


def test_refuses_weights_that_no_edit_fits():
  base = params()
  base["unet"]["mid_block"]["attentions_0"]["attn2"].pop("to_v")
  with pytest.raises(ValueError, match="to_k/kernel is there.*to_v/kernel is"):
    cf.cross_attention_kernels(base)
  base = params()
  for block in base["unet"].values():
    block["attentions_0"]["attention2"] = block["attentions_0"].pop("attn2")
  with pytest.raises(ValueError, match="nearest of 12: .*attention2/to_k"):
    cf.cross_attention_kernels(base)
  base = {**params(), "text_encoder": params(width=16)["text_encoder"]}
  with pytest.raises(ValueError, match=r"shape \(12, 6\).*16 wide"):
    cf.cross_attention_kernels(base)
  base = params()
  kernel = base["unet"]["mid_block"]["attentions_0"]["attn2"]["to_v"]["kernel"]
  kernel[3, 3] = np.inf
  with pytest.raises(ValueError, match="mid_block.*to_v/kernel holds NaN"):
    cf.cross_attention_kernels(base)


def test_edits_the_weights_and_nothing_else():
  base = params()
  edit = edit_of(base, context_map())
  new = cf.apply_to_params(edit, base)
  touched = 0
  change = size = 0.0
  for (path, old), (_, now) in zip(
    jax.tree.leaves_with_path(base), jax.tree.leaves_with_path(new), strict=True
  ):
    name = jax.tree_util.keystr(path)
    if "attn2" in name and ("to_k" in name or "to_v" in name):
      expected = edit.context_map.T @ np.float64(old)
      assert relative(np.asarray(now), expected) < 1e-6
      assert now.dtype == np.float32
      change += np.sum((expected - old) ** 2)
      size += np.sum(np.float64(old) ** 2)
      touched += 1
    else:
      assert now is old
  assert touched == 4
  assert jax.tree.structure(base) == jax.tree.structure(new)
  assert np.isclose(
    edit.diagnostics["relative_change"], np.sqrt(change / size), rtol=1e-6
  )


def test_text_states_can_be_edited_instead_of_weights():
  base = params()
  edit = edit_of(base, context_map())
  new = cf.cross_attention_kernels(cf.apply_to_params(edit, base))
  context = jnp.asarray(states(6).reshape(2, 3, D), jnp.float32)
  moved = jax.jit(lambda c: cf.apply_to_context(edit, c))(context)
  assert moved.dtype == jnp.float32
  for path, kernel in cf.cross_attention_kernels(base).items():
    expected = context @ new[path]
    assert np.abs(moved @ kernel - expected).max() < 1e-4
  with pytest.raises(ValueError, match="7 wide, the edit 12"):
    cf.apply_to_context(edit, jnp.zeros((1, 3, 7)))


def test_half_precision_weights_are_changed_in_float32():
  base = params()
  attention = base["unet"]["mid_block"]["attentions_0"]["attn2"]
  attention["to_k"]["kernel"] = attention["to_k"]["kernel"].astype(np.float16)
  old = np.float64(attention["to_k"]["kernel"])
  edit = edit_of(base, context_map())
  new = cf.apply_to_params(edit, base)["unet"]["mid_block"]["attentions_0"]
  got = new["attn2"]["to_k"]["kernel"]
  assert got.dtype == np.float16
  exact = edit.context_map.T @ old
  assert np.abs(np.float64(got) - exact).max() < 1e-3 * np.abs(exact).max()


def test_kernels_may_lie_on_several_devices():
  base = params()
  edit = edit_of(base, context_map())
  mesh = jax.make_mesh(
    (2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  spread = jax.sharding.NamedSharding(mesh, jax.P(None, "fsdp"))
  placed = {**base, "unet": jax.device_put(base["unet"], spread)}
  got = cf.cross_attention_kernels(cf.apply_to_params(edit, placed))
  expected = cf.cross_attention_kernels(cf.apply_to_params(edit, base))
  for path, kernel in got.items():
    assert len(kernel.sharding.device_set) == 2
    assert relative(np.asarray(kernel), expected[path]) < 1e-6


def test_matmuls_ask_for_full_precision():
  # No effect on CPU, percents of the edit elsewhere: so look at the program.
  edit = edit_of(params(), context_map())
  context = jnp.zeros((1, 3, D))
  on_context = jax.make_jaxpr(lambda c: cf.apply_to_context(edit, c))(context)
  kernels = cf.cross_attention_kernels(params())
  on_weights = jax.make_jaxpr(cf.edit.moved)(np.eye(D, dtype="f4"), kernels)
  for program, dots in ((on_context, 1), (on_weights, 4)):
    assert str(program).count("dot_general") == dots
    assert str(program).count("Precision.HIGHEST, Precision.HIGHEST") == dots


def test_refuses_another_base():
  base = params()
  edit = edit_of(base, context_map())
  other = params(seed=1)
  for wrong in (other, cf.apply_to_params(edit, base)):
    with pytest.raises(ValueError) as error:
      cf.apply_to_params(edit, wrong)
    assert edit.base in str(error.value)
    assert cf.base_fingerprint(wrong) in str(error.value)


def test_refuses_an_edit_that_changes_nothing():
  with pytest.raises(ValueError, match="changes nothing"):
    edit_of(params(), np.eye(D) + 1e-9)
  broken = np.eye(D)
  broken[0, 0] = np.nan
  with pytest.raises(ValueError, match="NaN"):
    edit_of(params(), broken)


def test_stacked_edits():
  base = params()
  first, second = edit_of(base, context_map()), edit_of(base, context_map(e=2))
  both = cf.compose(first, second)
  assert np.array_equal(
    both.context_map, first.context_map @ second.context_map
  )
  assert both.concepts == (CONCEPT, CONCEPT)
  other = edit_of(params(seed=1), context_map())
  with pytest.raises(ValueError, match="different bases"):
    cf.compose(first, other)


def test_file_round_trip(tmp_path):
  edit = edit_of(params(), context_map())
  cf.save_edit(edit, tmp_path / "edit.safetensors")
  back = cf.load_edit(tmp_path / "edit.safetensors")
  assert back.context_map.dtype == np.float64
  assert np.array_equal(back.context_map, edit.context_map)
  for field in ("base", "method", "concepts", "diagnostics"):
    assert getattr(back, field) == getattr(edit, field)
  assert [p.name for p in tmp_path.iterdir()] == ["edit.safetensors"]
  endless = dataclasses.replace(edit, diagnostics={"x": float("nan")})
  with pytest.raises(ValueError):
    cf.save_edit(endless, tmp_path / "other.safetensors")
  assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.parametrize(
  "tensors, without, message",
  [
    ({"context_map": np.eye(3), "more": np.eye(3)}, None, "'more'"),
    ({}, None, r"tensors \[\]"),
    ({"context_map": np.ones((3, 2))}, None, r"float64 \(3, 2\)"),
    ({"context_map": np.eye(3, dtype="f4")}, None, "float32"),
    ({"context_map": np.full((3, 3), np.nan)}, None, "NaN"),
    ({"context_map": np.eye(3)}, "base", "lacking: .'base'"),
    ({"context_map": np.eye(3)}, "format", "format=None"),
  ],
)
def test_refuses_files_that_are_no_edit(tmp_path, tensors, without, message):
  path = tmp_path / "edit.safetensors"
  edit = edit_of(params(), context_map())
  cf.save_edit(edit, path)
  with safetensors.safe_open(str(path), framework="numpy") as file:
    metadata = file.metadata()
  metadata.pop(without, None)
  path.write_bytes(safetensors.numpy.save(tensors, metadata))
  with pytest.raises(ValueError, match=message):
    cf.load_edit(path)


def test_refuses_a_truncated_file(tmp_path):
  path = tmp_path / "edit.safetensors"
  cf.save_edit(edit_of(params(), context_map()), path)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ValueError, match="no safetensors file"):
    cf.load_edit(path)
  path.write_text(json.dumps({}))
  with pytest.raises(ValueError, match="no safetensors file"):
    cf.load_edit(path)
