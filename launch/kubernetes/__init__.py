"""A JobSet of Kubernetes that runs a verb, as a manifest for `kubectl`."""

import dataclasses
import pathlib
import re
import subprocess
from collections.abc import Sequence

from .. import places

# Where process 0 listens, in a pod of its own.
PORT = 8476


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What a JobSet asks for.

  Attributes:
    name: of the JobSet.
    image: a container's image that holds this package.
    pods: processes, each in a pod.
    resources: limits of each pod, as `nvidia.com/gpu=8`.
    select: labels of the nodes, as `cloud.google.com/gke-spot=true`.
    claim: a claim of a volume that all pods can write.
    mount: where that volume is.
    max_restarts: starts after the first.
    python: the interpreter of the image.
  """

  name: str = ""
  image: str = ""
  pods: int = 1
  resources: tuple[str, ...] = ()
  select: tuple[str, ...] = ()
  claim: str = ""
  mount: str = "/shared"
  max_restarts: int = 10
  python: str = "python"

  def __post_init__(self):
    places.check_counts(self, "pods")
    # A pod is called this, "-run-0-", its index and five letters: 63 in all.
    most = 63 - len("-run-0-") - len(str(self.pods - 1)) - len("-abcde")
    fits = len(self.name) <= most
    if not (fits and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", self.name)):
      raise ValueError(
        f"--name={self.name!r}: must be small letters, digits and -, at most "
        f"{most}, as in --name=matrix"
      )
    for flag in ("resources", "select"):
      for one in getattr(self, flag):
        if not re.fullmatch(r"[^=\s]+=\S+", one):
          raise ValueError(f"--{flag}: {one!r} must be key=value")


def manifest(job: Job, words: Sequence[str]) -> str:
  """The manifest of a JobSet.

  Args:
    job: what it asks for.
    words: the run, a verb and its flags.

  Raises:
    ValueError: as `places.command`.
  """
  return places.rendered(
    pathlib.Path(__file__).with_name("jobset.yaml"),
    job=job,
    command=places.command(words, job.pods, job.python),
    port=PORT,
    resources=dict(one.split("=", 1) for one in job.resources),
    select=dict(one.split("=", 1) for one in job.select),
  )


def create(text: str) -> str:
  """Hands a manifest to the cluster; returns what `kubectl` says.

  A JobSet that has ended stays, and is not started again by its manifest.

  Raises:
    OSError: there is no kubectl.
    ValueError: the cluster refuses the manifest.
  """
  done = subprocess.run(
    ["kubectl", "create", "-f", "-"], input=text, capture_output=True, text=True
  )
  if "AlreadyExists" in done.stderr:
    raise ValueError(
      "kubectl: the cluster has a JobSet of this name, perhaps one that has "
      "ended; kubectl delete jobset NAME removes it, and the run goes on"
    )
  if done.returncode:
    raise ValueError(f"kubectl: {done.stderr.strip()}")
  return done.stdout.strip()
