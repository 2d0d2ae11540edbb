"""Adapters other than LoRA, against the forward pass of the tools themselves.

LyCORIS is no dependency of ours; its tests run where it is installed. Those
with numbers alone say the same sums once more.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from unlearning_jax import convert
from unlearning_jax.convert import ModelFiles, adapter_kinds

PLACE = "down_blocks.0.attentions.0"
LINEAR, CONV = f"{PLACE}.transformer_blocks.0.attn2.to_k", f"{PLACE}.conv"
OUT, IN = 16, 12


def _draw(*shape, seed=0):
  rng = np.random.default_rng([seed, *shape])
  return 0.3 * rng.standard_normal(shape).astype(np.float32)


def _base():
  unet = {
    f"{LINEAR}.weight": _draw(OUT, IN),
    f"{LINEAR}.bias": _draw(OUT),
    f"{CONV}.weight": _draw(OUT, IN, 3, 3),
    f"{CONV}.bias": _draw(OUT),
  }
  text = {"text_model.encoder.layers.0.mlp.fc1.weight": _draw(OUT, IN)}
  return ModelFiles({}, {"unet": unet, "text_encoder": text, "vae": {}}, None)


def _merged(state, tmp_path, config=None):
  if config:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
  save_file(state, tmp_path / "adapter.safetensors")
  found = convert.load(tmp_path / "adapter.safetensors", _base())
  return found.states["unet"]


def _flat(module, prefix="lora_unet_"):
  return prefix + module.replace(".", "_")


SCALE = 0.5  # alpha 1 over rank 2
W1, W2 = (
  (_draw(OUT, 2), _draw(2, IN)),
  (_draw(OUT, 2, seed=1), _draw(2, IN, seed=1)),
)
LOHA = {
  "hada_w1_a": W1[0], "hada_w1_b": W1[1], "hada_w2_a": W2[0],
  "hada_w2_b": W2[1], "alpha": np.float32([1]),
}  # fmt: skip
NEAR, FAR = _draw(4, 3), _draw(4, 4)
THIN = _draw(4, 2), _draw(2, 4)


@pytest.mark.parametrize(
  "parts, change",
  [
    (LOHA, SCALE * (W1[0] @ W1[1]) * (W2[0] @ W2[1])),
    # Alpha means nothing where both factors are whole.
    ({"lokr_w1": NEAR, "lokr_w2": FAR, "alpha": np.float32([1e9])},
     np.kron(NEAR, FAR)),
    ({"lokr_w1": NEAR, "lokr_w2_a": THIN[0], "lokr_w2_b": THIN[1],
      "alpha": np.float32([1])}, SCALE * np.kron(NEAR, THIN[0] @ THIN[1])),
    ({"diff": FAR.repeat(4, 0).repeat(3, 1)}, FAR.repeat(4, 0).repeat(3, 1)),
    ({"weight": _draw(OUT), "on_input": np.array(0)},
     _draw(OUT)[:, None] * _base().states["unet"][f"{LINEAR}.weight"]),
    ({"weight": _draw(IN), "on_input": np.array(1)},
     _draw(IN) * _base().states["unet"][f"{LINEAR}.weight"]),
  ],
  ids=["loha", "lokr", "lokr thin", "difference", "ia3 rows", "ia3 columns"],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["lora_unet_", "lycoris_"])
def test_the_sums_of_lycoris(prefix, parts, change, tmp_path):
  module = _flat(LINEAR, prefix)
  found = _merged({f"{module}.{k}": v for k, v in parts.items()}, tmp_path)
  for name, value in _base().states["unet"].items():
    wanted = value + change if name == f"{LINEAR}.weight" else value
    np.testing.assert_allclose(found[name], wanted, atol=1e-6)


def test_a_difference_of_a_bias(tmp_path):
  module = f"diffusion_model.{LINEAR}"
  found = _merged({f"{module}.diff_b": _draw(OUT, seed=3)}, tmp_path)
  base = _base().states["unet"]
  wanted = base[f"{LINEAR}.bias"] + _draw(OUT, seed=3)
  np.testing.assert_array_equal(found[f"{LINEAR}.bias"], wanted)
  np.testing.assert_array_equal(
    found[f"{LINEAR}.weight"], base[f"{LINEAR}.weight"]
  )


@pytest.mark.parametrize("over_rows", [True, False])
def test_lengths_of_dora(over_rows, tmp_path):
  down, up = _draw(2, IN, seed=4), _draw(OUT, 2, seed=4)
  lengths = 1 + np.abs(_draw(OUT, 1) if over_rows else _draw(1, IN))
  module = _flat(LINEAR)
  state = {
    f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up,
    f"{module}.dora_scale": lengths,
  }  # fmt: skip
  found = np.float64(_merged(state, tmp_path)[f"{LINEAR}.weight"])
  norms = np.linalg.norm(found, axis=int(over_rows), keepdims=True)
  np.testing.assert_allclose(norms, lengths, rtol=1e-6)
  plain = np.float64(_base().states["unet"][f"{LINEAR}.weight"]) + up @ down
  np.testing.assert_allclose(
    found / norms,
    plain / np.linalg.norm(plain, axis=int(over_rows), keepdims=True),
    atol=1e-6,
  )


@pytest.mark.parametrize(
  "parts, said",
  [
    ({k: v for k, v in LOHA.items() if k != "hada_w2_b"}, r"has \[.*\] only"),
    (LOHA | {"diff": _draw(OUT, IN)}, r"has \[.*\] only"),
    ({"lokr_w1": NEAR}, rf"adapter.safetensors: '{LINEAR}.weight' has \["),
    ({"lokr_w1": NEAR, "lokr_w2_a": THIN[0]}, r"has \[.*\] only"),
    ({"diff_b": _draw(OUT), "alpha": np.float32([1])}, r"has \[.*\] only"),
    ({"weight": _draw(OUT), "dora_scale": _draw(OUT)}, r"has \[.*\] only"),
    (LOHA | {"hada_w1_b": _draw(2, 7)}, "1 misshaped"),
    ({"lokr_w1": _draw(4, 3), "lokr_w2": _draw(40, 40)}, "1 misshaped"),
    # The product alone would be 40 GB.
    (LOHA | {"hada_w1_a": _draw(10**5, 2), "hada_w1_b": _draw(2, 10**5)},
     "1 misshaped"),
    ({"weight": _draw(7), "on_input": np.array(0)}, "1 misshaped"),
  ],
)  # fmt: skip
def test_parts_that_do_not_fit(parts, said, tmp_path):
  module = _flat(LINEAR)
  with pytest.raises(ValueError, match=said):
    _merged({f"{module}.{k}": v for k, v in parts.items()}, tmp_path)


def test_no_product_is_made_that_does_not_fit(monkeypatch):
  weight = np.float32(_draw(OUT, IN))
  monkeypatch.setattr(adapter_kinds, "_change", None)
  for change in (
    {"hada_w2_a": _draw(OUT + 1, 2)},
    # As many numbers as the weight, and many more when they are multiplied.
    {"hada_w1_a": _draw(OUT * IN, 2), "hada_w1_b": _draw(2, 1),
     "hada_w2_a": _draw(1, 2), "hada_w2_b": _draw(2, OUT * IN)},
  ):  # fmt: skip
    assert adapter_kinds.merged(LOHA | change, 1.0, weight) is None


def test_small_kernels_of_tucker(tmp_path):
  down, up, mid = _draw(3, IN, 1, 1), _draw(OUT, 2, 1, 1), _draw(2, 3, 3, 3)
  names = ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha")
  values = (down, up, mid, np.float32([3]))
  module = _flat(CONV)
  state = {f"{module}.{k}": v for k, v in zip(names, values, strict=True)}
  found = _merged(state, tmp_path)[f"{CONV}.weight"]
  change = np.zeros((OUT, IN, 3, 3))
  for a in range(2):
    for b in range(3):
      outer = np.outer(up[:, a, 0, 0], down[b, :, 0, 0])
      change += outer[:, :, None, None] * mid[a, b]
  base = _base().states["unet"][f"{CONV}.weight"]
  np.testing.assert_allclose(found, base + change, atol=1e-6)


def test_comfyui_names(tmp_path):
  # LoraSave writes the original layout's names, with their dots.
  base = _base()
  down, up = _draw(2, IN), _draw(OUT, 2)
  inner = "transformer_blocks.0.attn2.to_k"
  text = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
  state = {}
  for module in (f"diffusion_model.input_blocks.1.1.{inner}", text):
    state |= {
      f"{module}.lora_down.weight": down,
      f"{module}.lora_up.weight": up,
    }
  save_file(state, tmp_path / "lora.safetensors")
  found = convert.load(tmp_path / "lora.safetensors", base).states
  for part, name in (
    ("unet", f"{LINEAR}.weight"),
    ("text_encoder", "text_model.encoder.layers.0.mlp.fc1.weight"),
  ):
    wanted = base.states[part][name] + up @ down
    np.testing.assert_allclose(found[part][name], wanted, atol=1e-6)


# Against the tools.


def _modules(torch):
  """A module whose children have the names and weights of `_base`."""
  root, base = torch.nn.Module(), _base().states["unet"]
  for name, layer in (
    (LINEAR, torch.nn.Linear(IN, OUT)),
    (CONV, torch.nn.Conv2d(IN, OUT, 3)),
  ):
    with torch.no_grad():
      layer.weight.copy_(torch.tensor(base[f"{name}.weight"]))
      layer.bias.copy_(torch.tensor(base[f"{name}.bias"]))
    parent = root
    *above, last = name.split(".")
    for child in above:
      if not hasattr(parent, child):
        parent.add_module(child, torch.nn.Module())
      parent = getattr(parent, child)
    parent.add_module(last, layer)
  return root


def _assert_forward(torch, root, found):
  """The tool's layers return what ours do with the merged weights."""
  generator = torch.Generator().manual_seed(0)
  for name, shape, run in (
    (LINEAR, (5, IN), torch.nn.functional.linear),
    (CONV, (2, IN, 5, 5), torch.nn.functional.conv2d),
  ):
    x = torch.randn(shape, generator=generator)
    weight, bias = (
      torch.tensor(found[f"{name}.{k}"]) for k in ("weight", "bias")
    )
    with torch.no_grad():
      theirs = root.get_submodule(name)(x)
    np.testing.assert_allclose(run(x, weight, bias), theirs, atol=2e-5)
    base = torch.tensor(_base().states["unet"][f"{name}.weight"])
    assert not torch.equal(weight, base)


def _randomize(torch, module):
  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for value in module.parameters():
      value.copy_(0.3 * torch.randn(value.shape, generator=generator))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
  "options",
  [
    {"algo": "lora"}, {"algo": "lora", "use_tucker": True},
    {"algo": "lora", "dora_wd": True},
    {"algo": "lora", "dora_wd": True, "wd_on_output": False},
    {"algo": "loha"}, {"algo": "loha", "use_tucker": True},
    {"algo": "loha", "dora_wd": True}, {"algo": "lokr"},
    {"algo": "lokr", "use_tucker": True},
    {"algo": "lokr", "decompose_both": True, "factor": 2},
    {"algo": "lokr", "full_matrix": True}, {"algo": "ia3"},
    {"algo": "full"},
  ],
  ids=str,
)  # fmt: skip
def test_against_the_forward_pass_of_lycoris(options, tmp_path):
  torch = pytest.importorskip("torch")
  lycoris = pytest.importorskip("lycoris")
  root = _modules(torch)
  lycoris.LycorisNetwork.apply_preset({"target_name": [".*"]})
  network = lycoris.create_lycoris(
    root, 1.0, linear_dim=2, linear_alpha=1.0, **options
  )
  network.apply_to()
  _randomize(torch, network)
  network.eval()
  state = network.state_dict().items()
  state = {k: v.detach().contiguous().numpy() for k, v in state}
  assert any(_flat(CONV, "lycoris_") in key for key in state)
  _assert_forward(torch, root, _merged(state, tmp_path))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
  "kind, options",
  [
    ("LoHaConfig", {"r": 2, "alpha": 3}),
    ("LoHaConfig", {"r": 2, "alpha": 3, "use_effective_conv2d": True}),
    ("LoKrConfig", {"r": 2, "alpha": 3}),
    ("LoKrConfig", {"r": 2, "alpha": 3, "use_effective_conv2d": True}),
    ("LoKrConfig", {"r": 2, "alpha": 3, "decompose_both": True}),
    # Both factors are whole, and alpha counts here.
    ("LoKrConfig", {"r": 8, "alpha": 3}),
    ("LoKrConfig", {"r": 8, "alpha": 3, "rank_pattern": {"conv": 16}}),
    ("LoraConfig", {"r": 2, "lora_alpha": 3, "alpha_pattern": {"conv": 5}}),
    ("LoraConfig", {"r": 2, "lora_alpha": 3, "use_rslora": True}),
    ("LoraConfig", {"r": 2, "lora_alpha": 3, "use_dora": True}),
    ("IA3Config", {"feedforward_modules": ["conv"]}),
    ("IA3Config", {"feedforward_modules": []}),
  ],
  ids=str,
)
def test_against_the_forward_pass_of_peft(kind, options, tmp_path):
  torch = pytest.importorskip("torch")
  peft = pytest.importorskip("peft")
  config = getattr(peft, kind)(target_modules=["to_k", "conv"], **options)
  model = peft.get_peft_model(_modules(torch), config)
  adapters = peft.get_peft_model_state_dict(model)
  generator = torch.Generator().manual_seed(1)
  drawn = {
    k: v + 0.3 * torch.randn(v.shape, generator=generator)
    for k, v in adapters.items()
  }
  peft.set_peft_model_state_dict(model, drawn)
  model.eval()
  model.save_pretrained(tmp_path)
  found = convert.load(tmp_path, _base()).states["unet"]
  _assert_forward(torch, model.base_model.model, found)
