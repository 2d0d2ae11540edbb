"""`python -m launch.convert`, as a user runs it."""

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support import scripts, single_files, tiny_pipelines
from unlearning_jax import convert, stable_diffusion
from unlearning_jax.edits import apply_to_params, load_edit

torch = pytest.importorskip("torch")
pytestmark = [
  pytest.mark.torch,
  pytest.mark.e2e,
  pytest.mark.filterwarnings("ignore::UserWarning"),
]


def _run(folder, *flags):
  return scripts.run("convert", *flags, cwd=folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with a base model in it, and published parts of others."""
  place = tmp_path_factory.mktemp("place")
  (place / "base").mkdir()
  tiny_pipelines.write(place / "base")
  base = convert.load(place / "base")
  torch.save(
    {
      "state_dict": {
        key: torch.tensor(value)
        for key, value in single_files.from_diffusers(base.states, 2, 2).items()
      }
    },
    place / "single.ckpt",
  )
  name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
  edit = {name: base.states["unet"][name] + 1}
  save_file(edit, place / "edit.safetensors")
  save_file({"nothing": np.ones(1, np.float32)}, place / "not.safetensors")
  return place


def test_single_file_to_folder(place):
  result = _run(place, "--input=single.ckpt", "--base=base", "--output=out")
  assert result.returncode == 0, result.stderr
  found, base = convert.load(place / "out"), convert.load(place / "base")
  assert convert.fingerprint(found.states) == convert.fingerprint(base.states)
  assert "unet: " in result.stderr and "written to out" in result.stderr


def test_a_folder_to_a_single_file_and_back(place):
  file = "whole.safetensors"
  flags = ["--format=single_file", "--dtype=bfloat16", f"--output={file}"]
  result = _run(place, "--input=base", *flags)
  assert result.returncode == 0, result.stderr
  assert "bfloat16 loses 0.00" in result.stderr
  base = convert.load(place / "base")
  again = convert.load(place / file, place / "base")
  for part, state in base.states.items():
    for name, value in state.items():
      wanted = value.astype(ml_dtypes.bfloat16).astype("f4")
      np.testing.assert_array_equal(again.states[part][name], wanted)


def test_edit_to_folder_to_delta(place):
  result = _run(
    place, "--input=edit.safetensors", "--base=base", "--output=edited"
  )
  assert result.returncode == 0, result.stderr
  result = _run(
    place,
    "--input=edited",
    "--base=base",
    "--format=delta",
    "--output=delta.safetensors",
  )
  assert result.returncode == 0, result.stderr
  delta, edit = (
    load_file(place / f"{n}.safetensors") for n in ("delta", "edit")
  )
  assert delta.keys() == edit.keys()
  for name, value in edit.items():
    np.testing.assert_array_equal(delta[name], value)


def test_a_published_unet_to_an_edit(place):
  base = convert.load(place / "base")
  unet = {key: torch.tensor(v) for key, v in base.states["unet"].items()}
  name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
  torch.save({name: unet[name]}, place / "same.pt")
  torch.save(unet | {name: unet[name] + 1}, place / "esd church.pt")
  torch.save({name: torch.zeros(3, 3)}, place / "shape.pt")
  flags = ["--base=base", "--format=edit", "--erased=church", "--erased=house"]
  file = place / "church.safetensors"
  result = _run(place, "--input=esd church.pt", *flags, f"--output={file}")
  assert result.returncode == 0, result.stderr
  assert "1 leaves differ" in result.stderr
  edit = load_edit(file)
  assert [c.erase for c in edit.concepts] == ["church", "house"]
  assert edit.method == "esd-church"
  # Over the base it is the published model, which convert makes a folder of.
  result = _run(
    place, "--input=esd church.pt", "--base=base", "--output=church"
  )
  assert result.returncode == 0, result.stderr
  params = stable_diffusion.load(place / "base")[1]
  edited = apply_to_params(edit, params)
  wanted = stable_diffusion.load(place / "church")[1]
  jax.tree.map(np.testing.assert_array_equal, edited, wanted)
  for name, words in (("same", "changes nothing"), ("shape", "(3, 3)")):
    result = _run(place, f"--input={name}.pt", *flags, "--output=x.safetensors")
    assert result.returncode != 0 and words in result.stderr
    assert not (place / "x.safetensors").exists()


@pytest.mark.parametrize(
  "flags, pattern",
  [
    (["--input=base", "--output=base"], "exists; replace it with --overwrite"),
    (["--input=base", "--output=x", "--format=delta"], "needs --base"),
    (["--input=base", "--output=x", "--format=edit"], "needs --base"),
    (
      ["--input=a.pt", "--base=base", "--output=x.safetensors"]
      + ["--format=edit"],
      "no other format takes it",
    ),
    (
      ["--input=a.pt", "--base=base", "--output=x.safetensors"]
      + ["--format=edit", "--erased=a", "--erased=A"],
      "twice",
    ),
    (
      ["--input=a.pt", "--base=base", "--output=x.safetensors"]
      + ["--format=edit", "--erased=a", "--dtype=float16"],
      "an edit holds float32 weights",
    ),
    (["--input=base", "--output=x", "--erased=a"], "and no other"),
    (["--input=base", "--output=x", "--format=unet"], "ends in .safetensors"),
    (
      ["--input=base", "--output=x.pt", "--format=single_file"],
      "ends in .safetensors or .ckpt",
    ),
    (["--input=edit.safetensors", "--output=x"], "has no tokenizer"),
    (["--input=nowhere", "--output=x"], "nowhere: no such file or folder"),
    (["--input=base", "--output=x", "--dtype=fp8"], "fp8"),
    (
      ["--input=not.safetensors", "--base=base", "--output=x"],
      "none of its 1 tensors",
    ),
  ],
)
def test_bad_input(flags, pattern, place):
  result = _run(place, *flags)
  assert result.returncode != 0
  assert pattern in result.stderr + result.stdout
  assert not (place / "x").exists()
