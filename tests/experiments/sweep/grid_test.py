"""What a grid refuses, and what its cells are called."""

import dataclasses

import numpy as np
import pytest

from tests.support import toy_sweep
from unlearning_jax import guidance, settings
from unlearning_jax.experiments import erase, sweep
from unlearning_jax.experiments.sweep import grid, keys, verbs


@pytest.fixture(autouse=True)
def toy(monkeypatch):
  toy_sweep.install(monkeypatch)


def plan(*texts, seeds=1, **values):
  return sweep.plan(
    "toy", toy_sweep.base(**values), sweep.parsed(texts), seeds=seeds,
    texts=True,
  )  # fmt: skip


def test_every_combination_is_a_cell():
  found = plan("x=1,2", "name=a,b", seeds=3)
  assert found.grid == {"x": (1, 2), "name": ("a", "b"), "seed": (0, 1, 2)}
  assert len({str(cell) for cell in found.cells}) == 12
  assert [cell.said for cell in found.cells[:2]] == [
    "x=1, name=a, seed=0", "x=1, name=a, seed=1",
  ]  # fmt: skip
  assert found.cells[5].given == toy_sweep.Settings(x=1, name="b", seed=2)


def test_a_comma_in_quotes_is_part_of_a_value():
  found = plan('name="red, round" , a "b, c" d,e', "x= 1, 2 ")
  assert found.grid["name"] == ("red, round", 'a "b, c" d', "e")
  assert found.grid["x"] == (1, 2)


def test_values_get_the_type_of_their_key():
  deep = {"hparams": {"rate": 0.5, "count": 2}}
  found = plan(
    "scale=1,2e-3", "deep=true,none", "hparams.rate=1,.5", "hparams.count=3",
    **deep,
  )  # fmt: skip
  assert found.grid["scale"] == (1.0, 0.002)
  assert type(found.grid["scale"][0]) is float
  assert found.grid["deep"] == (True, None)
  assert type(found.grid["hparams.rate"][0]) is float
  assert found.cells[0].given.hparams == {"rate": 1.0, "count": 3}


@pytest.mark.parametrize(
  "texts, wanted",
  [
    ([], "--grid: is empty"),
    (["x"], "--grid=x: must be key=value,value"),
    (["x="], "--grid=x: has no values"),
    (['name="a,b'], "a quote has no end"),
    (["x=1,,2"], "--grid=x: one of its values is empty"),
    (["x=1", "x=2"], "--grid=x: is given twice"),
    (["x=1.5"], "--grid=x: '1.5' must be int"),
    (["x=true"], "--grid=x: 'true' must be int"),
    (["scale=much"], "--grid=scale: 'much' must be float"),
    (["deep=1"], "--grid=deep: '1' must be bool or NoneType"),
    (["lanes=1,2"], "--grid=lanes: no result of toy depends on it"),
    (["hparms.rate=1"], "no such setting; did you mean hparams"),
    (["rate=1"], "did you mean hparams.rate"),
    (["hparams=1"], "holds several settings; name one, as --grid=hparams.rate"),
    (["x=1,1"], "x=1 and x=1 are the same run"),
    (["x=1,-1"], "--grid: x=-1: x=-1: must not be negative"),
    (["scale=1,1.0"], "are the same run"),
  ],
)
def test_what_is_wrong_is_said_at_once(texts, wanted):
  with pytest.raises(ValueError, match=wanted):
    plan(*texts, hparams={"rate": 0.5})


@pytest.mark.parametrize(
  "texts, seeds, wanted",
  [
    (["seed=1"], 2, "--seeds, --grid=seed: give one"),
    ([], 0, "--seeds=0: must be at least 1"),
  ],
)
def test_seeds_that_are_wrong(texts, seeds, wanted):
  with pytest.raises(ValueError, match=wanted):
    plan(*texts, seeds=seeds)


def test_what_a_verb_cannot_start_from(tmp_path):
  with pytest.raises(ValueError, match="erase starts from the base"):
    sweep.plan("erase", toy_sweep.base(), [("edit", ["a"])])
  with pytest.raises(ValueError, match="--grid=edit: no file"):
    sweep.plan("toy", toy_sweep.base(), [("edit", [str(tmp_path / "a")])])
  guidance.save(guidance.Guidance("a star"), tmp_path / "guidance.json")
  with pytest.raises(ValueError, match="--grid=edit: .*guidance.*no weight"):
    sweep.plan("finetune", toy_sweep.base(), [("edit", [str(tmp_path)])])
  with pytest.raises(ValueError, match="--verb='eras'.*did you mean 'erase'"):
    sweep.plan("eras", toy_sweep.base(), [("x", [1])])


def test_values_from_python_are_not_read_as_texts():
  base = toy_sweep.base(hparams={"rate": 0.5})
  with pytest.raises(
    ValueError, match="--grid=hparams.rate: '1' must be float"
  ):
    sweep.plan("toy", base, [("hparams.rate", ["1"])])
  found = sweep.plan("toy", base, [("hparams.rate", [1, 0.5])])
  assert found.cells[0].given.hparams == {"rate": 1.0}


def test_lists_and_arrays_from_python_are_values():
  base = toy_sweep.base(hparams={"steps": (1, 2), "rate": 0.5})
  axes = [
    ("x", np.arange(2)),
    ("hparams.steps", [[5, 10], (5, 20)]),
    ("hparams.rate", np.array([0.25])),
  ]
  found = sweep.plan("toy", base, axes)
  assert found.grid["x"] == (0, 1) and type(found.grid["x"][0]) is int
  assert found.grid["hparams.steps"] == ((5, 10), (5, 20))
  assert type(found.grid["hparams.rate"][0]) is float
  with pytest.raises(ValueError, match="hparams.steps: 5 must be tuple"):
    sweep.plan("toy", base, [("hparams.steps", [5])])


def test_an_id_is_of_what_results_depend_on():
  def mark(verb="toy", edit="", **values):
    return grid.cell_id(verb, toy_sweep.Settings(**{"x": 1} | values), edit)

  # Stored sweeps have these ids: they must not move.
  assert mark() == "c71713b84b5d"
  assert mark(lanes=9, pause=1.0, scale=1.0) == mark()
  others = [
    mark("other"), mark(edit="abc"), mark(x=2), mark(scale=2.0),
    mark(hparams={"rate": 1.0}), mark(hparams={"rate": 1.0, "a": 2}),
  ]  # fmt: skip
  assert len({*others, mark()}) == 7
  one, two = {"b": 1, "a": 2}, {"a": 2, "b": 1}
  assert mark(hparams=one) == mark(hparams=two)


def test_a_setting_of_a_later_version_moves_no_id():
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Later(toy_sweep.Settings):
    fresh: settings.Output[int] = 7

  was = grid.cell_id("toy", toy_sweep.Settings(x=1))
  assert grid.cell_id("toy", Later(x=1)) == was
  assert grid.cell_id("toy", Later(x=1, fresh=8)) != was


def test_the_config_says_the_verb():
  concepts = ({"erase": "star", "anchor": "circle"},)
  given = erase.Settings(method="uce", concepts=concepts, judge="shapes")
  assert verbs.of_config(settings.plain(given)) == "erase"
  with pytest.raises(ValueError, match="no verb of a sweep; it runs erase,"):
    verbs.of_config({"what": 1})


def test_a_list_cannot_be_typed():
  with pytest.raises(ValueError, match="--grid=a: holds a list"):
    keys.typed("a", "1", (tuple,), texts=True)
