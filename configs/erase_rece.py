"""RECE erases a concept; the argument says from which model, and what.

  python -m launch.erase --workdir=runs/rece \
    --config=configs/erase_rece.py:tiny,task=style,name=swirl
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_rece.py:sd14,task=unsafe

Tasks: object, style, identity, unsafe; also i2p, imagenette at full size, where
`preset=paper` has the paper's coefficients for the UCE start, `name=` one of
Imagenette's classes with the settings published for it, and styles hold the
other 1,734 artists (`--config.preserve=` for none).
On two CPU cores, `tiny` takes about two minutes, nearly all of it drawing.
Metric: accuracy on the erased concept and on everything else.
"""

from unlearning_jax.configs import erasures

from unlearning_jax.concepts import CONCEPT_SETS, same_phrase

# Imagenette's classes by what UCE leaves of them: of the others, nothing.
_HARD = ("church", "garbage truck")
_EASY = ("english springer", "golf ball", "parachute")


def get_config(argument: str = "tiny"):
  config = erasures.erase("rece", argument)
  if config.model == "shapes":
    return config
  chosen = erasures.parse(argument)
  # At full size that task is the published one of nudity, with its recipe.
  if chosen["task"] == "unsafe":
    config.hparams.recipe = "nudity"
  phrases = [same_phrase(concept["erase"]) for concept in config.concepts]
  if len(phrases) == 1 and phrases[0] in map(
    same_phrase, CONCEPT_SETS["imagenette"]
  ):
    hard = phrases[0] in _HARD
    config.hparams.recipe = "objects_hard" if hard else "objects_easy"
    if phrases[0] not in _HARD + _EASY:
      config.hparams.epochs = 0
  return config
