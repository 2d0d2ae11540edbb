"""ResNets and ViTs as judges: their pixels, labels, and the files they refuse.

Oracles of the pixels: transformers' image processors, which use Pillow. The
networks themselves are compared in `convert/vision_test.py`.
"""

import json

import numpy as np
import pytest

from tests.support import judge_weights
from unlearning_jax import judges
from unlearning_jax.judges import (
  Target,
  imagenet,
  processors,
  weights,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("judges")
  judge_weights.classifiers(path)
  return path


@pytest.fixture
def published(monkeypatch, folder):
  """A folder whose files have other hashes than the published ones."""
  monkeypatch.setattr(weights.File, "_refuse", lambda *_: None)
  monkeypatch.setenv(weights.VARIABLE, str(folder))
  return folder


def images_of(n=2, height=90, width=75):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def softmax(out):
  return out.logits.double().softmax(-1).numpy()


def test_imagenet_has_the_benchmarks_objects():
  # As the Unlearned-DM benchmark numbers them.
  objects = {
    "tench": 0, "English springer": 217, "cassette player": 482,
    "chain saw": 491, "church": 497, "French horn": 566,
    "garbage truck": 569, "gas pump": 571, "golf ball": 574, "parachute": 701,
  }  # fmt: skip
  labels = imagenet.labels()
  assert len(set(labels)) == 1000
  assert {name: labels.index(name) for name in objects} == objects


def test_microsofts_resnet_as_transformers_runs_it(published):
  from transformers.models.convnext.image_processing_pil_convnext import (
    ConvNextImageProcessorPil,
  )

  given = judge_weights.CONVNEXT | {"size": {"shortest_edge": 224}}
  processor = ConvNextImageProcessorPil(**given)
  images = images_of()
  seen = processor(list(images), return_tensors="pt")["pixel_values"]
  pixels = processors.convnext(
    "j", published / "resnet-50/preprocessor_config.json"
  )
  np.testing.assert_allclose(
    pixels(images), seen.permute(0, 2, 3, 1), atol=1e-6
  )
  model = transformers.ResNetForImageClassification.from_pretrained(
    published / "resnet-50"
  ).eval()
  with torch.no_grad():
    wanted = softmax(model(seen))
  judge = judges.load("resnet50-microsoft")
  scores = judge(images)
  np.testing.assert_allclose(scores["object"], wanted, atol=1e-5)
  seen_ = [one["object"] for one in judge.decide(scores)]
  assert seen_ == [imagenet.labels()[i] for i in wanted.argmax(-1)]


def test_the_two_resnets_are_never_mixed(published, tmp_path, monkeypatch):
  one, other = (judges.load(f"resnet50-{n}") for n in ("v2", "microsoft"))
  assert one.identity != other.identity and one.sees != other.sees
  state = judge_weights.torchvision_state(judge_weights.resnet())
  folder = tmp_path / "resnet-50"
  judge_weights.resnet().save_pretrained(folder)
  judge_weights.processor(folder, **judge_weights.CONVNEXT)
  (folder / "model.safetensors").unlink()
  torch.save(state, folder / "pytorch_model.bin")
  with pytest.raises(ValueError, match="--judge=resnet50-v2"):
    judges.load("resnet50-microsoft", judges_dir=str(tmp_path))
  torch.save(
    judge_weights.resnet().state_dict(), tmp_path / "resnet50-11ad3fa6.pth"
  )
  with pytest.raises(ValueError, match="missing: conv1.weight"):
    judges.load("resnet50-v2", judges_dir=str(tmp_path))
  # The published file is known by its hash: V1 has the same shapes.
  monkeypatch.undo()
  torch.save(state, tmp_path / "resnet50-11ad3fa6.pth")
  with pytest.raises(ValueError, match="wanted 11ad3fa6"):
    judges.load("resnet50-v2", judges_dir=str(tmp_path))


def test_what_the_resnet_cannot_do_is_refused(tmp_path):
  model = judge_weights.resnet(classes=7)
  model.save_pretrained(tmp_path / "resnet-50")
  judge_weights.processor(tmp_path / "resnet-50", size=400)
  with pytest.raises(ValueError, match="have 7 classes"):
    judges.load("resnet50-microsoft", judges_dir=str(tmp_path))
  path = tmp_path / "resnet-50/config.json"
  config = json.loads(path.read_text()) | {"downsample_in_first_stage": True}
  path.write_text(json.dumps(config))
  with pytest.raises(ValueError, match="downsample_in_first_stage=True"):
    judges.load("resnet50-microsoft", judges_dir=str(tmp_path))
  judge_weights.resnet().save_pretrained(tmp_path / "resnet-50")
  with pytest.raises(ValueError, match="size=400; wanted a shortest_edge"):
    judges.load("resnet50-microsoft", judges_dir=str(tmp_path))


def test_style_as_transformers_runs_it(published):
  from transformers.models.vit.image_processing_pil_vit import (
    ViTImageProcessorPil,
  )

  folder = published / "style-vit-129"
  processor = ViTImageProcessorPil.from_pretrained(folder)
  images = images_of()
  seen = processor(list(images), return_tensors="pt")["pixel_values"]
  pixels = processors.vit("j", folder / "preprocessor_config.json")
  np.testing.assert_allclose(
    pixels(images), seen.permute(0, 2, 3, 1), atol=1e-6
  )
  model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
  with torch.no_grad():
    wanted = softmax(model(seen))
  judge = judges.load("style-vit-129")
  scores = judge(images)
  np.testing.assert_allclose(scores["style"], wanted, atol=1e-5)
  assert judge.labels["style"][:2] == ("painter-0", "painter-1")


def test_the_likeliest_and_the_three_likeliest(published):
  first, three = (judges.load(f"style-vit-129~top={k}") for k in (1, 3))
  assert first.identity != three.identity and "top 3" in three.identity
  assert judges.load("style-vit-129").identity == first.identity
  scores = first(images_of())
  labels = first.labels["style"]
  for place, (one, among) in enumerate(
    [(True, True), (False, True), (False, True), (False, False)]
  ):
    ranked = np.argsort(-scores["style"], axis=1)[:, place]
    for i, k in enumerate(ranked):
      target = Target("style", labels[k])
      assert first.shows(scores, target)[i][0] == one
      assert three.shows(scores, target)[i][0] == among


def test_other_processors_and_heads_of_style_are_refused(tmp_path):
  folder = tmp_path / "style-vit-129"
  judge_weights.vit(129).save_pretrained(folder)
  judge_weights.processor(folder, size={"shortest_edge": 32})
  with pytest.raises(ValueError, match="wanted a height and a width"):
    judges.load("style-vit-129", judges_dir=str(tmp_path))
  judge_weights.processor(folder, resample=1)
  with pytest.raises(ValueError, match="resample=1"):
    judges.load("style-vit-129", judges_dir=str(tmp_path))
  judge_weights.vit(5).save_pretrained(folder)
  with pytest.raises(ValueError, match="id2label has 5 classes; wanted 129"):
    judges.load("style-vit-129", judges_dir=str(tmp_path))


def test_unlearncanvas_heads_are_known_by_their_shape(published, tmp_path):
  judge = judges.load("unlearncanvas-vit")
  scores = judge(images_of())
  assert {h: s.shape for h, s in scores.items()} == {
    "style": (2, 51), "object": (2, 20)
  }  # fmt: skip
  judge.find(Target("style", "Van_Gogh"))
  judge.find(Target("object", "Cats"))
  # The names of the files changed about.
  (tmp_path / "unlearncanvas").mkdir()
  names = ("style50.pth", "style50_cls.pth")
  for name, other in zip(names, names[::-1], strict=True):
    content = (published / "unlearncanvas" / name).read_bytes()
    (tmp_path / "unlearncanvas" / other).write_bytes(content)
  turned = judges.load("unlearncanvas-vit", judges_dir=str(tmp_path))
  assert turned.identity == judge.identity
  for head, values in turned(images_of()).items():
    np.testing.assert_array_equal(values, scores[head])
  # One file twice.
  for name in names:
    (tmp_path / "unlearncanvas" / name).write_bytes(content)
  with pytest.raises(ValueError, match="both have .* classes: each is"):
    judges.load("unlearncanvas-vit", judges_dir=str(tmp_path))
  wrong = judge_weights.timm_state(judge_weights.vit(10, epsilon=1e-6))
  torch.save(wrong, tmp_path / "unlearncanvas/style50.pth")
  with pytest.raises(ValueError, match="has 10 classes; wanted 51"):
    judges.load("unlearncanvas-vit", judges_dir=str(tmp_path))
