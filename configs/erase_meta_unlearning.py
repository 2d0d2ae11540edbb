"""Meta-Unlearning (Gao et al., ICCV 2025) is meant to survive relearning.

  python -m launch.erase --workdir=runs/meta \
    --config=configs/erase_meta_unlearning.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_meta_unlearning.py:sd14,task=unsafe \
    --config.hparams.wrapped=uce

`hparams.wrapped` is the erasure that it wraps: esd, concept_ablation, salun,
erasediff, uce, rece or time. On `tiny` that has the hyperparameters of its own
config. Full size has the published settings, which are for nudity, with the
phrases of the release's demonstration. For other concepts name unrelated
phrases to `preserve`, and related ones:

  --config.hparams.related="('a chapel',)" --config.preserve=coco_objects
"""

from unlearning_jax.configs import erasures

_RELATED, _IRRELEVANT = ("woman", "a photo of a man"), ("a lovely dog",)


def get_config(argument: str = "tiny"):
  config = erasures.erase("meta_unlearning", argument)
  chosen = erasures.parse(argument)
  own = chosen["name"] or chosen["list"]
  if chosen["size"] != "tiny" and chosen["task"] == "unsafe" and not own:
    config.hparams.related = _RELATED
    if not chosen["preserve"]:
      config.concepts = tuple(
        {**concept, "preserve": _IRRELEVANT} for concept in config.concepts
      )
  return config
