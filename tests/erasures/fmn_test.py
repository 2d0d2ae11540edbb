"""FMN: which tokens lose attention, and its loss in torch."""

import jax
import numpy as np
import pytest

from tests.support import torch_unets
from unlearning_jax.concepts import make_concepts
from unlearning_jax.erasures import fmn

START, END = 98, 99
IDS = np.array([[START, 5, 6, 7, END, END, END], [START, 6, 6, 7, END, 0, 0]])


@pytest.mark.parametrize(
  "ends, wanted",
  [
    ("none", ([2, 3], [2, 3])),
    ("first", ([2, 3, 4], [2, 3, 4])),
    # A tokenizer that pads with another token has one end.
    ("all", ([2, 3, 4, 5, 6], [2, 3, 4])),
  ],
)
def test_which_tokens_lose_attention(ends, wanted):
  found = fmn.positions(IDS, [(6, 7), (6, 7)], END, ends)
  assert tuple(np.flatnonzero(row).tolist() for row in found) == wanted


def test_a_concept_that_is_not_in_its_prompt():
  for words in ((7, 6), ()):
    with pytest.raises(ValueError, match="not in its prompt.*'a photo of {}'"):
      fmn.positions(IDS[:1], [words], END, "all")


def test_a_concept_without_an_image_is_refused():
  h = fmn.Hparams(num_images=2)
  with pytest.raises(ValueError, match="num_images=2: 3 phrases.*or more"):
    fmn.erase(None, {}, make_concepts([*"abc"], ""), None, h)


@pytest.mark.parametrize(
  "options, words",
  [
    ({"preset": "fxed"}, "did you mean 'fixed'"),
    ({"train": "kv"}, "train='kv' is not known; allowed: full, cross"),
    ({"template": "a photo"}, "template='a photo': has no place"),
    ({"batch_size": 21}, "batch_size=21; allowed: 1 to num_images=20"),
    ({"words_rate": -1.0}, "words_rate=-1.0; allowed: finite.*above 0"),
    ({"words_steps": 0}, "words_steps=0; allowed: whole numbers from 1"),
  ],
)
def test_settings_that_cannot_be(options, words):
  with pytest.raises(ValueError, match=words):
    fmn.Hparams(**options)


@pytest.mark.torch
@pytest.mark.slow
def test_the_gradient_is_that_of_the_release(tmp_path):
  """Its norm of attention in float64, for given latents and noise.

  `src/train_attn.py` of SHI-Labs/Forget-Me-Not at a4a81e82.
  """
  case = torch_unets.both(tmp_path)
  x, n, *_ = (case.tensor(a).movedim(-1, 1) for a in case.images)
  marked = np.zeros(case.states.shape[1:3], bool)
  marked[0, 2:5], marked[1, 1:4] = True, True
  kept = []

  def attend(attn, hidden, encoder_hidden_states=None, **_):
    query = attn.head_to_batch_dim(attn.to_q(hidden))
    key, value = (
      attn.head_to_batch_dim(project(encoder_hidden_states))
      for project in (attn.to_k, attn.to_v)
    )
    weights = attn.get_attention_scores(query, key)
    rows = weights.unflatten(0, (len(marked), -1))
    kept.extend(
      row[..., np.flatnonzero(mask)].flatten()
      for row, mask in zip(rows, marked, strict=True)
    )
    return attn.to_out[0](attn.batch_to_head_dim(weights @ value))

  for name, module in case.unet.named_modules():
    if name.endswith("attn2"):
      module.set_processor(attend)
  noisy = case.noised(x, n)
  case.predict(noisy, case.tensor(case.states[0]))
  total = case.cat(kept).norm()
  total.backward()
  arrays = (noisy.movedim(1, -1).float().numpy(), case.t, case.states[0])
  value, ours = jax.jit(
    jax.value_and_grad(
      lambda p: fmn.attention_norm(case.sd, p, *arrays, marked)
    )
  )({"unet": case.params["unet"]})
  assert abs(float(value) / total.item() - 1) < 1e-5
  torch_unets.close(ours, case.unet)
