"""What the launchers of other places render, and what they refuse."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import threading
import time

import pytest
import yaml
from unlearning_jax.launch import kubernetes, places, slurm, tpu

RENDERED = pathlib.Path(__file__).with_name("rendered")
RUN = ["erase", "--config=erase_uce:tiny,name=star", "--workdir=/shared/a b"]
SLURM = slurm.Job(
  nodes=2, gpus_per_node=4, time="04:00:00", partition="gpu", array="0-9%4",
  sbatch=("mem=64G",), setup="module load cuda", python="/opt/venv/bin/python",
)  # fmt: skip
TPU = tpu.Job(
  name="pod", zone="us-west4-a", type="v5litepod-16", spot=True,
  version="v2-alpha-tpuv5-lite", wheel="dist/unlearning_jax-1-py3-none-any.whl",
)  # fmt: skip
KUBERNETES = kubernetes.Job(
  name="uce", image="registry/unlearning:1", pods=4, claim="shared",
  resources=("nvidia.com/gpu=8",), select=("cloud.google.com/gke-spot=true",),
)  # fmt: skip


@pytest.mark.parametrize(
  "name, text",
  [
    ("job.sh", slurm.script(SLURM, [*RUN, f"--config.seed={slurm.INDEX}"])),
    ("job_plain.sh", slurm.script(slurm.Job(python="python"), RUN)),
    ("slice.sh", tpu.script(TPU, RUN)),
    ("jobset.yaml", kubernetes.manifest(KUBERNETES, RUN)),
  ],
)
def test_what_is_rendered(name, text):
  """If the change is meant, write the text into the file."""
  assert text == (RENDERED / name).read_text()
  if name.endswith(".sh"):
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_a_jobset_names_its_first_pod_as_the_coordinator():
  """The whole was checked against the published schema of JobSet once."""
  text = kubernetes.manifest(KUBERNETES, RUN)
  job = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert job["completions"] == job["parallelism"] == 4
  (container,) = job["template"]["spec"]["containers"]
  assert container["command"][-3:] == [*RUN[1:], "--distributed"]
  told = {one["name"]: one.get("value") for one in container["env"]}
  # <JobSet>-<job>-<replica>-<pod>.<JobSet>
  assert told["JAX_COORDINATOR_ADDRESS"] == "uce-run-0-0.uce:8476"
  assert told["JAX_NUM_PROCESSES"] == "4"
  assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}


def test_the_index_of_an_array_is_left_to_the_shell():
  words = ["erase", "--config=a b", "--workdir=runs/$SLURM_ARRAY_TASK_ID/x"]
  text = slurm.script(slurm.Job(python="echo", array="0-9"), words)
  (line,) = [one for one in text.splitlines() if one.startswith("srun")]
  with pytest.raises(ValueError, match="--array=0-9: every job.*TASK_ID"):
    slurm.script(slurm.Job(array="0-9"), words[:2])
  done = subprocess.run(
    ["bash", "-c", line.removeprefix("srun --wait=60").removesuffix("&")],
    env={"SLURM_ARRAY_TASK_ID": "7"}, capture_output=True, text=True,
  )  # fmt: skip
  assert done.stdout.endswith("erase --config=a b --workdir=runs/7/x\n")


def test_kubernetes_leaves_dollars_alone():
  text = kubernetes.manifest(KUBERNETES, ["erase", "--config.title=$5 $(A)"])
  job = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
  (container,) = job["template"]["spec"]["containers"]
  assert "--config.title=$$5 $$(A)" in container["command"]


def test_workers_of_a_sweep_have_a_gpu_each():
  sweep = ["sweep", "--config=erase_uce:tiny", "--workdir=/shared/sweep"]
  job = slurm.Job(gpus_per_node=1, array="1-16")
  assert "--distributed" not in slurm.script(job, sweep)
  with pytest.raises(ValueError, match="--gpus_per_node=1 --array=1-N"):
    slurm.script(slurm.Job(gpus_per_node=4), sweep)
  alone = slurm.Job(gpus_per_node=4, tasks_per_node=1)
  assert "srun" in slurm.script(alone, sweep)


def test_a_single_process_may_have_all_gpus():
  job = slurm.Job(gpus_per_node=4, tasks_per_node=1)
  assert "--distributed" not in slurm.script(job, RUN)


def test_one_process_joins_nobody():
  assert places.command(RUN, 1, "python")[-1] == RUN[-1]
  assert places.command(RUN, 2, "python")[-1] == "--distributed"


@pytest.mark.parametrize(
  "words, wanted",
  [([], "name the run after --"), (["erasee"], "did you mean 'erase'")],
)
def test_the_run_is_a_verb(words, wanted):
  with pytest.raises(ValueError, match=wanted):
    places.command(words, 1)
  # A launcher starts no launcher.
  with pytest.raises(ValueError, match="verb"):
    places.command(["slurm", "--", "erase"], 1)


@pytest.mark.parametrize(
  "job, changes, wanted",
  [
    (SLURM, {"tasks_per_node": 2}, "--tasks_per_node=4"),
    (SLURM, {"nodes": 0}, "--nodes=0"),
    (KUBERNETES, {"name": "m" * 50}, "at most 49"),
    (KUBERNETES, {"name": "My_Set"}, "--name='My_Set'.*--name=matrix"),
    (KUBERNETES, {"select": ("spot",)}, "--select: 'spot' must be key=value"),
  ],
)
def test_a_job_is_checked(job, changes, wanted):
  with pytest.raises(ValueError, match=wanted):
    dataclasses.replace(job, **changes)


# Writes down how it was called; its answers are in files, the last one stays.
# A queued resource is the file `made`. The run `stay` waits to be stopped.
GCLOUD = """#!/bin/bash
if [ "$4" = describe ] && [ ! -e made ]; then exit 1; fi
if [ "$*" = "${*/--format/}" ] && [ "$4" = describe ]; then exit 0; fi
echo "$@" >> calls
case "$4" in
  describe) kind=states ;;
  ssh) kind=runs; [[ "$*" == *"uv venv"* ]] && exit 0 ;;
  create) touch made; exit 0 ;;
  delete) rm made; exit 0 ;;
  *) exit 0 ;;
esac
answer=$(head -n 1 $kind)
[ "$(wc -l < $kind)" -eq 1 ] || sed -i 1d $kind
# No child writes it: bash forgets a signal while a child ends well.
[ "$answer" != stay ] || { echo $$ > staying; exec sleep 60; }
[ $kind = runs ] && exit "$answer"
echo "$answer"
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  """Runs the script of a slice with states and statuses that the cloud says."""
  stub = tmp_path / "bin/gcloud"
  stub.parent.mkdir()
  stub.write_text(GCLOUD)
  stub.chmod(0o755)
  monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
  monkeypatch.setenv("UNLEARNING_JAX_POLL_S", "0")
  monkeypatch.chdir(tmp_path)

  def start(states, runs):
    for name, lines in (("states", states), ("runs", runs)):
      (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    status = tpu.start(tpu.script(TPU, RUN))
    file = tmp_path / "calls"
    calls = file.read_text().splitlines() if file.exists() else []
    return status, [call.split()[3] for call in calls]

  return start


MADE = ["create", "describe", "scp", "ssh"]


def test_a_slice_is_made_used_and_deleted(cloud):
  status, calls = cloud(["ACTIVE"], [0])
  assert status == 0
  assert calls == [*MADE, "ssh", "delete"]


def test_a_slice_that_is_taken_away_is_made_anew(cloud):
  # It is ACTIVE for a while yet.
  states = ["PROVISIONING", "ACTIVE", "ACTIVE", "SUSPENDED", "ACTIVE"]
  status, calls = cloud(states, [255, 0])
  assert status == 0
  first = ["create", "describe", *MADE[1:], "ssh", "describe", "describe"]
  assert calls == [*first, "delete", *MADE, "ssh", "delete"]


def test_a_connection_that_is_lost_is_taken_up_on_the_same_slice(cloud):
  status, calls = cloud(["ACTIVE"], [255, 0])
  assert status == 0
  assert calls == [*MADE, "ssh", *["describe"] * 6, "ssh", "delete"]


def test_a_slice_that_nobody_gets_is_not_asked_for_again(cloud):
  status, calls = cloud(["FAILED"], [0])
  assert status == 1 and calls.count("create") == calls.count("delete") == 1


def running(file):
  """The program of the process whose number is in a file; "" for none yet."""
  number = file.read_text().strip() if file.exists() else ""
  asked = ["ps", "-o", "comm=", "-p", number or "0"]
  return subprocess.run(asked, capture_output=True, text=True).stdout


def test_ctrl_c_deletes_the_slice(cloud, tmp_path):
  def interrupt():
    # bash forgets a signal as it becomes the process that sleeps.
    while "sleep" not in running(tmp_path / "staying"):
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=interrupt).start()
  status, calls = cloud(["ACTIVE"], ["stay"])
  assert status == 75
  assert calls[-1] == "delete" and not (tmp_path / "made").exists()


def test_a_run_that_fails_on_its_slice_is_not_begun_again(cloud):
  status, calls = cloud(["ACTIVE"], [3])
  assert status == 3 and calls.count("create") == calls.count("delete") == 1


def test_a_slice_of_another_is_not_deleted(cloud, tmp_path):
  (tmp_path / "made").touch()
  status, calls = cloud(["ACTIVE"], [0])
  assert status == 1 and not calls and (tmp_path / "made").exists()
