"""UCE (Gandikota et al., WACV 2024) edits cross-attention in closed form.

  python -m launch.erase --workdir=runs/uce \
    --config=configs/erase_uce.py:tiny,task=style,name=swirl
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_uce.py:sd14,task=unsafe

At full size `preset=uce2025` is the later release, and
`list=artists_1734,count=100` erases a hundred artists. Styles of uce2023
preserve the others of the 1,734; `--config.preserve=` preserves none.
`--config.hparams.technique=tensor` is the releases' early experiment. As they
do, `--config.hparams.truncate=True` cuts phrases that are too long. `tiny`
takes about two minutes on two CPU cores, nearly all of them drawing.
"""

from unlearning_jax.configs import erasures


def get_config(argument: str = "tiny"):
  return erasures.erase("uce", argument)
