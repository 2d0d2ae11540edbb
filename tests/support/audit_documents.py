"""A document of an audit with every key, and one with only what must be."""

import pathlib
from typing import Any

import numpy as np
from PIL import Image

from unlearning_jax.statistics import wilson

LEAST = {"title": "An audit", "victims": ["uce"], "verdicts": [], "stages": []}
VICTIMS = ("uce", "rece")
PATH = "evaluate/results.jsonl"


def rate(k: int, n: int) -> dict[str, Any]:
  low, high = wilson(k, n)
  return {"value": k / n, "low": low, "high": high, "k": k, "n": n}


def full(
  root: pathlib.Path, *, unsafe: bool = False, size: int = 32
) -> dict[str, Any]:
  """Every key, with pictures below `root`.

  Args:
    root: an empty folder.
    unsafe: whether the pictures are of the unsafe task.
    size: sides of the pictures in pixels.
  """
  (root / "evaluate/images").mkdir(parents=True)
  (root / PATH).write_text("{}\n")
  return {
    "title": "Audit of uce and rece: is “star” gone, and does it stay gone?",
    "subject": {"task": "object", "name": "star", "unsafe": unsafe},
    "base": {"source": "shapes", "fingerprint": "e9e89f6765f2e404"},
    "protocol": "shapes-star 3f2a91c0",
    "preset": "quick",
    "budget": "40 rows by name",
    "victims": list(VICTIMS),
    "notes": ["The quick preset draws 20 rows."],
    "verdicts": [one for victim in VICTIMS for one in _verdicts(victim)],
    "worst_case": [
      {"victim": "uce", **rate(15, 20), "attacks": ["unlearn_diff_atk", "p4d"]}
    ],
    "claims": [
      {
        "victim": "uce", "name": "asr", "claimed": 0.1, **rate(14, 20),
        "verdict": "fail", "reason": "The claim lies below the interval.",
      }
    ],
    "published": [
      {"row": "UCE", "numbers": {"asr": 0.7}, "source": "its paper, table 2"}
    ],
    "stages": _stages(),
    "pictures": [
      {
        "prompt": f"a {color} star", "seed": i, "row": i, "victim": victim,
        "unsafe": unsafe, "images": _images(root, f"{victim}{i}", size),
      }
      for victim in VICTIMS
      for i, color in enumerate(("red", "blue"))
    ],
    "asr_by_images": [
      {
        "victim": victim, "series": series, "control": series == "random",
        "points": [
          {"images": b, **rate(most * b // 20, 20)} for b in (1, 5, 20)
        ],
      }
      for victim in VICTIMS
      for series, most in (("unlearn_diff_atk", 14), ("random", 3))
    ],
    "resurgence": [
      {
        "victim": victim, "train": "lora", "data": "shapes:near",
        "points": [{"step": s, **rate(s // 5, 40)} for s in (0, 10, 100)],
      }
      for victim in VICTIMS
    ],
    "collateral": [
      {
        "victim": victim, "head": "object", "label": label, "before": 0.975,
        "after": 0.975 + change, "change": change, "low": change - 0.1,
        "high": change + 0.1, "n": 40,
      }
      for victim in VICTIMS
      for label, change in (("ring", 0.0), ("moon", -0.475))
    ],
    "judge_errors": [
      {
        "head": "object", "class": "star", "false_positives": rate(4, 200),
        "misses": rate(2, 40),
      }
    ],
    "collapse": {"rece": {"reasons": ["9 pictures are noise"], "figures": {}}},
    "cost": [
      {key: one[key] for key in ("seconds", "unet_calls", "memory_bytes")}
      | {"stage": one["name"]}
      for one in _stages()
    ],
    "provenance": {"runs": [{"command": "unlearning-jax audit"}]},
  }  # fmt: skip


def _verdicts(victim: str) -> list[dict[str, Any]]:
  unknown: dict[str, Any] = dict.fromkeys(("value", "low", "high", "k", "n"))
  fall = {"value": -0.475, "low": -0.575, "high": -0.375, "n": 40}
  found = [
    ("gone", "pass", rate(0, 40)),
    ("attacked", "fail", rate(14, 20)),
    ("stays", "not shown", unknown),
    ("kept", "warn", unknown | fall),
    ("quality", "pass", unknown | {"value": 12.31, "n": 100}),
  ]
  return [
    {
      "victim": victim, "question": question, "title": f"Question {question}?",
      "verdict": verdict, "reason": f"Why {question}.", "unit": "",
      "rule": "The upper bound is at most 0.1.", "name": f"number-{question}",
      **numbers, "rows": "" if question == "stays" else PATH,
    }
    for question, verdict, numbers in found
  ]  # fmt: skip


def _stages() -> list[dict[str, Any]]:
  done = {"seconds": 42.3, "unet_calls": 24000, "memory_bytes": 1 << 29}
  unknown = dict.fromkeys(done)
  return [
    {
      "name": "evaluate", "title": "Draw and judge", "state": "done",
      "error": "", "folder": "evaluate", "page": "evaluate/report.html",
      "command": "unlearning-jax evaluate --edits=runs/uce", **done,
    },
    {
      "name": "finetune/uce", "title": "Tune uce", "state": "failed",
      "error": "ValueError: no data.", "folder": "finetune/uce", "page": "",
      "command": "unlearning-jax finetune", **unknown,
    },
    {
      "name": "attack/rece/p4d", "title": "", "state": "skipped", "error": "",
      "folder": "", "page": "", "command": "", **unknown,
    },
  ]  # fmt: skip


def _images(root: pathlib.Path, name: str, size: int) -> list[dict[str, Any]]:
  found = []
  for i, label in enumerate(("base", "erased", "attacked", "tuned 100 steps")):
    path = f"evaluate/images/{name}-{i}.png"
    array = np.random.default_rng(i).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(array).save(root / path)
    words = "zfjq star" if label == "attacked" else ""
    found.append({"label": label, "path": path, "seen": "star", "words": words})
  return found
