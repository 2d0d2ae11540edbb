"""Results kept for arrays that cannot change, and for no others."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import closed_form_cases as cases
from unlearning_jax import memory, shapes, stable_diffusion
from unlearning_jax import projections as weights
from unlearning_jax.concepts import make_concepts
from unlearning_jax.convert import parts
from unlearning_jax.edits import apply_to_params
from unlearning_jax.erasures import rece, uce
from unlearning_jax.projections import projection_gram


@pytest.fixture
def counted():
  calls = []

  def total(leaves):
    calls.append(list(leaves))
    return sum(float(np.sum(leaf)) for leaf in leaves.values())

  return memory.once(total), calls


def test_all_of_a_model_is_hashed_once(monkeypatch):
  asked = []
  monkeypatch.setattr(parts, "fingerprint", lambda s: str(asked.append(s)))
  params = {"unet": {"conv_in": {"bias": jnp.ones(3)}}}
  for _ in range(2):
    parts.params_fingerprint({**params})
  assert len(asked) == 1
  parts.params_fingerprint({"unet": {"conv_in": {"bias": np.ones(3)}}})
  assert len(asked) == 2


def test_the_same_arrays_are_read_once(counted):
  total, calls = counted
  leaves = {"a": jnp.ones(3), "b": jnp.ones(2)}
  assert [total(leaves) for _ in range(3)] == [5.0] * 3
  # Another dict of the same arrays is the same model.
  assert total(dict(leaves)) == 5.0
  assert len(calls) == 1
  assert total(leaves | {"b": 2 * leaves["b"]}) == 7.0
  assert total({"a": leaves["b"], "b": leaves["a"]}) == 5.0
  assert total({"c": leaves["a"]}) == 3.0
  assert len(calls) == 4


def test_arrays_that_can_change_are_read_each_time(counted):
  total, calls = counted
  leaves = {"a": np.ones(3), "b": jnp.ones(2)}
  assert total(leaves) == 5.0
  leaves["a"][0] = 7.0
  assert total(leaves) == 11.0
  assert len(calls) == 2


def test_read_only_arrays_are_read_once(counted):
  total, calls = counted
  fixed = memory.frozen(np.arange(8.0).reshape(2, 4)[1:])
  leaves = {"a": fixed, "b": jnp.ones(2)}
  assert [total(leaves) for _ in range(2)] == [24.0] * 2
  assert len(calls) == 1
  with pytest.raises(ValueError, match="read-only"):
    fixed[0, 0] = 7.0
  # A read-only view of an array that can change is none.
  under = np.ones(3)
  over = under[:]
  over.flags.writeable = False
  assert total({"a": over}) == 3.0
  under[0] = 7.0
  assert total({"a": over}) == 9.0


def test_a_model_of_files_is_hashed_once(monkeypatch):
  """A check of an edit's base would read all of it for every picture."""
  asked = []
  monkeypatch.setattr(parts, "fingerprint", lambda s: str(asked.append(s)))
  _, params = stable_diffusion.load(shapes.model_folder())
  for _ in range(2):
    parts.params_fingerprint(params)
  assert len(asked) == 1
  changed = jax.tree.map(lambda leaf: leaf.copy(), params)
  for _ in range(2):
    parts.params_fingerprint(changed)
  assert len(asked) == 3


def test_no_result_outlives_its_arrays(counted):
  total, _ = counted
  # Freed arrays hand their place, and so their number, to the next.
  for value in range(50):
    assert total({"a": jnp.full(3, value)}) == 3.0 * value


def test_a_failure_is_not_remembered():
  def fail(leaves):
    raise ValueError("no")

  leaves, once = {"a": jnp.ones(1)}, memory.once(fail)
  for _ in range(2):
    with pytest.raises(ValueError, match="no"):
      once(leaves)


@pytest.mark.parametrize("module", [uce, rece])
def test_a_model_is_hashed_once(module, tmp_path, monkeypatch):
  sd, params = cases.tiny(tmp_path)
  edited = module.erase(
    sd, params, make_concepts("dog"), None, module.Hparams()
  )
  placed = jax.tree.map(jnp.asarray, params)
  hashed = []

  class Spy:
    @staticmethod
    def sha256():
      hashed.append(1)
      return hashlib.sha256()

  monkeypatch.setattr(weights, "hashlib", Spy)
  for word in ("dog", "cat"):
    edit = module.erase(sd, placed, make_concepts(word), None, module.Hparams())
    apply_to_params(edit, placed)
  assert len(hashed) == 1
  # Wherever the weights are, they are the same.
  assert edit.base == edited.base
  # What is wrong with another model is still found.
  other = jax.tree.map(lambda x: 1.5 * x, placed)
  with pytest.raises(ValueError, match="made from base"):
    apply_to_params(edit, other)
  kernel = other["unet"]["up_blocks_0"]["attn2"]["to_k"]
  kernel["kernel"] = kernel["kernel"].at[0, 0].set(np.nan)
  with pytest.raises(ValueError, match="up_blocks_0/attn2/to_k/kernel holds"):
    module.erase(sd, other, make_concepts("dog"), None, module.Hparams())


def test_what_is_shared_cannot_be_changed():
  gram = projection_gram({"k": jnp.ones((3, 2))})
  with pytest.raises(ValueError, match="read-only"):
    gram[0, 0] = 1.0
