"""Inputs that `benchmarks/fuzz.py` found, or that are like these.

Each is refused by a ValueError that names the file, and the key if there is
one; nothing waits, and nothing is allocated for what a file does not hold.
"""

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping

import numpy as np
import pytest
import safetensors.numpy

from unlearning_jax import (
  data,
  durable,
  edits,
  extensions,
  guidance,
  judges,
  lists,
  metrics,
  probe,
  prompt_tables,
  settings,
)
from unlearning_jax.convert import adapters, arrays, inspection, reader
from unlearning_jax.metrics import features, references
from unlearning_jax.models import ClipTextModel, UNet2DCondition
from unlearning_jax.record import provenance, read_rows

DEEP = b"[" * 100_000
# What reads a file, by a name that it may have.
READERS = {
  "a.json": durable.read_json,
  "model.safetensors.index.json": reader.read_state_dict,
  "a.safetensors": reader.read_state_dict,
  "b.safetensors": inspection.inspect,
  "edit.safetensors": edits.load_edit,
  "a.pt": reader.read_headers,
  "a.msgpack": reader.read_state_dict,
  "a.p": arrays.read_array,
  "guidance.json": guidance.load,
  "prompts.csv": prompt_tables.read,
  "list.txt": lists.load,
  "a.tar": data.image_folder,
  "metadata.jsonl": lambda path: data.image_folder(path.parent),
  "provenance.json": provenance.starts,
  "results.jsonl": lambda path: read_rows(path.parent),
  "edit.probe.json": lambda path: probe.of(path.with_name("edit.safetensors")),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_not_waited_for(name, tmp_path):
  os.mkfifo(tmp_path / name)
  # `metadata.jsonl` that is no file is none of a folder of images.
  words = "metadata.jsonl" if name == "metadata.jsonl" else "pipe|" + name
  with pytest.raises(ValueError, match=words):
    READERS[name](tmp_path / name)


def test_a_pipe_among_the_pictures(tmp_path):
  (tmp_path / "0.txt").write_text("a star")
  os.mkfifo(tmp_path / "0.png")
  with pytest.raises(ValueError, match="0.png: is a folder, a pipe"):
    data.image_folder(tmp_path)


def test_a_message_is_no_page(tmp_path):
  (tmp_path / "metadata.csv").write_text("a" * 50_000 + ",text\n1,2\n")
  with pytest.raises(ValueError, match="no 'file_name'") as found:
    data.image_folder(tmp_path)
  assert len(str(found.value)) < 1000


@pytest.mark.parametrize("content", [b"", DEEP, b"\xff\xfe", b"[1]\n", b"{}\n"])
@pytest.mark.parametrize("name", READERS)
def test_what_a_file_does_not_hold(name, content, tmp_path):
  path = tmp_path / name
  path.write_bytes(content)
  # A torn last line is none, and what is not empty lists something.
  torn = name == "results.jsonl" and not content.endswith(b"\n")
  if torn or (name == "list.txt" and content[:1] in (b"[", b"{")):
    return
  if (name, content) == ("a.json", b"{}\n"):
    return
  with pytest.raises(ValueError, match=name.replace(".", r"\.")):
    READERS[name](path)


def test_json_may_begin_with_a_byte_order_mark(tmp_path):
  path = tmp_path / "a.json"
  path.write_text('{"a": 1}', encoding="utf-8-sig")
  assert durable.read_json(path) == {"a": 1}


@pytest.mark.parametrize(
  "change, words",
  [
    ({"concepts": "{}"}, "concepts: holds a dict, not a list"),
    ({"concepts": "[7]"}, "concepts: are no concepts"),
    ({"concepts": '[{"preserve": 5}]'}, "concepts: are no concepts"),
    (
      {"concepts": '[{"erase": 5, "preserve": []}]'},
      "concepts: are no concepts: .*erase=5",
    ),
    ({"diagnostics": "[1"}, "diagnostics: not readable as JSON"),
    ({"diagnostics": DEEP.decode()}, "diagnostics: not readable as JSON"),
  ],
)
def test_the_header_of_an_edit(change, words, tmp_path):
  path = tmp_path / "edit.safetensors"
  header = {
    "format": edits.FORMAT, "base": "a", "method": "uce", "concepts": "[]",
    "diagnostics": "{}",
  }  # fmt: skip
  tensors = {"context_map": np.eye(2)}
  safetensors.numpy.save_file(tensors, path, header | change)
  with pytest.raises(ValueError, match=f"edit.safetensors: {words}"):
    edits.load_edit(path)


@pytest.mark.parametrize(
  "key, value",
  [
    ("alpha_pattern", True), ("alpha_pattern", {"to_k": "a"}),
    ("rank_pattern", {"(": 1}), ("rank_pattern", {"(a*)*b": 1}),
    ("lora_alpha", "4"), ("r", [1]), ("lora_alpha", float("nan")),
  ],
)  # fmt: skip
def test_the_numbers_of_peft(key, value, tmp_path):
  name = "mid_block.attn2.to_k"
  tensors = {
    f"base_model.model.{name}.lora_A.weight": np.ones((2, 4), np.float32),
    f"base_model.model.{name}.lora_B.weight": np.ones((4, 2), np.float32),
  }
  path = tmp_path / "adapter_model.safetensors"
  safetensors.numpy.save_file(tensors, path)
  config = {"r": 2, "lora_alpha": 4, key: value}
  (tmp_path / "adapter_config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=f"adapter_config.json: {key}="):
    adapters.read_lora(path, {"unet": [f"{name}.weight"]})


@pytest.mark.parametrize(
  "network, key, value, allowed",
  [
    (UNet2DCondition, "block_out_channels", 3, "a list, each a whole number"),
    (UNet2DCondition, "block_out_channels", [1 << 40], "a list, each"),
    (UNet2DCondition, "cross_attention_dim", None, "a whole number"),
    (UNet2DCondition, "norm_eps", float("nan"), "a finite number"),
    (UNet2DCondition, "norm_eps", 10**400, "a finite number"),
    (UNet2DCondition, "flip_sin_to_cos", "no", "true or false"),
    (ClipTextModel, "num_hidden_layers", "12", "a whole number"),
    (ClipTextModel, "hidden_act", 3, "a text"),
  ],
)
def test_the_config_of_a_network(network, key, value, allowed):
  with pytest.raises(
    ValueError, match=f"{key}=.* is not supported; .*{allowed}"
  ):
    network.from_config({key: value})


def test_a_number_of_thousands_of_digits(tmp_path):
  path = tmp_path / "prompts.csv"
  path.write_text(f"prompt,evaluation_seed\na star,{'9' * 5000}\n")
  with pytest.raises(ValueError, match="row 1: evaluation_seed='999"):
    prompt_tables.read(path)


def test_a_pickle_that_asks_for_more_than_the_file_holds(tmp_path):
  path = tmp_path / "a.pt"
  # BINBYTES8 and BYTEARRAY8 of 2^60 bytes, in a file of the older format.
  for opcode in (b"\x8e", b"\x96"):
    path.write_bytes(b"\x80\x05" + opcode + (1 << 60).to_bytes(8, "little"))
    for read in (reader.read_state_dict, arrays.read_array):
      with pytest.raises(ValueError, match="a.pt: not a readable") as found:
        read(path)
      assert "Memory" not in repr(found.value.__cause__)


@pytest.mark.parametrize("name", [":x", ".a:b", "json:loads", "json:none"])
@pytest.mark.parametrize("load", [judges.load, metrics.load])
def test_a_name_that_stands_for_nothing(load, name):
  with pytest.raises(ValueError, match=f"'{name}'"):
    load(name)


def test_a_function_whose_options_cannot_be_read():
  with pytest.raises(ValueError, match="judge='a:b': is no function whose"):
    extensions.options("judge", "a:b", range, {})


def test_other_breaks_are_part_of_a_text(tmp_path):
  """U+2028 and U+0085 break a line for Python, not in a list or a caption."""
  text = "a star \u2028 at \x85 night"
  (tmp_path / "list.txt").write_text(f"{text}\r\nmoon\n", encoding="utf-8-sig")
  assert lists.load(tmp_path / "list.txt") == (text, "moon")
  from PIL import Image

  Image.new("RGB", (2, 2)).save(tmp_path / "0.png")
  (tmp_path / "0.txt").write_text(f"{text}\r\nmoon\n")
  (found,) = data.image_folder(tmp_path)
  assert found.captions == (text, "moon")
  row = json.dumps({"file_name": "0.png", "text": text}, ensure_ascii=False)
  (tmp_path / "metadata.jsonl").write_text(f"\ufeff{row}\r\n\n")
  (found,) = data.image_folder(tmp_path)
  assert found.captions == (text,)


@dataclasses.dataclass(frozen=True)
class Listing:
  names: tuple[str, ...] = ()
  table: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if len(self.names) > 3 or self.table.get("a"):
      raise ValueError("names: too many")


@pytest.mark.parametrize(
  "values, words",
  [
    ({"names": None}, "run.names=None: must be a list"),
    ({"table": 3}, "run.table=3: must be a mapping"),
    ({"n" * 5000: 1}, "run.nnn"),
  ],
)
def test_a_setting_of_the_wrong_kind(values, words):
  with pytest.raises(ValueError, match=words) as found:
    settings.build(Listing, values, "run")
  assert len(str(found.value)) < 1000


@pytest.mark.parametrize("name", ["mu", "sigma.np", "n"])
def test_an_archive_with_an_entry_that_is_no_array(name, tmp_path):
  path = tmp_path / "r.npz"
  np.savez(path, mu=np.ones(2), sigma=np.eye(2))
  with zipfile.ZipFile(path, "a") as archive:
    archive.writestr(name, b"no array")
  kind = features.Features("toy", 2, lambda x: x, "toy 1")
  with pytest.raises(ValueError, match="r.npz"):
    references.Reference("fid", str(path)).check(kind)


def test_a_pipe_beside_a_cell(tmp_path):
  os.mkfifo(tmp_path / "cost.json")
  with pytest.raises(ValueError, match="cost.json: is a folder, a pipe"):
    durable.read_text(tmp_path / "cost.json")
