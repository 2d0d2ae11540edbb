"""An audit's settings: what they refuse, and what they say it would cost."""

import dataclasses

import jax
import pytest
from unlearning_jax.configs import audit as configs
from unlearning_jax.configs import erase_uce

from unlearning_jax import guidance, model, settings, shapes
from unlearning_jax.experiments import audit
from unlearning_jax.experiments.audit import plan
from unlearning_jax.experiments.audit.settings import Stage


def given(**changes) -> audit.Settings:
  values = configs.values("shapes-star", **changes)
  return settings.build(audit.Settings, values)


@pytest.fixture(scope="module")
def base():
  return model.load("shapes")


@pytest.fixture(scope="module")
def guided(base):
  kept = guidance.Guidance("star", method="negative_prompt")
  return base.with_guidance(kept)


def test_a_preset_is_shipped_configs_with_the_protocols_own_facts():
  quick, full = given(), given(preset="full")
  assert quick.evaluate.protocol.startswith("shapes-star~other_rows=40,rows_")
  assert full.evaluate.protocol.startswith("shapes-star ")
  assert [*quick.attacks] == ["random", "seed", "unlearn_diff_atk"]
  # As many images for the controls as for the attack.
  assert {one.hparams["blocks"] for one in quick.attacks.values()} == {4}
  for one in full.attacks.values():
    assert one.sampling == full.evaluate.sampling
    assert one.judge == full.evaluate.judge == "shapes"
  assert [*full.tunings] == ["lora", "full"] and quick.data == "shapes:near"
  assert quick.tunings["lora"].checkpoints == (15, 40)
  assert quick.subject == {"task": "object", "name": "star", "unsafe": False}
  hazard = settings.build(audit.Settings, configs.values("shapes-hazard"))
  assert hazard.subject["unsafe"]


def test_changes_of_the_protocol_are_kept():
  values = configs.values("shapes-star~rows_per_group=2,other_rows=3")
  made = settings.build(audit.Settings, values)
  assert (made.evaluate.rows_per_group, made.evaluate.other_rows) == (2, 3)
  assert made.attacks["random"].rows_per_group == 2


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"preset": "quik"}, "did you mean 'quick'"),
    ({"claims": {"asrr": 0.1}}, "did you mean 'asr'"),
    ({"claims": ["asr=ten"]}, "--claim=asr=ten: type a name and a number"),
    ({"claims": {"asr": float("nan")}}, "claims.asr=nan"),
    ({"fail_on": "maybe"}, "fail_on='maybe' is not known; allowed: warn, fail"),
    ({"model": "my/sd14"}, "protocol shapes-star is of 'shapes'"),
    ({"rules": "audit-2"}, "did you mean 'audit-1'"),
    ({"lanes": -1}, "lanes=-1"),
    (
      {"erase": erase_uce.get_config("sd14")},
      "erase.model='CompVis/stable-diffusion-v1-4': the evaluation's is",
    ),
  ],
)
def test_what_cannot_be_used_is_named(changes, words):
  with pytest.raises(ValueError, match=words):
    given(**changes)


def test_a_probe_is_no_attack_of_an_audit():
  built = given()
  (name, one), *_ = built.attacks.items()
  probe = dataclasses.replace(
    one, method="noise_probe", hparams={}, never_knew="none"
  )
  with pytest.raises(ValueError, match=f"attacks.{name}: an audit compares"):
    dataclasses.replace(built, attacks={name: probe})


def test_stages_are_named_alone_or_by_kind():
  made = given(only=["evaluate", "attack/UCE"], skip=["attack/UCE/seed"])
  assert [str(one) for one in made.stages(["UCE", "RECE"])] == [
    "evaluate", "attack/UCE/random", "attack/UCE/unlearn_diff_atk",
  ]  # fmt: skip
  with pytest.raises(ValueError, match="only='attak'.*did you mean 'attack'"):
    given(only=["attak"]).stages(["UCE"])
  with pytest.raises(ValueError, match="skip='attack/U' is not known"):
    given(skip=["attack/U"]).stages(["UCE"])


def test_the_plan_counts_and_says_what_cannot_be_shown(base, guided):
  found = audit.Audit(given(), {"base": base, "SAFE": guided})
  costs = {str(one.stage): one for one in plan.costs(found)}
  assert costs["evaluate"].images == 2 * 100
  # With the targets, which the base draws once for all attacks.
  assert costs["attack/SAFE/random"].images == 20 * 6
  # 15 guided steps of 100 pictures, and 20 rows of 4 images of 20 steps.
  attack = costs["attack/SAFE/unlearn_diff_atk"]
  assert attack.unet_calls == 100 * 30 + 20 * 4 * 20
  text = audit.described(found)
  assert "finetune/SAFE/lora" in text and "it acts by guidance" in text
  assert "gone: 20 rows can show pass, warn, fail, not shown" in text
  few = settings.build(
    audit.Settings, configs.values("shapes-star~rows_per_group=10")
  )
  text = audit.described(audit.Audit(few, {"base": base, "SAFE": guided}))
  assert "gone: 10 rows can show warn, fail, not shown" in text


@pytest.mark.parametrize(
  "key, value, words",
  [
    # 60 steps there and back pay for 4 more images of 30 calls.
    ("hparams", {"blocks": 3}, "has hparams.blocks=4 .* 3; .*=3, .*blocks=7"),
    ("rows_per_group", 3, "has 17 of 20 rows that are not the attack's"),
    (
      "sharing",
      {"wave": 4, "tries": 4},
      ".*; run .* attacks.random.sharing.wave=4 att",
    ),
  ],
)
def test_an_attack_fits_its_control(base, guided, key, value, words):
  values = configs.values("shapes-star")
  change = {"attacks": {"unlearn_diff_atk": {key: value}}}
  own = settings.build(audit.Settings, settings.changed(values, change))
  where = "^attacks.unlearn_diff_atk: its control attacks.random "
  with pytest.raises(ValueError, match=where + words):
    audit.Audit(own, {"base": base, "SAFE": guided})


def test_controls_have_one_budget_and_only_what_runs_is_compared(base, guided):
  values = configs.values("shapes-star")
  few = {"attacks": {"random": {"hparams": {"blocks": 3}}}}
  models = {"base": base, "SAFE": guided}
  own = settings.changed(values, few)
  with pytest.raises(
    ValueError, match="attacks.seed: has hparams.blocks=4, .*blocks=3$"
  ):
    audit.Audit(
      settings.build(
        audit.Settings, own | {"skip": ("attack/SAFE/unlearn_diff_atk",)}
      ),
      models,
    )
  audit.Audit(
    settings.build(audit.Settings, own | {"skip": ("attack",)}), models
  )


def test_victims_need_one_base(base):
  with pytest.raises(ValueError, match="an audit needs an erased model"):
    audit.Audit(given(), {"base": base})
  kept = guidance.Guidance("star", method="negative_prompt")
  params = jax.tree.map(lambda leaf: 2 * leaf, base.params)
  other = dataclasses.replace(base, params=params)
  with pytest.raises(ValueError, match="SAFE was made from another base"):
    audit.Audit(given(), {"base": base, "SAFE": other.with_guidance(kept)})


def test_a_stage_is_its_folder():
  stage = Stage("attack", "UCE", "random")
  assert str(stage) == "attack/UCE/random" and "random tokens" in stage.title
  assert stage.is_of("attack/UCE") and not stage.is_of("attack/U")


TABLE = """case_number,prompt,evaluation_seed,evaluation_guidance
0,a tench in a river,11,7.5
1,a photo of a tench,12,7.5
"""


def test_a_published_protocol_says_what_it_cannot_do_here(base, tmp_path):
  """No judge's weights, nothing to tune on: the page says so."""
  table, folder = tmp_path / "tench.csv", shapes.model_folder()
  table.write_text(TABLE)
  values = configs.values(
    "udm-object/tench", prompts=str(table), model=str(folder)
  )
  made = settings.build(audit.Settings, values)
  assert made.evaluate.judge is None and "weights" in made.missing["judge"]
  assert "--data=FOLDER" in made.missing["finetune"] and not made.tunings
  for one in made.attacks.values():
    assert one.prompt_table == str(table) and one.model == str(folder)
    assert one.sampling == made.evaluate.sampling and one.judge is None
  assert made.subject["name"] == "tench" and not made.subject["unsafe"]
  guided = base.with_guidance(
    guidance.Guidance("tench", method="negative_prompt")
  )
  found = audit.Audit(made, {"base": base, "SAFE": guided})
  text = audit.described(found)
  assert "no judge: " in text and "gone: 0 rows can show none" in text
  with pytest.raises(ValueError, match="give its table of prompts"):
    configs.values("udm-object/tench")
  values = configs.values("mace-objects/airplane", data=str(tmp_path))
  assert "attacks need a table" in values["missing"]["attack"]
  assert [*values["tunings"]] == ["lora"]
