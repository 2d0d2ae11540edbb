"""Trains the tokenizer, text encoder and image tower, contrastively.

  python -m launch.train --config=configs/train_shapes_clip.py \
    --workdir=runs/clip --model=runs/shapes
"""

from unlearning_jax.configs import trainings


def get_config():
  config = trainings.stage("clip")
  config.num_steps = 600
  config.batch_size = 192
  config.tokenizer_captions = 20_000
  config.text_encoder = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 128,
  }
  config.tower = {
    "widths": (16, 32, 64, 128),
    "projection_dim": 128,
    "groups": 8,
  }
  return config
