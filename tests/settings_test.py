"""Settings: built from plain values, checked, marked."""

import dataclasses
from collections.abc import Mapping

import pytest

from unlearning_jax import settings
from unlearning_jax.api import erasing
from unlearning_jax.experiments import (
  attack,
  audit,
  common,
  diagnose,
  drawing,
  erase,
  finetune,
  judge,
  matrix,
  resurgence,
  returned,
)
from unlearning_jax.settings import Free, Output
from unlearning_jax.shapes import training_run

# Every experiment's. One that is not here has no say in what a resume may
# change.
CLASSES = (
  attack.Settings, audit.Settings, diagnose.Settings, drawing.Settings,
  erase.Settings, erasing.Settings, finetune.Settings, judge.Settings,
  matrix.Settings, resurgence.Settings, returned.Settings,
  training_run.Settings,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Inner:
  steps: Output[int] = 2
  lanes: Free[int] = 8


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner = Inner()
  names: Output[tuple[str, ...]] = ()
  rate: Output[float | None] = None
  unmarked: int = 0

  def __post_init__(self):
    if self.rate is not None and self.rate < 0:
      raise ValueError(f"rate={self.rate}: must not be negative")


def test_values_of_a_config_become_settings_and_go_back():
  made = settings.build(Outer, {"inner": {"steps": 3}, "names": ["a", "b"]})
  assert made == Outer(Inner(3), ("a", "b"))
  assert settings.build(Outer, settings.plain(made)) == made


@pytest.mark.parametrize(
  "values, message",
  [
    ({"nmes": ()}, "nmes: no such setting of Outer; did you mean names"),
    ({"inner": {"step": 1}}, "inner.step: no such setting of Inner.*steps"),
    ({"steps": 1}, "steps: .*inner={'steps': 1}"),
    ({"rate": -1}, "rate=-1: must not be negative"),
    ({"rate": "1"}, "rate='1': must be float or NoneType"),
    ({"inner": {"steps": 1.5}}, "inner.steps=1.5: must be int"),
    ({"inner": {"steps": True}}, "inner.steps=True: must be int"),
  ],
)
def test_what_is_wrong_is_named_with_its_place(values, message):
  with pytest.raises(ValueError, match=message):
    settings.build(Outer, values)


def test_marks_say_what_a_resume_may_change():
  assert settings.marks(Outer) == {
    "inner.steps": "output",
    "inner.lanes": "free",
    "names": "output",
    "rate": "output",
    "unmarked": None,
  }
  assert settings.free(Outer) == ("inner.lanes",)


@dataclasses.dataclass(frozen=True)
class Several:
  each: Output[Mapping[str, Inner]] = dataclasses.field(default_factory=dict)


def test_a_resume_may_change_what_is_free_in_settings_of_a_mapping(tmp_path):
  assert settings.free(Several) == ("each.*.lanes",)

  def bind(**each):
    common.workdir(str(tmp_path), {"each": {"a": each}}, Several)

  bind(steps=2, lanes=8)
  (tmp_path / "results.jsonl").touch()
  bind(steps=2, lanes=4)
  with pytest.raises(ValueError, match="each.a.steps: 2 -> 3"):
    bind(steps=3, lanes=8)


def test_a_nested_change_leaves_its_neighbours():
  values = {"inner": {"steps": 2, "lanes": 8}, "rate": 1.0}
  found = settings.changed(values, {"inner": {"steps": 3}, "rate": 2.0})
  assert found == {"inner": {"steps": 3, "lanes": 8}, "rate": 2.0}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__module__)
def test_every_setting_is_marked(cls):
  marks = settings.marks(cls)
  assert [key for key, mark in marks.items() if mark is None] == []
  assert "seed" not in settings.free(cls)
