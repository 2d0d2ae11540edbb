"""MACE's closed forms and loss against its authors' code."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.closed_form_cases import GOLDENS, relative
from unlearning_jax import closed_form
from unlearning_jax.erasures.mace import fusion as fusion
from unlearning_jax.erasures.mace import masks as mask
from unlearning_jax.erasures.mace import suppress as suppress
from unlearning_jax.erasures.mace import text as text


class Golden:
  """One run of the authors' code; kernels are W transposed, by path."""

  def __init__(self):
    self.arrays = dict(np.load(GOLDENS / "mace.npz"))
    self.settings = json.loads(str(self.arrays["provenance"]))["settings"]
    self.ids = [json.loads(row) for row in self.arrays["ids"].tolist()]
    self.matched = [json.loads(row) for row in self.arrays["matched"].tolist()]
    self.prompts = len(self.settings["templates"])
    concepts = len(self.settings["pairs"])
    states = np.float64(self.arrays["states"])
    held = self.settings["captions"], self.settings["domain"]
    words, captions, domain = np.split(states, [-sum(held), -held[1]])
    # (concepts, prompts, old or new, tokens, width)
    self.states = words.reshape(concepts, self.prompts, 2, *states.shape[1:])
    weight = self.settings["preserve_weight"]
    grams = [rows.reshape(-1, rows.shape[-1]) for rows in (captions, domain)]
    self.prior = grams[0].T @ grams[0] + weight * (grams[1].T @ grams[1])

  def kernels(self, name):
    rows = np.split(np.float64(self.arrays[name]), self.arrays["splits"])
    names = self.arrays["names"].tolist()
    return {k: w.T for k, w in zip(names, rows, strict=True)}

  def adapters(self, concept):
    ranks = self.arrays["ranks"]
    rank, first = int(ranks[concept]), int(ranks[:concept].sum())
    names, splits = self.arrays["names"].tolist(), self.arrays["splits"]
    start = len(names) * first
    downs = self.arrays["downs"][:, start : start + len(names) * rank]
    ups = np.split(self.arrays["ups"][first : first + rank], splits, axis=1)
    return {
      name: {"down": down, "up": up}
      for name, down, up in zip(
        names, np.split(downs, len(names), axis=1), ups, strict=True
      )
    }

  def located(self, concept, prompt):
    row = 2 * (concept * self.prompts + prompt)
    return [text.Located(tuple(ids), -1, -1) for ids in self.ids[row : row + 2]]


@pytest.fixture(scope="module")
def golden():
  return Golden()


def test_finds_the_same_tokens(golden):
  for i, matched in enumerate(golden.matched):
    old, new = golden.located(*divmod(i, golden.prompts))
    first, last = text.common_ends(old.ids, new.ids)
    for prompt, indices in zip((old, new), matched, strict=True):
      size = len(prompt.ids)
      assert [*range(first), *range(size - last, size)] == indices


def parts(golden):
  """The concepts as the release sees them: by common ends, all prompts."""
  for i in range(len(golden.states)):
    old, new = golden.states[i, :, 0], golden.states[i, :, 1]
    kept = [
      text.kept_tokens(*golden.located(i, j), old.shape[1], by_ends=True)
      for j in range(golden.prompts)
    ]
    yield fusion.Part(
      f"concept {i}",
      text.refinement_sums(old, new, kept),
      closed_form.preserve_sums(old.reshape(-1, old.shape[-1]), 1.0).gram,
      golden.adapters(i),
    )


def test_refines_as_the_authors_do(golden):
  base, theirs = golden.kernels("weights"), golden.kernels("refined")
  settings = golden.settings
  sums = settings["train_preserve_scale"] ** 2 * closed_form.Sums(
    golden.prior, np.zeros_like(golden.prior)
  )
  for part in parts(golden):
    sums += part.sums
  ours, _ = fusion.refine(base, sums, settings["lamb"])
  for path, kernel in theirs.items():
    assert relative(ours[path] - base[path], kernel - base[path]) < 1e-10


def test_fuses_as_the_authors_do(golden):
  base, theirs = golden.kernels("weights"), golden.kernels("fused")
  settings = golden.settings
  ours, found = fusion.fuse(
    base,
    golden.kernels("refined"),
    list(parts(golden)),
    settings["fuse_preserve_scale"] * golden.prior,
    settings["lamb"],
  )
  for path, kernel in theirs.items():
    assert relative(ours[path] - base[path], kernel - base[path]) < 1e-10
  assert found["solve_error"] < 1e-12


def test_the_double_scale_is_a_difference(golden):
  base, theirs = golden.kernels("weights"), golden.kernels("refined")
  sums = golden.settings["train_preserve_scale"] * closed_form.Sums(
    golden.prior, np.zeros_like(golden.prior)
  )
  for part in parts(golden):
    sums += part.sums
  ours, _ = fusion.refine(base, sums, golden.settings["lamb"])
  for path, kernel in theirs.items():
    assert relative(ours[path] - base[path], kernel - base[path]) > 1e-2


def test_the_law_of_timesteps(golden):
  ours = suppress.focal_law(1000)
  # Both subtract sigmoids near one: the tails are rounding.
  np.testing.assert_allclose(ours, golden.arrays["law"], rtol=1e-9, atol=1e-17)


def test_the_loss(golden):
  """With their mask, resized to each layer, and without one."""
  weights = {
    str(side): jnp.asarray(golden.arrays[f"probs_{side}"])[None]
    for side in (8, 2)
  }
  found = golden.arrays["mask"] > 0.5
  masks = {
    side * side: jnp.asarray(mask.layer_mask(found, (side, side), "nearest"))
    for side in (8, 2)
  }
  targets = jnp.asarray(golden.arrays["positions"])[None]
  for chosen, theirs in zip(
    (masks, {q: jnp.ones_like(m) for q, m in masks.items()}),
    golden.arrays["losses"],
    strict=True,
  ):
    chosen = {q: rows[None] for q, rows in chosen.items()}
    (ours,) = suppress.attention_loss(weights, chosen, targets, "norm")
    assert ours == pytest.approx(theirs, rel=1e-6)
