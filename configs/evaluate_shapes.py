"""The embedded Shapes model on held-out prompts, and edits of it beside it.

  python -m launch.evaluate --config=configs/evaluate_shapes.py \
    --workdir=runs/evaluation

Two CPU cores: about two minutes a model. Metric: accuracy per head.
"""

from unlearning_jax.configs import common, shapes_concepts


def get_config(argument: str = "tiny"):
  chosen = common.parse(argument, size="tiny", task="", name="")
  config = common.comparison(chosen["size"])
  config.title = "The Shapes model"
  config.others = 1_000
  if chosen["task"]:
    names = shapes_concepts.classes(chosen["task"], chosen["name"])
    config.targets = shapes_concepts.targets(chosen["task"], names)
    config.per_group = shapes_concepts.per_group(names)
    config.others = 200
    config.title = f"{', '.join(names)}: before and after"
  return config
