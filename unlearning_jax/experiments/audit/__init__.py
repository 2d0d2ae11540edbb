"""An audit: is the concept gone, and does it stay gone?

  run(settings, open_record, models) -> the content of summary.json

It runs experiments that exist, one after another, each in its own folder:
evaluate, attack with controls of equal budget, fine-tune on unrelated
pictures, evaluate every checkpoint. Then it answers five questions by rules
with a name, see `metrics.verdicts`.
"""

from unlearning_jax.experiments.audit.plan import described as described
from unlearning_jax.experiments.audit.run import failed as failed
from unlearning_jax.experiments.audit.run import printed as printed
from unlearning_jax.experiments.audit.run import reached as reached
from unlearning_jax.experiments.audit.run import run as run
from unlearning_jax.experiments.audit.run import status as status
from unlearning_jax.experiments.audit.settings import PRESETS as PRESETS
from unlearning_jax.experiments.audit.settings import Settings as Settings
from unlearning_jax.experiments.audit.settings import claims as claims
from unlearning_jax.experiments.audit.stages import Audit as Audit
