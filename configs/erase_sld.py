"""SLD (Schramowski et al., CVPR 2023) guides a model away from a concept.

  python -m launch.erase --workdir=runs/sld \
    --config=configs/erase_sld.py:tiny,task=object,name=star,preset=max
  python -m launch.erase --workdir=runs/i2p --config.model=my/sd14 \
    --config=configs/erase_sld.py:sd14,task=i2p,preset=strong

The published presets are weak, medium, strong and max; `task=i2p` is the
published concept. `weak_diffusers` has diffusers' scale of 20 in place of 200,
and `--config.hparams.clock=legacy` the attack benchmark's warmup. No weight
changes: the run's folder has `guidance.json`.
`tiny` takes about four minutes on two CPU cores, all of them drawing.
"""

from unlearning_jax.configs import erasures


def get_config(argument: str = "tiny"):
  return erasures.erase("sld", argument)
