"""FMN (Forget-Me-Not, Zhang et al., 2023) takes attention from a concept.

  python -m launch.erase --workdir=runs/fmn \
    --config=configs/erase_fmn.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/church --config.model=my/sd14 \
    --config=configs/erase_fmn.py:sd14,name=church
  python -m launch.erase --workdir=runs/van_gogh --config.model=my/sd14 \
    --config=configs/erase_fmn.py:sd14,task=style,name=Van Gogh

Full size has the published settings, 35 steps of one image.
`preset=reference` takes attention from the padding too, as the release does on
Stable Diffusion 1. On the Shapes model `tiny` takes other concepts along; see
docs/results/erase.md.
"""

from unlearning_jax.configs import erasures


def get_config(argument: str = "tiny"):
  config = erasures.erase("fmn", argument)
  chosen = erasures.parse(argument)
  if chosen["size"] != "tiny" and chosen["task"] == "style":
    config.hparams.template = "a photo in the style of {}"
  return config
