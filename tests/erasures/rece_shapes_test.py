"""RECE on the Shapes model: what its epochs do to what UCE erased."""

import numpy as np

from unlearning_jax import shapes, stable_diffusion
from unlearning_jax.concepts import make_concepts
from unlearning_jax.erasures import rece, uce
from unlearning_jax.projections import cross_attention_kernels, projection_gram


def test_joint_epochs_do_not_bring_the_concept_back():
  """What the release's epochs do where they hold much: see the module."""
  sd, params = stable_diffusion.load(shapes.model_folder())
  preserve = [
    "circle",
    "house",
    "moon",
    "fish",
    "a red heart",
    "by Odrik Vasht",
  ]
  concepts = make_concepts(["star", "a red star"], "circle", preserve)
  states = list(uce.encode(sd, params, ["a blue star", "a blue circle"]))
  star, circle = (s.rows[3] for s in states)
  gram = projection_gram(cross_attention_kernels(params))

  def gap(method, **hparams):
    """How far the star is from the circle, as a share of what it was."""
    edit = method.erase(
      sd,
      params,
      concepts,
      None,
      method.Hparams(uce_preserve_scale=1.0, **hparams),
    )
    left = edit.context_map @ star - circle
    return np.sqrt(
      left @ gram @ left / ((star - circle) @ gram @ (star - circle))
    )

  erased = gap(rece, epochs=0)
  assert erased < gap(rece, rows="joint") < gap(rece) - 0.1
