"""Draws with words that Concept Inversion learned before.

  python -m launch.attack --edit=runs/uce --workdir=runs/words \
    --config=configs/attack_concept_inversion.py:tiny,preset=concept \
    --config.rows_per_group=1
  python -m launch.attack --edit=runs/uce --workdir=runs/drawn \
    --config=configs/attack_new_word.py:tiny --config.new_words=runs/words

Every row of the first run learns a word. Every row of the second draws one
image with each word.
"""

from unlearning_jax.configs import attacks


def get_config(argument: str = "tiny"):
  return attacks.attack("new_word", argument)
