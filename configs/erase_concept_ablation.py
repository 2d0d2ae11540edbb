"""Concept Ablation trains a concept into its anchor, on the anchor's images.

  python -m launch.erase --workdir=runs/ablated \
    --config=configs/erase_concept_ablation.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/van_gogh --config.model=my/sd14 \
    --config=configs/erase_concept_ablation.py:sd14,task=style
  python -m launch.erase --workdir=runs/r2d2 --config.model=my/sd14 \
    --config=configs/erase_concept_ablation.py:sd14,name=R2D2,anchor=robot

Published settings, by `preset`, each the rate of a batch of one and its steps:
`instance`, also of styles (2e-6, 100), the default; `nudity` (4e-6, 400, the
anchor's own loss beside it; its weight of 1 is ours), the default of unsafe
content; `memorization` (5e-7, 400), whose `name` is the caption of the image,
taken as it is. At full size an object or a name of one's own needs an `anchor`,
as what is drawn are its images; those of the defaults are ours.
On one core of an Intel Xeon `tiny` takes up to 100 seconds, drawing left out;
full size was not timed.
Metric: accuracy on the erased concept and on everything else.

`tiny` leaves, by name of 70 images / others of 24 (8 steps of DPM-Solver++, one
seed): star 10 / 21, Quill Estane 0 / 24, neon 20 / 23, hazard 15 / 24.
"""

from unlearning_jax.configs import erasures

_PRESETS = {
  "instance": {"learning_rate": 2e-6, "num_steps": 100},
  "nudity": {
    "learning_rate": 4e-6,
    "num_steps": 400,
    "anchor_loss_weight": 1.0,
  },
  "memorization": {"learning_rate": 5e-7, "num_steps": 400},
}
# Task -> what the phrases that a full-size config has for it shall mean.
_ANCHORS = {"object": "building", "unsafe": "a person wearing clothes"}


def get_config(argument: str = "tiny"):
  config = erasures.erase("concept_ablation", argument, _PRESETS)
  chosen = erasures.parse(argument)
  if config.model != "shapes":
    _full(config, chosen)
    return config
  if chosen["preset"]:
    raise ValueError("config argument preset: of full-size models only")
  return config


def _full(config, chosen: dict[str, str]):
  unsafe = config.concepts[0]["task"] == "unsafe"
  preset = chosen["preset"] or ("nudity" if unsafe else "instance")
  config.hparams.update(_PRESETS[preset])
  # There are no templates of unsafe content, and a caption needs none.
  if unsafe or preset == "memorization":
    config.hparams.expand_prompts = False
  anchor = chosen["anchor"] or config.concepts[0]["anchor"]
  if not (chosen["name"] or chosen["list"]):
    anchor = anchor or _ANCHORS.get(chosen["task"], "")
  if not anchor:
    said = " and ".join(repr(c["erase"]) for c in config.concepts[:2])
    raise ValueError(
      f"config argument anchor: what shall {said} mean instead? Give "
      "`anchor=...`, of which images will be drawn"
    )
  config.concepts = tuple({**c, "anchor": anchor} for c in config.concepts)
