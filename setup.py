"""Install with `pip install -e .`; pyproject.toml configures tools only."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).resolve().parent
VERSION = re.search(
  r'^__version__ = "(.+)"',
  (ROOT / "unlearning_jax/__init__.py").read_text(encoding="utf-8"),
  re.MULTILINE,
)[1]

CORE = [
  "jax>=0.10.2,<0.13",
  "flax>=0.12.8,<0.13",
  "optax>=0.2.8,<0.3",
  "orbax-checkpoint>=0.12.8,<0.13",
  "jaxtyping>=0.3.11,<0.4",
  "ml_collections>=1.1,<2",
  "absl-py>=2.3",
  "numpy>=2.1,<3",
  "safetensors>=0.5",
  "transformers>=5.17,<6",  # tokenizer; imports without torch
  "diffusers>=0.40,<1",  # folder format, schedulers' configs; likewise
  "tensorflow-datasets>=4.9.10,<5",
  "importlib_resources",  # tfds imports it undeclared
  "grain>=0.2.18",
  "jinja2>=3.1",
  "pillow>=11",
  "tqdm>=4.66",
]

NOTEBOOK = [
  "ipykernel>=6.29", "jupytext>=1.17", "nbclient>=0.10", "nbformat>=5.10"
]  # fmt: skip
# Its version decides what is counted; see judges/nudenet.py.
JUDGES = ["onnxruntime>=1.20", "nudenet==3.4.2"]

EXTRAS = {
  "cuda": ["jax[cuda12]>=0.10.2,<0.13"],
  "tpu": ["jax[tpu]>=0.10.2,<0.13"],
  "gcs": ["etils[epath-gcs]>=1.13"],
  "k8s": ["jax[k8s]>=0.10.2,<0.13"],
  "hub": ["huggingface_hub>=1.0"],
  "judges": JUDGES,
  "report": ["matplotlib>=3.9"],
  "tracking": ["tensorboardX>=2.6", "wandb>=0.19"],
  "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.30"],
  "notebook": NOTEBOOK,
  "test": [
    *NOTEBOOK,
    *JUDGES,
    "beartype>=0.22",
    # Loads adapters into torch diffusers; needs torch.
    'peft>=0.17; python_version == "3.11"',
    "pyright[nodejs]>=1.1.400",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff>=0.14",
    "submitit>=1.5",
    "tensorboardX>=2.6",
    # The oracle of the parity tests. Pinned, and on one Python only: an open
    # requirement pulls gigabytes of GPU libraries.
    'torch==2.13.0; python_version == "3.11"',
  ],
}

# Folders of the checkout that a wheel has inside `unlearning_jax`.
MAPPED = ["configs", "launch", "launch.*"]

setup(
  name="unlearning_jax",
  version=VERSION,
  description="Concept unlearning in diffusion models, in JAX: erase, "
  "attack, fine-tune, evaluate.",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11,<3.14",
  # A wheel installs one name: nothing called `launch` or `configs` stands
  # beside it.
  packages=[
    *find_packages(include=["unlearning_jax*"]),
    *(f"unlearning_jax.{n}" for n in find_packages(include=MAPPED)),
  ],
  package_dir={
    "unlearning_jax.configs": "configs",
    "unlearning_jax.launch": "launch",
  },
  package_data={
    "unlearning_jax.launch": ["*/*.sh", "*/*.yaml"],
    "unlearning_jax": [
      "report/style.css",
      "report/templates/*.html",
      "report/published/*.csv",
      "shapes/assets/**",
      "lists/*.txt",
      "judges/*.txt",
      "protocols/*.json",
      "experiments/programs/*.json",
    ],
  },
  entry_points={
    "console_scripts": ["unlearning-jax=unlearning_jax.launch.main:main"]
  },
  install_requires=CORE,
  extras_require=EXTRAS,
  classifiers=[
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
  ],
)
