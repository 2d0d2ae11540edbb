"""Erase, attack, fine-tune, evaluate: concept unlearning in diffusion models.

Import the module that answers your question, for example
`from unlearning_jax import stable_diffusion`; nothing is loaded before that.
"""

import os

# transformers tells whoever has no torch that its models are missing. Only its
# tokenizers are used here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"
