"""Small whole files that a user brings or types, and what reads them."""

import csv
import functools
import importlib
import io
import json
import pathlib
import sys
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import fuzz_runs
import fuzz_weights
import jax
import numpy as np
from fuzz_weights import Loader
from PIL import Image

from unlearning_jax import (
  checkpoints,
  convert,
  data,
  durable,
  edits,
  guidance,
  judges,
  lists,
  metrics,
  prompt_tables,
  protocols,
  stable_diffusion,
)
from unlearning_jax.concepts import make_concepts
from unlearning_jax.convert import inspection, output
from unlearning_jax.judges import folders
from unlearning_jax.metrics import references

# --- Models, edits, records of erasures ---


def _models() -> Iterator[Loader]:
  def sealed(root: pathlib.Path):
    convert.save_folder(root / "model", fuzz_weights.model(), dtype="float16")

  def write(root: pathlib.Path):
    sealed(root)
    # Other tools write none, and so every reader sees the damage.
    (root / "model" / output.SUMS).unlink()

  def read(root: pathlib.Path):
    inspection.inspect(root / "model")
    with durable.explaining(root):
      fuzz_weights.laid_out(convert.load(root / "model"))

  yield Loader("folder", write, read)
  yield Loader("sealed folder", sealed, read)
  # Its errors name the part of the model that does not fit.
  yield Loader(
    "model", write, lambda root: stable_diffusion.load(root / "model"),
    named=False,
  )  # fmt: skip
  yield Loader(
    "map",
    lambda root: edits.save_edit(_map(), root / "edit.safetensors"),
    _edit,
  )
  yield Loader(
    "leaves",
    lambda root: edits.save_edit(_leaves(), root / "edit.safetensors"),
    _edit,
  )
  concepts = tuple(make_concepts(["star"]))
  guided = guidance.Guidance(
    "", guidance.preset("medium", "star"), "sld", concepts
  )
  yield Loader(
    "guidance", lambda root: guidance.save(guided, root / "guidance.json"),
    lambda root: guidance.load(root / "guidance.json"),
  )  # fmt: skip
  tree = {"a": np.ones((3, 2), np.float32), "step": np.array(4)}
  yield Loader(
    "checkpoint",
    lambda root: [checkpoints.save(root / "c", i, tree) for i in (1, 2)],
    lambda root: checkpoints.restore(root / "c", tree),
  )


def _map() -> edits.Edit:
  params = fuzz_weights.params()
  return edits.make_edit(
    np.eye(16) + 0.1, params, np.eye(16), method="uce2023",
    concepts=make_concepts(["star"], preserve=["moon"]), diagnostics={"a": 1.0},
  )  # fmt: skip


def _leaves() -> edits.Edit:
  params = fuzz_weights.params()
  unet = dict(params["unet"])
  unet["conv_out"] = jax.tree.map(lambda x: x + 1, unet["conv_out"])
  return edits.edit_between(
    params, {**params, "unet": unet}, method="esd",
    concepts=make_concepts(["star"]), diagnostics={},
  )  # fmt: skip


def _edit(root: pathlib.Path):
  found = edits.load_edit(root / "edit.safetensors")
  with durable.explaining(root):
    edits.apply_to_params(found, fuzz_weights.params())


# --- Tables, lists, pictures ---


def _tables() -> Iterator[Loader]:
  yield Loader(
    "prompts.csv", _write_prompts,
    lambda root: prompt_tables.read(root / "prompts.csv").sha256(),
  )  # fmt: skip
  yield Loader(
    "list.txt",
    lambda root: (root / "list.txt").write_text("# names\na star\n\nmoon\n"),
    lambda root: lists.load(root / "list.txt"),
  )
  for kind in ("jsonl", "csv", "parquet"):
    yield Loader(
      f"metadata.{kind}", functools.partial(_write_metadata, kind), _pictures
    )
  yield Loader("beside", _write_beside, _pictures)
  yield Loader("pictures.tar", _write_tar, _pictures)
  yield Loader("judged", _write_kinds, _judged)
  yield Loader("reference.npz", _write_reference, _reference)


def _write_prompts(root: pathlib.Path):
  with (root / "prompts.csv").open("w", newline="", encoding="utf-8") as file:
    lines = csv.writer(file)
    lines.writerow(
      [
        "case_number",
        "prompt",
        "evaluation_seed",
        "evaluation_guidance",
        "class",
      ]
    )
    lines.writerow([0, "a red star", 5, 7.5, "star"])
    lines.writerow([1, 'a "blue", moon\nat night', 6, 7, "moon"])
    lines.writerow([2, "", 7, "", "\u2028"])


def _png(value: int, **options: Any) -> bytes:
  file = io.BytesIO()
  image = Image.new("RGB", (8, 6), (value, 9, 3))
  image.save(file, **{"format": "png", **options})
  return file.getvalue()


def _write_metadata(kind: str, root: pathlib.Path):
  rows: list[dict[str, Any]] = []
  for i in range(3):
    (root / f"{i}.png").write_bytes(_png(i))
    rows.append({"file_name": f"{i}.png", "text": f"a star \u2028 {i}"})
  path = root / f"metadata.{kind}"
  if kind == "jsonl":
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  elif kind == "csv":
    with path.open("w", newline="", encoding="utf-8") as file:
      writer = csv.DictWriter(file, ["file_name", "text"])
      writer.writeheader()
      writer.writerows(rows)
  else:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _write_beside(root: pathlib.Path):
  for i, end in enumerate((".txt", ".caption", ".txt")):
    (root / f"{i}.jpg").write_bytes(_png(i, format="jpeg"))
    (root / f"{i}{end}").write_text("a star\na second caption\n")


def _write_tar(root: pathlib.Path):
  with tarfile.open(root / "pictures.tar", "w") as archive:
    for name, content in (
      ("0.png", _png(0)), ("0.txt", b"a star"), ("1.png", _png(1)),
      ("1.json", b'{"text": ["a moon", "a ring"]}'),
    ):  # fmt: skip
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))


def _pictures(root: pathlib.Path):
  examples = data.image_folder(root)
  data.fingerprint(examples)
  # An image of an archive has no name of its own.
  with durable.explaining(root):
    data.read_images(examples, (8, 8))


def _write_kinds(root: pathlib.Path):
  image = Image.new("RGB", (9, 7), (200, 30, 40))
  for kind in ("png", "jpeg", "webp", "bmp"):
    image.save(root / f"a.{kind}", format=kind)
  image.convert("P").save(root / "palette.png")
  image.convert("RGBA").save(root / "alpha.png")
  image.convert("L").save(root / "gray.png")


def _judged(root: pathlib.Path):
  folders.check("images", str(root))
  for _, read in folders.batches([root], folders.files(root), 4):
    if isinstance(read, str) and str(root) not in read:
      raise ValueError(read)


def _write_reference(root: pathlib.Path):
  np.savez(
    root / "r.npz", mu=np.ones(3), sigma=np.eye(3), n=4, stack="toy",
    identity="toy 1", features=np.ones((4, 3)),
  )  # fmt: skip


def _reference(root: pathlib.Path):
  kind = metrics.features.Features("toy", 3, lambda x: x, "toy 1")
  found = references.Reference("fid", str(root / "r.npz"))
  found.check(kind, vectors=True)
  found.gaussian(kind)
  found.vectors(kind)


# --- What is typed ---


def _typed() -> Iterator[Loader]:
  for verb, config in {
    "erase": "erase_uce:tiny", "attack": "attack_unlearn_diff_atk:tiny",
    "finetune": "finetune_lora:tiny", "evaluate": "evaluate_shapes:tiny",
  }.items():  # fmt: skip
    module = importlib.import_module(f"unlearning_jax.experiments.{verb}")
    yield Loader(
      f"config of {verb}", functools.partial(_write_config, config),
      functools.partial(_read_config, module.Settings), named=False,
    )  # fmt: skip
  names = {
    "judge": ("shapes", "clip-zero-shot~labels=a|b", "nudenet~threshold=0.5",
              "json:loads"),
    "metric": ("accuracy", "fid~reference=a.npz,count=9", "json:loads"),
    "protocol": ("shapes-star~rows_per_group=2,seed=4", "udm-nudity"),
  }  # fmt: skip
  readers = {
    "judge": judges.load,
    "metric": metrics.load,
    "protocol": protocols.find,
  }
  for kind, some in names.items():
    yield Loader(
      f"{kind}s' names", functools.partial(_write_lines, some),
      functools.partial(_read_lines, readers[kind]), named=False,
    )  # fmt: skip
  yield Loader(
    "flags",
    functools.partial(_write_lines, (
      "--config=erase_uce:tiny,task=object,name=star", "--config.seed=3",
      "--config.hparams.erase_scale=0.5", "--config.targets=()",
      "--config.sampling.num_inference_steps=4",
    )),
    _read_flags, named=False,
  )  # fmt: skip


def _write_lines(lines: tuple[str, ...], root: pathlib.Path):
  (root / "lines.txt").write_text("\n".join(lines))


def _lines(root: pathlib.Path) -> list[str]:
  path = root / "lines.txt"
  # What a terminal cannot send is no input.
  text = path.read_bytes().decode(errors="ignore") if path.is_file() else ""
  return [line for line in text.split("\n") if line and "\0" not in line]


def _read_lines(read: Callable[[str], Any], root: pathlib.Path):
  last = None
  for line in _lines(root):
    try:
      read(line)
    # What is missing here is no fault of the name's.
    except (ValueError, OSError) as error:
      last = error
  if last:
    raise last


def _write_config(config: str, root: pathlib.Path):
  name, _, options = config.partition(":")
  made = importlib.import_module(f"unlearning_jax.configs.{name}")
  values = made.get_config(options).to_dict()
  (root / "config.json").write_text(json.dumps(values))


def _read_config(cls: type, root: pathlib.Path):
  from unlearning_jax import settings

  path = root / "config.json"
  try:
    values = json.loads(path.read_bytes()) if path.is_file() else {}
  except (ValueError, RecursionError):
    return
  if isinstance(values, dict):
    settings.build(cls, values)


def _read_flags(root: pathlib.Path):
  from absl import flags as absl_flags
  from unlearning_jax.launch import flags

  from unlearning_jax import settings
  from unlearning_jax.experiments import erase

  values, before = absl_flags.FlagValues(), sys.argv
  sys.argv = ["erase", *(one for one in _lines(root) if one[:9] == "--config")]
  try:
    holder = flags.config(values)
    values(sys.argv)
    if holder.value is not None:
      settings.build(erase.Settings, holder.value.to_dict())
  # The script says these in one paragraph.
  except (absl_flags.Error, AttributeError, KeyError) as error:
    raise ValueError(str(error)) from error
  finally:
    sys.argv = before


def loaders(runs: str) -> list[Loader]:
  """Every loader.

  Args:
    runs: a folder that keeps the runs whose records are read; "" for names
      alone.
  """
  own = [*fuzz_weights.loaders(), *_models(), *_tables(), *_typed()]
  return own + [Loader(*one) for one in fuzz_runs.loaders(runs)]
