"""What the tests of the closed-form erasures share: goldens, a tiny model."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import transformers

from tests.support import tiny_pipelines
from unlearning_jax import closed_form, models
from unlearning_jax.erasures import uce
from unlearning_jax.stable_diffusion import StableDiffusion, encode_text

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
WIDTH, LENGTH = 24, 40


def relative(a, b):
  return np.linalg.norm(a - b) / np.linalg.norm(b)


class Golden:
  """A run of the authors' code: its inputs as ours, its output as arrays."""

  def __init__(self, name):
    self.arrays = dict(np.load(GOLDENS / f"closed_form_{name}.npz"))
    provenance = json.loads(str(self.arrays["provenance"]))
    self.settings = provenance["settings"]
    self.weights = np.float64(self.arrays["weights"])
    self.gram = self.weights.T @ self.weights
    self.states = {
      phrase: uce.TextState(rows, int(last))
      for phrase, rows, last in zip(
        self.arrays["phrases"].tolist(),
        self.arrays["states"],
        self.arrays["last"],
        strict=True,
      )
    }

  def held(self, phrases, preset="uce2023"):
    total = closed_form.Sums.zero(len(self.gram))
    for phrase in phrases:
      state = self.states[phrase]
      rows = state.rows
      if preset == "uce2025":
        rows = rows[state.last : state.last + 1]
      total += closed_form.preserve_sums(rows, 1.0)
    return total

  def task(self, preset, preserve):
    s = self.settings
    pairs = [
      (self.states[erase], self.states[anchor])
      for erase, anchor in zip(s["erase"], s["anchor"], strict=True)
    ]
    return uce.Task(preset, pairs, self.held(preserve, preset), len(preserve))

  def change(self, context_map):
    """Of all projections, stacked as the golden's."""
    return self.weights @ (context_map - np.eye(len(context_map)))


def tiny(folder, seed=0):
  """A text encoder and some projections; the tokenizer knows letters only."""
  tiny_pipelines.write_tokenizer(folder / "tokenizer")
  tokenizer = transformers.CLIPTokenizer.from_pretrained(
    str(folder / "tokenizer")
  )
  text_encoder = models.ClipTextModel.from_config(
    {
      "vocab_size": len(tokenizer),
      "hidden_size": WIDTH,
      "intermediate_size": 48,
      "num_hidden_layers": 2,
      "num_attention_heads": 3,
      "max_position_embeddings": LENGTH,
      "eos_token_id": tokenizer.eos_token_id,
    }
  )
  sd = StableDiffusion(
    text_encoder=text_encoder,
    unet=None,
    vae=None,
    schedule=None,
    latent_size=(8, 8),
    tokenizer=tokenizer,
    files=None,
  )
  ids = jnp.zeros((1, LENGTH), jnp.int32)
  shapes = jax.eval_shape(text_encoder.init, jax.random.key(0), ids)["params"]
  rng = np.random.default_rng(seed)

  def fill(leaf):
    # Matrices of gain two, so that phrases differ clearly; biases small.
    gain = 2 / np.sqrt(leaf.shape[0]) if leaf.ndim > 1 else 0.2
    return np.float32(gain * rng.normal(size=leaf.shape) + (leaf.ndim == 1))

  def kernel(out):
    return {"kernel": np.float32(rng.normal(size=(WIDTH, out)) / 5)}

  unet = {
    block: {"attn2": {n: kernel(out) for n in ("to_q", "to_k", "to_v")}}
    for block, out in (("down_blocks_0", 16), ("up_blocks_0", 28))
  }
  encoder = jax.tree.map(fill, shapes)
  return sd, {"text_encoder": encoder, "unet": unet, "vae": {}}


def states_of(sd, params, phrase):
  """One phrase's states by itself, and the index of its last token."""
  row = sd.tokenizer(phrase)["input_ids"]
  ids = row + [sd.tokenizer.pad_token_id] * (LENGTH - len(row))
  states = encode_text(sd, params, jnp.asarray([ids]))
  return np.asarray(states[0], np.float64), len(row) - 2
