"""Concept Inversion; the argument says on which model, for which concept.

  python -m launch.attack --edit=runs/uce --workdir=runs/inversion \
    --config=configs/attack_concept_inversion.py:tiny,task=object,name=star

Tasks: object, style, identity, unsafe. `--config.hparams.insertion=replace` is
Textual Inversion. Metric: the success of embeddings, which bounds that of
prompts; its control is the same inversion on a model that never saw the
concept.
"""

from configs import attacks


def get_config(argument: str = "tiny"):
  return attacks.attack("concept_inversion", argument, k=1)
