"""Published parts of models laid over a base, and deltas."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support import single_files
from unlearning_jax import convert
from unlearning_jax.convert import ModelFiles, reader

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


def _base():
  """A model of few tensors, enough of each part to tell names apart."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  states = {
    "text_encoder": {
      "text_model.embeddings.token_embedding.weight": draw(5, 4),
      "text_model.encoder.layers.0.mlp.fc1.weight": draw(6, 4),
    },
    "unet": {
      "conv_in.weight": draw(4, 4, 3, 3),
      "down_blocks.0.attentions.0.proj_in.weight": draw(4, 4, 1, 1),
      f"{BLOCK}.attn2.to_k.weight": draw(4, 3),
      f"{BLOCK}.attn2.to_v.weight": draw(4, 3),
    },
    "vae": {
      "encoder.conv_in.weight": draw(4, 3, 3, 3),
      "decoder.mid_block.attentions.0.to_q.weight": draw(4, 4),
    },
  }
  configs = {
    "text_encoder": {"num_hidden_layers": 1},
    "unet": {"layers_per_block": 2},
    "vae": {"block_out_channels": [4, 4]},
    "scheduler": {},
  }
  return ModelFiles(configs, states, None)


def _changed(base, found):
  """{name: new value} of what differs; everything else must be shared."""
  out = {}
  for part, old in base.states.items():
    assert set(found.states[part]) == set(old)
    for name, value in old.items():
      if found.states[part][name] is not value:
        out[name] = found.states[part][name]
  return out


def _assert_same(ours, theirs):
  assert set(ours) == set(theirs)
  for name, value in theirs.items():
    np.testing.assert_array_equal(ours[name], value, strict=True, err_msg=name)


EDIT = {
  f"{BLOCK}.attn2.to_k.weight": np.full((4, 3), 2, np.float32),
  f"{BLOCK}.attn2.to_v.weight": np.full((4, 3), 3, np.float32),
}


@pytest.mark.parametrize(
  "prefix", ["", "unet.", "module.", "module.unet.", "model.", "model.unet."]
)
def test_some_layers_of_a_unet(prefix):
  base = _base()
  found = convert.overlay(base, {prefix + k: v for k, v in EDIT.items()})
  _assert_same(_changed(base, found), EDIT)


@pytest.mark.parametrize(
  "prefix",
  [
    "", "text_model.", "text_encoder.text_model.", "text_encoder.",
    "module.text_model.", "cond_stage_model.transformer.text_model.",
  ],
)  # fmt: skip
def test_a_text_encoder(prefix):
  base = _base()
  value = np.ones((6, 4), np.float32)
  state = {
    prefix + "encoder.layers.0.mlp.fc1.weight": value,
    prefix + "embeddings.position_ids": np.arange(3)[None],
  }
  found = convert.overlay(base, state)
  name = "text_model.encoder.layers.0.mlp.fc1.weight"
  _assert_same(_changed(base, found), {name: value})


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_some_layers_in_the_original_layout(prefix):
  base = _base()
  new = single_files.unet_names(list(EDIT), 2)
  state = {prefix + new[k]: v for k, v in EDIT.items()}
  _assert_same(_changed(base, convert.overlay(base, state)), EDIT)


def test_old_shapes_and_names_take_the_base_models():
  base = _base()
  ones = np.ones((4, 4), np.float32)
  state = {
    "down_blocks.0.attentions.0.proj_in.weight": ones,
    "decoder.mid_block.attentions.0.query.weight": ones[:, :, None, None],
  }
  expected = {
    "down_blocks.0.attentions.0.proj_in.weight": ones[:, :, None, None],
    "decoder.mid_block.attentions.0.to_q.weight": ones,
  }
  _assert_same(_changed(base, convert.overlay(base, state)), expected)


def test_half_precision_is_cast_up():
  base = _base()
  state = {k: v.astype(np.float16) for k, v in EDIT.items()}
  _assert_same(_changed(base, convert.overlay(base, state)), EDIT)


# A state that matches nothing must not load as "nothing was changed".


@pytest.mark.parametrize(
  "key",
  [
    "encoder_hid_proj.weight",
    "clip.text_model.encoder.layers.0.mlp.fc1.weight",
    "lora_unet_down_blocks_0.lora_up.weight",
    "text_model.encoder.layers.7.mlp.fc1.weight",
    "model.diffusion_model.input_blocks.9.1.norm.weight",
  ],
)
def test_nothing_matches(key):
  with pytest.raises(ValueError, match="none of its 1 tensors") as error:
    convert.overlay(_base(), {key: np.ones(1)}, source="te.pt")
  assert str(error.value).startswith("te.pt")
  assert "conv_in.weight" in str(error.value)


def test_some_do_not_match():
  state = EDIT | {"up_blocks.9.weight": np.ones(1), "x": np.ones(1)}
  with pytest.raises(ValueError, match="2 extra: up_blocks.9.weight; x"):
    convert.overlay(_base(), state)


def test_other_shape_twice_and_nan():
  base, name = _base(), next(iter(EDIT))
  with pytest.raises(ValueError, match=rf"{name} \(4, 5\), expected \(4, 3\)"):
    convert.overlay(base, {name: np.ones((4, 5), np.float32)})
  with pytest.raises(ValueError, match=f"'{name}' is given twice"):
    convert.overlay(base, {name: EDIT[name], "unet." + name: -EDIT[name]})
  with pytest.raises(ValueError, match=f"'{name}' holds NaN"):
    convert.overlay(base, {name: np.full((4, 3), np.nan, np.float32)})


def test_a_choice_that_the_file_does_not_offer():
  with pytest.raises(ValueError, match="x.pt: ema=True, but its layout has no"):
    convert.overlay(_base(), EDIT, ema=True, source="x.pt")


# Deltas.


def _edited(base):
  return convert.overlay(
    base, EDIT | {"text_model.encoder.layers.0.mlp.fc1.weight": np.ones((6, 4))}
  )


def test_delta_holds_what_differs(tmp_path):
  base = _base()
  edited, path = _edited(base), tmp_path / "delta.safetensors"
  names = convert.save_delta(path, base, edited)
  state = load_file(path)
  assert set(names) == set(state) == set(_changed(base, edited))
  _assert_same(state, _changed(base, edited))
  metadata = reader.read_metadata(path)
  assert metadata["base_fingerprint"] == convert.fingerprint(base.states)
  assert metadata["format"] == "pt"
  assert [p.name for p in tmp_path.iterdir()] == ["delta.safetensors"]


def test_delta_restores_the_edited_model(tmp_path):
  base = _base()
  edited, path = _edited(base), tmp_path / "delta.safetensors"
  convert.save_delta(path, base, edited)
  found = convert.load(path, base)
  assert convert.fingerprint(found.states) == convert.fingerprint(edited.states)


def test_delta_over_another_base(tmp_path):
  base = _base()
  path = tmp_path / "delta.safetensors"
  convert.save_delta(path, base, _edited(base))
  other = _base()
  other.states["vae"]["encoder.conv_in.weight"][0] += 1
  with pytest.raises(ValueError, match=r"delta\.safetensors: is a delta over"):
    convert.load(path, other)


def test_delta_of_equal_or_unlike_models(tmp_path):
  base, path = _base(), tmp_path / "delta.safetensors"
  with pytest.raises(ValueError, match="do not differ"):
    convert.save_delta(path, base, _base())
  small = {"conv_in.weight": base.states["unet"]["conv_in.weight"]}
  other = dataclasses.replace(base, states=base.states | {"unet": small})
  with pytest.raises(ValueError, match="unet: edited model against base"):
    convert.save_delta(path, base, other)
  wide = base.states["unet"] | {"conv_in.weight": np.ones(3, np.float32)}
  other = dataclasses.replace(base, states=base.states | {"unet": wide})
  with pytest.raises(ValueError, match="1 misshaped: conv_in.weight"):
    convert.save_delta(path, base, other)
  assert not list(tmp_path.iterdir())


def test_a_part_needs_its_base(tmp_path):
  save_file(EDIT, tmp_path / "edit.safetensors")
  with pytest.raises(ValueError, match=r"edit\.safetensors: holds part of a"):
    convert.load(tmp_path / "edit.safetensors")
  found = convert.load(tmp_path / "edit.safetensors", _base())
  assert found.states["unet"].keys() == _base().states["unet"].keys()


def test_a_component_folder_is_a_part(tmp_path):
  # As unlearned text encoders are published: config.json and the weights.
  (tmp_path / "config.json").write_text("{}")
  value = np.ones((6, 4), np.float32)
  name = "text_model.encoder.layers.0.mlp.fc1.weight"
  save_file({name: value}, tmp_path / "model.safetensors")
  base = _base()
  _assert_same(_changed(base, convert.load(tmp_path, base)), {name: value})


def test_unet_file(tmp_path):
  base, path = _base(), tmp_path / "unet.safetensors"
  convert.save_part(path, base, "unet")
  _assert_same(load_file(path), base.states["unet"])
  with pytest.raises(ValueError, match="exists"):
    convert.save_part(path, base, "unet")
  convert.save_part(path, base, "unet", dtype="float16", overwrite=True)
  assert {v.dtype.name for v in load_file(path).values()} == {"float16"}


def test_fingerprint_is_of_names_shapes_and_values():
  base = _base().states
  first = convert.fingerprint(base)
  assert len(first) == 64
  backwards = {
    part: dict(reversed(base[part].items())) for part in reversed(base)
  }
  assert convert.fingerprint(backwards) == first
  transposed = {
    part: {k: np.asfortranarray(v) for k, v in state.items()}
    for part, state in base.items()
  }
  assert convert.fingerprint(transposed) == first

  def other(part, name, value):
    return convert.fingerprint(base | {part: base[part] | {name: value}})

  name = f"{BLOCK}.attn2.to_k.weight"
  value = base["unet"][name]
  assert other("unet", name, value + 1e-6) != first
  assert other("unet", name, value.reshape(3, 4)) != first
  assert other("unet", "more", value) != first
