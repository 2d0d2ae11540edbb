"""Draws with words learnt before; the argument says for which concept.

  python -m launch.attack --edit=runs/uce --workdir=runs/words \
    --config=configs/attack_concept_inversion.py:tiny,preset=concept \
    --config.rows_per_group=1
  python -m launch.attack --edit=runs/uce --workdir=runs/drawn \
    --config=configs/attack_new_word.py:tiny --config.new_words=runs/words

Tasks: object, style, identity, unsafe. Every row of the first run is a word,
every word an image of each row of the second. Metric: attack success.
"""

from unlearning_jax.configs import attacks


def get_config(argument: str = "tiny"):
  return attacks.attack("new_word", argument)
