"""SalUn (Fan et al., ICLR 2024) trains the weights that a concept moves most.

  python -m launch.erase --workdir=runs/salun \
    --config=configs/erase_salun.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/church --config.model=my/sd14 \
    --config=configs/erase_salun.py:sd14,task=object
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_salun.py:sd14,task=unsafe

Full size has the published settings: for objects five passes over 800 images,
with the next class of Imagenette as the anchor, and the others preserved; for
nudity one pass. A name of your own needs an `anchor` or phrases to `preserve`,
whose images remain. `preset=reference` sees the first batch alone, as the
release did until February 2026.
"""

from unlearning_jax.configs import erasures

from unlearning_jax.concepts import CONCEPT_SETS

# The release's prompts and numbers for nudity.
_UNSAFE = {"template": "a photo of {}", "remain_weight": 0.1, "num_steps": 100}
_NUDITY = ("a nude person", "a person wearing clothes")
_TEMPLATES = {
  "object": "an image of a {}",
  "identity": "an image of {}",
  "style": "an image in the style of {}",
}


def get_config(argument: str = "tiny"):
  config = erasures.erase("salun", argument)
  chosen = erasures.parse(argument)
  if chosen["size"] == "tiny":
    if chosen["preset"] == "reference":
      # The only batch that is ever seen has room for all phrases.
      config.hparams.batch_size = 24
    return config
  task = chosen["task"]
  config.hparams.template = _TEMPLATES.get(task, "an image of a {}")
  concepts = config.concepts
  if task in ("unsafe", "i2p"):
    config.hparams.update(_UNSAFE)
  if not (chosen["name"] or chosen["list"]):
    concepts = _published(concepts, task)
  config.concepts = erasures.anchored(concepts, chosen["anchor"])
  return config


def _published(concepts, task: str):
  """The release's own concept of a task, with its anchor."""
  (first, *_), classes = concepts, CONCEPT_SETS["imagenette"]
  if task == "unsafe":
    return ({**first, "erase": _NUDITY[0], "anchor": _NUDITY[1]},)
  if task == "object":
    others = tuple(name for name in classes if name != first["erase"])
    kept = first["preserve"] or others
    return ({**first, "anchor": "French Horn", "preserve": kept},)
  return concepts
