"""FID, KID, LPIPS and CLIP score equal the packages of their authors.

`tests/goldens/README.md` says what was run. The tolerances are the features'
1e-3, 1e-4 of FID and KID, LPIPS's 1e-4 and 1e-5 of a cosine.
"""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import unlearning_jax as ul
from tests.support import judge_weights, quality_cases
from unlearning_jax import metrics, models
from unlearning_jax.convert import quality
from unlearning_jax.judges import networks, openai_clip, weights
from unlearning_jax.metrics import kid, lpips, moments
from unlearning_jax.metrics.stacks import STACKS
from unlearning_jax.models.inception import Inception
from unlearning_jax.models.lpips import Lpips

FILE = pathlib.Path(__file__).parents[1] / "goldens/quality.npz"
needs_torch = pytest.mark.skipif(
  importlib.util.find_spec("torch") is None, reason="the oracle"
)


@pytest.fixture(scope="module")
def golden():
  with np.load(FILE) as held:
    found = {key: held[key] for key in held.files}
  assert json.loads(str(found["provenance"]))["packages"]["lpips"] == "0.1.4"
  return found


@pytest.fixture(scope="module")
def inception():
  params = quality.inception(quality_cases.inception(), "random")
  return networks.batched(Inception(), params, lambda seen: seen)


def test_features_of_every_stack_are_those_of_its_tool(golden, inception):
  names = [(s, size) for s in STACKS for size in quality_cases.PICTURES]
  seen = np.concatenate(
    [
      STACKS[s](quality_cases.picture(quality_cases.PICTURES[size])[None])
      for s, size in names
    ]
  )
  found = inception(seen)
  assert found.shape == (8, 2048)
  for (stack, size), vector in zip(names, found, strict=True):
    wanted = golden[f"features/{stack}/{size}"]
    np.testing.assert_allclose(vector, wanted, atol=1e-3)
    # The stacks differ by far more than that.
    for other in STACKS:
      if other != stack:
        apart = np.abs(golden[f"features/{other}/{size}"] - wanted).max()
        assert apart > 0.05


def test_distances_of_the_same_features(golden):
  x, y = quality_cases.vectors()
  rows = [{"model": "m"}] * len(x)
  sets = (moments.gaussian(moments.add({}, v, rows)["m"]) for v in (x, y))
  found = moments.frechet(*sets)
  assert found == pytest.approx(golden["fid/torch-fidelity"], rel=1e-4)
  assert found == pytest.approx(golden["fid/torchmetrics"], rel=1e-4)
  found = kid.mmd(x, y)
  assert found == pytest.approx(golden["kid/torch-fidelity"], rel=1e-4)
  assert found == pytest.approx(golden["kid/torchmetrics"], rel=1e-4)


@pytest.mark.parametrize(
  "network, side",
  [
    ("alex", 64),
    ("alex", 256),
    ("vgg", 64),
    pytest.param("vgg", 256, marks=pytest.mark.slow),
  ],
)
def test_lpips_is_that_of_its_package(golden, network, side):
  params = quality.lpips(*quality_cases.lpips(network), network, "random")
  pixels = lpips.Pixels(side, 0, "bilinear", networks.HALF, networks.HALF)
  pair = np.stack([pixels.resized(one) for one in quality_cases.pairs()])
  levels = lpips._levels(np.stack([pair, pair[[0, 0]]]))
  apply = jax.jit(lambda p, x: models.apply(Lpips(network), p, x))
  wanted = golden[f"lpips/{network}-{side}"]
  # The second pair is the same picture twice.
  np.testing.assert_allclose(apply(params, levels), [wanted, 0], atol=1e-4)


@pytest.fixture
def folder(monkeypatch, tmp_path):
  """A folder of random weights; their hashes are not the published ones."""
  monkeypatch.setenv(weights.VARIABLE, str(tmp_path))
  monkeypatch.setattr(weights.File, "_refuse", lambda *_: None)
  return tmp_path


def rows_of(model, prompts):
  return [
    {"id": str(i), "model": model, "group": "g", "prompt": p, "seed": i}
    for i, p in enumerate(prompts)
  ]


@needs_torch
def test_lpips_of_models_that_draw_the_same_rows(folder):
  import torch

  trunk, linear = judge_weights.lpips(folder, "alex")
  first, second = quality_cases.pairs()
  metric = metrics.load("lpips~network=alex,size=64")
  base, model = (rows_of(name, ["one", "two"]) for name in ("base", "erased"))
  images = np.stack([first, second, second, second])
  group, whole = metric.measure([*base, *model], images)
  assert [one.name for one in (group, whole)] == [
    "lpips/alex-64/g", "lpips/alex-64/all"
  ]  # fmt: skip

  def features(image):
    small = Image.fromarray(image).resize((64, 76), Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.moveaxis(np.asarray(small) / 255.0, -1, 0)).float()
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x = ((x * 2 - 1 - shift) / scale)[None]
    found = []
    for i, layer in enumerate(trunk):
      x = layer(x)
      if i in (1, 4, 7, 9, 11):
        found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
    return found

  with torch.no_grad():
    both = zip(features(first), features(second), strict=True)
    wanted = sum(
      (linear[f"lin{i}.model.1.weight"][0] * (a - b)[0].square()).sum(0).mean()
      for i, (a, b) in enumerate(both)
    )
  # The second row is the same picture twice.
  assert whole.value == pytest.approx(float(wanted) / 2, abs=1e-4)
  beside = [
    row | {"beside": image}
    for row, image in zip(model, (first, second), strict=True)
  ]
  (_, alone) = metric.measure(beside, images[2:])
  assert alone.value == pytest.approx(whole.value, abs=1e-7)
  (none,) = metric.measure(model, images[2:])
  assert none.failed == "the base drew none of its rows"


@needs_torch
def test_clip_score_is_the_cosine_of_transformers(folder):
  import torch
  import transformers

  model = judge_weights.clip(folder, "b32")
  prompts = ["a red star", "a blue moon", "a red star " + "and a moon " * 40]
  images = np.stack([quality_cases.picture((64, 64))] * 3)
  images[1] = images[1, ::-1]
  rows = rows_of("m", prompts)
  with pytest.warns(UserWarning, match="Kept:"):
    _, whole = metrics.load("clip-score").measure(rows, images)
    wide = metrics.load("clip-score~scale=times-100").measure(rows, images)[1]
    paper = metrics.load("clip-score~scale=clipscore").measure(rows, images)[1]
  assert whole.name == "clip-score/cosine/b32/all"
  assert wide.name == "clip-score/times-100/b32/all"
  assert whole.method == "bootstrap, 1 prompts cut" and whole.clusters == 3
  assert wide.value == pytest.approx(100 * whole.value)
  path = str(folder / "clip-vit-base-patch32")
  tokenizer = transformers.CLIPTokenizer.from_pretrained(path)
  given = tokenizer(
    prompts, padding="max_length", truncation=True, max_length=77,
    return_tensors="pt",
  )  # fmt: skip
  mean, std = np.array(openai_clip.MEAN), np.array(openai_clip.STD)
  seen = np.moveaxis((images / 255 - mean) / std, -1, 1)
  with torch.no_grad():
    out = model(
      input_ids=given["input_ids"], pixel_values=torch.from_numpy(seen).float()
    )
    cosines = (out.image_embeds * out.text_embeds).sum(1).numpy()
  assert whole.value == pytest.approx(cosines.mean(), abs=1e-5)
  clamped = 2.5 * np.maximum(cosines, 0).mean()
  assert paper.value == pytest.approx(clamped, abs=1e-5)


def test_another_inception_is_refused():
  state = quality_cases.inception() | {"fc.bias": np.zeros(1000, np.float32)}
  with pytest.raises(ValueError, match="torchvision's own Inception"):
    quality.inception(state, "net.pth")


@pytest.mark.slow
@needs_torch
def test_everything_from_files_as_they_are_published(folder, tmp_path, golden):
  import torch

  state = {k: torch.from_numpy(v) for k, v in quality_cases.inception().items()}
  for name in [k for k in state if k.endswith("running_var")]:
    counter = name.replace("running_var", "num_batches_tracked")
    state[counter] = torch.tensor(0)
  torch.save(state, folder / "pt_inception-2015-12-05-6726825d.pth")
  judge_weights.clip(folder, "b32")
  judge_weights.lpips(folder, "alex")
  for name in ("new", "old"):
    (tmp_path / name).mkdir()
  sizes = quality_cases.PICTURES
  for i, size in enumerate(sizes.values()):
    image = quality_cases.picture(size)
    Image.fromarray(image).save(tmp_path / f"new/{i}.png")
    Image.fromarray(image[::-1]).save(tmp_path / f"old/{i}.png")
  (tmp_path / "new/metadata.csv").write_text(
    "file_name,text\n0.png,a red star\n1.png,a blue moon\n"
  )
  names = ["fid-to-base~few=allow", "kid~reference=base", "clip-score"]
  table = ul.measure(
    tmp_path / "new", [*names, "lpips"],
    base=tmp_path / "old", statistics="t2i", out=tmp_path / "run",
  )  # fmt: skip
  found = {one["name"]: one["value"] for one in table.summary["estimates"]}
  assert found.keys() == {
    "fid-to-base-rank-deficient/t2i/2", "kid/t2i/2",
    "clip-score/cosine/b32/images", "clip-score/cosine/b32/all",
    "lpips/alex-64/images", "lpips/alex-64/all",
  }  # fmt: skip
  assert np.isfinite([*found.values()]).all()
  with np.load(tmp_path / "run/statistics.npz") as held:
    wanted = [golden[f"features/t2i/{size}"] for size in sizes]
    np.testing.assert_allclose(held["features"], wanted, atol=1e-3)
    assert held["n"] == 2 and held["stack"] == "t2i"
    assert str(held["identity"]).startswith("inception-2015 ")
  # They are a reference of their own stack alone.
  place = tmp_path / "run/statistics.npz"
  metrics.load(f"fid~stack=t2i,reference={place}")
  with pytest.raises(ValueError, match="is of stack 't2i', and these pictures"):
    metrics.load(f"fid~stack=clean,reference={place}")
