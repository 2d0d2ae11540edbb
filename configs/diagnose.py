"""Diffusion Classifier (Li et al., ICCV 2023) on an unlearned model.

  python -m launch.diagnose --edit=runs/uce --workdir=runs/diagnosis \
    --config=configs/diagnose.py:tiny,task=object,name=star

At full size give the prompts, `--config.prompt_table`, and for labels the
`classes`, their `caption` and the `concept`. The result is the share of the
base's gap that the victim keeps.
"""

from unlearning_jax.configs import attacks

from unlearning_jax import extensions

_CAPTIONS = {"object": "a {}", "identity": "a portrait of {}"}


def get_config(argument: str = "tiny"):
  config = attacks.attack("controls", argument)
  config.title = f"Diffusion Classifier, {config.title.split(' on ')[-1]}"
  # Timesteps of the gap. All prompts and models have the same noises.
  config.timesteps = 50
  config.anchor = ""
  config.criterion = "l2"
  # (timesteps, prompts kept), as published for CIFAR-10.
  config.stages = ((50, 5), (500, 1))
  config.classes, config.caption, config.concept = (), "{}", ""
  if config.targets:
    task, name = config.targets[0]["task"], config.targets[0]["name"]
    config.rows_per_group = 20
    config.stages = ((10, 3), (50, 1))
    if task in _CAPTIONS:
      config.classes = extensions.world("shapes").concepts()[task]
      config.caption, config.concept = _CAPTIONS[task], name
  return config
