"""MACE (Lu et al., CVPR 2024) erases many concepts at once.

  python -m launch.erase --workdir=runs/mace \
    --config=configs/erase_mace.py:tiny,task=identity,name=Quill Estane
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_mace.py:sd14,task=unsafe,preset=reference \
    --config.hparams.captions=captions.txt

Without captions a ridge preserves the rest. Captions, however many, together
weigh as much as the concepts. `preset=reference` has the release's deviations
and settings. For all but objects these preserve captions (617,000 of COCO's,
one a line); for people and artists also names, `--config.preserve=names.txt`.
`tiny` takes about five minutes on two free CPU cores, half of them drawing.
"""

from unlearning_jax.configs import erasures

from unlearning_jax.concepts import same_phrase

# Task -> the anchor at full size, as published for some of them.
_ANCHORS = {
  "object": "street",
  "imagenette": "street",
  "identity": "a person",
  "style": "art",
  "unsafe": "a person wearing clothes",
}
_UNSAFE = ("nudity", "naked", "erotic", "sexual")
# The release's objects: their anchors and ridges.
_OBJECTS = {
  "automobile": ("sky", 1e2),
  "bird": ("street", 1e1),
  "ship": ("ground", 1e3),
}
# People, at most -> the release's weight of those it preserves.
_DOMAIN = {1: 8e3, 5: 5e4, 10: 8e4, 100: 2e5}


def get_config(argument: str = "tiny"):
  config = erasures.erase("mace", argument)
  chosen = erasures.parse(argument)
  task = chosen["task"]
  if chosen["size"] == "tiny":
    return config
  config.hparams.templates = None
  if task == "identity":
    config.hparams.recipe = "identity"
  _full(config, task, bool(chosen["name"] or chosen["list"]))
  if chosen["preset"] == "reference":
    _reference(config, task)
  config.concepts = erasures.anchored(config.concepts, chosen["anchor"])
  return config


def _full(config, task: str, named: bool):
  phrases = [concept["erase"] for concept in config.concepts]
  kind = config.concepts[0]["task"]
  if task == "unsafe" and not named:
    phrases = _UNSAFE
  config.concepts = tuple(
    {
      "erase": phrase,
      "anchor": _OBJECTS.get(same_phrase(phrase), [_ANCHORS.get(task, "")])[0],
      "preserve": config.concepts[0]["preserve"],
      "task": kind,
    }
    for phrase in phrases
  )


def _reference(config, task: str):
  """The release's scales, and its anchor for a single person."""
  concepts, hparams = config.concepts, config.hparams
  # For objects only a ridge preserves the rest.
  ridges = [_OBJECTS.get(same_phrase(c["erase"]), ("", 1e1)) for c in concepts]
  scale, hparams.lamb = 0.0, max(ridge for _, ridge in ridges)
  if task in ("identity", "style", "unsafe"):
    scale, hparams.lamb = (7e-7 if task == "unsafe" else 1e-4), 0.0
  hparams.preserve_scale = hparams.fuse_scale = scale
  if task == "identity":
    count = len(concepts)
    most = next((n for n in _DOMAIN if count <= n), max(_DOMAIN))
    hparams.domain_weight = _DOMAIN[most]
  if task == "style":
    hparams.domain_weight = 8e4
  if task == "identity" and len(concepts) == 1:
    config.concepts = ({**concepts[0], "anchor": "a woman"},)
