"""Statistics beside the edits of `launch.erase`, and what `amend` does."""

import types

import numpy as np
import pytest
from unlearning_jax.configs import erasures

from tests.support.scripts import script
from unlearning_jax import closed_form, shapes, stable_diffusion
from unlearning_jax import exports as export
from unlearning_jax.closed_form import Sums, statistics
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import apply_to_params, edit_between, save_edit
from unlearning_jax.erasures import bind, mace, uce
from unlearning_jax.experiments import amend, common, convert, hooks
from unlearning_jax.experiments import erase as making
from unlearning_jax.model import Model
from unlearning_jax.projections import (
  base_fingerprint,
  cross_attention_kernels,
  text_width,
)

erase = script("erase")


@pytest.fixture(scope="module")
def model():
  return stable_diffusion.load(shapes.model_folder())


def test_erasing_writes_the_statistics(model, tmp_path):
  sd, params = model
  config = erasures.erase("uce", "tiny,task=identity")
  edit = making.made(
    tmp_path / common.EDIT,
    Model(sd, params),
    bind(config.method, config.hparams),
    making.wanted(config.concepts),
    config.seed,
    hooks.keeping(tmp_path, True),
  )
  kept = statistics.load_statistics(tmp_path / hooks.STATISTICS)
  again = statistics.edit_of(kept, params)
  assert np.array_equal(again.context_map, edit.context_map)
  assert (again.base, again.concepts) == (edit.base, edit.concepts)


@pytest.mark.parametrize(
  "way", [("folder",), ("folder", "folder"), ("folder", "delta", "folder"),
          ("folder", "unet", "folder"), ("kohya", "folder")],
)  # fmt: skip
def test_an_edited_model_is_not_erased_from_again(
  way, model, tmp_path, monkeypatch
):
  sd, params = model
  edit = uce.erase(
    sd, params, make_concepts("star", "circle"), None, uce.Hparams()
  )
  ends = ["" if name == "folder" else ".safetensors" for name in way]
  paths = [str(tmp_path / f"{i}{end}") for i, end in enumerate(ends)]
  export.export(paths[0], way[0], sd, edit, params)
  for layout, before, after in zip(way[1:], paths, paths[1:], strict=False):
    convert.run(
      convert.Settings(
        input=before, output=after, base="shapes", format=layout,
        dtype="float16",
      )
    )  # fmt: skip
  config = erasures.erase("uce", "tiny")
  config.model = paths[-1]
  for name, value in {
    "_CONFIG": config,
    "_WORKDIR": str(tmp_path / "run"),
    "_EVERY": 100,
    "_STRICT": False,
    "_EVENTS": False,
    "_EDIT_ONLY": False,
  }.items():
    monkeypatch.setattr(erase, name, types.SimpleNamespace(value=value))
  with pytest.raises(ValueError, match="erased star.*T1 T2 is not the joint"):
    erase.main(None)
  assert not (tmp_path / "run").exists()


def test_what_cannot_be_added_is_refused_before_the_model_is_read(
  model, tmp_path, monkeypatch
):
  uce.gather(
    *model, make_concepts("star", "circle", ["a heart"]), uce.Hparams()
  ).save(tmp_path / "statistics.safetensors")
  monkeypatch.setattr(stable_diffusion, "load", lambda _: 1 / 0)
  known = {"statistics": str(tmp_path), "output": str(tmp_path / "out")}
  for change, message in (
    ({"preserve": ("a moon",)}, "--preserve=.'a moon'.*give --add too"),
    ({"add": ("A  heart",)}, "would be both erased and preserved"),
    ({"weight": ("star",)}, "--weight='star': must be 'concept = e'"),
    ({"task": "objct"}, "--task='objct'.*did you mean 'object'"),
    ({"preset": "uce2024"}, "--preset='uce2024'.*did you mean 'uce202"),
    ({"statistics": None}, "nothing to erase: give --add, or --statistics"),
  ):
    with pytest.raises(ValueError, match=message):
      amend.run(amend.Settings(model="shapes", **known | change))
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", mace.fusion.FUSIONS)
def test_of_mace_concepts_go_and_change_weight(model, tmp_path, how):
  _, params = model
  kernels = cross_attention_kernels(params)
  width = text_width(params)
  rng = np.random.default_rng(0)

  def part(name):
    rows = rng.normal(size=(90, width))
    factors = {
      path: {
        "down": rng.normal(size=(width, 1)),
        "up": rng.normal(size=(1, kernel.shape[1])),
      }
      for path, kernel in kernels.items()
    }
    sums = closed_form.erase_sums(rows, rng.normal(size=rows.shape), 1.0)
    return mace.fusion.Part(name, sums, rows.T @ rows, factors)

  both = mace.Fusion(
    base_fingerprint(params),
    (part("star"), part("heart")),
    Sums.zero(width).gram,
    0.0,
    0.0,
    1.0,
  )
  erased, found = both.solve(params, how)
  edit = edit_between(
    params,
    erased,
    method="mace fixed",
    concepts=make_concepts(["star", "heart"], "circle"),
    diagnostics=found,
  )
  both.save(tmp_path / "statistics.safetensors")
  save_edit(edit, tmp_path / "edit.safetensors")

  def change(**changes):
    settings = amend.Settings(
      model="shapes", output="", statistics=str(tmp_path), **changes
    )
    return amend.of_fusion(settings, params, tmp_path)

  known, amended = change(remove=("star",), weight=("heart = 0.5",))
  assert [(p.name, p.weight) for p in known.parts] == [("heart", 0.5)]
  assert [c.erase for c in amended.concepts] == ["heart"]
  wanted, _ = both.drop("star").reweight("heart", 0.5).solve(params, how)
  edited = apply_to_params(amended, params)
  one, other = map(cross_attention_kernels, (edited, wanted))
  for path, kernel in one.items():
    assert np.array_equal(kernel, other[path])
  with pytest.raises(ValueError, match="MACE trains an adapter for each"):
    change(add=("moon",))
  with pytest.raises(ValueError, match="did you mean 'star'"):
    change(remove=("stars",))
