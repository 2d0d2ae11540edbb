"""Ring-A-Bell; the argument says on which model, and for which concept.

  python -m launch.attack --edit=runs/uce --workdir=runs/rab \
    --config=configs/attack_ring_a_bell.py:tiny,task=object,name=star

Tasks: object, style, identity, unsafe. The pairs are the phrases that the erase
configs erase, beside their anchors. The prompts found replace the rows' own.
"""

from configs import attacks, erasures


def get_config(argument: str = "tiny"):
  config = attacks.attack("ring_a_bell", argument, k=16)
  concepts = erasures.erase("uce", argument).concepts
  config.hparams.pairs = tuple((c["erase"], c["anchor"]) for c in concepts)
  return config
