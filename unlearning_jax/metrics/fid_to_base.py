"""FID to what the base draws: how much did an erasure change the other images?

The reference is the base's own pictures of the same prompts and seeds, so it
needs no photographs. Same pictures have distance 0. Base and model must have
drawn the same number.
"""

from unlearning_jax import metrics
from unlearning_jax.metrics import features, fid
from unlearning_jax.metrics.references import BASE, Reference

NEEDS = features.NEEDS
VERBS = fid.VERBS


def metric(
  stack: str = "t2i",
  count: int = 0,
  few: str = "refuse",
  network: str = features.NETWORK,
  judges_dir: str = "",
) -> metrics.Metric:
  """FID of each model's pictures to the base's.

  Args:
    stack: how pictures are resized: t2i, clean, pytorch-fid, torch-fidelity.
    count: pictures that each model must draw; 0 for any.
    few: `allow` for a number from no more pictures than there are features,
      which is then called rank-deficient.
    network: inception-2015, or `package.module:name` of your own `Features`.
    judges_dir: the folder of weights; "" for the environment's.

  Raises:
    ValueError: the file of weights is missing.
  """
  name = "fid-to-base"
  of = features.load(name, network, stack, judges_dir)
  return fid.made(name, Reference(name, BASE), of, count, few)
