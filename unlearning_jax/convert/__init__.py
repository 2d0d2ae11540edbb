"""Reads and writes model weights; every key of a file is used exactly once.

  load         folder, hub id, single file, or a part or a LoRA over a base
               -> ModelFiles
  to_params    ModelFiles -> parameters of all components
  to_flax      one component's torch tensors -> parameters
  to_torch     and back
  save_folder, save_single_file, save_part, save_delta
               ModelFiles -> files that torch's libraries and this package read

`reader` and `pickles` read files; `names` maps names and layouts; `compvis`
knows the single-file layout, `folder` the diffusers layout, `adapters` LoRAs.
"""

from unlearning_jax.convert.adapters import read_lora as read_lora
from unlearning_jax.convert.folder import ModelFiles as ModelFiles
from unlearning_jax.convert.folder import load_folder as load_folder
from unlearning_jax.convert.folder import save_folder as save_folder
from unlearning_jax.convert.names import to_flax as to_flax
from unlearning_jax.convert.names import to_torch as to_torch
from unlearning_jax.convert.names import torch_name as torch_name
from unlearning_jax.convert.parts import fingerprint as fingerprint
from unlearning_jax.convert.parts import overlay as overlay
from unlearning_jax.convert.parts import (
  params_fingerprint as params_fingerprint,
)
from unlearning_jax.convert.parts import save_delta as save_delta
from unlearning_jax.convert.parts import save_part as save_part
from unlearning_jax.convert.parts import save_single_file as save_single_file
from unlearning_jax.convert.parts import without_new_words as without_new_words
from unlearning_jax.convert.reader import read_state_dict as read_state_dict
from unlearning_jax.convert.sources import is_delta as is_delta
from unlearning_jax.convert.sources import load as load
from unlearning_jax.convert.template import templates as templates
from unlearning_jax.convert.template import to_params as to_params
