"""The baseline that MACE's fusion is compared with."""

import dataclasses

import numpy as np
import pytest

from tests.support import closed_form_cases as cases
from unlearning_jax import closed_form
from unlearning_jax.erasures.mace import fusion
from unlearning_jax.projections import base_fingerprint, cross_attention_kernels


def test_the_mean_of_adapters_is_equation_six():
  """The baseline: no sums enter, weights add up to one."""
  rng = np.random.default_rng(0)
  refined = {"a": rng.normal(size=(6, 4)), "b": rng.normal(size=(6, 5))}
  zero = closed_form.Sums.zero(6)
  downs, ups = rng.normal(size=(2, 6, 2)), rng.normal(size=(2, 2, 4))
  parts = [
    fusion.Part(name, zero, zero.gram, {"a": {"down": down, "up": up}}, weight)
    for name, weight, down, up in zip("xy", (1.0, 3.0), downs, ups, strict=True)
  ]
  fused, _ = fusion.add_mean(refined, parts)
  wanted = refined["a"] + 0.25 * downs[0] @ ups[0] + 0.75 * downs[1] @ ups[1]
  np.testing.assert_allclose(fused["a"], wanted, atol=1e-12)
  np.testing.assert_array_equal(fused["b"], refined["b"])
  nothing = [dataclasses.replace(part, weight=0.0) for part in parts]
  with pytest.raises(ValueError, match="all weights are 0"):
    fusion.add_mean(refined, nothing)


def test_a_fusion_solves_by_either(tmp_path):
  _, params = cases.tiny(tmp_path)
  kernels = cross_attention_kernels(params)
  rng = np.random.default_rng(0)
  adapters = {
    path: {
      "down": rng.normal(size=(cases.WIDTH, 1)),
      "up": rng.normal(size=(1, kernel.shape[1])),
    }
    for path, kernel in kernels.items()
  }
  zero = closed_form.Sums.zero(cases.WIDTH)
  rows = rng.normal(size=(50, cases.WIDTH))
  part = fusion.Part("x", zero, rows.T @ rows, adapters)
  whole = fusion.Fusion(
    base_fingerprint(params), (part,), zero.gram, 0, 0, 10.0
  )
  solved = {
    how: cross_attention_kernels(whole.solve(params, how)[0])
    for how in fusion.FUSIONS
  }
  for path, kernel in kernels.items():
    change = adapters[path]["down"] @ adapters[path]["up"]
    np.testing.assert_allclose(solved["mean"][path], kernel + change, atol=1e-6)
    # The ridge holds some of it back.
    gap = cases.relative(solved["closed_form"][path] - kernel, change)
    assert 0.01 < gap < 0.9
  with pytest.raises(ValueError, match="fusion='means'.*did you mean 'mean'"):
    whole.solve(params, "means")
