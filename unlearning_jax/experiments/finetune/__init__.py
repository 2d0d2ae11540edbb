"""Innocent fine-tuning of a model: does an erased concept come back?

settings    the settings of a run, checked
images      the captioned images of a run
parts       partition, step, first state; a state as a model
run         the run
"""

from unlearning_jax.experiments.finetune.images import (
  check_batch as check_batch,
)
from unlearning_jax.experiments.finetune.images import (
  check_overlap as check_overlap,
)
from unlearning_jax.experiments.finetune.images import data_of as data_of
from unlearning_jax.experiments.finetune.images import encode as encode
from unlearning_jax.experiments.finetune.images import examples as examples
from unlearning_jax.experiments.finetune.parts import check_start as check_start
from unlearning_jax.experiments.finetune.parts import (
  phrase_states as phrase_states,
)
from unlearning_jax.experiments.finetune.parts import prepare as prepare
from unlearning_jax.experiments.finetune.parts import programs as programs
from unlearning_jax.experiments.finetune.parts import (
  tuned_params as tuned_params,
)
from unlearning_jax.experiments.finetune.parts import with_remat as with_remat
from unlearning_jax.experiments.finetune.run import edits as edits
from unlearning_jax.experiments.finetune.run import listed as listed
from unlearning_jax.experiments.finetune.run import run as run
from unlearning_jax.experiments.finetune.settings import DEFENSES as DEFENSES
from unlearning_jax.experiments.finetune.settings import Data as Data
from unlearning_jax.experiments.finetune.settings import Settings as Settings
