"""An edit's life: made, applied to weights and text states, kept in files."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.closed_form.solve_test import D, context_map, relative, states
from unlearning_jax import durable, edits, projections
from unlearning_jax.concepts import Concept


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


GOLDENS = pathlib.Path(__file__).parent / "goldens"
CONCEPT = Concept("star", "circle", ("moon",))


def edit_of(base, context_map):
  gram = projections.projection_gram(projections.cross_attention_kernels(base))
  return edits.make_edit(
    context_map,
    base,
    gram,
    method="test",
    concepts=[CONCEPT],
    diagnostics={"condition_number": 3.0},
  )


def test_selects_keys_and_values_of_the_text():
  base = params()
  kernels = projections.cross_attention_kernels(base)
  assert sorted(kernels) == [
    f"{block}/attentions_0/attn2/to_{kind}/kernel"
    for block in ("down_blocks_0", "mid_block")
    for kind in "kv"
  ]
  w = [np.float64(k).T for k in kernels.values()]
  expected = sum(x.T @ x for x in w)
  assert relative(projections.projection_gram(kernels), expected) < 1e-13


def test_refuses_weights_that_no_edit_fits():
  base = params()
  base["unet"]["mid_block"]["attentions_0"]["attn2"].pop("to_v")
  with pytest.raises(ValueError, match="to_k/kernel is there.*to_v/kernel is"):
    projections.cross_attention_kernels(base)
  base = params()
  for block in base["unet"].values():
    block["attentions_0"]["attention2"] = block["attentions_0"].pop("attn2")
  with pytest.raises(ValueError, match="nearest of 12: .*attention2/to_k"):
    projections.cross_attention_kernels(base)
  base = {**params(), "text_encoder": params(width=16)["text_encoder"]}
  with pytest.raises(ValueError, match=r"shape \(12, 6\).*16 wide"):
    projections.cross_attention_kernels(base)
  base = params()
  kernel = base["unet"]["mid_block"]["attentions_0"]["attn2"]["to_v"]["kernel"]
  kernel[3, 3] = np.inf
  with pytest.raises(ValueError, match="mid_block.*to_v/kernel holds NaN"):
    projections.cross_attention_kernels(base)


def test_edits_the_weights_and_nothing_else():
  base = params()
  edit = edit_of(base, context_map())
  new = edits.apply_to_params(edit, base)
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
  new = projections.cross_attention_kernels(edits.apply_to_params(edit, base))
  context = jnp.asarray(states(6).reshape(2, 3, D), jnp.float32)
  moved = jax.jit(lambda c: edits.apply_to_context(edit, c))(context)
  assert moved.dtype == jnp.float32
  for path, kernel in projections.cross_attention_kernels(base).items():
    expected = context @ new[path]
    assert np.abs(moved @ kernel - expected).max() < 1e-4
  with pytest.raises(ValueError, match="7 wide, the edit 12"):
    edits.apply_to_context(edit, jnp.zeros((1, 3, 7)))


def test_half_precision_weights_are_changed_in_float32():
  base = params()
  attention = base["unet"]["mid_block"]["attentions_0"]["attn2"]
  attention["to_k"]["kernel"] = attention["to_k"]["kernel"].astype(np.float16)
  old = np.float64(attention["to_k"]["kernel"])
  edit = edit_of(base, context_map())
  with pytest.warns(UserWarning, match="stored in float16, which") as told:
    new = edits.apply_to_params(edit, base)["unet"]["mid_block"]["attentions_0"]
  got = new["attn2"]["to_k"]["kernel"]
  assert got.dtype == np.float16
  exact = edit.context_map.T @ old
  lost = np.linalg.norm(got - exact) / np.linalg.norm(exact - old)
  assert f"loses {lost:.2%} of its change" in str(told[0].message)
  assert np.abs(np.float64(got) - exact).max() < 1e-3 * np.abs(exact).max()


def test_kernels_may_lie_on_several_devices():
  base = params()
  edit = edit_of(base, context_map())
  mesh = jax.make_mesh(
    (2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  spread = jax.sharding.NamedSharding(mesh, jax.P(None, "fsdp"))
  placed = {**base, "unet": jax.device_put(base["unet"], spread)}
  got = projections.cross_attention_kernels(edits.apply_to_params(edit, placed))
  expected = projections.cross_attention_kernels(
    edits.apply_to_params(edit, base)
  )
  for path, kernel in got.items():
    assert len(kernel.sharding.device_set) == 2
    assert relative(np.asarray(kernel), expected[path]) < 1e-6


def test_matmuls_ask_for_full_precision():
  # No effect on CPU, percents of the edit elsewhere: so look at the program.
  edit = edit_of(params(), context_map())
  context = jnp.zeros((1, 3, D))
  on_context = jax.make_jaxpr(lambda c: edits.apply_to_context(edit, c))(
    context
  )
  kernels = projections.cross_attention_kernels(params())
  on_weights = jax.make_jaxpr(edits.moved)(np.eye(D, dtype="f4"), kernels)
  for program, dots in ((on_context, 1), (on_weights, 4)):
    assert str(program).count("dot_general") == dots
    assert str(program).count("Precision.HIGHEST, Precision.HIGHEST") == dots


def test_refuses_another_base():
  base = params()
  edit = edit_of(base, context_map())
  other = params(seed=1)
  for wrong in (other, edits.apply_to_params(edit, base)):
    with pytest.raises(ValueError) as error:
      edits.apply_to_params(edit, wrong)
    assert edit.base.digest in str(error.value)
    assert projections.base_fingerprint(wrong) in str(error.value)


def test_refuses_an_edit_that_changes_nothing():
  with pytest.raises(ValueError, match="changes nothing"):
    edit_of(params(), np.eye(D) + 1e-9)
  with pytest.raises(ValueError, match="NaN"):
    edit_of(params(), np.full((D, D), np.nan))


def test_file_round_trip(tmp_path):
  edit = edit_of(params(), context_map())
  edits.save_edit(edit, tmp_path / "edit.safetensors")
  back = edits.load_edit(tmp_path / "edit.safetensors")
  assert back.context_map.dtype == np.float64
  assert np.array_equal(back.context_map, edit.context_map)
  for field in ("base", "method", "concepts", "diagnostics"):
    assert getattr(back, field) == getattr(edit, field)
  assert [p.name for p in tmp_path.iterdir()] == ["edit.safetensors"]
  endless = dataclasses.replace(edit, diagnostics={"x": float("nan")})
  with pytest.raises(ValueError):
    edits.save_edit(endless, tmp_path / "other.safetensors")
  assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.parametrize(
  "tensors, without, message",
  [
    ({"context_map": np.eye(3), "more": np.eye(3)}, None, "'more'"),
    ({}, None, r"tensors \[\]"),
    ({"context_map": np.ones((3, 2))}, None, r"float64 \(3, 2\)"),
    ({"context_map": np.eye(3, dtype="f4")}, None, "float32"),
    ({"context_map": np.full((3, 3), np.nan)}, None, "NaN"),
    ({"context_map": np.eye(3) * 1e300}, None, "too large for float32"),
    ({"context_map": np.eye(3)}, "base", "lacking: .'base'"),
    ({"context_map": np.eye(3)}, "format", "format=None"),
  ],
)
def test_refuses_files_that_are_no_edit(tmp_path, tensors, without, message):
  path = tmp_path / "edit.safetensors"
  edit = edit_of(params(), context_map())
  edits.save_edit(edit, path)
  with safetensors.safe_open(str(path), framework="numpy") as file:
    metadata = file.metadata()
  metadata.pop(without, None)
  path.write_bytes(safetensors.numpy.save(tensors, metadata))
  with pytest.raises(ValueError, match=message):
    edits.load_edit(path)


@pytest.mark.parametrize(
  "name, words",
  [
    ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
     r"a part of a UNet .* convert .*--format=edit .*config\.victim="),
    ("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",
     r"is a LoRA, .* of kohya .* convert .*--format=edit"),
    ("emb_params", "is a learnt word .*new_word"),
  ],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_are_no_edit_and_say_where_they_go(
  name, words, ending, tmp_path
):
  path = tmp_path / f"uce.{ending}"
  path.write_bytes(safetensors.numpy.save({name: np.ones((2, 2), "f4")}))
  with pytest.raises(ValueError, match=words):
    edits.load_edit(path)


def test_refuses_a_truncated_file(tmp_path):
  path = tmp_path / "edit.safetensors"
  edits.save_edit(edit_of(params(), context_map()), path)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(durable.DamagedError, match="not a readable safetensors"):
    edits.load_edit(path)
  path.write_text(json.dumps({}))
  with pytest.raises(ValueError, match="no index of shards"):
    edits.load_edit(path)


def changed(base):
  """A model with one UNet kernel and one bias of the VAE changed."""
  edited = jax.tree.map(lambda leaf: leaf, base)
  attention = edited["unet"]["mid_block"]["attentions_0"]["attn1"]
  attention["to_q"] = {"kernel": 2 * attention["to_q"]["kernel"]}
  edited["vae"] = {"quant_conv": {"bias": np.ones(3, np.float32)}}
  return edited


def between(base, edited):
  return edits.edit_between(
    base, edited, method="trained", concepts=[CONCEPT], diagnostics={"steps": 3}
  )


def test_leaves_are_an_edit_too(tmp_path):
  base = params()
  edited = changed(base)
  edits.save_edit(between(base, edited), tmp_path / "edit.safetensors")
  edit = edits.load_edit(tmp_path / "edit.safetensors")
  assert edit.context_map is None and edit.concepts == (CONCEPT,)
  path = "unet/mid_block/attentions_0/attn1/to_q/kernel"
  assert set(edit.leaves) == {path, "vae/quant_conv/bias"}
  assert edit.diagnostics["steps"] == 3
  assert edit.diagnostics["changed_leaves"] == 2
  size = np.linalg.norm(edit.leaves[path]) / 2
  expected = np.sqrt(size**2 + 3) / size
  assert abs(edit.diagnostics["relative_change"] - expected) < 1e-6
  again = edits.apply_to_params(edit, base)
  jax.tree.map(np.testing.assert_array_equal, again, edited)
  # Untouched leaves are the same arrays.
  assert (
    again["unet"]["down_blocks_0"]["attentions_0"]["attn2"]["to_k"]["kernel"]
    is base["unet"]["down_blocks_0"]["attentions_0"]["attn2"]["to_k"]["kernel"]
  )
  assert edits.edit_hash(edit) == edits.edit_hash(between(base, edited))
  other = changed(edited)
  assert edits.edit_hash(edit) != edits.edit_hash(between(base, other))


def test_leaves_fit_their_base_alone():
  base = params()
  edit = between(base, changed(base))
  other = params()
  # What no context map depends on.
  other["unet"]["mid_block"]["attentions_0"]["attn1"]["to_k"]["kernel"] *= 2
  with pytest.raises(ValueError, match="made from base"):
    edits.apply_to_params(edit, other)
  with pytest.raises(ValueError, match="not a map of text states"):
    edits.apply_to_context(edit, jnp.zeros((1, 3, D)))


def test_each_leaf_has_a_place_in_the_model():
  base = params()
  edit = between(base, changed(base))
  name, leaf = next(iter(edit.leaves.items()))
  solved = edit_of(base, context_map())
  for one, change, message in (
    (edit, {"leaves": {f"{name}s": leaf}}, "the model has no"),
    (edit, {"leaves": {name: leaf[:-1]}}, "is .*, the model's is"),
    (solved, {"context_map": 1e300 * solved.context_map}, "too large"),
  ):
    with pytest.raises(ValueError, match=message):
      edits.apply_to_params(dataclasses.replace(one, **change), base)


def test_refuses_leaves_that_are_no_edit():
  base = params()
  with pytest.raises(ValueError, match="changes nothing"):
    between(base, jax.tree.map(np.array, base))
  more = {**base, "more": {"leaf": np.ones(2)}}
  with pytest.raises(ValueError, match="more/leaf"):
    between(base, more)
  for wrong, words in (
    (np.ones(4, np.float32), r"is now float32 \(4,\)"),
    (np.ones(3, np.float16), "is now float16"),
    (np.full(3, np.nan, np.float32), "NaN"),
  ):
    with pytest.raises(ValueError, match=words):
      between(base, {**base, "vae": {"quant_conv": {"bias": wrong}}})
  with pytest.raises(ValueError, match="both"):
    dataclasses.replace(between(base, changed(base)), context_map=np.eye(3))
  with pytest.raises(ValueError, match="neither"):
    dataclasses.replace(edit_of(base, context_map()), context_map=None)


def golden_params():
  """Those that the goldens were made from."""
  rng = np.random.default_rng(0)

  def kernel(*shape):
    return {"kernel": rng.normal(size=shape).astype(np.float32)}

  unet = {"mid": {"attn2": {"to_k": kernel(4, 3), "to_v": kernel(4, 3)}}}
  embedding = {"embedding": kernel(5, 4)["kernel"]}
  text = {"text_model": {"embeddings": {"token_embedding": embedding}}}
  vae = {"encoder": {"conv_in": kernel(1, 1, 3, 2)}}
  return {"text_encoder": text, "unet": unet, "vae": vae}


@pytest.mark.parametrize(
  "name, kind, effect",
  [
    ("map", "text", "d853d01bea18a64d3be8321290ded9e45d02a8e081afc930b43086a3"),
    ("leaves", "model", "c7fa61058106a97020d7b30dd025a447661e0be776b57ed974c9"),
  ],
)
def test_files_of_before_are_read_and_written_as_they_are(
  tmp_path, name, kind, effect
):
  """Their base is a bare digest; what it is of, the tensors say."""
  old = GOLDENS / f"edit_{name}.safetensors"
  edit, base = edits.load_edit(old), golden_params()
  assert edit.base == edits.Fingerprint.of(base, kind)
  assert edits.edit_hash(edit).startswith(effect)
  edits.apply_to_params(edit, base)
  edits.save_edit(edit, tmp_path / "edit.safetensors")
  again = (tmp_path / "edit.safetensors").read_bytes()
  assert sorted(again) == sorted(old.read_bytes())
  with pytest.raises(
    ValueError, match=f"from base {edit.base.digest}, but these"
  ):
    edits.apply_to_params(edit, edits.apply_to_params(edit, base))


def test_a_fingerprint_has_a_known_kind():
  with pytest.raises(ValueError, match="did you mean 'text'"):
    edits.Fingerprint.of(golden_params(), "txt")
