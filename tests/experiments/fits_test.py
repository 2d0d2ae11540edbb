"""What `--check` says of a run's programs, and where it says nothing."""

import dataclasses
import functools
import types

import jax
import pytest
from unlearning_jax.configs import attack_matrix_shapes as matrix_config
from unlearning_jax.configs import attack_unlearn_diff_atk as uda
from unlearning_jax.configs import audit as audit_config
from unlearning_jax.configs import (
  diagnose as diagnose_config,
)
from unlearning_jax.configs import (
  erase_uce,
  evaluate_shapes,
  finetune_full,
  finetune_lora,
)
from unlearning_jax.launch import checks

from unlearning_jax import attacks, checking, model, settings
from unlearning_jax.experiments import (
  attack,
  audit,
  diagnose,
  evaluate,
  finetune,
  matrix,
)
from unlearning_jax.experiments.programs import (
  build,
  compiling,
  devices,
  fits,
  record,
)
from unlearning_jax.experiments.programs.needs import Need, needs
from unlearning_jax.sampling import Sampling

ASKED = "not recorded: --check=compile measures it"
# Of each part of Stable Diffusion 1.4, in GiB.
TEXT, VAE, WHOLE = 0.46, 0.31, 3.97
UNET = WHOLE - TEXT - VAE
PLAIN = attacks.bind("unlearn_diff_atk", {})


def tuned(module=finetune_lora, **changes):
  config = module.get_config("sd14")
  config.accumulate = 1
  given = settings.build(finetune.Settings, config.to_dict())
  return dataclasses.replace(given, **changes)


def attacked(**changes):
  config = uda.get_config("tiny")
  given = settings.build(attack.Settings, config.to_dict())
  return dataclasses.replace(given, **changes)


def matrixed():
  config = matrix_config.get_config("object")
  return settings.build(matrix.Settings, config.to_dict())


def evaluated():
  config = evaluate_shapes.get_config("tiny")
  return settings.build(evaluate.Settings, config.to_dict())


@functools.cache
def shapes():
  return model.load("shapes")


def audited(**changes):
  erase = erase_uce.get_config("tiny")
  config = audit_config.values("shapes-star", erase=erase, **changes)
  given = settings.build(audit.Settings, config)
  return audit.Audit(given, {"base": shapes()}).planned()


# --- Which programs ---


def test_an_attack_has_no_more_lanes_than_rows():
  lanes, sampled = needs(attacked(lanes=4, batch_size=10))
  assert (lanes.program, lanes.rows) == ("attack", 4)
  assert (sampled.program, sampled.rows) == ("sample", 10)
  few = attacked(lanes=64, rows_per_group=2)
  assert needs(few)[0].rows == len(attack.rows.listed(few)) < 64
  shared = dataclasses.replace(few.sharing, wave=1, tries=1)
  assert needs(attacked(lanes=64, sharing=shared))[0].rows == 1
  hparams = {**few.hparams, "blocks": 0}
  # The settings refuse it for this method; a control may have no block.
  object.__setattr__(few, "hparams", hparams)
  assert [one.program for one in needs(few)] == ["sample"]


def test_a_matrix_needs_each_of_its_attacks():
  found = needs(matrixed())
  methods = {one.how.method for one in found if one.program == "attack"}
  assert {"controls", "unlearn_diff_atk", "p4d", "concept_inversion"} == methods
  assert len(found) == len(set(found))


def test_an_audit_needs_what_its_stages_need():
  every = needs(audited(lanes=2, batch_size=5))
  assert {"attack", "sample", "lora"} == {one.program for one in every}
  assert {one.rows for one in every if one.program == "attack"} == {2}
  drawn = needs(audited(only=("evaluate",), batch_size=5))
  assert [(one.program, one.rows) for one in drawn] == [("sample", 5)]
  said = [*fits.said(audited(), build.make_sd("tiny", "float32", "auto"),
                     exact=False)]  # fmt: skip
  assert "the erasure itself is neither" in said[-1][0]


def test_a_diagnosis_runs_no_attack():
  config = diagnose_config.get_config("tiny,task=object,name=star")
  given = settings.build(diagnose.Settings, config.to_dict())
  assert needs(given) == [] == needs(None)


def test_a_tuning_needs_the_rows_of_a_part():
  (need,) = needs(tuned(finetune_full, batch_size=8, accumulate=2))
  assert (need.program, need.rows, need.fsdp) == ("full", 4, 1)


# --- What the record says ---


def recorded(rows, total, program="attack", place="v5e:2x4", **changes):
  row = {
    "size": "sd14", "program": program, "place": place, "mesh": "data",
    "dtype": "f32", "rows": rows, "effort": "default",
    "arguments": 4 * record.GIB, "total": int(total * record.GIB),
  }  # fmt: skip
  return row | changes


@pytest.fixture
def shelf(monkeypatch):
  rows = [recorded(1, 5.0), recorded(4, 8.0)]
  rows += [recorded(1, 5, "full", mesh="fsdp"), recorded(8, 8.0, "lora")]
  rows += [recorded(4, 9.0, "sample")]
  monkeypatch.setattr(record, "shipped", lambda: rows)
  monkeypatch.setattr(fits, "_devices", lambda need: [None])
  return build.make_sd("sd14", "float32", "auto")


def line(sd, need, gib=15.75, more: int | None = 0, name="v5e"):
  return fits._recorded(sd, need, need.rows, name, gib, more)


def test_only_what_is_recorded_fits(shelf):
  need = Need("attack", 4, "float32", PLAIN)
  said, fit = line(shelf, need)
  assert fit and said.startswith("fits: at most 8.3 of 15.8 GiB a chip")
  assert said.endswith("(recorded: 4 row(s) for v5e:2x4)")
  # Fewer rows need no more than these.
  assert "fits: at most 8.3" in line(shelf, need._replace(rows=2))[0]
  # Of more, nobody knows whether they fit.
  assert line(shelf, need._replace(rows=5)) == (ASKED, True)
  said, fit = line(shelf, need._replace(rows=5), gib=8.2)
  assert not fit and said.startswith("does not fit: at least 8.3 of 8.2")
  assert line(shelf, need._replace(rows=2), gib=8.2) == (ASKED, True)
  assert line(shelf, need, gib=0.0) == (ASKED, True)


def test_low_effort_leaves_out_the_copies_of_weights(shelf, monkeypatch):
  """At default effort float32 weights are copied to bfloat16, 2 of 4 bytes."""
  low = {"program": "attack", "effort": "low"}
  rows = [recorded(4, 8.0, **low), recorded(4, 6.0, **low, dtype="bf16")]
  monkeypatch.setattr(record, "shipped", lambda: rows)
  copies = UNET / 2
  need = Need("attack", 4, "float32", PLAIN)
  said, fit = line(shelf, need, gib=8.4 + copies)
  assert fit and f"fits: at most {8 + VAE + copies:.1f}" in said
  assert "4 row(s) for v5e:2x4, compiled at low effort" in said
  assert line(shelf, need, gib=8.2 + copies) == (ASKED, True)
  said, fit = line(shelf, need._replace(dtype="bfloat16"), gib=6.4)
  assert fit and "fits: at most 6.3" in said


def test_a_victim_of_unknown_size_may_be_a_whole_model(shelf):
  need = Need("attack", 4, "float32", PLAIN)
  assert line(shelf, need, gib=12.2, more=None) == (ASKED, True)
  said, fit = line(shelf, need, gib=12.4, more=None)
  assert fit and f"at most {8 + VAE + WHOLE:.1f}" in said


def test_what_lies_beside_a_tuning_counts(shelf):
  said, _ = line(shelf, Need("lora", 8, "float32", tuned()))
  assert f"fits: at most {8 + TEXT + VAE:.1f}" in said


def test_another_program_is_not_recorded(shelf):
  need, sample = Need("attack", 1, "float32", PLAIN), Sampling()
  lora, given = Need("lora", 2, "float32"), tuned()
  averaged = tuned(finetune_full, accumulate=4)
  fields = {
    "remat": False, "accumulate": 2, "ema_decay": 0.9,
    "lora": dataclasses.replace(given.lora, rank=256),
    "defense": dataclasses.replace(given.defense, kind="anchor"),
    "loss": dataclasses.replace(given.loss, snr_gamma=5.0),
  }  # fmt: skip
  others = [
    need._replace(dtype="bfloat16"),
    need._replace(how=attacks.bind("gcg", {})),
    *(
      need._replace(how=attacks.bind("unlearn_diff_atk", {key: value}))
      for key, value in {"draws": 4, "num_tokens": 3}.items()
    ),
    *(
      lora._replace(how=dataclasses.replace(given, **{key: value}))
      for key, value in fields.items()
    ),
    *(
      Need("sample", 4, "float32", dataclasses.replace(sample, **{key: value}))
      for key, value in {
        "num_inference_steps": 20, "guidance_scale": 1.0, "sampler": "ddim",
      }.items()
    ),
    Need("full", 1, "float32", averaged, fsdp=4),
    *(
      Need("full", 1, "float32", how, fsdp=8)
      for how in (
        dataclasses.replace(averaged, accumulate=1),
        dataclasses.replace(averaged, ema_decay=None),
      )
    ),
  ]  # fmt: skip
  for other in others:
    assert line(shelf, other) == (ASKED, True), other
  longer = attacks.bind("unlearn_diff_atk", {"iterations": 7, "blocks": 2})
  for same in (
    need._replace(how=longer),
    lora._replace(how=given),
    Need("sample", 4, "float32", sample),
    Need("full", 1, "float32", averaged, fsdp=8),
  ):
    assert line(shelf, same)[0].startswith("fits"), same
  tiny = build.make_sd("tiny", "float32", "auto")
  dense = build.make_sd("sd14", "float32", "dense")
  for sd in (tiny, dense):
    assert line(sd, need) == (ASKED, True)
  assert line(shelf, need, name="h200") == (ASKED, True)


def test_each_process_draws_its_own_rows(shelf, monkeypatch):
  monkeypatch.undo()
  here = jax.local_devices()
  monkeypatch.setattr(jax, "devices", lambda: here * 2)
  for one in (Need("attack", 8, "float32"), Need("sample", 8, "float32")):
    assert fits._devices(one) == here
  assert fits._devices(Need("lora", 8, "float32", tuned())) == here * 2


@pytest.mark.parametrize(
  "given",
  [attacked, evaluated, audited, matrixed],
  ids=["attack", "evaluate", "audit", "matrix"],
)
def test_what_does_not_fit_is_a_status(given, shelf, monkeypatch, capsys):
  def asked(check, device=""):
    named = {"check": check, "device": device}
    values = {k: types.SimpleNamespace(value=v) for k, v in named.items()}
    monkeypatch.setattr(checks.flags, "FLAGS", values)
    return checks.said(checking.Checked(given(), shelf))

  monkeypatch.setattr(fits, "_is_recorded", lambda sd, how: True)
  assert asked("files", "v5e") == 0
  small = devices.Device(7.5, "TPU")
  monkeypatch.setitem(devices.DEVICES, "v5e", small)
  assert asked("files", "v5e") == 1
  out = capsys.readouterr().out
  assert "does not fit: at least" in out and "it does not fit" in out


# --- Devices ---


def test_devices_have_names(monkeypatch):
  assert devices.named("v5e") == ("v5e", 15.75)
  monkeypatch.delenv(devices.VARIABLE, raising=False)
  assert devices.named("H200") == ("h200", pytest.approx(104.85))
  monkeypatch.setenv(devices.VARIABLE, "0.5")
  assert devices.named("h200")[1] == pytest.approx(69.9)
  monkeypatch.setenv(devices.VARIABLE, "half")
  with pytest.raises(ValueError, match="FRACTION=half: must be a number"):
    devices.named("h200")
  # A machine's memory is shared with who knows whom.
  assert devices.named("") == ("cpu", 0.0)
  for name in ("v5", "t4", "a100", "cpu"):
    with pytest.raises(ValueError, match="v5e"):
      devices.named(name)


def test_another_gpu_cannot_be_compiled_for():
  assert fits.target("v5e", exact=True) == ("v5e", "v5e", 15.75)
  assert fits.target("h200", exact=False)[:2] == ("h200", "")
  assert fits.target("CPU", exact=True) == ("cpu", "", 0.0)
  with pytest.raises(ValueError, match="on a machine that has one"):
    fits.target("h200", exact=True)


def test_a_device_is_asked_about_by_a_check(monkeypatch):
  def begun(check, device):
    named = {"check": check, "device": device}
    values = {k: types.SimpleNamespace(value=v) for k, v in named.items()}
    monkeypatch.setattr(checks.flags, "FLAGS", values)
    return checks.begin()

  assert [begun("", ""), begun("files", "v5e")] == ["", "files"]
  for check, device, said in (
    ("", "v5e", "--check is not given"),
    ("files", "v4", "v5p"),
    ("compile", "h200", "from elsewhere"),
  ):
    with pytest.raises(ValueError, match=said):
      begun(check, device)


# --- Compiling ---


TINY = build.make_sd("tiny", "float32", "auto")


def compiled(given, **more):
  return [*fits.said(given, TINY, exact=True, **more)]


def test_a_defense_with_its_own_step_is_not_compiled():
  for kind in ("project", "anchor"):
    ((said, fit),) = compiled(
      tuned(defense=finetune.settings.Defense(kind=kind))
    )
    assert fit and "neither recorded nor compiled: defense.kind" in said


def test_guidance_in_the_loss_is_not_compiled():
  given = attacked()
  inside = dataclasses.replace(given.guidance, safe="weak", in_loss=True)
  attacked_, sampled = compiled(attacked(guidance=inside), safe=True)
  assert "neither recorded nor compiled: guidance.in_loss" in attacked_[0]
  assert "neither recorded nor compiled: Safe Latent" in sampled[0]


def test_every_attack_without_a_probe_is_built():
  sd, like = shapes().sd, build.shapes(shapes().sd)
  pairs = {"pairs": (("a star", "a picture"),)}
  own = {"rab_soft": pairs, "ring_a_bell": pairs}
  own["new_word"] = {"words": (((0.0,) * sd.context_shape[1],),)}
  for name in attacks.methods():
    how = attacks.bind(name, own.get(name, {}))
    if not how.is_probe:
      program = build.BUILD["attack"](sd, 2, like, how)
      jax.eval_shape(program.arguments, like)


def test_a_verb_that_is_not_looked_at_says_so():
  assert compiled(None) == [("cpu: nothing of this verb is compiled", True)]
  ((said, _),) = fits.said(None, TINY, exact=False)
  assert "not recorded for this verb" in said


def test_too_little_room_is_a_line(monkeypatch):
  seen = []

  class Low:
    def compile(self, **options):
      seen.append(jax.config.jax_enable_compilation_cache)
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 20G\nmore")

  monkeypatch.setattr(build, "lowered", lambda *given: Low())
  ((said, fit),) = compiled(tuned())
  assert not fit and said.endswith("does not fit: RESOURCE_EXHAUSTED: 20G")
  # And nothing is left on disk.
  assert seen == [False]


def test_a_slice_has_so_many_chips(monkeypatch):
  monkeypatch.setattr(compiling, "devices_of", lambda kind: [None] * 8)
  monkeypatch.setattr(fits, "_devices", lambda need: [None] * 16)
  with pytest.raises(ValueError, match="8 chips at most, and this run has 16"):
    compiled(tuned(), device="v5e")


def test_a_small_program_is_compiled(monkeypatch):
  ((said, fit),) = compiled(tuned(dtype="float32", batch_size=1))
  assert fit and "GiB a chip (compiled in" in said and "fits" not in said
  monkeypatch.setattr(fits, "target", lambda *a, **b: ("here", "", 1e-6))
  ((said, fit),) = compiled(tuned(dtype="float32", batch_size=1))
  assert not fit and "does not fit: at least" in said
