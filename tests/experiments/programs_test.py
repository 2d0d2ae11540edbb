"""Programs compiled of shapes: how they grow, and how they are recorded."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
from unlearning_jax.configs import finetune_full, finetune_lora

from unlearning_jax import durable, settings
from unlearning_jax.experiments import finetune
from unlearning_jax.experiments.programs import (
  compiling,
  measured,
  record,
)

GOLDEN = pathlib.Path(__file__).with_name("programs.json")
RENEW = (
  "if this is meant, renew the file: unlearning-jax programs --size=tiny "
  "--places={place} --programs={program} --again "
  "--out=tests/experiments/programs.json"
)
MORE = 1.05
ALONE = ("attack", "sample", "closed_form")
TUNED = {"full": finetune_full, "lora": finetune_lora}


def how(name):
  if name not in TUNED:
    return None
  config = TUNED[name].get_config("sd14")
  return settings.build(finetune.Settings, config.to_dict())


def grown(old, new):
  """What a program has more of than its golden row, in words."""
  words = [
    f"{name} is {new[name]} bytes a chip, it was {old[name]}"
    for name in ("arguments", "temporaries", "total")
    if new[name] > MORE * old[name]
  ]
  for kind, one in new["collectives"].items():
    was = old["collectives"].get(kind)
    if was is None:
      words.append(f"{kind} is new: {one}")
    elif one["count"] > was["count"] or one["bytes"] > MORE * was["bytes"]:
      words.append(f"{kind} is {one}, it was {was}")
  return words


def rows():
  """Every golden row; all but a few on eight devices are slow."""
  for row in json.loads(GOLDEN.read_text())["programs"]:
    place, name = row["place"], row["program"]
    quick = place == "cpu:8" and name != "full"
    marks = [] if quick else [pytest.mark.slow]
    yield pytest.param(row, marks=marks, id=f"{name}-{place}")


@pytest.mark.parametrize("old", rows())
def test_a_program_does_not_grow(old):
  asked = {key: old[key] for key in record.KEYS}
  new = compiling.compiled(asked, how(old["program"]))
  words = grown(old, new)
  assert not words, (
    f"{old['program']} on {old['place']}: {words}; {RENEW.format(**old)}"
  )


def test_goldens_are_flat_in_the_number_of_devices():
  """A device has one row, so what it holds and sends must not grow."""
  found = {(row["program"], row["place"]): row for row in record.read(GOLDEN)}
  for name in (*ALONE, "lora"):
    one, *more = (found[name, f"cpu:{n}"] for n in (1, 2, 4, 8))
    for row in more:
      assert abs(row["total"] / one["total"] - 1) < 0.01
      if name in ALONE:
        assert row["collectives"] == {}
      else:
        assert row["collectives"] == more[0]["collectives"]
  one, eight = (found["full", f"cpu:{n}"]["arguments"] for n in (1, 8))
  # All but the smallest leaves are split.
  assert one > 6 * eight


def test_what_grows_is_said():
  old = {"arguments": 100, "temporaries": 100, "total": 200, "collectives": {}}
  reduce = {"all-reduce": {"count": 1, "bytes": 8}}
  assert grown(old, old | {"temporaries": 104, "total": 204}) == []
  (said,) = grown(old, old | {"temporaries": 106, "total": 206})
  assert said == "temporaries is 106 bytes a chip, it was 100"
  assert "all-reduce is new" in grown(old, old | {"collectives": reduce})[0]
  more = {"all-reduce": {"count": 2, "bytes": 8}}
  old |= {"collectives": reduce}
  assert "it was" in grown(old, old | {"collectives": more})[0]


def test_collectives_are_read_from_a_program():
  text = """
  %a = f32[4,8]{1,0} all-reduce(%x), channel_id=1, to_apply=%add
  %b = (f32[2]{0}, bf16[3]{0:T(256)}) all-reduce(%x, %y), channel_id=2
  %c = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), dimensions={0}
  %d = f32[32]{0} all-gather-done(%c)
  ROOT %e = f32[4]{0} add(%all-reduce.1, %x)
  """
  assert measured.collectives(text) == {
    "all-reduce": {"count": 2, "bytes": 4 * 32 + 8 + 6},
    "all-gather": {"count": 1, "bytes": 4 * 32},
  }


@pytest.mark.parametrize("why", ["async-update instruction has 3", "no room"])
def test_a_program_that_jax_cannot_read_has_unknown_collectives(why):
  """JAX 0.10.2 cannot read what libtpu 0.0.52 makes for a v6e."""
  program = jax.jit(jnp.sin).lower(1.0).compile()

  class Newer:
    memory_analysis = program.memory_analysis
    cost_analysis = program.cost_analysis

    def as_text(self):
      raise jax.errors.JaxRuntimeError(why)

  if "async" not in why:
    with pytest.raises(jax.errors.JaxRuntimeError, match=why):
      measured.figures(Newer())
    return
  found = measured.figures(Newer())
  assert found == measured.figures(program) | {"collectives": None}
  row = {**dict.fromkeys(record.KEYS, "one"), "seconds": 1, **found}
  assert record.table([row]).endswith("unknown")


def test_jax_knows_a_tpus_low_effort():
  """These options are JAX's own, so every backend takes them."""
  low = measured.LOW_EFFORT["tpu"]
  jax.jit(jnp.sin).lower(1.0).compile(compiler_options=low)


def test_a_recorded_row_is_not_compiled_again(tmp_path, monkeypatch):
  asked = []

  def compiled(row, how):
    del how
    asked.append(row["program"])
    return row | {"total": len(asked)}

  monkeypatch.setattr(compiling, "compiled", compiled)
  path, place = tmp_path / "programs.json", {"places": ("cpu:1",)}
  one = compiling.Settings(programs=("sample",), **place)
  both = compiling.Settings(programs=("sample", "attack"), **place)
  assert len(list(compiling.run(one, path, {}))) == 1
  assert len(list(compiling.run(both, path, {}))) == 1
  assert asked == ["sample", "attack"]
  again = compiling.Settings(programs=("sample",), again=True, **place)
  assert len(list(compiling.run(again, path, {}))) == 1
  assert {r["program"]: r["total"] for r in record.read(path)} == {
    "attack": 2, "sample": 3,
  }  # fmt: skip


def test_one_process_adds_to_a_record(tmp_path, monkeypatch):
  monkeypatch.setattr(compiling, "compiled", lambda row, how: row)
  path, seen = tmp_path / "programs.json", []
  monkeypatch.setattr(durable, "lock", lambda *given: seen.append(given))
  one = compiling.Settings(programs=("sample",), places=("cpu:1",))
  assert len(list(compiling.run(one, path, {}))) == 1
  assert seen == [(tmp_path / "programs.json.lock", path)]


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"programs": ("attak",)}, "attack"),
    ({"places": ("v4",)}, "v5e, v5p, v6e"),
    ({"places": ("cpu",)}, "cpu:N"),
    ({"places": ("v5e:two",)}, "v5e:2x4"),
    ({"rows": (0,)}, "at least 1"),
  ],
)
def test_what_cannot_be_compiled_is_refused(changes, said):
  with pytest.raises(ValueError, match=said):
    compiling.Settings(**changes)


def test_too_few_devices_are_named():
  with pytest.raises(ValueError, match="JAX_NUM_CPU_DEVICES=64"):
    compiling.devices_of("cpu:64")


def test_the_shipped_record_is_whole():
  rows = record.shipped()
  assert rows and record.table(rows).count("\n") == len(rows)
  assert len({record.key(row) for row in rows}) == len(rows)
  for row in rows:
    assert row["size"] == "sd14"
    assert "error" in row or row["total"] > row["temporaries"] >= 0
