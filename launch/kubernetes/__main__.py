"""Runs a verb on Kubernetes, as a JobSet.

  python -m launch.kubernetes --name=matrix --image=registry/unlearning:1 \
    --pods=4 --resources=nvidia.com/gpu=8 --claim=shared -- attack_matrix \
    --config=attack_matrix_shapes --workdir=/shared/matrix

`--dry_run` prints the manifest. The cluster needs the JobSet controller. If a
pod is lost, all start again and go on from the record.
"""

from absl import flags as absl_flags

from .. import flags
from . import Job, create, manifest

_number, _text = absl_flags.DEFINE_integer, absl_flags.DEFINE_string
_text("name", None, "The JobSet's name.", required=True)
_text("image", None, "An image that holds this package.", required=True)
_number("pods", 1, "Processes, each in a pod.")
absl_flags.DEFINE_list("resources", [], "Of each pod, as nvidia.com/gpu=8.")
absl_flags.DEFINE_list("select", [], "Labels of the nodes, as key=value.")
_text("claim", "", "A claim of a volume that all pods can write.")
_text("mount", Job.mount, "Where that volume is.")
_number("max_restarts", Job.max_restarts, "Starts after the first.")
_text("python", Job.python, "The interpreter of the image.")
_DRY_RUN = absl_flags.DEFINE_bool("dry_run", False, "Print the manifest only.")


def main(argv: list[str]):
  """Renders the manifest and creates its JobSet."""
  text = manifest(flags.built(Job), argv[1:])
  print(text.rstrip() if _DRY_RUN.value else create(text))


if __name__ == "__main__":
  flags.run(main, names=True)
