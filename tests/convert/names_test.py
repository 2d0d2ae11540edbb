import jax
import ml_dtypes
import numpy as np
import pytest

from unlearning_jax import convert
from unlearning_jax.convert import names, sd1


def _struct(*shape):
  return jax.ShapeDtypeStruct(shape, np.float32)


TEMPLATE = {
  "conv_in": {"kernel": _struct(3, 3, 2, 5), "bias": _struct(5)},
  "time_embedding": {"linear_1": {"kernel": _struct(2, 7)}},
  "down_blocks_0": {
    "resnets_1": {"norm1": {"scale": _struct(5), "bias": _struct(5)}},
    "attentions_0": {
      "proj_in": {"kernel": _struct(4, 6)},
      "transformer_blocks_0": {"attn2": {"to_out_0": {"bias": _struct(3)}}},
    },
  },
  "up_blocks_10": {
    "attentions_0": {"proj_in": {"kernel": _struct(1, 1, 2, 3)}}
  },
  "text_model": {
    "embeddings": {"token_embedding": {"embedding": _struct(9, 4)}},
    "encoder": {"layers_11": {"mlp": {"fc1": {"kernel": _struct(4, 8)}}}},
  },
  "encoder": {
    "mid_block": {"attentions_0": {"to_out_0": {"kernel": _struct(3, 2)}}}
  },
}
TORCH = {
  "conv_in.weight": (5, 2, 3, 3),
  "conv_in.bias": (5,),
  "time_embedding.linear_1.weight": (7, 2),
  "down_blocks.0.resnets.1.norm1.weight": (5,),
  "down_blocks.0.resnets.1.norm1.bias": (5,),
  "down_blocks.0.attentions.0.proj_in.weight": (6, 4),
  "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0.bias": (3,),
  "up_blocks.10.attentions.0.proj_in.weight": (3, 2, 1, 1),
  "text_model.embeddings.token_embedding.weight": (9, 4),
  "text_model.encoder.layers.11.mlp.fc1.weight": (8, 4),
  "encoder.mid_block.attentions.0.to_out.0.weight": (2, 3),
}


def _state():
  rng = np.random.default_rng(0)
  return {
    name: rng.standard_normal(shape).astype(np.float32)
    for name, shape in TORCH.items()
  }


def _assert_same(ours, theirs):
  assert set(ours) == set(theirs)
  for name, value in theirs.items():
    assert ours[name].dtype == value.dtype, name
    np.testing.assert_array_equal(ours[name], value, strict=True, err_msg=name)


def test_round_trip_is_exact():
  state = _state()
  params = convert.to_flax(state, TEMPLATE)
  structure = jax.tree.structure(params)
  assert structure == jax.tree.structure(TEMPLATE)
  assert jax.tree.map(np.shape, params) == jax.tree.map(
    lambda x: x.shape, TEMPLATE
  )
  _assert_same(convert.to_torch(params), state)


def test_layouts():
  state = _state()
  params = convert.to_flax(state, TEMPLATE)
  conv = state["conv_in.weight"]
  assert params["conv_in"]["kernel"][2, 0, 1, 4] == conv[4, 1, 2, 0]
  linear = state["time_embedding.linear_1.weight"]
  assert params["time_embedding"]["linear_1"]["kernel"][1, 6] == linear[6, 1]


def test_jax_leaves():
  state = _state()
  params = jax.tree.map(jax.numpy.asarray, convert.to_flax(state, TEMPLATE))
  _assert_same(convert.to_torch(params), state)


def test_linear_and_1x1_convolution_are_read_as_the_template_asks():
  state = _state()
  expected = convert.to_flax(state, TEMPLATE)
  linear = "down_blocks.0.attentions.0.proj_in.weight"
  conv = "up_blocks.10.attentions.0.proj_in.weight"
  state[linear] = state[linear][:, :, None, None]
  state[conv] = state[conv][:, :, 0, 0]
  jax.tree.map(
    np.testing.assert_array_equal, convert.to_flax(state, TEMPLATE), expected
  )


def test_wider_convolution_is_not_a_linear_layer():
  state = _state()
  name = "down_blocks.0.attentions.0.proj_in.weight"
  state[name] = np.zeros((6, 4, 3, 3), np.float32)
  with pytest.raises(ValueError, match=rf"misshaped.*{name} \(6, 4, 3, 3\)"):
    convert.to_flax(state, TEMPLATE)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("convolution", [True, False])
def test_vae_attention_names(old, convolution):
  state = _state()
  expected = convert.to_flax(state, TEMPLATE)
  name = "encoder.mid_block.attentions.0.to_out.0.weight"
  value = state.pop(name)
  if old:
    name = "encoder.mid_block.attentions.0.proj_attn.weight"
  state[name] = value[:, :, None, None] if convolution else value
  jax.tree.map(
    np.testing.assert_array_equal, convert.to_flax(state, TEMPLATE), expected
  )


def test_all_old_attention_names():
  stem = "decoder.mid_block.attentions.0."
  old = ("query", "key", "value", "proj_attn", "group_norm")
  new = ("to_q", "to_k", "to_v", "to_out.0", "group_norm")
  state = {f"{stem}{n}.bias": np.full(1, i) for i, n in enumerate(old)}
  renamed = names.canonical(state, "file")
  assert {k: int(v[0]) for k, v in renamed.items()} == {
    f"{stem}{n}.bias": i for i, n in enumerate(new)
  }


def test_clip_without_prefix_and_with_position_ids():
  state = _state()
  expected = convert.to_flax(state, TEMPLATE)
  state = {key.removeprefix("text_model."): v for key, v in state.items()}
  for prefix in ("", "text_model."):
    buffer = {f"{prefix}embeddings.position_ids": np.arange(7)[None]}
    params = convert.to_flax(state | buffer, TEMPLATE)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_tensor_under_two_names():
  state = _state()
  name = "encoder.layers.11.mlp.fc1.weight"
  state[name] = state["text_model." + name].copy()
  # A module that is an attribute twice is saved twice.
  wanted = names.canonical(_state(), "x.pt")
  assert set(names.canonical(state, "x.pt")) == set(wanted)
  state[name] = state[name] + 1
  with pytest.raises(ValueError, match=f"given twice, as 'text_model.{name}'"):
    convert.to_flax(state, TEMPLATE)


def test_one_error_names_every_sort():
  state = _state()
  del state["conv_in.bias"]
  state["conv_in.weight"] = state["conv_in.weight"][1:]
  state["time_embedding.linear_1.weight"] = np.zeros((7, 2), np.int8)
  state |= {f"extra.{i}.weight": np.zeros(1, np.float32) for i in range(7)}
  with pytest.raises(ValueError) as error:
    convert.to_flax(state, TEMPLATE, "some.safetensors")
  text = str(error.value)
  assert text.startswith("some.safetensors")
  assert "1 missing: conv_in.bias" in text
  assert "7 extra: extra.0.weight; " in text and "extra.5" not in text
  assert "conv_in.weight (4, 2, 3, 3), expected (5, 2, 3, 3)" in text
  assert "1 not floating: time_embedding.linear_1.weight" in text


def test_transposed_square_is_the_callers_word_but_oblong_is_not():
  state = _state()
  name = "text_model.encoder.layers.11.mlp.fc1.weight"
  state[name] = state[name].T
  with pytest.raises(ValueError, match="1 misshaped"):
    convert.to_flax(state, TEMPLATE)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes_become_the_templates(dtype):
  state = {key: value.astype(dtype) for key, value in _state().items()}
  params = convert.to_flax(state, TEMPLATE)
  back = convert.to_torch(params)
  _assert_same(back, {k: v.astype(np.float32) for k, v in state.items()})


def test_unknown_leaf_and_odd_kernel():
  with pytest.raises(ValueError, match="a/wrong.*one of kernel"):
    convert.to_torch({"a": {"wrong": np.zeros(2)}})
  with pytest.raises(ValueError, match="a/kernel.*2 or 4 axes"):
    convert.to_torch({"a": {"kernel": np.zeros((2, 2, 2))}})
  with pytest.raises(ValueError, match="torch name 'a.0.bias'"):
    convert.to_torch(
      {"a_0": {"bias": np.zeros(1)}, "a": {"0": {"bias": np.zeros(1)}}}
    )


def test_stable_diffusion_1_has_the_published_number_of_tensors():
  trees = convert.templates(sd1.CONFIGS)
  count = {part: len(jax.tree.leaves(tree)) for part, tree in trees.items()}
  assert count == {"text_encoder": 196, "unet": 686, "vae": 248}
  size = sum(leaf.size for leaf in jax.tree.leaves(trees["unet"]))
  assert size == 859_520_964
