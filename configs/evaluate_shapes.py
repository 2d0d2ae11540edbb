"""The Shapes model on held-out prompts, beside models that were erased from it.

  python -m launch.evaluate --config=configs/evaluate_shapes.py \
    --workdir=runs/evaluation

About two minutes a model on two CPU cores.
"""

from unlearning_jax.configs import common

from unlearning_jax import extensions


def get_config(argument: str = "tiny"):
  chosen = common.parse(argument, size="tiny", task="", name="")
  config = common.comparison(chosen["size"])
  config.title = "The Shapes model"
  config.other_rows = 1_000
  if chosen["task"] or chosen["name"]:
    world = extensions.world("shapes")
    task = chosen["task"] or world.task_of(chosen["name"].split("+")[0])
    names = world.classes(task, chosen["name"])
    config.targets = tuple({"task": task, "name": name} for name in names)
    config.rows_per_group = world.rows_per_group(names)
    config.other_rows = 200
    config.title = f"{', '.join(names)}: before and after"
  return config
