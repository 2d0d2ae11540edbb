"""RECE (Gong et al., ECCV 2024) goes on from UCE with derived states.

  python -m launch.erase --workdir=runs/rece \
    --config=configs/erase_rece.py:tiny,task=style,name=swirl
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_rece.py:sd14,task=unsafe

At full size `preset=paper` has the paper's coefficients for UCE. One of
Imagenette's classes as `name=` has the settings published for it. Styles
preserve the other 1,734 artists; `--config.preserve=` preserves none. `tiny`
takes about two minutes on two CPU cores, nearly all of them drawing.
"""

from unlearning_jax.configs import erasures

from unlearning_jax.concepts import CONCEPT_SETS, same_phrase

# Imagenette's classes that UCE leaves; it removes all others.
_HARD = ("church", "garbage truck")
_EASY = ("english springer", "golf ball", "parachute")


def get_config(argument: str = "tiny"):
  config = erasures.erase("rece", argument)
  if config.model == "shapes":
    return config
  chosen = erasures.parse(argument)
  # At full size this task is the published nudity, with its recipe.
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
