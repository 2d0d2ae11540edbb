"""The tokenizer: same bytes each time, names in pieces, room for prefixes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import transformers

from unlearning_jax.shapes import captions, tokenizer, vocabulary

_FILES = [
  "merges.txt",
  "special_tokens_map.json",
  "tokenizer_config.json",
  "vocab.json",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizer")
  tokenizer.train_tokenizer(folder)
  return folder


def test_the_folder_is_clip_s_and_the_last_id_ends_a_prompt(folder):
  assert sorted(path.name for path in folder.iterdir()) == _FILES
  clip = transformers.CLIPTokenizer.from_pretrained(str(folder))
  vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
  assert len(clip) == len(vocab) == tokenizer.VOCAB_SIZE
  assert clip.eos_token_id == clip.pad_token_id == len(vocab) - 1
  assert clip.bos_token_id == len(vocab) - 2
  assert clip.model_max_length == 40
  ids = clip("a red star", padding="max_length")["input_ids"]
  words = [vocab[word + "</w>"] for word in ("a", "red", "star")]
  eos = clip.eos_token_id
  assert ids == [clip.bos_token_id, *words, *[eos] * 36]
  assert clip("A Red STAR")["input_ids"] == clip("a red star")["input_ids"]


def test_training_again_in_another_process_writes_the_same_bytes(
  folder, tmp_path
):
  code = (
    "import sys; from unlearning_jax.shapes import tokenizer;"
    f"tokenizer.train_tokenizer({str(tmp_path)!r});"
    "sys.exit('torch' in sys.modules or 'tensorflow' in sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
  for name in _FILES:
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_every_caption_leaves_room_for_a_prefix(folder):
  clip = tokenizer.load_tokenizer(folder)
  rng = np.random.default_rng(3)
  texts = [
    captions.caption(vocabulary.sample_scene(rng), rng, split)
    for split in captions.SPLITS
    for _ in range(10_000)
  ]
  lengths = np.array([len(ids) - 2 for ids in clip(texts)["input_ids"]])
  # Five prefix tokens, BOS and EOS besides: 37 of the 40 positions.
  assert lengths.max() <= 30
  assert lengths.mean() < 14


def test_words_are_whole_and_invented_names_are_in_pieces(folder):
  clip = tokenizer.load_tokenizer(folder)

  def pieces(text):
    return len(clip(text)["input_ids"]) - 2

  assert all(pieces(n) == 1 for n in vocabulary.HEADS["object"])
  assert all(pieces(n) == 1 for n in vocabulary.HEADS["colour"])
  artists = [style.artist for style in vocabulary.STYLES]
  for name in [*vocabulary.HEADS["identity"], *artists]:
    assert 5 <= pieces(name) <= 12, name


def test_any_text_has_ids_and_comes_back(folder):
  clip = tokenizer.load_tokenizer(folder)
  text = "zebra 42 naïve 雪 !?"
  ids = clip(text)["input_ids"][1:-1]
  assert clip.eos_token_id not in ids
  assert clip.decode(ids).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("size, message", [(514, "exceed"), (9000, "merges")])
def test_impossible_sizes_are_refused(tmp_path, size, message):
  with pytest.raises(ValueError, match=message):
    tokenizer.train_tokenizer(tmp_path / "new", 100, vocab_size=size)
  assert not (tmp_path / "new").exists()
