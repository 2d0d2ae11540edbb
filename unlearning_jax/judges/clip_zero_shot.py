"""CLIP as a classifier: which of these texts fits an image best?

Scores are softmax(scale * cosine) over the texts, as MACE counts objects; the
cosines are kept as `raw`. OpenAI's weights, from transformers folders:
clip-vit-base-patch32 (`b32`) and clip-vit-large-patch14 (`l14`).
"""

import hashlib
import json
import pathlib
from functools import partial

import numpy as np
from jaxtyping import Float

from unlearning_jax.concepts import check_choice
from unlearning_jax.judges import Judge, Judged, networks, openai_clip
from unlearning_jax.judges.networks import Images
from unlearning_jax.judges.openai_clip import Clip

_FOLDERS = {"b32": "clip-vit-base-patch32", "l14": "clip-vit-large-patch14"}
_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json")
FILES = {
  tower: networks.folder_files(
    folder, f"huggingface.co/openai/{folder}", *_TOKENIZER
  )
  for tower, folder in _FOLDERS.items()
}
NEEDS = FILES["b32"]


def judge(
  texts: tuple[str, ...] = (),
  template: str = "a photo of the {}",
  tower: str = "b32",
  judges_dir: str = "",
) -> Judge:
  """CLIP over any list of labels.

  Args:
    texts: the labels; or a file of them, `labels.txt`, one a line.
    template: the text of a label, which stands where {} is.
    tower: b32 or l14.
    judges_dir: the folder of judges' weights; "" for the environment's.

  Raises:
    ValueError: files are missing or do not fit; fewer than two texts, one of
      them twice, or one that is too long.
  """
  check_choice("judge clip-zero-shot: tower", tower, _FOLDERS)
  clip = openai_clip.load("clip-zero-shot", FILES[tower], judges_dir, "floor")
  labels = _labels(texts)
  if "{}" not in template:
    raise ValueError(
      f"judge clip-zero-shot: template={template!r}: has no {{}} for a label"
    )
  said = clip.texts([template.replace("{}", label) for label in labels])
  digest = hashlib.sha256(json.dumps([template, labels]).encode()).hexdigest()
  return Judge(
    name=f"clip-zero-shot-{tower}",
    score=partial(_score, clip, said),
    labels={"text": labels},
    version=f"{tower}, texts {digest[:16]}",
    weights_hash=clip.weights_hash,
    sees=str(clip.pixels),
    cannot_see="anything but the texts that it was given: one of them always "
    "fits best",
  )


def _labels(texts: tuple[str, ...]) -> tuple[str, ...]:
  if len(texts) == 1 and texts[0].endswith(".txt"):
    path = pathlib.Path(texts[0])
    if not path.is_file():
      raise ValueError(f"judge clip-zero-shot: texts={texts[0]}: no such file")
    lines = path.read_text(encoding="utf-8").splitlines()
    texts = tuple(line.strip() for line in lines if line.strip())
  if len(set(texts)) < 2 or len(set(texts)) < len(texts):
    raise ValueError(
      f"judge clip-zero-shot: texts={texts}: wants two different ones or more; "
      "as clip-zero-shot~texts=cat|dog, or texts=labels.txt, one a line"
    )
  return texts


def _score(
  clip: Clip, said: Float[np.ndarray, "c d"], images: Images
) -> Judged:
  cosines = networks.cosines(clip.images(images), said)
  judged = Judged({"text": networks.softmax(clip.scale * cosines)})
  judged.raw = cosines.tolist()
  return judged
