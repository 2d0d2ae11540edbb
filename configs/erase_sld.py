"""SLD guides a model away from a concept; the argument says which, and how far.

  python -m launch.erase --workdir=runs/sld \
    --config=configs/erase_sld.py:tiny,task=object,name=star,preset=max
  python -m launch.erase --workdir=runs/i2p --config.model=my/sd14 \
    --config=configs/erase_sld.py:sd14,task=i2p,preset=strong

Presets, as published: weak, medium, strong, max. `task=i2p` is the published
model's concept. No weight changes: the run's folder holds `guidance.json`.
On two CPU cores, `tiny` takes about four minutes, all of it drawing.
Metric: accuracy on the erased concept and on everything else.
"""

from unlearning_jax.configs import erasures


def get_config(argument: str = "tiny"):
  return erasures.erase("sld", argument)
