"""A piece of work is one worker's, until that worker is dead."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from unlearning_jax.experiments import hooks
from unlearning_jax.experiments.tallies import Tallies
from unlearning_jax.record import Workdir, leases
from unlearning_jax.record.leases import Leases, LostError


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture
def elsewhere(monkeypatch):
  """Every worker is on a machine of its own, where no lock is seen."""
  monkeypatch.setattr(leases, "_boot", lambda: "")


def worker(folder, clock):
  return Leases(folder, beat_s=20, dead_s=120, clock=clock)


def test_one_worker_has_a_piece_and_leaves_it(tmp_path, clock):
  first, second = (worker(tmp_path, clock) for _ in range(2))
  held = first.take("a")
  assert held and not second.take("a") and not first.take("a")
  assert second.take("b")
  held.check()
  held.release()
  again = second.take("a")
  assert again and not first.take("a")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["a.1", "a.2", "b.1"]


def test_a_worker_that_gives_signs_keeps_its_piece(tmp_path, clock, elsewhere):
  first, second = (worker(tmp_path, clock) for _ in range(2))
  held = first.take("a")
  for _ in range(50):
    clock.now += 20
    held.beat()
    held.check()
    assert not second.take("a")


def test_a_silent_worker_loses_its_piece_once(tmp_path, clock, elsewhere):
  first, second, third = (worker(tmp_path, clock) for _ in range(3))
  held = first.take("a")
  assert not second.take("a") and not third.take("a")
  clock.now += 120
  assert not second.take("a")
  clock.now += 1
  taken = second.take("a")
  assert taken and not third.take("a")
  # The one that was taken for dead comes back.
  held.beat()
  with pytest.raises(LostError, match="a: this worker was silent"):
    held.check()
  held.release()
  assert not third.take("a")
  taken.check()


def test_a_worker_gives_up_before_others_see_it_dead(
  tmp_path, clock, elsewhere
):
  held = worker(tmp_path, clock).take("a")
  clock.now += 100
  held.check()
  clock.now += 1
  held.beat()
  with pytest.raises(LostError):
    held.check()


def test_a_late_look_counts_from_the_first_one(tmp_path, clock, elsewhere):
  # The watcher's clock alone decides, so a wrong one elsewhere does not matter.
  assert worker(tmp_path, Clock()).take("a")
  clock.now = 1e9
  watcher = worker(tmp_path, clock)
  assert not watcher.take("a")
  clock.now += 119
  assert not watcher.take("a")
  clock.now += 2
  assert watcher.take("a")


def test_time_that_a_machine_slept_counts(tmp_path, monkeypatch):
  if not hasattr(time, "CLOCK_BOOTTIME"):
    pytest.skip("this system has no clock that runs on while it sleeps")
  now = {time.CLOCK_BOOTTIME: 100.0}
  monkeypatch.setattr(time, "clock_gettime", now.__getitem__)
  held = Leases(tmp_path).take("a")
  held.check()
  now[time.CLOCK_BOOTTIME] += 500
  with pytest.raises(LostError):
    held.check()


def test_a_lock_is_looked_for_in_a_file_that_may_be_written(
  tmp_path, clock, monkeypatch
):
  first, second = (worker(tmp_path, clock) for _ in range(2))
  held = first.take("a")
  look, flock = [], fcntl.flock

  def locked(file, how):
    # As NFS, which has exclusive locks only for those who may write.
    if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
      raise OSError(errno.EBADF, "read only")
    look.append(file)
    return flock(file, how)

  monkeypatch.setattr(fcntl, "flock", locked)
  os.close(held._file)
  held._file = None
  if not leases._boot():
    pytest.skip("this system has no mark of its start")
  assert second.take("a") and look


def test_the_same_number_is_taken_once(tmp_path, clock, monkeypatch):
  first, second = (worker(tmp_path, clock) for _ in range(2))
  # Both saw that nobody had it.
  monkeypatch.setattr(second, "_last", lambda name: 0)
  assert first.take("a") and not second.take("a")


def test_a_killed_process_is_seen_at_once(tmp_path, clock):
  code = (
    "import pathlib, sys, time; from unlearning_jax.record import leases\n"
    "held = leases.Leases(pathlib.Path(sys.argv[1])).take('a')\n"
    "print('held', flush=True); time.sleep(600)"
  )
  with subprocess.Popen(
    [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE
  ) as process:
    assert process.stdout.readline() == b"held\n"
    own = worker(tmp_path, clock)
    assert not own.take("a")
    process.kill()
    process.wait()
  if not os.path.exists("/proc/sys/kernel/random/boot_id"):
    pytest.skip("this system has no mark of its start")
  assert own.take("a")


def test_a_thread_beats_while_inside(tmp_path):
  own = Leases(tmp_path, beat_s=0.01, dead_s=30)
  with own.take("a").beating():
    until = time.monotonic() + 20
    while not (tmp_path / "a.1").read_bytes().endswith(b"..."):
      assert time.monotonic() < until
  assert (tmp_path / "a.1").read_bytes().endswith(b"x")


@pytest.mark.parametrize(
  "write",
  [
    lambda record: record.append_row({"id": 1}),
    lambda record: record.metrics(1, loss=1.0),
    lambda record: record.save_image("a", np.zeros((2, 2, 3), np.uint8)),
    lambda record: record.write("a.txt", "a"),
    lambda record: record.mark_done(),
    lambda record: (record.path / "edit.safetensors").touch(),
    lambda record: shutil.rmtree(record.path / "states", ignore_errors=True),
  ],
)
def test_a_lost_record_keeps_every_file_as_it_is(tmp_path, clock, write):
  held = worker(tmp_path / "leases", clock).take("a")
  record = Workdir(tmp_path / "a", {}, guard=held.check)
  (record.path / "states").mkdir()
  before = sorted((tmp_path / "a").rglob("*"))
  clock.now += 500
  with pytest.raises(LostError):
    write(record)
  assert sorted((tmp_path / "a").rglob("*")) == before


def test_a_beat_that_fails_is_not_the_last(tmp_path, monkeypatch):
  own, failed, sync = Leases(tmp_path, beat_s=0.01, dead_s=30), [], os.fsync
  held = own.take("a")

  def stale(file):
    if len(failed) < 2:
      failed.append(file)
      raise OSError(errno.ESTALE, "stale")
    sync(file)

  monkeypatch.setattr(os, "fsync", stale)
  with held.beating():
    until = time.monotonic() + 20
    while not (tmp_path / "a.1").read_bytes().endswith(b"...."):
      assert time.monotonic() < until
  assert len(failed) == 2
  held.check()


def test_a_full_disk_keeps_no_worker_from_leaving(tmp_path, clock, monkeypatch):
  held = worker(tmp_path, clock).take("a")

  def full(*_):
    raise OSError(errno.ENOSPC, "full")

  monkeypatch.setattr(os, "write", full)
  held.release()
  monkeypatch.undo()
  assert worker(tmp_path, clock).take("a")


def test_a_lost_record_keeps_its_tallies(tmp_path, clock):
  held = worker(tmp_path / "leases", clock).take("a")
  counted = Tallies(Workdir(tmp_path / "a", {}, guard=held.check), ())
  counted.save()
  clock.now += 500
  with pytest.raises(LostError):
    counted.save()


def test_a_lost_erasure_keeps_what_it_has_drawn(tmp_path, clock):
  held = worker(tmp_path / "leases", clock).take("a")
  run = Workdir(tmp_path / "a", {}, guard=held.check)

  def make(i):
    clock.now += 60
    return np.zeros(2, np.float32)

  with pytest.raises(LostError):
    hooks.recorded(run, 1).collect("images", 3, make)
  assert len([*(tmp_path / "a").rglob("*.safetensors")]) == 1


@pytest.mark.parametrize("beat_s", [0, 60, 200])
def test_too_few_beats_are_refused(tmp_path, beat_s):
  with pytest.raises(ValueError, match="beat_s.*half of dead_s"):
    Leases(tmp_path, beat_s=beat_s, dead_s=120)
