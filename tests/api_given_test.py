"""What verbs refuse of what they are given, before anything is computed."""

import dataclasses
import importlib
from typing import Any

import pytest

from unlearning_jax import settings
from unlearning_jax.api import attacking
from unlearning_jax.experiments import attack, common, drawing, returned
from unlearning_jax.experiments.attack import victims
from unlearning_jax.guidance import Guidance
from unlearning_jax.record import Workdir

ul: Any = importlib.import_module("unlearning_jax")
P = "shapes-star~rows_per_group=1,other_rows=0,num_inference_steps=1"
NONE, NAMED = "is not a model; take one from ul.load", r"ul.load\('shapes'\)"
REFUSED = {
  "load name": (lambda m: ul.load("shape"), "did you mean 'shapes'"),
  "load none": (lambda m: ul.load(None), "source=None"),
  "load dtype": (lambda m: ul.load("shapes", dtype="fp16"), "bfloat16"),
  "concept model": (lambda m: ul.concept("shapes", "star"), NAMED),
  "concept name": (lambda m: ul.concept(m, 3), "name=3"),
  "concept task": (lambda m: ul.concept(m, "star", task="objekt"), "'object'"),
  "erase model": (lambda m: ul.erase("shapes", "star"), NAMED),
  "erase subject": (lambda m: ul.erase(m, 5), "subject=5"),
  "erase several": (lambda m: ul.erase(m, ["star"]), r"'star\+moon'"),
  "erase seed": (lambda m: ul.erase(m, "star", seed="a"), "seed='a'"),
  "grid model": (lambda m: ul.grid([None], "a star"), NONE),
  "grid no model": (lambda m: ul.grid([], "a star"), "no models"),
  "grid no prompts": (lambda m: ul.grid(m, []), "no prompts"),
  "grid prompt": (lambda m: ul.grid(m, [3]), "3 is not a text"),
  "grid seeds": (lambda m: ul.grid(m, "a", seeds=3), r"seeds=\[3\]"),
  "grid option": (
    lambda m: ul.grid(m, "a", steps=1),
    "mean 'num_inference_steps'",
  ),
  "evaluate model": (lambda m: ul.evaluate("shapes", protocol=P), NAMED),
  "evaluate no model": (lambda m: ul.evaluate([], protocol=P), "no models"),
  "evaluate base": (lambda m: ul.evaluate(m, base="x", protocol=P), "base='x'"),
  "evaluate protocol": (lambda m: ul.evaluate(m, protocol=3), "protocol='3'"),
  "evaluate metrics": (
    lambda m: ul.evaluate(m, protocol=P, metrics="seen"),
    r"metrics=\['seen'\]",
  ),
  "evaluate metric": (
    lambda m: ul.evaluate(m, protocol=P, metrics=["r_norm"]),
    "'r_norm' reads the rows of resurgence, and evaluate has none.*accuracy",
  ),
  "evaluate nothing": (
    lambda m: ul.evaluate(m, protocol=P, rows_per_group=0),
    "nothing to draw",
  ),
  "evaluate targets": (
    lambda m: ul.evaluate(m, protocol=P, targets="star"),
    "give one of 'task' and 'name'",
  ),
  "evaluate out": (lambda m: ul.evaluate(m, protocol=P, out=3), "out=3"),
  "evaluate judge": (
    lambda m: ul.evaluate(m, protocol=P, judge="math:pi"),
    "float, not a Judge",
  ),
  "evaluate number": (
    lambda m: ul.evaluate(m, protocol=P, rows_per_group="2"),
    "rows_per_group='2': must be int",
  ),
  "evaluate nested": (
    lambda m: ul.evaluate(m, protocol=P, num_inference_steps=2),
    r"did you mean sampling={'num_inference_steps': 2}\?",
  ),
  "attack model": (lambda m: ul.attack([m], "star"), NONE),
  "attack metric": (
    lambda m: ul.attack(m, "star", metrics=["accuracy"]),
    "'accuracy' reads .*attack has none of these; it can show asr, seen, or",
  ),
  "attack subject": (lambda m: ul.attack(m, 3), "subject=3"),
  "attack rows": (lambda m: ul.attack(m, "star", rows="2"), "must be int"),
  "attack hparams": (lambda m: ul.attack(m, "star", hparams=[1]), "'blocks'"),
  "attack hparam": (
    lambda m: ul.attack(m, "star", hparams={"blocks": "1"}),
    "hparams.blocks='1'",
  ),
  "attack budget": (
    lambda m: ul.attack(m, "star", blocks=1),
    "hparams={'blocks': 1}",
  ),
  "finetune model": (lambda m: ul.finetune("shapes"), NAMED),
  "finetune data": (lambda m: ul.finetune(m, None), "'shapes:near'"),
  "finetune world": (lambda m: ul.finetune(m, "shape:near"), "shapes:SET"),
  "finetune steps": (lambda m: ul.finetune(m, "shapes", steps="2"), "be int"),
  "resurgence base": (lambda m: ul.resurgence("shapes", m, m), NAMED),
  "resurgence tuned": (lambda m: ul.resurgence(m, m, []), "no models"),
  "resurgence prompts": (
    lambda m: ul.resurgence(m, m, m, subject="star", prompts="2"),
    "prompts='2'",
  ),
}


@pytest.fixture(scope="module")
def model():
  return ul.load("shapes")


@pytest.mark.parametrize("what", REFUSED)
def test_it_names_the_value_and_what_to_type(what, model):
  call, said = REFUSED[what]
  with pytest.raises(ValueError, match=said):
    call(model)


def test_a_model_shows_itself_in_a_line(model):
  guided = model.with_guidance(Guidance("star", method="negative"))
  assert repr(guided) == "Model('shapes', NEGATIVE)"


def test_every_attack_takes_the_verbs_budget(model):
  star = ul.concept(model, "star")
  for method in {*ul.attacks()} - {"new_word"}:
    budget = attacking.budget(method)
    # Only a probe needs its control named.
    beside = {"never_knew": "none"} if method.endswith("probe") else {}
    given = attacking.configured(model, star, method, 2, budget, beside)
    assert victims.bind(given).finds, method


def test_a_control_has_none_of_what_is_the_attacks_alone(model):
  star = ul.concept(model, "star")
  changes = {
    "never_knew": "none", "new_words": "runs/words",
    "sharing": {"wave": 4, "tries": 4},
  }  # fmt: skip
  for kind, wave in (("random", 4), ("seed", 0), ("none", 0)):
    own = attacking._control(kind, model, star, 2, {}, changes)
    assert (own.never_knew, own.new_words) == ("", "")
    assert own.sharing.wave == wave and own.hparams["kind"] == kind


def test_an_attack_is_refused_before_its_control_has_run(model, tmp_path):
  with pytest.raises(ValueError, match="a control optimizes nothing"):
    ul.attack(
      model, "star", "controls", control="random",
      hparams={"iterations": 2}, out=tmp_path / "run",
    )  # fmt: skip
  assert not [*tmp_path.iterdir()]


def test_a_change_of_one_nested_setting_leaves_the_others(model):
  star, changes = (
    ul.concept(model, "star"),
    {"sampling": {"num_inference_steps": 3}},
  )
  given, was = (
    attacking.configured(model, star, "p4d", 2, {}, one)
    for one in (changes, {})
  )
  wanted = dataclasses.replace(was.sampling, num_inference_steps=3)
  assert given == dataclasses.replace(was, sampling=wanted)
  assert settings.build(attack.Settings, settings.plain(given)) == given


def test_the_base_is_evaluated_once(model, monkeypatch):
  asked = []

  def run(given, recorder, models, beside):
    asked.append([*models])
    raise KeyboardInterrupt

  monkeypatch.setattr("unlearning_jax.experiments.evaluate.run", run)
  guided = model.with_guidance(Guidance("star", method="negative"))
  other = dataclasses.replace(model, params={**model.params})
  for given in (model, [model, guided], [other]):
    with pytest.raises(KeyboardInterrupt):
      ul.evaluate(given, base=model, protocol=P)
  assert asked == [["base"], ["base", "NEGATIVE"], ["base", "model"]]


def test_resurgence_does_not_go_on_with_other_models(model, tmp_path):
  guided = model.with_guidance(Guidance("star", method="negative"))
  given = returned.settings_of(guided, "star", 1, 0)

  class Stopped(Workdir):
    def done_ids(self):
      raise KeyboardInterrupt

  def run(erased):
    kept = Stopped(str(tmp_path), {"a": 1})
    returned.run(given, lambda: kept, model, erased, {"tuned": erased})

  for _ in range(2):
    with pytest.raises(KeyboardInterrupt):
      run(guided)
  with pytest.raises(ValueError, match="inputs.erased"):
    run(model.with_guidance(Guidance("moon", method="negative")))


def test_several_are_erased_at_once(model):
  both = ul.concept(model, "star+moon")
  erased = {c.erase for c in both.concepts}
  assert {"star", "moon"} <= erased and both.task == "object"
  held = {phrase for c in both.concepts for phrase in c.preserve}
  assert "a circle" in held and not held & {"a star", "a moon"}
  with pytest.raises(ValueError, match="object name='neon'"):
    ul.concept(model, "star+neon")


def test_a_tuning_given_as_an_edit_names_its_last_step(tmp_path):
  (tmp_path / "steps").mkdir()
  for step in ("000001", "000002"):
    (tmp_path / "steps" / f"{step}.safetensors").touch()
  with pytest.raises(ValueError, match="--edits=.*/000002.safetensors"):
    common.read_edit(tmp_path)


def test_a_runs_estimates_are_shown_when_it_is_opened(tmp_path):
  run = Workdir(str(tmp_path), {"title": "back"})
  one = {"name": "r_norm/explicit", "value": 0.5, "model": "tuned"}
  run.save_summary({"estimates": [one]})
  run.mark_done()
  assert ul.open(tmp_path).columns == ("", "tuned")
  assert ul.open(tmp_path).lines == (("r_norm/explicit", "0.50"),)


def test_a_judge_of_ones_own_sees_the_worlds_prompts_by_its_own_head():
  star = {"task": "object", "name": "star"}
  given = drawing.Settings(
    model="shapes", judge="tests.support.toys:WARMTH", rows_per_group=2,
    targets=({**star, "head": "warmth", "label": "warm"},),
  )  # fmt: skip
  prompts = [row["prompt"] for row in drawing.rows(given)]
  world = drawing.Settings(
    model="shapes", judge="shapes", rows_per_group=2, targets=(star,)
  )
  assert prompts == [row["prompt"] for row in drawing.rows(world)]


def test_what_is_refused_late_leaves_no_folder(model, tmp_path):
  out = tmp_path / "tuned"
  guided = model.with_guidance(Guidance("star", method="negative"))
  for call in (
    lambda: ul.evaluate(
      guided, protocol=P, out=out, sampling={"guidance_scale": 1.0}
    ),
    lambda: ul.resurgence(
      model, model.with_guidance(Guidance("a " * 99)), guided, subject="star",
      prompts=1, out=out,
    ),
  ):  # fmt: skip
    with pytest.raises(ValueError, match="acts by guidance|tokens"):
      call()
    assert not out.exists()
  with pytest.raises(ValueError, match="batch_size=10000 is more than"):
    ul.finetune(model, "shapes:all", steps=1, batch_size=10_000, out=out)
  assert not out.exists()
