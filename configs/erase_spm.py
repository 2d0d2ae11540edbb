"""SPM (Lyu et al., CVPR 2024) erases by adapters of rank one.

  python -m launch.erase --workdir=runs/spm \
    --config=configs/erase_spm.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/van_gogh --config.model=my/sd14 \
    --config=configs/erase_spm.py:sd14,task=style,name=Van Gogh

Full size has the published settings, 3,000 steps. `preset=reference` has the
release's timesteps. The adapters are merged and act on every prompt at full
strength; the release's scale for each prompt is not here.
"""

from unlearning_jax.configs import erasures


def get_config(argument: str = "tiny"):
  return erasures.erase("spm", argument)
