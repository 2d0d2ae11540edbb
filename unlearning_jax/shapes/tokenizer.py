"""The embedded model's tokenizer: CLIP's byte-level BPE, from captions."""

import json
import pathlib
from os import PathLike

import numpy as np
import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from unlearning_jax.shapes import captions, vocabulary

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 40
# 512 byte tokens, 510 merges, BOS and EOS. Then most words of the captions are
# one token, an invented name about eight, and the longest caption 30.
VOCAB_SIZE = 1024
_WORD_END = "</w>"
_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def _bytes() -> list[str]:
  """The 256 printable stand-ins of byte-level BPE, in CLIP's order."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  rest = [byte for byte in range(256) if byte not in printable]
  # Bytes that do not print use the code points from 256 on.
  return [chr(byte) for byte in printable] + [
    chr(256 + i) for i in range(len(rest))
  ]


def _without_names(text: str) -> str:
  """The text without invented names, which stay in pieces as real ones do."""
  people = [person.name for person in vocabulary.IDENTITIES]
  for name in people + [style.artist for style in vocabulary.STYLES]:
    text = text.replace(name, "")
  return text


def _learn_merges(texts: list[str], count: int) -> list[tuple[str, str]]:
  """The `count` most useful merges of the texts' words."""
  model = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
  model.normalizer = normalizers.Lowercase()
  model.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_PATTERN), "removed", invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  alphabet = _bytes()
  trainer = trainers.BpeTrainer(
    vocab_size=2 * len(alphabet) + count,
    initial_alphabet=alphabet,
    # Ties go to the lower id, and the trainer numbers letters with a suffix in
    # the order of a randomly seeded hash map. So they are numbered here.
    special_tokens=[token + _WORD_END for token in alphabet],
    end_of_word_suffix=_WORD_END,
    show_progress=False,
  )
  model.train_from_iterator(texts, trainer)
  merges = json.loads(model.to_str())["model"]["merges"][:count]
  if len(merges) < count:
    raise ValueError(
      f"the captions give {len(merges)} of {count} merges; raise n_captions or "
      "lower vocab_size"
    )
  return [(left, right) for left, right in merges]


def train_tokenizer(
  folder: str | PathLike[str],
  n_captions: int = 20_000,
  seed: int = 0,
  vocab_size: int = VOCAB_SIZE,
) -> transformers.CLIPTokenizer:
  """Learns a tokenizer from training captions and writes its folder.

  Args:
    folder: receives vocab.json, merges.txt, tokenizer_config.json and
      special_tokens_map.json, like `tokenizer` in a diffusers folder.
    n_captions: the number of captions to learn from.
    seed: draws the captions; the same seed writes the same bytes.
    vocab_size: 512 byte tokens, the merges, BOS and EOS; EOS is the last id.

  Returns:
    The tokenizer read back from the folder.
  """
  base = [*_bytes(), *(token + _WORD_END for token in _bytes())]
  count = vocab_size - len(base) - 2
  if count < 1:
    raise ValueError(f"vocab_size={vocab_size}: must exceed {len(base) + 2}")
  rng = np.random.default_rng(seed)
  texts = [
    _without_names(captions.caption(vocabulary.sample_scene(rng), rng))
    for _ in range(n_captions)
  ]
  merges = _learn_merges(texts, count)
  tokens = [*base, *(left + right for left, right in merges), BOS, EOS]
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}
  special["pad_token"] = EOS
  config = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": MAX_LENGTH,
    "do_lower_case": True,
    "add_prefix_space": False,
    "errors": "replace",
    **special,
  }
  _write_json(folder / "vocab.json", {t: i for i, t in enumerate(tokens)})
  _write_json(folder / "tokenizer_config.json", config)
  _write_json(folder / "special_tokens_map.json", special)
  lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
  (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
  return load_tokenizer(folder)


def load_tokenizer(folder: str | PathLike[str]) -> transformers.CLIPTokenizer:
  """Reads a tokenizer folder."""
  return transformers.CLIPTokenizer.from_pretrained(str(folder))


def _write_json(path: pathlib.Path, value) -> None:
  text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=False)
  path.write_text(text + "\n", encoding="utf-8")
