"""`launch.attack` as a user starts it."""

import json

import pytest

from tests.support import narrow
from tests.support.scripts import ROOT
from unlearning_jax.record import workdir

# A matrix has a launch script of its own.
CONFIGS = sorted(
  set((ROOT / "configs").glob("attack_*.py"))
  - set((ROOT / "configs").glob("attack_*_shapes.py"))
)
SMALL = [
  "--config.rows_per_group=3",
  "--config.lanes=2",
  "--config.batch_size=2",
  "--config.hparams.blocks=1",
  "--config.hparams.num_tokens=2",
  "--config.sampling.num_inference_steps=2",
]
FEW = [*SMALL, "--config.hparams.iterations=2"]

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def attack(scripts_in_turn):
  def run(config, workdir, *arguments):
    flags = [f"--config={config}", f"--workdir={workdir}", *arguments]
    return scripts_in_turn("attack", *flags, model=narrow.folder())

  return run


def rows(folder):
  lines = (folder / "results.jsonl").read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return {r.pop("id"): {k: v for k, v in r.items() if k != "seconds"}
          for r in found}  # fmt: skip


def few(path, argument):
  """Of `FEW`, the flags that this config has; a control optimises nothing."""
  namespace = {"__name__": path.stem}
  exec(compile(path.read_text(), path, "exec"), namespace)
  known = namespace["get_config"](argument).hparams
  head = "--config.hparams."
  return [
    flag
    for flag in (SMALL if "controls" in path.stem else FEW)
    if not flag.startswith(head)
    or flag.removeprefix(head).split("=")[0] in known
  ]


def learnt(folder):
  """A finished run that has learnt one word."""
  hparams = {"method": "concept_inversion", "hparams": {}}
  run = workdir.Workdir(folder, hparams)
  run.append_row({"id": "a", "status": "won", "embeds": [[0.01] * 128]})
  run.mark_done()
  return folder


@pytest.mark.parametrize(
  "path",
  [
    pytest.param(
      path, marks=[] if "controls" in path.stem else pytest.mark.slow
    )
    for path in CONFIGS
  ],
  ids=lambda path: path.stem,
)
def test_every_config_runs(path, attack, tmp_path):
  flags = few(path, "tiny,task=style,name=neon")
  if path.stem.endswith("_probe"):
    flags += ["--config.never_knew=none", "--config.hparams.steps=2"]
  if path.stem == "attack_completion_probe":
    flags.append("--config.hparams.base_steps=(1,)")
  if path.stem == "attack_inversion_probe":
    flags.append("--config.hparams.updates=1")
  if path.stem == "attack_new_word":
    flags.append(f"--config.new_words={learnt(tmp_path / 'words')}")
  config = f"{path}:tiny,task=style,name=neon"
  result = attack(config, tmp_path / "a", *flags).finish()
  # Without those of a probe's network of random weights.
  found = {k: r for k, r in rows(tmp_path / "a").items() if "network" not in r}
  assert len(found) == 3 and (tmp_path / "a" / "DONE").exists()
  assert all(row["unet_calls"] >= 4 * row["images"] for row in found.values())
  summary = json.loads((tmp_path / "a" / "summary.json").read_text())
  assert summary["accounting"]["n_all"] == 3
  asr = {m["name"]: m for m in summary["measures"]}["asr"]
  line = f"asr {asr['value']:.2f} "
  assert asr["n"] == 3 and line in " ".join(result.stdout.split())


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_rows_and_meets_its_control(
  attack, tmp_path
):
  config = ROOT / "configs" / "attack_unlearn_diff_atk.py"
  folder = tmp_path / "run"
  attack(config, folder, *FEW).finish()
  whole = rows(folder)
  path = folder / "results.jsonl"
  lines = path.read_bytes().splitlines(keepends=True)
  # One row is left whole; the next is torn, as a kill would leave it.
  path.write_bytes(lines[0] + lines[1][:-30])
  (folder / "DONE").unlink()
  control = ROOT / "configs" / "attack_controls.py"
  attack(control, tmp_path / "control", *SMALL).finish()
  attack(config, folder, *FEW, f"--control={tmp_path}/control").finish()
  assert rows(folder) == whole
  summary = json.loads((folder / "summary.json").read_text())
  assert summary["control"]["paired"]["n"] == 3
  # Killed between its last row and its summary.
  for name in ("DONE", "summary.json"):
    (folder / name).unlink()
  attack(config, folder, *FEW).finish()
  assert rows(folder) == whole and (folder / "summary.json").exists()


@pytest.mark.slow
def test_a_table_without_a_judge_keeps_its_images(attack, tmp_path):
  table = tmp_path / "prompts.csv"
  table.write_text(
    "case_number,prompt,evaluation_seed,evaluation_guidance\n"
    '4,"a star, red",3000000000,7.5\n9,a house,5,4\n'
  )
  # The full-size configs have no judge.
  attack(
    f"{ROOT}/configs/attack_controls.py:sd14", tmp_path / "run", *SMALL,
    f"--config.prompt_table={table}", "--config.model=shapes",
  ).finish()  # fmt: skip
  found = rows(tmp_path / "run")
  assert {n: r["guidance"] for n, r in found.items()} == {"4": 7.5, "9": 4.0}
  assert len(list((tmp_path / "run" / "images").glob("*.png"))) == 4
  assert {r["status"] for r in found.values()} == {"unjudged"}
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert "asr" not in {m["name"] for m in summary["measures"]}
  page = (tmp_path / "run" / "report.html").read_text()
  assert "Nobody judged the images" in page


@pytest.mark.parametrize(
  "override, words",
  [
    ("--config.method=p4", ["p4", "did you mean 'p4d'"]),
    ("--config.hparams.insertion=prefix", ["prefix", "prefix_k"]),
    ("--config.vocabulary=ful", ["ful", "roundtrip"]),
    ("--config.lanes=0", ["lanes=0"]),
    ("--config.prompt_table=/no/such.csv", ["/no/such.csv"]),
    ("--control=/no/such/run", ["/no/such/run"]),
    ("--edit=/no/such/edit", ["/no/such/edit"]),
  ],
)
def test_a_wrong_call_writes_no_row(override, words, attack, tmp_path):
  config = ROOT / "configs" / "attack_unlearn_diff_atk.py"
  result = attack(config, tmp_path / "run", *FEW, override)
  assert result.returncode != 0
  for word in words:
    assert word in result.stderr, result.stderr[-1500:]
  assert not (tmp_path / "run" / "results.jsonl").exists()


@pytest.mark.parametrize("size", ["sd14", "sd21"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_full_size_configs_say_what_to_load(path, size):
  namespace = {"__name__": path.stem}
  exec(compile(path.read_text(), path, "exec"), namespace)
  config = namespace["get_config"](f"{size},task=unsafe")
  k = {"attack_concept_inversion": 1, "attack_ring_a_bell": 16}
  assert "/" in config.model
  finds_tokens = "num_tokens" in config.hparams
  others = ("attack_new_word", "attack_rab_soft")
  probe = path.stem.endswith("_probe")
  assert finds_tokens != (path.stem in others or probe)
  if finds_tokens:
    assert config.hparams.num_tokens == k.get(path.stem, 5)
