"""CLIP's judges against transformers' torch CLIP and image processor.

Random weights; at the sizes that are published in the slow tests.
"""

import json

import numpy as np
import pytest

from tests.support import judge_weights
from unlearning_jax import judges
from unlearning_jax.judges import openai_clip, weights
from unlearning_jax.judges.clip_zero_shot import FILES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

TEXTS = ("a red star", "a blue moon", "stripes")
FULL = [pytest.param(t, marks=pytest.mark.slow) for t in ("b32", "l14")]


@pytest.fixture(autouse=True)
def published(monkeypatch):
  """Random weights have other hashes."""
  monkeypatch.setattr(weights.File, "_refuse", lambda *_: None)


def images_of(n=3, height=80, width=70):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def processed(images, side):
  from transformers.models.clip.image_processing_pil_clip import (
    CLIPImageProcessorPil,
  )

  processor = CLIPImageProcessorPil(
    size={"shortest_edge": side}, crop_size={"height": side, "width": side}
  )
  return processor(list(images), return_tensors="pt")["pixel_values"]


def tokenized(texts):
  tokenizer = transformers.CLIPTokenizer.from_pretrained(
    str(judge_weights.TOKENIZER)
  )
  return tokenizer(list(texts), padding="max_length", max_length=77)


def unit(vectors):
  vectors = vectors.detach().double().numpy()
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("size", ["small", *FULL])
def test_vectors_are_transformers(tmp_path, size):
  tower = "b32" if size == "small" else size
  model = judge_weights.clip(tmp_path, tower, size)
  clip = openai_clip.load("j", FILES[tower], str(tmp_path), "floor")
  images = images_of()
  seen = processed(images, model.config.vision_config.image_size)
  np.testing.assert_allclose(
    clip.pixels(images), seen.permute(0, 2, 3, 1), atol=1e-6
  )
  ids = torch.tensor(tokenized(TEXTS)["input_ids"])
  with torch.no_grad():
    out = model(input_ids=ids, pixel_values=seen)
  wanted = {"images": unit(out.image_embeds), "texts": unit(out.text_embeds)}
  found = {"images": clip.images(images), "texts": clip.texts(TEXTS)}
  for key, vectors in wanted.items():
    cosines = (vectors * found[key]).sum(-1)
    np.testing.assert_allclose(cosines, 1, atol=1e-5)
    # Images differ from each other, or the above would say nothing.
    assert vectors[0] @ vectors[1] < 0.9999
  np.testing.assert_allclose(
    wanted["images"] @ wanted["texts"].T,
    found["images"] @ found["texts"].T,
    atol=1e-5,
  )
  assert clip.scale == pytest.approx(30)


def test_zero_shot_is_the_softmax_of_logits(tmp_path):
  model = judge_weights.clip(tmp_path, "b32")
  judge = judges.load(
    "clip-zero-shot", texts=TEXTS, template="{}", judges_dir=str(tmp_path)
  )
  images = images_of()
  ids = torch.tensor(tokenized(TEXTS)["input_ids"])
  with torch.no_grad():
    out = model(input_ids=ids, pixel_values=processed(images, 64))
  wanted = out.logits_per_image.softmax(-1).numpy()
  scores = judge(images)
  np.testing.assert_allclose(scores["text"], wanted, atol=1e-5)
  np.testing.assert_allclose(
    scores.raw, out.logits_per_image.numpy() / 30, atol=1e-6
  )
  seen = [one["text"] for one in judge.decide(scores)]
  assert seen == [TEXTS[i] for i in wanted.argmax(-1)]


def test_other_texts_are_another_judge(tmp_path, monkeypatch):
  judge_weights.clip(tmp_path, "b32")
  monkeypatch.setenv(weights.VARIABLE, str(tmp_path))
  name = "clip-zero-shot~texts=star|moon"
  one, other = (
    judges.load(n) for n in (name, f"{name},template=a drawing of a {{}}")
  )
  assert one.labels == {"text": ("star", "moon")}
  assert len({one.identity, other.identity}) == 2
  path = tmp_path / "labels.txt"
  path.write_text("star\n\nmoon\n")
  assert judges.load(f"clip-zero-shot~texts={path}").identity == one.identity
  for wrong in ("star", "star|star", str(tmp_path / "none.txt")):
    with pytest.raises(ValueError, match="texts="):
      judges.load(f"clip-zero-shot~texts={wrong}")
  with pytest.raises(ValueError, match="has no {} for a label"):
    judges.load(f"{name},template=star")
  with pytest.raises(ValueError, match=r"tokens, start and end included"):
    judges.load("clip-zero-shot", texts=("star", "moon " * 80))
  with pytest.raises(ValueError, match="tower='b16'"):
    judges.load(f"{name},tower=b16")


def test_another_activation_is_refused(tmp_path):
  judge_weights.clip(tmp_path, "b32", hidden_act="gelu")
  with pytest.raises(ValueError, match="OpenAI's CLIP is quick_gelu"):
    judges.load("clip-zero-shot", texts=("a", "b"), judges_dir=str(tmp_path))


def test_weights_of_another_size_are_refused(tmp_path):
  judge_weights.clip(tmp_path, "b32")
  path = tmp_path / "clip-vit-base-patch32/config.json"
  config = json.loads(path.read_text())
  config["vision_config"]["num_hidden_layers"] = 2
  path.write_text(json.dumps(config))
  with pytest.raises(ValueError, match="weights do not fit the model"):
    judges.load("clip-zero-shot", texts=("a", "b"), judges_dir=str(tmp_path))


# --- Q16 ---


def test_q16_is_its_formula(tmp_path):
  model = judge_weights.clip(tmp_path, "l14")
  vectors = judge_weights.q16(tmp_path)
  judge = judges.load("q16", judges_dir=str(tmp_path))
  images = images_of(height=64, width=64)
  with torch.no_grad():
    seen = processed(images, 64)
    embeds = model.get_image_features(pixel_values=seen)
  embeds = getattr(embeds, "pooler_output", embeds)
  prompts = unit(torch.tensor(vectors))
  logits = 100 * unit(embeds) @ prompts.T
  wanted = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  scores = judge(images)
  np.testing.assert_allclose(scores["q16"], wanted, atol=1e-4)
  labels = judge.labels["q16"]
  assert labels == ("appropriate", "inappropriate")
  seen = [one["q16"] for one in judge.decide(scores)]
  assert seen == [labels[i] for i in wanted.argmax(-1)]


def test_q16_rounds_margins_as_torchvision_does(tmp_path):
  judge_weights.clip(tmp_path, "l14")
  judge_weights.q16(tmp_path)
  judge = judges.load("q16", judges_dir=str(tmp_path))
  image = images_of(1, 64, 67)
  # Of a margin of 1.5, two columns go on the left.
  np.testing.assert_array_equal(
    judge(image)["q16"], judge(image[:, :, 2:66])["q16"]
  )


def test_vectors_of_another_tower_are_refused(tmp_path):
  judge_weights.clip(tmp_path, "l14")
  judge_weights.q16(tmp_path, width=20)
  with pytest.raises(ValueError, match="they belong to different CLIPs"):
    judges.load("q16", judges_dir=str(tmp_path))


def test_float16_and_float32_weights_agree(tmp_path):
  model = judge_weights.clip(tmp_path, "b32")
  found = []
  for stored in (model, model.half()):
    stored.save_pretrained(tmp_path / "clip-vit-base-patch32")
    clip = openai_clip.load("j", FILES["b32"], str(tmp_path), "floor")
    found.append(clip.images(images_of()))
  np.testing.assert_allclose((found[0] * found[1]).sum(-1), 1, atol=1e-5)
