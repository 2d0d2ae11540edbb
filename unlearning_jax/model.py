"""A model that can be drawn, attacked, tuned and judged.

  model = load("shapes")                      # or a folder, or a hub id
  images = model.generate(["a red star"], seeds=[0])

A base, an erased, a tuned, a guided and a published model are all `Model`s: the
base's weights with an edit or guidance. A context map changes text states only,
so any number of erased models share the base's UNet, in one batch and once on
the devices.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from unlearning_jax import (
  convert,
  durable,
  edits,
  exports,
  extensions,
  renamed,
  sampling,
  stable_diffusion,
)
from unlearning_jax import guidance as guidance_
from unlearning_jax import probe as probe_
from unlearning_jax.concepts import check_choice
from unlearning_jax.convert import names, output, reader
from unlearning_jax.edits import Edit
from unlearning_jax.guidance import Guidance
from unlearning_jax.models import attention as attentions
from unlearning_jax.models import fast
from unlearning_jax.probe import Probe
from unlearning_jax.record import seal
from unlearning_jax.stable_diffusion import Params, StableDiffusion


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
  """A base with an edit or guidance.

  Attributes:
    sd: networks, schedule and tokenizer; it holds no arrays.
    params: the base's {text_encoder, unet, vae}.
    edit: what an erasure or tuning changed; None for nothing.
    guidance: how sampling is guided away from something; None for not at all.
    source: where the base was read from: a world's name, a folder, a hub id.
    probe: figures of the erasure's probe; None where it was not probed.

  Raises:
    ValueError: the edit was made from another base.
  """

  sd: StableDiffusion
  params: Params
  edit: Edit | None = None
  guidance: Guidance | None = None
  source: str = ""
  probe: Probe | None = None

  def __post_init__(self):
    if self.edit is not None:
      edits.check_base(self.edit, self.params)

  def __repr__(self) -> str:
    """A short text; the weights would be megabytes."""
    said = f", {self.probe.sentence}" if self.probe else ""
    return f"Model({self.source!r}, {self.name}{said})"

  @property
  def name(self) -> str:
    """The name on pages: the method without its recipe, or `base`."""
    made = self.edit or self.guidance
    return called(made) if made else "base"

  @property
  def base(self) -> "Model":
    """The model without edit and guidance."""
    return dataclasses.replace(self, edit=None, guidance=None, probe=None)

  @property
  def weights(self) -> Params:
    """The parameters with the edit in them."""
    if self.edit is None:
      return self.params
    return edits.apply_to_params(self.edit, self.params)

  @property
  def drawn_params(self) -> Params:
    """The parameters to draw with; a context map is not in them."""
    shared = self.edit is not None and self.edit.context_map is not None
    return self.params if shared else self.weights

  @property
  def drawing(self) -> dict[str, Any]:
    """The arguments of the sampler that go with `drawn_params`."""
    mapped = None
    if self.edit is not None and self.edit.context_map is not None:
      mapped = functools.partial(edits.apply_to_context, self.edit)
    given = self.guidance
    return {
      "edit_context": mapped,
      "negative_prompt": given.negative_prompt if given else "",
      "safe": given.safe if given else None,
    }

  def with_made(self, made: Edit | Guidance) -> "Model":
    """The model with what an erasure made, an edit or guidance."""
    if isinstance(made, Guidance):
      return self.with_guidance(made)
    return self.with_edit(made)

  def with_edit(self, edit: Edit) -> "Model":
    """The base with an edit that an erasure or tuning made."""
    return dataclasses.replace(self, edit=edit, probe=None)

  def with_guidance(self, guidance: Guidance) -> "Model":
    """This model with guidance."""
    return dataclasses.replace(self, guidance=guidance, probe=None)

  def generate(
    self, prompts: Sequence[str], seeds: Sequence[int], **options: Any
  ) -> UInt8[np.ndarray, "n h w 3"]:
    """Draws prompts; an image depends on its own prompt and seed alone.

    Args:
      prompts: n texts.
      seeds: n seeds of the initial noise.
      **options: of `sampling.generate`, as `num_inference_steps`.

    Raises:
      ValueError: prompts are missing or fewer than seeds, a prompt is too long,
        or an option cannot be used.
    """
    if not prompts:
      raise ValueError("prompts: none to draw")
    for prompt in prompts:
      if not isinstance(prompt, str):
        raise ValueError(f"prompts: {prompt!r} is not a text")
    for name in options:
      check_choice("option", name, sampling.OPTIONS)
    batches = sampling.generate(
      self.sd, self.drawn_params, prompts, seeds, **self.drawing, **options
    )
    return np.concatenate(list(batches))

  def save(
    self, path: str | os.PathLike[str], format: str, **options: Any
  ) -> dict[str, Any]:
    """Writes the edit, or the edited model, for this or another tool.

    Args:
      path: a folder for `format="folder"`, else a file.
      format: one of `exports.FORMATS`.
      **options: of `exports.export`: `dtype`, `rank`, `overwrite`.

    Returns:
      What the format costs in exactness, as `exports.export` reports it.

    Raises:
      ValueError: there is no edit, the model is guided, or `exports.export`
        refuses.
    """
    if self.guidance is not None:
      way = (
        "unlearning_jax.guidance.save(model.guidance, FILE) keeps it, for "
        "--edits"
      )
      if self.edit is not None:
        way = (
          "Save the model without it: dataclasses.replace(model, guidance=None)"
        )
      raise ValueError(
        f"save: guidance changes no weight; a file cannot hold it. {way}"
      )
    if self.edit is None:
      raise ValueError("save: this is the base, there is no edit to write")
    for name in options:
      check_choice("save: option", name, ("dtype", "rank", "overwrite"))
    return exports.export(
      path, format, self.sd, self.edit, self.params, **options
    )


def called(made: Edit | Guidance) -> str:
  """What pages and files of images call it: its method, without the recipe."""
  # Guidance of one's own may name no method, and a file may be called so.
  name = (made.method.split() or ["guided"])[0].upper()
  return re.sub(r"[^\w.+@-]+", "-", name)


def distinct(names: Iterable[str]) -> list[str]:
  """The names; `-2` marks the second of a name."""
  found: list[str] = []
  for name in names:
    one, count = name, 1
    while one in found:
      count += 1
      one = f"{name}-{count}"
    found.append(one)
  return found


def load(
  source: str | os.PathLike[str],
  *,
  base: "str | os.PathLike[str] | Model | None" = None,
  dtype: str = "float32",
  attention: str = "auto",
  kernels: str = "exact",
) -> Model:
  """Reads a model: of an embedded world, a folder, a hub, or a run.

  Args:
    source: "shapes"; a diffusers folder; `owner/name[@revision]`; an edit's
      file; the folder of a finished erasure or fine-tuning, whose last step is
      taken; or, with `base`, weights of any kind that `inspect` knows.
    base: the base of an edit, where no run beside the edit names it; or the
      model over which weights are laid. What they change becomes its edit.
    dtype: the type that UNet and VAE compute in, float32 or bfloat16;
      parameters stay float32.
    attention: `auto`, `dense`, `chunked` or `cudnn`, see `models.attention`.
    kernels: `exact`; or `fast`, with which a CPU draws and attacks sooner, and
      images differ by a grey level at most.

  Raises:
    ValueError: the model cannot be read whole; an edit has no base or another
      one; weights over a base change nothing; a run has not ended; or
      `attention` is not available here.
  """
  if not isinstance(source, str | os.PathLike):
    raise ValueError(f"load: source={source!r} is no name and no folder")
  # Checked before gigabytes are read.
  check_choice("dtype", str(dtype), ("float32", "bfloat16"))
  attentions.check(attention, dtype)
  fast.check(kernels)
  how: dict[str, Any] = {
    "dtype": dtype,
    "attention": attention,
    "kernels": kernels,
  }
  name = os.fspath(source)
  if name not in extensions.worlds():
    made = _made(pathlib.Path(name))
    if made is not None:
      if not isinstance(base, Model):
        known = base or _base_of(made)
        base = load(known, **how).base
      if made.suffix == ".json":
        loaded = base.with_guidance(guidance_.load(made))
      else:
        edit = edits.load_edit(made)
        with durable.explaining(made, "does not fit"):
          loaded = base.with_edit(edit)
      return dataclasses.replace(loaded, probe=probe_.of(made))
  if base is not None:
    whole = (pathlib.Path(name) / output.MARK).is_file()
    if whole or name in extensions.worlds():
      raise _whole(name)
    if not isinstance(base, Model):
      base = load(base, **how)
    return _over(name, base)
  if not (name in extensions.worlds() or "/" in name or os.path.exists(name)):
    check_choice("no such file or folder, and world", name, extensions.worlds())
  path = name
  if name in extensions.worlds():
    path = extensions.world(name).model_folder()
  how["dtype"] = jnp.dtype(dtype)
  sd, params = stable_diffusion.load(path, **how)
  return Model(sd, params, source=name)


def _over(path: str, base: Model) -> Model:
  """The base with what weights laid over it change: a UNet, a LoRA, a file."""
  if base.guidance is not None:
    raise ValueError(
      f"base: it is guided, and a model of {path} would lose that; give the "
      "model without it: dataclasses.replace(base, guidance=None)"
    )
  states = {part: names.torch_views(x) for part, x in base.weights.items()}
  known = dataclasses.replace(base.sd.files, states=states)
  files = convert.load(path, known)
  # Parts keep the base's configs; a folder from the hub brings its own.
  if files.configs is not known.configs:
    raise _whole(path)
  files = convert.without_new_words(files, known)
  _, params = stable_diffusion.from_files(files)
  # As an edit it can be written in every format, and shares the base's arrays.
  changed = edits.edit_between(
    base.params,
    params,
    method="-".join(pathlib.Path(path).stem.split()),
    concepts=base.edit.concepts if base.edit else (),
    diagnostics={},
  )
  return base.with_edit(changed)


def _whole(name: str) -> ValueError:
  return ValueError(
    f"base: {name} is a whole model and is no edit, so it needs no base"
  )


def finished(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """The config of a run that has ended.

  Raises:
    ValueError: it is no run's folder, or the run has not ended.
    DamagedError: a file is not what the run wrote.
  """
  path = pathlib.Path(folder)
  if not (path / "config.json").is_file():
    raise ValueError(f"{path}: is no run's folder; it has no config.json")
  if not (path / "DONE").exists():
    raise ValueError(f"{path}: the run has not ended; start it again to go on")
  seal.check(path)
  return renamed.config(durable.read_json(path / "config.json"))


def _made(path: pathlib.Path) -> pathlib.Path | None:
  """The file of the edit or guidance that a path stands for; None for none."""
  if path.is_file() and path.suffix == ".safetensors":
    known = reader.read_metadata(path).get("format") == edits.FORMAT
    if known:
      seal.check_file(path)
    return path if known else None
  if (path / "unet").is_dir():
    return None
  if not (path / "config.json").is_file():
    # The folder of an amendment, which is no run.
    alone = path / "edit.safetensors"
    return _made(alone) if alone.is_file() else None
  # A network of diffusers or transformers has a config.json too.
  if {"_class_name", "architectures"} & set(
    durable.read_json(path / "config.json")
  ):
    return None
  finished(path)
  files = [path / "edit.safetensors", path / "guidance.json"]
  files += sorted(path.glob("steps/*.safetensors"))
  files = [file for file in files if file.is_file()]
  if not files:
    raise ValueError(
      f"{path}: this run made no edit; name the folder of an erasure"
    )
  return files[-1]


def _base_of(file: pathlib.Path) -> str:
  """The source of the base, as the run of an edit's file recorded it."""
  for folder in (file.parent, file.parent.parent):
    config = folder / "config.json"
    if config.is_file():
      if found := durable.read_json(config).get("model"):
        return str(found)
  raise ValueError(
    f"{file}: an edit, and no run beside it names its base; give it: "
    f"load({str(file)!r}, base=...)"
  )
