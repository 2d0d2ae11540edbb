"""What a file is called, what it is of, and how it differs from a base."""

import dataclasses
import json
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import unlearning_jax as ul
from tests.support import scripts, single_files
from unlearning_jax import convert
from unlearning_jax.convert import (
  differences,
  families,
  pickles,
  reader,
  torch_files,
)
from unlearning_jax.shapes import world

KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture(scope="module")
def base():
  return convert.load(world.model_folder())


def _zeros(*shape, dtype=np.float32):
  return np.zeros(shape, dtype)


@pytest.mark.parametrize(
  "state, kind, model, said",
  [
    ({f"{KEY}.weight": _zeros(4, 768, dtype=np.float16)}, "unet",
     "Stable Diffusion 1.x (text states are 768 wide)",
     ["a part of a UNet in diffusers' layout", "float16", "3,072 parameters",
      "unlearning-jax convert --input=", "--config.victim="]),
    ({"conv_in.weight": _zeros(4, 9, 3, 3), f"{KEY}.weight": _zeros(4, 768)},
     "unet", "Stable Diffusion 1.x for inpainting (text states are 768 wide)",
     ["a UNet in diffusers'"]),
    ({"text_model.embeddings.token_embedding.weight":
      _zeros(9, 1024, dtype=ml_dtypes.bfloat16)}, "text_encoder",
     "Stable Diffusion 2.x (text states are 1024 wide)", ["bfloat16"]),
    ({f"lora_unet_{KEY.replace('.', '_')}.lora_down.weight": _zeros(8, 768)},
     "lora", "Stable Diffusion 1.x (text states are 768 wide)",
     ["a LoRA, with the names of kohya (A1111, ComfyUI)", "rank 8"]),
    ({f"base_model.model.{KEY}.lora_A.weight": _zeros(2, 768),
      f"base_model.model.{KEY}.lora_magnitude_vector": _zeros(4)},
     "lora", "Stable Diffusion 1.x (text states are 768 wide)",
     ["a LoRA with DoRA, with the names of PEFT", "rank 2"]),
    ({"lycoris_mid.lokr_w1": _zeros(2, 2)}, "lokr", "", ["a LoKr", "LyCORIS"]),
    ({"encoder.down.0.block.0.norm1.weight": _zeros(2)}, "vae", "", ["a VAE"]),
    ({"<star>": _zeros(768)}, "word", "", ["a learnt word", "new_word"]),
    ({"double_blocks.0.img_attn.qkv.weight": _zeros(2)}, "FLUX", "", ["FLUX"]),
  ],
)  # fmt: skip
def test_what_a_file_is(state, kind, model, said, tmp_path):
  path = tmp_path / "brought.safetensors"
  save_file(state, path)
  found = ul.inspect(path)
  assert (found.kind.name, found.model) == (kind, model)
  for words in said:
    assert words in str(found)
  assert str(path) in str(found)


def test_a_single_file_says_what_to_choose(base, tmp_path):
  whole = single_files.from_diffusers(
    base.states, 1, len(base.configs["vae"]["block_out_channels"])
  )
  whole = single_files.with_averages(whole, lambda value: value)
  path = tmp_path / "model.ckpt"
  save_file(whole | {"v_pred": _zeros(0)}, path)
  text = str(ul.inspect(path))
  for words in ("original layout", "--noema", "velocity", "convert --input="):
    assert words in text


@pytest.mark.torch
def test_what_a_training_loop_saved(tmp_path):
  torch = pytest.importorskip("torch")
  weights = {f"module.unet.{KEY}.weight": torch.zeros(4, 768).half()}
  path = tmp_path / "last.pt"
  torch.save({"model": weights, "optimizer": {"state": {}}, "epoch": 3}, path)
  found = ul.inspect(path)
  assert found.kind.name == "unet" and found.precision == "float16"
  assert found.notes == ("beside the weights: optimizer, epoch",)


def test_folders(base, tmp_path):
  found = ul.inspect(world.model_folder())
  assert found.kind.name == "folder" and "DDIMScheduler" in found.notes[0]
  folder = tmp_path / "checkpoint-5"
  (folder / "unet").mkdir(parents=True)
  convert.save_part(
    folder / "unet" / "diffusion_pytorch_model.safetensors", base, "unet"
  )
  found = ul.inspect(folder)
  assert found.kind.name == "checkpoint" and "with unet" in str(found)
  inner = ul.inspect(folder / "unet")
  assert inner.kind.text == "a UNet in diffusers' layout"


def test_an_edit_of_ours(tmp_path):
  path = tmp_path / "edit.safetensors"
  concepts = json.dumps([{"erase": "star"}])
  header = {"format": families.EDIT_FORMAT, "method": "uce", "base": "x"}
  save_file({"context_map": np.eye(3)}, path, header | {"concepts": concepts})
  found = ul.inspect(path, base="shapes")
  assert found.kind.name == "edit" and found.differences is None
  assert "uce erased star" in str(found) and "jax export" in str(found)
  assert "edit of this package is not compared with shapes" in str(found)


def _edited(base, part, pick, low_rank=False):
  rng = np.random.default_rng(0)
  out = {}
  for name, value in base.states[part].items():
    if not pick(name):
      continue
    change = rng.standard_normal(value.shape).astype("f4")
    if low_rank and value.ndim == 2:
      change = np.outer(change[:, 0], change[0])
    out[name] = value + np.float32(0.01) * change
  return out


@pytest.mark.parametrize(
  "part, pick, low, looks",
  [
    ("unet", lambda n: "attn2.to_k.w" in n or "attn2.to_v.w" in n, True,
     "a closed form (UCE"),
    ("unet", lambda n: "attn2.to_k.w" in n or "attn2.to_v.w" in n, False,
     "Concept Ablation"),
    ("unet", lambda n: "attn2." in n, False, "ESD-x"),
    ("unet", lambda n: "attn2." not in n, False, "ESD-u"),
    ("unet", lambda n: True, False, "a training of the whole UNet"),
    ("text_encoder", lambda n: "mlp" in n, False, "AdvUnlearn"),
  ],
)  # fmt: skip
def test_what_differs_from_a_base(part, pick, low, looks, base, tmp_path):
  wanted = _edited(base, part, pick, low)
  path = tmp_path / "erased.safetensors"
  save_file(wanted, path)
  found = ul.inspect(path, base="shapes")
  (one,) = found.differences
  old = base.states[part]
  changes = {k: np.float64(v) - old[k] for k, v in wanted.items()}
  assert (one.part, set(one.changed)) == (part, set(wanted))
  assert one.tensors == len(old)
  every = np.concatenate([change.ravel() for change in changes.values()])
  assert one.largest == pytest.approx(np.abs(every).max(), rel=1e-4)
  assert one.mean == pytest.approx(np.abs(every).mean(), rel=1e-4)
  if low:
    assert {rank for rank, _ in one.ranks} == {1}
  else:
    assert all(4 * rank > full for rank, full in one.ranks)
  assert looks in found.looks_like and looks in str(found)
  assert "--base=shapes" in found.command


def test_half_precision_is_no_edit(base, tmp_path):
  """What a file in half precision loses everywhere hides no edit."""
  wanted = _edited(base, "unet", lambda n: "attn2.to_v.w" in n, True)
  unet = base.states["unet"] | wanted
  changed = dataclasses.replace(base, states={**base.states, "unet": unet})
  dtype = "bfloat16"
  convert.save_part(tmp_path / "half.safetensors", changed, "unet", dtype=dtype)
  (one,) = ul.inspect(tmp_path / "half.safetensors", "shapes").differences
  assert set(one.changed) == set(wanted)
  exact = sum(
    np.array_equal(value.astype(dtype).astype("f4"), value)
    for name, value in base.states["unet"].items()
    if name not in wanted
  )
  assert one.rounded == len(unet) - len(wanted) - exact > 0
  convert.save_part(tmp_path / "same.safetensors", base, "unet", dtype=dtype)
  same = ul.inspect(tmp_path / "same.safetensors", "shapes")
  assert not same.differences[0].changed and same.looks_like == ""
  assert "more differ by the rounding of half precision" in str(same)


def test_two_halves_of_one_model_are_no_edit(base, tmp_path):
  for dtype in ("float16", "bfloat16"):
    convert.save_part(tmp_path / f"{dtype}.st", base, "unet", dtype=dtype)
  halves = [
    reader.read_state_dict(tmp_path / f"{dtype}.st")
    for dtype in ("float16", "bfloat16")
  ]
  values = [
    {name: np.asarray(value, np.float32) for name, value in half.items()}
    for half in halves
  ]
  name = max(values[0], key=lambda name: values[0][name].size)
  assert not np.array_equal(values[0][name], values[1][name])
  for one, two in (values, values[::-1]):
    assert differences._is_rounding(one[name], two[name])
    assert not differences._is_rounding(one[name], 1.02 * two[name])


def test_the_rank_of_a_lora_is_that_of_its_change(tmp_path, base):
  rng = np.random.default_rng(0)
  weight = base.states["unet"][f"{KEY}.weight"]
  down, up = rng.standard_normal((2, 3, max(weight.shape))).astype("f4")
  stem = f"lora_unet_{KEY.replace('.', '_')}"
  state = {
    f"{stem}.lora_down.weight": down[:, : weight.shape[1]].copy(),
    f"{stem}.lora_up.weight": up.T[: len(weight)].copy(),
  }
  save_file(state, tmp_path / "lora.safetensors")
  (one,) = ul.inspect(tmp_path / "lora.safetensors", base="shapes").differences
  assert one.changed == (f"{KEY}.weight",) and one.ranks[0][0] <= 3


def test_nothing_differs(base, tmp_path):
  path = tmp_path / "same.safetensors"
  convert.save_part(path, base, "unet")
  found = ul.inspect(path, base="shapes")
  assert found.differences == () and "nothing differs" in str(found)


def test_a_model_of_another_architecture_differs(base, tmp_path):
  states = {part: dict(old) for part, old in base.states.items()}
  wide = {"conv_in.bias": _zeros(3), "more": _zeros(2)}
  states["unet"] |= wide
  del states["vae"]["decoder.conv_in.bias"]
  changed = dataclasses.replace(base, states=states)
  convert.save_folder(tmp_path / "other", changed)
  found = ul.inspect(tmp_path / "other", base="shapes")
  unlike = {one.part: set(one.unlike) for one in found.differences}
  assert unlike == {"unet": set(wide), "vae": {"decoder.conv_in.bias"}}
  assert not any(one.changed for one in found.differences)
  assert "unet: 0 of " in str(found) and found.looks_like == ""
  assert "; 1 more are missing, extra or of another shape, as de" in str(found)


# Headers only.


def test_four_gigabytes_take_a_moment(tmp_path):
  path = tmp_path / "large.safetensors"
  size, shape = 4 * 2**30, [2**20, 2**10]
  entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
  header = json.dumps({f"unet.{KEY}.weight": entry}).encode()
  with open(path, "wb") as file:
    file.write(len(header).to_bytes(8, "little") + header)
    # A hole, which takes no place on the disk.
    file.truncate(8 + len(header) + size)
  tracemalloc.start()
  start = time.process_time()
  found = ul.inspect(path)
  taken, most = time.process_time() - start, tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert found.parameters == 2**30
  assert taken < 2 and most < 2**24


def test_no_storage_of_a_pickle_is_read(tmp_path, monkeypatch):
  path = tmp_path / "unet.pt"
  torch_files.write_torch(path, {f"{KEY}.weight": _zeros(4, 768)}, "float32")
  monkeypatch.setattr(pickles, "_load_storage", None)
  assert ul.inspect(path).parameters == 4 * 768


@pytest.mark.e2e
def test_the_command(tmp_path):
  path = tmp_path / "unet.safetensors"
  save_file({f"{KEY}.weight": _zeros(4, 768)}, path)
  done = scripts.run("inspect", path)
  assert done.returncode == 0, done.stderr
  assert "Stable Diffusion 1.x" in done.stdout and "convert" in done.stdout
  done = scripts.run("inspect", tmp_path / "gone")
  assert done.returncode != 0 and "no such file" in done.stderr
