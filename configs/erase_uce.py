"""UCE erases a concept; the argument says from which model, and what.

  python -m launch.erase --workdir=runs/uce \
    --config=configs/erase_uce.py:tiny,task=style,name=swirl
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_uce.py:sd14,task=unsafe

Tasks: object, style, identity, unsafe; also i2p, imagenette at full size, where
`preset=uce2025` is the later release, `list=artists_1734,count=100` erases a
hundred artists, and uce2023's styles hold the others of the 1,734
(`--config.preserve=` for none). `--config.hparams.technique=tensor` is the
releases' early experiment, `--config.hparams.truncate=True` cuts phrases that
are too long off, as they do.
On two CPU cores, `tiny` takes about two minutes, nearly all of it drawing.
Metric: accuracy on the erased concept and on everything else.
"""

from unlearning_jax.configs import erasures


def get_config(argument: str = "tiny"):
  return erasures.erase("uce", argument)
