import json

import flax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from unlearning_jax.convert import (
  read_state_dict,
  reader,
  torch_files,
)

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)


def _state(dtype=np.float32):
  rng = np.random.default_rng(0)
  return {
    "a.weight": rng.standard_normal((3, 4)).astype(dtype),
    "b.bias": rng.standard_normal(5).astype(dtype),
  }


def _assert_same(ours, theirs):
  assert set(ours) == set(theirs)
  for name, value in theirs.items():
    assert ours[name].dtype == value.dtype
    np.testing.assert_array_equal(
      ours[name].astype(np.float64), value.astype(np.float64), strict=True
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors(dtype, tmp_path):
  save_file(_state(dtype), tmp_path / "w.safetensors")
  _assert_same(read_state_dict(tmp_path / "w.safetensors"), _state(dtype))


def test_truncated_and_damaged_safetensors(tmp_path):
  path = tmp_path / "w.safetensors"
  save_file(_state(), path)
  content = path.read_bytes()
  for end in range(len(content)):
    path.write_bytes(content[:end])
    with pytest.raises(ValueError, match=r"w\.safetensors: not a readable"):
      read_state_dict(path)
  rng = np.random.default_rng(0)
  for _ in range(300):
    damaged = bytearray(content)
    damaged[rng.integers(len(content))] ^= int(rng.integers(1, 256))
    path.write_bytes(damaged)
    try:
      state = read_state_dict(path)
    except ValueError as error:
      assert "w.safetensors" in str(error)
    else:
      assert all(isinstance(v, np.ndarray) for v in state.values())


@pytest.mark.parametrize(
  "name, dtype",
  [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)],
)
def test_safetensors_of_a_dtype_that_numpy_lacks(name, dtype, tmp_path):
  wanted = np.array([0.5, -3.0], dtype)
  header = (
    b'{"a":{"dtype":"%s","shape":[2],"data_offsets":[0,2]}}' % name.encode()
  )
  path = tmp_path / "w.safetensors"
  path.write_bytes(
    len(header).to_bytes(8, "little") + header + wanted.tobytes()
  )
  found = read_state_dict(path)
  _assert_same(found, {"a": wanted})
  upcast = reader.as_float32(found, "file")["a"]
  np.testing.assert_array_equal(upcast, np.float32([0.5, -3]))
  path.write_bytes(path.read_bytes()[:-2] + b"\x7f\x7f")
  with pytest.raises(ValueError, match="'a' holds NaN"):
    reader.as_float32(read_state_dict(path), "file")


@pytest.mark.parametrize("ending", ["ckpt", "pt", "safetensors", "msgpack", ""])
def test_the_first_bytes_decide(ending, tmp_path):
  path = tmp_path / f"w.{ending}"
  save_file(_state(), path, {"said": "so"})
  _assert_same(read_state_dict(path), _state())
  assert reader.read_metadata(path) == {"said": "so"}
  torch_files.write_torch(path, _state(), "float32")
  _assert_same(read_state_dict(path), _state())
  assert reader.read_metadata(path) == {}


@pytest.mark.parametrize(
  "content, said",
  [
    (b"<!DOCTYPE html><title>404</title>", "a web page"),
    (b"\n<html>", "a web page"),
    (b'<?xml version="1.0"?>\n<net name="unet">', "an XML file, as OpenVINO"),
    (b"\x08\x0a\x12\x07pytorch", "an ONNX program"),
    (b"GGUF\3\0\0\0", "a GGUF file"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x93NUMPY\1\0", "a numpy array"),
    (b"\x1f\x8b\x08", "a gzip archive; unpack"),
    (b"7z\xbc\xaf\x27", "a 7-Zip archive; unpack"),
  ],
)
def test_files_that_hold_no_weights(content, said, tmp_path):
  path = tmp_path / "w.safetensors"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=rf"w\.safetensors: is {said}"):
    read_state_dict(path)


def test_headers_are_those_of_the_tensors(tmp_path):
  folder = tmp_path / "shards"
  folder.mkdir()
  index, _, _ = _write_shards(folder)
  save_file(_state(), tmp_path / "w.safetensors")
  torch_files.write_torch(tmp_path / "w.pt", _state(), "float32")
  for path in (index, tmp_path / "w.safetensors", tmp_path / "w.pt"):
    found = reader.read_headers(path)
    assert {k: (h.shape, h.dtype) for k, h in found.items()} == {
      k: (v.shape, v.dtype) for k, v in read_state_dict(path).items()
    }


def test_missing_file_unknown_ending_pointer(tmp_path):
  with pytest.raises(ValueError, match=r"gone\.pt: no such file"):
    read_state_dict(tmp_path / "gone.pt")
  (tmp_path / "w.npz").write_bytes(b"nothing known")
  with pytest.raises(ValueError, match=r"b'nothing ', begin no weights file"):
    read_state_dict(tmp_path / "w.npz")
  pointer = tmp_path / "w.safetensors"
  pointer.write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
  with pytest.raises(ValueError, match="git lfs pull"):
    read_state_dict(pointer)


def _write_shards(folder):
  state = _state()
  for i, (name, value) in enumerate(state.items()):
    save_file({name: value}, folder / f"m-{i}.safetensors")
  index = {"weight_map": {n: f"m-{i}.safetensors" for i, n in enumerate(state)}}
  path = folder / "m.safetensors.index.json"
  path.write_text(json.dumps(index))
  return path, state, index["weight_map"]


def test_shards(tmp_path):
  path, state, _ = _write_shards(tmp_path)
  _assert_same(read_state_dict(path), state)


def test_shards_that_disagree_with_their_index(tmp_path):
  path, _, names = _write_shards(tmp_path)

  def fails(weight_map, pattern):
    path.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=pattern):
      read_state_dict(path)

  fails(names | {"c": "m-0.safetensors"}, r"m-0\.safetensors.*\n.*missing: c")
  fails({"b.bias": "m-0.safetensors"}, "not in the index: a.weight")
  fails(names | {"c": "m-9.safetensors"}, r"m-9\.safetensors: no such file")
  fails(names | {"c": "../m-0.safetensors"}, "not a weights file beside it")
  fails(names | {"c": "/etc/passwd"}, "not a weights file beside it")
  fails(names | {"c": path.name}, "not a weights file beside it")
  # No page of an error shows a name of pages.
  fails(names | {"c": 9999 * "m"}, "'m{80}' is not a weights file beside it$")
  fails({}, "no weight_map")
  path.write_text("[]")
  with pytest.raises(ValueError, match=r"index\.json: holds a list"):
    read_state_dict(path)
  path.write_text('{"weight_map"')
  with pytest.raises(ValueError, match=r"index\.json: not readable as JSON"):
    read_state_dict(path)


def _flax_tree():
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  # As diffusers and transformers wrote them before they dropped Flax.
  return {
    "encoder": {
      "mid_block": {"attentions_0": {"proj_attn": {"kernel": draw(2, 3)}}},
      "conv_in": {"kernel": draw(3, 3, 4, 5)},
    },
    "text_model": {
      "encoder": {
        "layers": {"10": {"layer_norm1": {"scale": draw(4)}}},
      },
      "embeddings": {"token_embedding": {"embedding": draw(6, 2)}},
    },
    "time_embedding": {"linear_2": {"bias": draw(3)}},
  }


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_old_flax_files(wrapped, dtype, tmp_path):
  tree = flax.traverse_util.path_aware_map(
    lambda _, x: x.astype(dtype), _flax_tree()
  )
  path = tmp_path / "flax_model.msgpack"
  content = {"params": tree} if wrapped else tree
  path.write_bytes(flax.serialization.msgpack_serialize(content))
  state = read_state_dict(path)
  kernel = tree["encoder"]["conv_in"]["kernel"]
  attention = tree["encoder"]["mid_block"]["attentions_0"]["proj_attn"]
  text = tree["text_model"]
  _assert_same(
    state,
    {
      "encoder.mid_block.attentions.0.proj_attn.weight": attention["kernel"].T,
      "encoder.conv_in.weight": kernel.transpose(3, 2, 0, 1),
      "text_model.encoder.layers.10.layer_norm1.weight": text["encoder"][
        "layers"
      ]["10"]["layer_norm1"]["scale"],
      "text_model.embeddings.token_embedding.weight": text["embeddings"][
        "token_embedding"
      ]["embedding"],
      "time_embedding.linear_2.bias": tree["time_embedding"]["linear_2"][
        "bias"
      ],
    },
  )


def test_truncated_flax_file(tmp_path):
  path = tmp_path / "flax_model.msgpack"
  content = flax.serialization.msgpack_serialize(_flax_tree())
  for end in range(0, len(content), 7):
    path.write_bytes(content[:end])
    with pytest.raises(
      ValueError, match=r"flax_model\.msgpack: not a readable"
    ):
      read_state_dict(path)
  path.write_bytes(flax.serialization.msgpack_serialize([1, 2]))
  with pytest.raises(ValueError, match=r"flax_model\.msgpack"):
    read_state_dict(path)


def test_damaged_flax_file(tmp_path):
  path = tmp_path / "flax_model.msgpack"
  content = flax.serialization.msgpack_serialize(_flax_tree())
  rng = np.random.default_rng(0)
  # Structure, not payload: names and types stand in the first bytes.
  places = np.concatenate(
    [np.arange(200), rng.integers(len(content), size=200)]
  )
  for place in places:
    damaged = bytearray(content)
    damaged[place] ^= int(rng.integers(1, 256))
    path.write_bytes(damaged)
    try:
      state = read_state_dict(path)
    except ValueError as error:
      assert "flax_model.msgpack" in str(error)
    else:
      assert all(isinstance(v, np.ndarray) for v in state.values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_as_float32(dtype):
  state = _state(dtype)
  upcast = reader.as_float32(state, "file")
  _assert_same(upcast, {k: v.astype(np.float32) for k, v in state.items()})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(bad, dtype):
  state = _state(dtype)
  state["b.bias"][2] = bad
  with pytest.raises(ValueError, match=r"file: 'b\.bias' holds NaN or inf"):
    reader.as_float32(state, "file")


def test_quantised_weights():
  with pytest.raises(ValueError, match=r"'a' has dtype int8"):
    reader.as_float32({"a": np.zeros(3, np.int8)}, "file")


# Writing.
