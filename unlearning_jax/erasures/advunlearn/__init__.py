"""AdvUnlearn: Defensive Unlearning with Adversarial Training (NeurIPS 2024).

The text encoder learns to erase the concept c from prompts that an attack has
just made, and to leave other prompts r as they were:

  min  | f(x_t, t, c*) - f*(x_t, t, 0) + eta [f*(x_t, t, c) - f*(x_t, t, 0)] |^2
       + retain_weight |f(x_t, t, r) - f*(x_t, t, r)|^2
  c* = argmin over k tokens before c of | f(x_t, t, c*) - f*(x_t, t, c) |^2

f* is the base. f is the base's UNet on the edited text encoder's states. x_t is
the end of a partial trajectory of the base towards c or r. The retained prompts
r are those that the concepts preserve. The first `warmup_steps` do not attack.

Trajectories come from a `bank`, see there.

Two versions exist, each a preset:

  fixed      the paper: each update of the attack follows its own gradient, and
             "fast" is one signed step. But "pgd" takes Adam's steps, as in the
             release; the paper descends along the gradient itself.
  reference  the release. Its attack adds the gradients of all updates up and
             loses the last update. Prompts lose a token for each new one where
             a word is several tokens. x_t is less noisy than t says, as in
             ESD's release. "fast" gives Adam signs, for 30 updates.

The release draws t anew at every update, in the interval of its index, and
erased and retained rows have the same t. Here `reference` draws it once for
each trajectory and index, so that these rows share the interval alone. The
release starts its list of retained prompts again when fewer than
`retain_batch` of them are left. Here a step takes those that are left, and
fills up from the next order.

The release can also train the UNet, and retain in steps of its own; this module
cannot.

Reference: Zhang et al., https://arxiv.org/abs/2405.15234
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from unlearning_jax import finetune, stable_diffusion
from unlearning_jax.concepts import (
  Concept,
  check_concepts,
  check_unnamed,
  preserved_phrases,
)
from unlearning_jax.edits import Edit
from unlearning_jax.erasures import (
  NO_HOOKS,
  Hooks,
  check_predicts_noise,
  edit_of,
)
from unlearning_jax.erasures.advunlearn import attack, bank, training
from unlearning_jax.erasures.advunlearn.options import PRESETS, TEXT, trains
from unlearning_jax.erasures.advunlearn.options import Hparams as Hparams
from unlearning_jax.stable_diffusion import Params, StableDiffusion

CHANGES = (f"{TEXT}/encoder/*", f"{TEXT}/final_layer_norm/*")
NEEDS = "nothing"


def _retained(
  sd: StableDiffusion, concepts: Sequence[Concept], h: Hparams
) -> tuple[str, ...]:
  """The retained prompts.

  Raises:
    ValueError: as `erase`.
  """
  depth = sd.text_encoder.config.num_hidden_layers
  if h.layers is not None and not 1 <= h.layers <= depth:
    raise ValueError(f"layers={h.layers}; allowed: 1 to {depth}, or None")
  if not h.retain_weight:
    return ()
  retained = preserved_phrases(concepts)
  if not retained:
    raise ValueError(
      f"retain_weight={h.retain_weight}, but the concepts preserve nothing: "
      "AdvUnlearn alone would damage every prompt; preserve phrases, as those "
      "of the list 'coco_objects', or take retain_weight=0"
    )
  check_unnamed(concepts)
  return retained


def _banks(
  sd: StableDiffusion,
  params: Params,
  texts: Mapping[str, Sequence[str]],
  key: PRNGKeyArray,
  h: Hparams,
  collect: Callable[..., list[np.ndarray]],
) -> dict[str, Any]:
  """Trajectories towards the texts, and the empty prompt's text states."""
  empty = stable_diffusion.encode_prompts(sd, params, [""])
  banks, about = {}, dataclasses.asdict(h.walk)
  about["latents"] = list(sd.latent_shape)
  about["schedule"] = dataclasses.asdict(sd.schedule)
  for i, (name, phrases) in enumerate(texts.items()):
    each = max(1, h.num_trajectories // len(phrases))
    about |= {name: list(phrases), f"{name}_each": each}
    context = stable_diffusion.encode_prompts(sd, params, phrases)
    own = jax.random.fold_in(key, i)
    banks[name] = bank.begin(sd, h.walk, context, each, own)
  if h.bank is not None and pathlib.Path(h.bank).exists():
    banks = bank.load(h.bank, banks, params, about)
  elif h.banked:
    for name, begun in banks.items():
      banks[name] = bank.fill(sd, params, h.walk, begun, empty, collect, name)
    if h.bank is not None:
      bank.save(h.bank, banks, params, about)
  return {**banks, "empty": empty}


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Edit:
  """Erases `concepts` by AdvUnlearn, a random one in each row of each step.

  Arguments as `Erasure`. The method ignores anchors; it uses `hooks.collect`
  and `hooks.trainer`.

  Raises:
    ValueError: an unusable concept; a phrase that leaves no room for the new
      tokens; nothing is preserved, or a prompt that names a concept; a bank of
      another base; a model that does not predict the noise.
    FloatingPointError: the training diverges.
  """
  check_concepts(concepts)
  check_predicts_noise(sd, "AdvUnlearn")
  erased = [concept.erase for concept in concepts]
  ids = stable_diffusion.tokenize(sd, erased)
  length, counts = ids.shape[1], [len(r) for r in _rows(sd, erased)]
  source = np.stack([
    attack.layout(
      phrase, count - 2, h.num_tokens, length, PRESETS[h.preset].legacy_words
    )
    for phrase, count in zip(erased, counts, strict=True)
  ])  # fmt: skip
  retained = _retained(sd, concepts, h)
  texts = {"concepts": erased} | ({"retained": retained} if retained else {})
  own_ids = stable_diffusion.tokenize(sd, retained)
  keys = jax.random.split(key)
  banks = _banks(sd, params, texts, keys[0], h, hooks.collect)
  part = finetune.subset(
    {"text_encoder": params["text_encoder"]}, trains(h.layers), "text_encoder"
  )
  loss, tx = training.prepared(sd, part.join, h)
  frozen = {
    "params": part.frozen, "base": {"unet": params["unet"]}, "ids": ids,
    "source": source, "retained_ids": own_ids, **banks,
  }  # fmt: skip
  draws = training.Draws(
    len(erased), len(retained), h, int(jax.random.bits(keys[1]) >> 1)
  )
  trained = hooks.trainer(
    loss, tx, part.trained, frozen, draws, keys[1],
    batch_size=h.batch_size, num_steps=h.num_steps,
  )  # fmt: skip
  return edit_of(params, part, trained, "advunlearn", concepts)


def _rows(sd: StableDiffusion, texts: Sequence[str]) -> list[list[int]]:
  return sd.tokenizer(list(texts), truncation=False)["input_ids"]
