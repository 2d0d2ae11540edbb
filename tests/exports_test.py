"""Exported edits opened by torch diffusers must draw what ours draws."""

import dataclasses
import json

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from tests.support import scripts, tiny_pipelines
from unlearning_jax import (
  convert,
  lora,
  shapes,
  stable_diffusion,
)
from unlearning_jax import exports as export
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import apply_to_params, edit_between, save_edit
from unlearning_jax.erasures import rece, uce
from unlearning_jax.projections import cross_attention_kernels

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = [
  pytest.mark.torch,
  # diffusers' and peft's own, about accelerate and about offloading.
  pytest.mark.filterwarnings("ignore::FutureWarning"),
  pytest.mark.filterwarnings("ignore::UserWarning"),
]
CONCEPTS = make_concepts(["ab c", "xyz"], ["d", "e"], ["fg"])
ENDINGS = {"unet": ".pt", "folder": ""}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("base") / "model"
  folder.mkdir()
  tiny_pipelines.write(folder)
  sd, params = stable_diffusion.load(folder)
  # One token a concept: an edit of low rank.
  edit = uce.erase(sd, params, CONCEPTS, None, uce.Hparams(preset="uce2025"))
  return folder, sd, params, edit


@pytest.fixture(scope="module")
def ours(model):
  """Our edited model's noise, and what it was predicted from."""
  _, sd, params, edit = model
  rng = np.random.default_rng(0)
  noise = np.float32(rng.normal(size=(2, *sd.latent_shape)))
  t = np.array([20, 900])
  ids = stable_diffusion.tokenize(sd, ["ab c", "h xyz"])
  context = stable_diffusion.encode_text(sd, params, ids)

  def predict(p):
    out = stable_diffusion.predict_noise(
      sd, p, jnp.asarray(noise), jnp.asarray(t), context
    )
    return np.asarray(out)

  edited = predict(apply_to_params(edit, params))
  assert np.abs(edited - predict(params)).max() > 1e-2
  return edited, (noise, t, np.asarray(context))


def assert_torch_predicts(unet, ours):
  expected, (noise, t, context) = ours
  with torch.no_grad():
    out = unet(
      torch.tensor(noise.transpose(0, 3, 1, 2)),
      torch.tensor(t),
      torch.tensor(context),
    ).sample.numpy()
  scale = np.abs(expected).max()
  np.testing.assert_allclose(
    out.transpose(0, 2, 3, 1), expected, atol=2e-5 * scale
  )


def write(model, tmp_path, layout, **options):
  _, sd, params, edit = model
  path = tmp_path / f"out{ENDINGS.get(layout, '.safetensors')}"
  return path, export.export(path, layout, sd, edit, params, **options)


def torch_unet(folder):
  unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
  return unet.eval()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["delta", "unet", "folder"])
def test_torch_draws_the_edited_model(model, ours, tmp_path, layout):
  path, facts = write(model, tmp_path, layout)
  if layout == "folder":
    unet = diffusers.StableDiffusionPipeline.from_pretrained(path).unet
  else:
    unet = torch_unet(model[0])
    read = load_file if layout == "delta" else torch.load
    state = {k: torch.as_tensor(v) for k, v in read(path).items()}
    found = unet.load_state_dict(state, strict=layout == "unet")
    assert not found.unexpected_keys
    assert facts["tensors"] == len(state) and facts["storage_error"] == 0
  if layout == "delta":
    modules = unet.named_modules()
    expected = {
      n for n, _ in modules if n.endswith(("attn2.to_k", "attn2.to_v"))
    }
    assert set(load_file(path)) == {f"{name}.weight" for name in expected}
  assert_torch_predicts(unet, ours)


@pytest.mark.parametrize("layout", ["lora", "kohya"])
def test_torch_loads_the_lora(model, ours, tmp_path, layout):
  pytest.importorskip("peft")
  path, facts = write(model, tmp_path, layout)
  pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
    model[0], feature_extractor=None, safety_checker=None
  )
  pipeline.load_lora_weights(tmp_path, weight_name=path.name)
  layers = [n for n, _ in pipeline.unet.named_modules() if "lora_A." in n]
  assert len(layers) == facts["tensors"] / (2 if layout == "lora" else 3)
  assert_torch_predicts(pipeline.unet, ours)
  pipeline.fuse_lora()
  assert_torch_predicts(pipeline.unet, ours)


@pytest.mark.parametrize("layout", ["lora", "kohya"])
def test_the_lora_merges_into_the_edited_weights(model, ours, tmp_path, layout):
  """The same without peft: names from torch's modules, W + B A by hand."""
  path, facts = write(model, tmp_path, layout)
  tensors = load_file(path)
  unet = torch_unet(model[0])
  for name, module in unet.named_modules():
    if not name.endswith(("attn2.to_k", "attn2.to_v")):
      continue
    if layout == "lora":
      names = [f"unet.{name}.lora_{x}.weight" for x in "BA"]
      scale = 1.0
    else:
      stem = "lora_unet_" + name.replace(".", "_")
      names = [f"{stem}.lora_{x}.weight" for x in ("up", "down")]
      scale = float(tensors.pop(f"{stem}.alpha")) / facts["rank"]
    up, down = (tensors.pop(n) for n in names)
    assert down.shape == (facts["rank"], module.weight.shape[1])
    module.weight.data += scale * torch.tensor(up @ down)
  assert not tensors
  assert_torch_predicts(unet, ours)


def test_the_rank_is_the_edits(model):
  _, sd, params, edit = model
  lora = export.low_rank(edit, params)
  # Two concepts, a token each; the rest of T is the identity.
  assert len(lora.down) == 2 and lora.error < export.EXACT
  tail = rece.erase(sd, params, CONCEPTS, None, rece.Hparams(epochs=1))
  assert len(export.low_rank(tail, params).down) > 2


def test_a_cut_lora_errs_as_it_says_and_no_other_errs_less(model):
  _, sd, params, _ = model
  edit = uce.erase(sd, params, CONCEPTS, None, uce.Hparams())
  kernels = cross_attention_kernels(params)
  change = edit.context_map - np.eye(len(edit.context_map))
  weights = [np.float64(k).T for k in kernels.values()]
  whole = np.linalg.norm(np.concatenate([w @ change for w in weights]))

  def error(ups, down):
    off = [w @ change - up @ down for w, up in zip(weights, ups, strict=True)]
    return np.linalg.norm(np.concatenate(off)) / whole

  for rank in (1, 3):
    lora = export.low_rank(edit, params, rank)
    assert lora.down.shape == (rank, len(change))
    assert lora.error == pytest.approx(error(lora.up.values(), lora.down))
    assert 1e-3 < lora.error < 1
    # Cutting the map itself, blind to the weights, is worse.
    u, s, vt = np.linalg.svd(change)
    blind = [w @ (u[:, :rank] * s[:rank]) for w in weights]
    assert lora.error < error(blind, vt[:rank])
  exact = export.low_rank(edit, params)
  assert error(exact.up.values(), exact.down) < 1e-6


@pytest.mark.parametrize("layout", ["delta", "lora", "kohya", "folder"])
def test_files_say_what_is_in_them(model, tmp_path, layout):
  path, facts = write(model, tmp_path, layout)
  edit = model[3]
  if layout == "folder":
    path = path / "unet" / "diffusion_pytorch_model.safetensors"
  # Whoever may read other new files here may read this one.
  other = tmp_path / "other"
  other.touch()
  assert path.stat().st_mode == other.stat().st_mode
  with safetensors.safe_open(str(path), framework="numpy") as file:
    header = file.metadata()
  assert header["base"] == edit.base.digest and header["method"] == "uce2025"
  erased = [c["erase"] for c in json.loads(header["concepts"])]
  assert erased == ["ab c", "xyz"]
  assert json.loads(header["diagnostics"]) == edit.diagnostics
  if "rank" in facts:
    assert header["rank"] == str(facts["rank"]) == "2"
    assert float(header["truncation_error"]) == facts["truncation_error"]
  assert (header.get("ss_network_dim") == "2") is (layout == "kohya")


@pytest.mark.parametrize("layout", ["delta", "lora"])
def test_half_precision_says_what_it_costs(model, tmp_path, layout):
  path, facts = write(model, tmp_path, layout, dtype="float16")
  _, _, params, edit = model
  tensors = load_file(path)
  assert all(value.dtype == np.float16 for value in tensors.values())
  off = size = 0.0
  for kernel_path, kernel in cross_attention_kernels(params).items():
    name = convert.torch_name(kernel_path.split("/"))
    exact = (np.float64(kernel).T) @ (edit.context_map - np.eye(len(kernel)))
    if layout == "delta":
      stored = np.float64(tensors[name]) - np.float64(kernel).T
    else:
      stem = f"unet.{name.removesuffix('weight')}"
      stored = np.float64(tensors[f"{stem}lora_B.weight"]) @ np.float64(
        tensors[f"{stem}lora_A.weight"]
      )
    off += np.sum((stored - exact) ** 2)
    size += np.sum(exact**2)
  assert facts["storage_error"] == pytest.approx(np.sqrt(off / size), rel=1e-2)
  assert 1e-5 < facts["storage_error"] < 1e-2


def test_an_exported_delta_and_unet_come_back(model, tmp_path):
  folder, _, params, edit = model
  expected = apply_to_params(edit, params)["unet"]
  for layout in ("delta", "unet"):
    path, _ = write(model, tmp_path, layout)
    again = convert.to_params(convert.load(path, folder))["unet"]
    new, old = convert.to_torch(again), convert.to_torch(expected)
    assert all(np.array_equal(new[name], old[name]) for name in old)


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_single_file_comes_back_exactly(model, tmp_path, ending):
  folder, sd, params, edit = model
  path = tmp_path / f"whole.{ending}"
  export.export(path, "single_file", sd, edit, params)
  expected = apply_to_params(edit, params)
  again = convert.to_params(convert.load(path, folder))
  jax.tree.map(np.testing.assert_array_equal, again, expected)
  # Code in the original layout reads the pickle so.
  state = load_file(path) if ending == "safetensors" else torch.load(path)
  state = state.get("state_dict", state)
  first = {key.partition(".")[0] for key in state}
  assert first == {"model", "first_stage_model", "cond_stage_model"}


def test_torch_opens_the_single_file(model, ours, tmp_path):
  folder, sd, params, edit = model
  path = tmp_path / "whole.safetensors"
  export.export(path, "single_file", sd, edit, params)
  unet = diffusers.UNet2DConditionModel.from_single_file(
    str(path), config=str(folder), subfolder="unet", local_files_only=True
  )
  assert_torch_predicts(unet.eval(), ours)


def test_a_velocity_model_is_marked_in_its_single_file(model, tmp_path):
  folder, sd, params, edit = model
  scheduler = sd.files.configs["scheduler"] | {
    "prediction_type": "v_prediction"
  }
  configs = {**sd.files.configs, "scheduler": scheduler}
  files = dataclasses.replace(sd.files, configs=configs)
  for ending in ("safetensors", "ckpt"):
    path = tmp_path / f"v.{ending}"
    export.export(
      path, "single_file", dataclasses.replace(sd, files=files), edit, params
    )
    with pytest.raises(ValueError, match="predicts velocity"):
      convert.load(path, folder)
    states = {part: convert.to_torch(tree) for part, tree in params.items()}
    base = dataclasses.replace(files, states=states)
    convert.load(path, base)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "both"])
def test_every_format_that_an_error_names_holds_the_edit(model, tmp_path, part):
  folder, sd, params, _ = model
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  for name in ("text_encoder", "unet"):
    if part in (name, "both"):
      key = next(k for k in flat if k.startswith(name) and k.endswith("bias"))
      flat[key] = flat[key] + np.float32(0.25)
  edited = flax.traverse_util.unflatten_dict(flat, sep="/")
  edit = edit_between(
    params, edited, method="x", concepts=CONCEPTS, diagnostics={}
  )
  for layout in ("lora", "kohya", "unet", "text_encoder"):
    if layout == part:
      continue
    with pytest.raises(ValueError, match="export it as ") as refused:
      export.export(tmp_path / "x.safetensors", layout, sd, edit, params)
    named = str(refused.value).split("export it as ")[1].split(" or ")
    assert set(named) == {"delta", "folder", "single_file"} | (
      {part} - {"both"}
    )
  for layout in named:
    path = tmp_path / (layout + ENDINGS.get(layout, ".safetensors"))
    facts = export.export(path, layout, sd, edit, params)
    assert facts["storage_error"] == 0
    again = convert.to_params(convert.load(path, folder))
    jax.tree.map(np.testing.assert_array_equal, again, edited)


@pytest.mark.parametrize("layout", ["delta", "single_file", "folder"])
def test_bfloat16(model, tmp_path, layout):
  path, facts = write(model, tmp_path, layout, dtype="bfloat16")
  assert 1e-4 < facts["storage_error"] < 1
  file = path / "unet/diffusion_pytorch_model.safetensors"
  tensors = load_torch(file if layout == "folder" else path)
  assert {value.dtype for value in tensors.values()} == {torch.bfloat16}


def test_an_exported_delta_over_another_base(model, tmp_path):
  path, _ = write(model, tmp_path, "delta")
  other = convert.load(model[0])
  name, value = next(iter(other.states["text_encoder"].items()))
  other.states["text_encoder"][name] = value + 1
  with pytest.raises(ValueError, match=f"{path.name}: is a delta over another"):
    convert.load(path, other)


@pytest.mark.parametrize("layout", ["lora", "kohya"])
def test_an_exported_lora_comes_back(model, tmp_path, layout):
  folder, _, params, edit = model
  path, _ = write(model, tmp_path, layout)
  expected = apply_to_params(edit, params)
  for found in (
    lora.merge(params, lora.load(path, params)),
    convert.to_params(convert.load(path, folder)),
  ):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected
    )


def test_what_cannot_be_exported(model, tmp_path):
  _, sd, params, edit = model
  good = tmp_path / "x.safetensors"
  for layout, path, options, message in (
    ("loras", good, {}, "did you mean 'lora'"),
    ("lora", tmp_path / "x.pt", {}, r"ends in \.safetensors"),
    ("unet", tmp_path / "x.bin", {}, r"ends in \.pt or \.safetensors"),
    ("lora", good, {"rank": 0}, "rank=0"),
    ("delta", good, {"rank": 3}, "format delta has none"),
    ("delta", good, {"dtype": "half"}, "dtype='half'"),
    ("context_map", good, {"dtype": "float16"}, "always float64"),
    ("text_encoder", good, {}, "changes the UNet's keys and values; export"),
  ):
    with pytest.raises(ValueError, match=message):
      export.export(path, layout, sd, edit, params, **options)
  edited = apply_to_params(edit, params)
  for layout in ("lora", "folder"):
    with pytest.raises(ValueError, match="apply it to its base"):
      export.export(
        tmp_path / f"y{ENDINGS.get(layout, '.safetensors')}",
        layout,
        sd,
        edit,
        edited,
      )
  assert list(tmp_path.iterdir()) == []
  good.touch()
  with pytest.raises(ValueError, match="exists"):
    export.export(good, "lora", sd, edit, params)


@pytest.mark.e2e
def test_the_launch_script(tmp_path):
  sd, params = stable_diffusion.load(shapes.model_folder())
  edit = uce.erase(
    sd, params, make_concepts("star", "circle"), None, uce.Hparams()
  )
  save_edit(edit, tmp_path / "edit.safetensors")

  def run(*flags):
    edit = f"--edit={tmp_path / 'edit.safetensors'}"
    return scripts.run("export", "--model=shapes", edit, *flags)

  out = tmp_path / "lora.safetensors"
  done = run("--format=kohya", f"--output={out}", "--rank=4")
  assert done.returncode == 0, done.stderr
  assert "rank 4, truncation_error" in done.stdout
  assert all(k.startswith("lora_unet_") for k in load_file(out))
  again = run("--format=kohya", f"--output={out}")
  assert again.returncode != 0 and "exists" in again.stderr
