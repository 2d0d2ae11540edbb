"""Erase, attack, fine-tune, evaluate: concept unlearning in diffusion models.

Import the module that answers your question, for example
`from unlearning_jax import stable_diffusion`; nothing is loaded before that.
"""

__version__ = "0.1.0"
