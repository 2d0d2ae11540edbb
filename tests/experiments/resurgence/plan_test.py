"""A study's plan: its cells, its tuning sets, its refusals, its costs."""

import json
import pathlib
import shutil

import jax
import pytest
from unlearning_jax.configs import (
  finetune_resurgence_full,
  finetune_resurgence_small,
  finetune_resurgence_staying,
  resurgence,
)

from unlearning_jax import settings, shapes, stable_diffusion
from unlearning_jax.experiments import common
from unlearning_jax.experiments import resurgence as studies
from unlearning_jax.experiments.resurgence import Settings, plan
from unlearning_jax.judges import Judge
from unlearning_jax.model import Model
from unlearning_jax.shapes import tuning_sets, vocabulary
from unlearning_jax.shapes.prompts import Target

BLOCK = {
  "methods": ("uce", "esd_x"),
  "concepts": ("star",),
  "sets": ("near", "control"),
  "algorithms": ("lora",),
  "defenses": ("none",),
  "seeds": (0, 1),
}
ROOT = pathlib.Path(__file__).resolve().parents[3]
KEPT = ROOT / "benchmarks/results/resurgence_full"
COUNTS = {"explicit": 8, "words": 4, "others": 6, "tuned": 2}


def study(*blocks):
  return resurgence.study(blocks or [BLOCK], (5, 50), COUNTS)


def built(config):
  return settings.build(Settings, config.to_dict())


@pytest.fixture(scope="module")
def model():
  return stable_diffusion.load(shapes.model_folder())


@pytest.mark.parametrize(
  "module",
  [
    finetune_resurgence_full,
    finetune_resurgence_small,
    finetune_resurgence_staying,
  ],
)
def test_configs_are_sound(module):
  given = built(module.get_config())
  cells = given.cells
  assert len(set(map(str, cells))) == len(cells) >= 10
  assert not plan.unrated(given, given.rates)


def test_the_full_study_asks_what_the_issue_asks():
  config = finetune_resurgence_full.get_config()
  cells = built(config).cells
  assert {cell.method for cell in cells} >= set(resurgence.METHODS)
  assert {cell.algorithm for cell in cells} >= {"lora", "full"}
  assert {cell.tuning_set for cell in cells} == set(tuning_sets.KINDS)
  tasks = {config.concepts[cell.concept]["task"] for cell in cells}
  assert tasks == {"object", "style", "identity", "unsafe"}
  # The main comparison is whole.
  main = [
    cell
    for cell in cells
    if cell.method in resurgence.METHODS
    and len(config.concepts[cell.concept]["names"]) == 1
    and cell.algorithm in ("lora", "full")
    and cell.tuning_set in ("near", "out")
    and cell.defense == "none"
  ]
  assert len(main) == 6 * 4 * 2 * 2 * 3
  seeds = {cell.seed for cell in main}
  assert len(seeds) == 3 and len(seeds) * config.counts.explicit >= 200
  sizes = {len(config.concepts[cell.concept]["names"]) for cell in cells}
  assert {1, 5, 10} < sizes


def test_the_rows_in_the_repository_are_the_full_studys(tmp_path):
  """So whoever copies them goes on from them, and is not refused."""
  for name in ("config.json", "results.jsonl"):
    shutil.copy(KEPT / name, tmp_path)
  config = finetune_resurgence_full.get_config()
  # What no row depends on may change.
  config.pack, config.batch_size, config.rates.lora = 8, 13, 9.0
  run = common.workdir(str(tmp_path), config, Settings)
  known = {str(cell) for cell in built(config).cells}
  tuned = [row["id"] for row in run.rows() if "@" in row["id"]]
  assert tuned and all(key.partition("@")[0] in known for key in tuned)
  assert not any("failed" in row for row in run.rows())


def test_cells_come_once_block_by_block_and_seed_by_seed():
  again = BLOCK | {"seeds": (1, 0), "sets": ("near", "far")}
  cells = built(study(BLOCK, again)).cells
  seeds = [cell.seed for cell in cells]
  assert seeds == [0] * 4 + [1] * 4 + [0] * 2 + [1] * 2
  assert {cell.tuning_set for cell in cells[8:]} == {"far"}
  assert str(cells[0]) == "uce/star/near/lora/none/0"
  assert cells[0].edit.file == "uce-star-0"
  assert len(set(cells)) == len(cells)


def test_a_pack_is_of_lora_runs_of_a_method():
  whole = BLOCK | {
    "algorithms": ("lora", "full"), "defenses": ("none", "project"),
  }  # fmt: skip
  config = study(whole)
  given = built(config)
  cells = given.cells
  assert plan.packs(given, cells) == [[cell] for cell in cells]
  config.pack = 3
  given = built(config)
  found = plan.packs(given, cells)
  assert sorted(sum(found, []), key=cells.index) == cells
  firsts = [cells.index(pack[0]) for pack in found]
  assert firsts == sorted(firsts)
  for pack in found:
    assert pack == sorted(pack, key=cells.index)
    assert len({(c.method, c.algorithm, c.defense) for c in pack}) == 1
  # Two tuning sets and two seeds of each method.
  sizes: dict[str, list[int]] = {}
  for pack in found:
    kind = f"{pack[0].algorithm}/{pack[0].defense}"
    sizes.setdefault(kind, []).append(len(pack))
  assert sizes["lora/none"] == [3, 3, 1, 1]
  assert set(sizes["lora/project"] + sizes["full/none"]) == {1}
  said = plan.described(given, "none", (), dict.fromkeys(given.rates, 1))
  assert "5 compiled tuning programs: 3 x lora/none, full/none, " in said


@pytest.mark.parametrize(
  "key, value, words",
  [
    ("blocks", (), "blocks: the study has no cells"),
    ("blocks", (BLOCK | {"sets": ("naer",)},), "'naer'.*did you mean 'near'"),
    ("blocks", (BLOCK | {"methods": ("uec",)},), "'uec/star'.*'uce/star'"),
    ("blocks", (BLOCK | {"seeds": ()},), "'seeds' is missing or empty"),
    (
      "blocks",
      (BLOCK | {"sedes": (1,)},),
      r"blocks\[0\].sedes: .*did you mean seeds",
    ),
    ("blocks", (BLOCK | {"defenses": ("proj",)},), "'proj'.*none, project"),
    ("counts.explicit", 0, "counts.explicit=0"),
    ("concepts.star.names", ("strar",), "did you mean 'star'"),
    ("concepts.star.names", ("star", "star"), "listed twice"),
    ("concepts.star.names", (), "no class to erase"),
    ("model", "my/sd14", "model.*'my/sd14'.*shapes"),
    ("judge", None, "judge=None: .*name one"),
    ("algorithms.lora.data.count", 20, "batch_size=32 is more than .*count=20"),
    ("algorithms.lora.num_steps", 60, "the last must be num_steps=60"),
    ("algorithms.lora.defense.kind", "prject", "did you mean 'project'"),
    ("algorithms.lora.loss.snr_gamma", 0.0, "algorithms.lora: loss.snr_gamma="),
    (
      "algorithms.lora.train",
      "text_encoder",
      "algorithms.lora: train=.*launch.finetune",
    ),
    ("sampling.sampler", "ddmi", "did you mean 'ddim'"),
    ("batch_size", 0, "at least 1"),
    ("pack", 0, "pack=0"),
  ],
)
def test_a_wrong_study_is_refused(key, value, words):
  config = study()
  with config.unlocked():
    config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=words):
    built(config)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"batch_size": 12}, "algorithms.full: batch_size=12.*8 device"),
    ({"accumulate": 8}, "algorithms.full: batch_size=32 with accumulate=8"),
    ({}, None),
  ],
)
def test_devices_that_a_batch_cannot_be_split_over(changes, words, monkeypatch):
  """They would fail all cells for good; a report is written on any."""
  config = study(BLOCK | {"algorithms": ("lora", "full")})
  config.algorithms.full.update(changes)
  given = built(config)

  def loading(_):
    raise InterruptedError

  monkeypatch.setattr(common, "load_model", loading)
  for report in (False, True):
    refused = words is not None and not report
    with pytest.raises(
      ValueError if refused else InterruptedError,
      match=words if refused else None,
    ):
      studies.setup(given, report=report)


BLIND = Judge(
  "blind", lambda images: {}, {"object": ("circle",)}, cannot_see="stars"
)


def test_a_judge_of_ones_own_that_does_not_know_what_was_erased():
  config = study()
  config.judge = f"{__name__}:BLIND"
  with pytest.raises(
    ValueError, match=r"judge blind \(cannot see stars\): .*'star'"
  ):
    studies.setup(built(config), report=True)


@pytest.mark.parametrize("method", ["sld", "negative_prompt"])
def test_a_method_that_changes_no_weight_has_nothing_to_tune(method):
  config = study(BLOCK | {"methods": ("uce",)}).to_dict()
  config["erasures"]["uce/star"] |= {"method": method, "hparams": {}}
  words = f"erasures.uce/star: method='{method}': .*nothing to tune"
  with pytest.raises(ValueError, match=words):
    settings.build(Settings, config)


def test_several_classes_are_erased_without_preserving_each_other():
  entry = resurgence.erasure("uce", *resurgence.CONCEPTS["objects 5"])
  names = resurgence.CONCEPTS["objects 5"][1]
  assert len(names) == 5 and "circle" not in names
  for name in names:
    assert any(name in erase for erase, _ in entry["pairs"])
    assert not any(name in phrase for phrase in entry["preserve"])
  assert "a circle" in entry["preserve"]


def test_a_variant_changes_what_it_says_and_nothing_else():
  quill = resurgence.CONCEPTS["quill"]
  plain = resurgence.erasure("mace", *quill)
  loose = resurgence.erasure("mace_loose", *quill)
  assert loose["hparams"].pop("preserve_scale") == 0.1
  assert loose["hparams"].pop("fuse_scale") == 0.1
  assert loose["hparams"].items() <= plain["hparams"].items()
  assert loose["pairs"] == plain["pairs"]
  other = resurgence.erasure("mace_object", *quill)
  assert [a for _, a in other["pairs"]] == ["circle"] * len(plain["pairs"])
  assert other["hparams"] == plain["hparams"]


def test_a_longer_run_has_the_same_checkpoints_and_one_more():
  block = BLOCK | {"algorithms": ("lora", "lora 300")}
  config = resurgence.study([block], (5, 50), COUNTS)
  short, long = (config.algorithms[name] for name in block["algorithms"])
  assert long.checkpoints == (5, 50, 300) and long.num_steps == 300
  changed = {"checkpoints", "num_steps"}
  assert all(short[k] == long[k] for k in short if k not in changed)


@pytest.mark.parametrize(
  "target",
  [
    Target("object", "star"),
    Target("style", "neon"),
    Target("identity", "Quill Estane"),
    Target("unsafe", "hazard"),
  ],
  ids=lambda target: target.task,
)
def test_tuning_sets_leave_out_what_was_erased(target, model):
  made = {
    kind: tuning_sets.tuning_set(*model, [target], kind, 4)
    for kind in tuning_sets.KINDS
  }
  for kind, found in made.items():
    assert set(found.names) <= set(vocabulary.HEADS[found.head])
    assert found.overlap == (kind == "same")
    assert (target.name in found.names) == (kind == "same")
    assert (target.name in found.without) == (kind != "same")
  assert made["control"].names == made["in"].names
  assert made["near"].similarity > made["in"].similarity
  assert made["in"].similarity > made["far"].similarity
  assert not set(made["near"].names) & set(made["far"].names)
  assert made["out"].head != made["in"].head


def test_a_set_that_would_be_empty(model):
  every = [Target("object", name) for name in vocabulary.HEADS["object"]]
  with pytest.raises(ValueError, match="set='in': every object was erased"):
    tuning_sets.tuning_set(*model, every, "in", 4)
  with pytest.raises(ValueError, match="set='near': needs"):
    tuning_sets.tuning_set(*model, every[:-1], "near", 4)


def test_costs_are_counted_and_measured_rates_win(tmp_path):
  given = built(study())
  rates = dict.fromkeys(given.rates, 0.0)
  # An image costs a second, all else nothing: cost counts images.
  spent = plan.cost(given, rates | {"image": 1.0})
  each = 8 + 2 * 4 + 6
  # Two seeds of: the base, two erased models, four cells; each cell draws at
  # two checkpoints and what it tunes on beforehand.
  assert spent["measure"] == 2 * (each + 2 * each + 4 * (2 * (each + 2) + 2))
  assert spent["erase"] == spent["tune"] == 0
  spent = plan.cost(given, rates | {"lora": 0.5})
  assert spent["tune"] == 8 * 50 * 0.5
  lines = [
    {"what": "lora", "seconds": 3.0, "count": 10},
    {"what": "lora", "seconds": 1.0, "count": 10},
  ]
  found, own = plan.measured_rates(given, lines)
  assert found["lora"] == 0.2 and own == 1
  assert found["uce"] == given.rates["uce"]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  # A run that was killed as it wrote, or writes now.
  (tmp_path / "metrics.jsonl").write_text(text + text[:20])
  told = studies.described(given, str(tmp_path))
  assert "8 cells from 4 erased models, 4 conditions" in told
  assert "1 compiled tuning programs: lora/none" in told
  assert "uce/star/near/lora/none/0" in told and "(1 of " in told
  # Two maps of 128 x 128 in float64, two UNets of 16.35 MiB in float32; two
  # checkpoints, each of the UNet and Adam's two moments.
  assert "bytes: 33.0 MiB of edits, at most 98.1 MiB of checkpoints" in told


def test_a_method_of_unknown_seconds_is_named():
  whole = built(study())
  assert plan.unrated(whole, whole.rates) == []
  config = study().to_dict()
  del config["rates"]["esd_x"]
  given = settings.build(Settings, config)
  size = dict.fromkeys(whole.rates, 1)
  found = plan.described(given, "none", (), size)
  assert "no time counted for erasing by esd_x; the config" in found
  assert "erasing by esd_x" not in plan.described(whole, "none", (), size)
  # An edit that is given takes no time; the method's other erasure does.
  config = study(BLOCK | {"concepts": ("star", "quill")}).to_dict()
  config["erasures"]["esd_x/quill"] = {"edit": "somewhere"}
  del config["rates"]["esd_x"]
  given = settings.build(Settings, config)
  assert plan.unrated(given, given.rates) == ["esd_x"]


def test_a_given_edit_takes_no_room(model):
  config = study(BLOCK | {"methods": ("uce", "mace")}).to_dict()
  config["erasures"]["mace/star"] = {"edit": "somewhere"}
  found = plan.sizes(settings.build(Settings, config), Model(*model))
  unet = sum(x.nbytes for x in jax.tree.leaves(model[1]["unet"]))
  wanted = {"uce": 8 * 128**2, "mace": 0, "lora": 3 * unet}
  assert found == wanted
