"""Stable Diffusion 1.x / 2.x networks in `flax.linen`, NHWC.

Parameter paths follow the torch names with list indices joined by an
underscore (`down_blocks.0` becomes `down_blocks_0`), so that every torch key
has exactly one leaf and `convert` needs no table of layers.
"""

from unlearning_jax.models.clip import ClipTextModel as ClipTextModel
from unlearning_jax.models.config import check_parts_fit as check_parts_fit
from unlearning_jax.models.flax_layers import (
  parameter_shapes as parameter_shapes,
)
from unlearning_jax.models.functional import apply as apply
from unlearning_jax.models.functional import (
  apply_with_attention as apply_with_attention,
)
from unlearning_jax.models.unet import UNet2DCondition as UNet2DCondition
from unlearning_jax.models.vae import AutoencoderKL as AutoencoderKL
