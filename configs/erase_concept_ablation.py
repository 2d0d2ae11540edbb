"""Concept Ablation (Kumari et al., ICCV 2023) trains a concept into its anchor.

  python -m launch.erase --workdir=runs/ablated \
    --config=configs/erase_concept_ablation.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/van_gogh --config.model=my/sd14 \
    --config=configs/erase_concept_ablation.py:sd14,task=style
  python -m launch.erase --workdir=runs/r2d2 --config.model=my/sd14 \
    --config=configs/erase_concept_ablation.py:sd14,name=R2D2,anchor=robot

Presets have the published learning rate of a batch of one, and its steps:

  instance      2e-6, 100: the default, also of styles
  nudity        4e-6, 400: the default of unsafe content; it adds the anchor's
                own loss, whose weight of 1 is ours
  memorization  5e-7, 400: `name` is the image's caption, used as it is

At full size your own object or name needs an `anchor`, whose images are drawn;
the default anchors are ours. `tiny` takes up to 100 seconds on one core of an
Intel Xeon, without the drawing; full size was not timed.

Images in which the judge still sees what `tiny` erased (asked for by name, of
70), and right images of other prompts (of 24); 8 steps of DPM-Solver++, one
seed: star 10 / 21, Quill Estane 0 / 24, neon 20 / 23, hazard 15 / 24.
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
# Task -> the anchor of its full-size phrases.
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
  # Unsafe content has no templates, and a caption needs none.
  if unsafe or preset == "memorization":
    config.hparams.expand_prompts = False
  anchor = config.concepts[0]["anchor"]
  if not (chosen["name"] or chosen["list"]):
    anchor = anchor or _ANCHORS.get(chosen["task"], "")
  if not anchor:
    said = " and ".join(repr(c["erase"]) for c in config.concepts[:2])
    raise ValueError(
      f"config argument anchor: missing for {said}; give `anchor=...`, whose "
      "images are drawn"
    )
  text = chosen["anchor"] or f'"{anchor}"'
  config.concepts = erasures.anchored(config.concepts, text)
