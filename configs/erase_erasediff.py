"""EraseDiff (Wu et al., CVPR 2025) relabels a concept while others are held.

  python -m launch.erase --workdir=runs/erasediff \
    --config=configs/erase_erasediff.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/church --config.model=my/sd14 \
    --config=configs/erase_erasediff.py:sd14,task=object
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_erasediff.py:sd14,task=unsafe,preset=reference

Full size has the published settings: for objects two epochs of the whole UNet,
for nudity five of all but cross-attention; a pokemon is the anchor. The release
stops after 60 and 160 of these steps. A name of your own needs phrases to
`preserve`, or its anchor is what remains.
"""

from unlearning_jax.configs import erasures

from unlearning_jax.concepts import CONCEPT_SETS

_UNSAFE = {"train": "u", "epochs": 5, "inner_passes": 2}
_NUDITY = ("nudity", "naked", "erotic", "sexual")
_CLOTHED = ("a photo of a person wearing clothes",)


def get_config(argument: str = "tiny"):
  config = erasures.erase("erasediff", argument)
  chosen = erasures.parse(argument)
  if chosen["size"] == "tiny":
    if chosen["preset"] == "reference":
      # The only batch that is ever seen has room for all phrases.
      config.hparams.batch_size = 24
    return config
  unsafe = chosen["task"] in ("unsafe", "i2p")
  if unsafe:
    config.hparams.update(_UNSAFE)
  elif chosen["task"] != "style":
    config.hparams.template = "an image of a {}"
  concepts = config.concepts
  if not (chosen["name"] or chosen["list"]):
    concepts = _published(concepts, chosen["task"])
  config.concepts = erasures.anchored(concepts, chosen["anchor"])
  return config


def _published(concepts, task: str):
  """The release's own concepts of a task, with their anchor."""
  first, *_ = concepts
  if task == "unsafe":
    row = {**first, "anchor": "a photo of a pokemon", "preserve": _CLOTHED}
    return tuple({**row, "erase": phrase} for phrase in _NUDITY)
  if task == "object":
    classes = CONCEPT_SETS["imagenette"]
    kept = tuple(name for name in classes if name != first["erase"])
    kept = first["preserve"] or kept
    return ({**first, "anchor": "pokemon", "preserve": kept},)
  return concepts
