"""Entry points: flags, configs, the run's folder."""

import importlib.util

# A checkout's package holds no configs: an editable installation adds them, and
# another one is hidden by the checkout when Python starts in its folder.
if importlib.util.find_spec("unlearning_jax.configs") is None:
  raise ImportError(
    "launch: this checkout is not the installed unlearning_jax. Run: "
    "pip install -e . (with extras, as pip install -e '.[judges]')"
  )
