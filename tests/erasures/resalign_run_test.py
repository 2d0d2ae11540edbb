"""A short run of ResAlign with lanes of every kind."""

from typing import cast

import jax
import numpy as np
import pytest

from tests.support import attacks_cases
from unlearning_jax import erasures, shapes
from unlearning_jax import stable_diffusion as stable
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import Edit, load_edit, save_edit

pytestmark = pytest.mark.usefixtures("quickest_compiler")


# Of the other preset `resalign_kinds_test` has the lanes of every kind.
@pytest.mark.slow
def test_a_short_run(tmp_path):
  _, params = stable.load(shapes.model_folder())
  sd, victim, _ = attacks_cases.make_world()
  params = {**params, **victim.params}
  names = ("sgd/1e-2/1/0+1", "adamw-full/1e-4/2/1")
  method = erasures.bind(
    "resalign",
    {
      "lanes": names, "num_images": 8, "num_inference_steps": 2,
      "num_steps": 2, "batch_size": 8, "curvature_batch": 1, "terms": 2,
    },
  )  # fmt: skip
  concepts = make_concepts(["star"], "circle", ["moon", "square"])
  edit = cast(Edit, method(sd, params, concepts, jax.random.key(0)))
  save_edit(edit, tmp_path / "edit.safetensors")
  found = load_edit(tmp_path / "edit.safetensors")
  for name, leaf in edit.tensors.items():
    assert np.isfinite(leaf).all()
    np.testing.assert_array_equal(found.tensors[name], leaf)
  # Only the adapters remain of a lane that tunes all weights.
  assert all("/attn" in name for name in edit.tensors)
