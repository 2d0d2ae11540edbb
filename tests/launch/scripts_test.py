"""The launch scripts, as a user starts them, with every config."""

import json

import pytest

from tests.support import narrow, scripts
from unlearning_jax import concepts
from unlearning_jax.shapes import vocabulary

CONFIGS = scripts.ROOT / "configs"
ERASE = sorted(CONFIGS.glob("erase_*.py"))
TRAIN = sorted(CONFIGS.glob("train_shapes_*.py"))
# Small enough for a test; every other key is the config's own.
SMALL = [
  "--config.rows_per_group=1",
  "--config.other_rows=2",
  "--config.grid_rows=1",
  "--config.batch_size=2",
  "--config.sampling.num_inference_steps=2",
]

# And of what trains: two steps.
SHORT = {
  "esd": ["num_steps=2", "num_inference_steps=2"],
  "advunlearn": [
    "num_steps=2", "num_inference_steps=2", "num_trajectories=1",
    "attack_steps=1", "warmup_steps=1",
  ],
  "concept_ablation": [
    "num_steps=2", "num_inference_steps=2", "num_images=23", "batch_size=23",
  ],
  "salun": [
    "num_steps=2", "num_inference_steps=2", "num_images=24", "batch_size=8",
  ],
  "erasediff": [
    "epochs=2", "num_inference_steps=2", "num_images=24", "batch_size=24",
  ],
  "fmn": [
    "num_steps=2", "num_inference_steps=2", "num_images=2", "batch_size=2",
  ],
  "spm": ["num_steps=2", "num_inference_steps=2"],
  "resalign": [
    "num_steps=2", "num_inference_steps=2", "num_images=24", "batch_size=2",
    "lanes=('sgd/1e-2/2/0',)", "concept_batch=1", "curvature_batch=1",
    "terms=2",
  ],
  "meta_unlearning": [
    "wrapped=rece", "num_steps=2",
    "num_inference_steps=2", "num_images=24", "batch_size=2",
    "lanes=('sgd/1e-2/1/0',)",
  ],
  "mace": ["num_steps=2", "num_images=2", "num_inference_steps=2"],
}  # fmt: skip

# Those that change no weight.
GUIDED = ("sld", "negative_prompt")

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def erase(scripts_in_turn):
  def run(config, workdir, *arguments, model=None):
    flags = [f"--config={config}", f"--workdir={workdir}", *SMALL, *arguments]
    return scripts_in_turn("erase", *flags, model=model)

  return run


@pytest.mark.parametrize(
  "path",
  [
    pytest.param(
      path,
      marks=[] if path.stem == "erase_uce" else pytest.mark.slow,
    )
    for path in ERASE
  ],
  ids=lambda path: path.stem,
)
def test_erase_runs_every_config(path, erase, tmp_path):
  method = path.stem.removeprefix("erase_")
  short = [f"--config.hparams.{flag}" for flag in SHORT.get(method, ())]
  # What trains does so on the narrow network, or compiling takes a minute.
  model = narrow.folder() if short else None
  erase(f"{path}:tiny", tmp_path / "run", *short, model=model).finish()
  written = {file.name for file in (tmp_path / "run").iterdir()}
  assert written >= {
    "config.json", "provenance.json", "results.jsonl",
    "guidance.json" if method in GUIDED else "edit.safetensors",
    "summary.json", "report.html", "results.csv", "images", "DONE",
  }  # fmt: skip
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert len(summary["models"]) == 2
  rows = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
  assert len(rows) == 2 * (len(rows) // 2) > 0


@pytest.mark.parametrize("size", ["sd14", "sd21"])
@pytest.mark.parametrize("path", ERASE, ids=lambda path: path.stem)
def test_full_size_configs_say_what_to_load(path, size):
  namespace = {"__name__": path.stem}
  exec(compile(path.read_text(), path, "exec"), namespace)
  config = namespace["get_config"](size)
  assert "/" in config.model and config.concepts and config.prompts.erased


@pytest.mark.parametrize("path", ERASE, ids=lambda path: path.stem)
def test_every_class_of_the_shapes_world_has_a_config(path):
  namespace = {"__name__": path.stem}
  exec(compile(path.read_text(), path, "exec"), namespace)
  classes = [("object", name) for name in vocabulary.HEADS["object"]]
  classes += [("style", name) for name in vocabulary.HEADS["style"][1:]]
  classes += [("identity", person.name) for person in vocabulary.IDENTITIES]
  for task, name in [*classes, ("unsafe", "hazard")]:
    config = namespace["get_config"](f"tiny,task={task},name={name}")
    listed = [concepts.Concept(**concept) for concept in config.concepts]
    concepts.check_concepts(listed)
    assert config.targets[0]["name"] == name
    words = {word for concept in listed for word in concept.preserve}
    assert not any(name in word for word in words)
    # Guidance holds nothing: it moves no weight that others share. Nor does
    # FMN, in the paper. AdvUnlearn holds sentences, each with a trajectory.
    fewest = {**dict.fromkeys((*GUIDED, "fmn"), 0), "advunlearn": 25}
    assert len(words) >= fewest.get(config.method, 41)


@pytest.fixture(scope="module")
def made(erase, tmp_path_factory):
  """The folder of an erasure that ended."""
  folder = tmp_path_factory.mktemp("made") / "uce"
  erase(f"{CONFIGS}/erase_uce.py:tiny", folder).finish()
  return folder


@pytest.mark.slow
def test_evaluate_compares_edits_and_resumes(made, tmp_path):
  flags = [
    f"--config={CONFIGS}/evaluate_shapes.py",
    f"--workdir={tmp_path}/evaluation",
    # Twice: two edits of one method are told apart, in images' names too.
    f"--edits={made},{made}",
    *SMALL,
  ]
  scripts.run("evaluate", *flags).finish()
  path = tmp_path / "evaluation" / "results.jsonl"
  rows = path.read_bytes()
  # Torn in the middle of the last line, as a kill would leave it.
  path.write_bytes(rows[:-20])
  (tmp_path / "evaluation" / "DONE").unlink()
  scripts.run("evaluate", *flags).finish()
  assert path.read_bytes() == rows
  assert b"UCE2023-2/" in rows


@pytest.mark.parametrize(
  "override, words",
  [
    ("--config.method=ucee", ["ucee", "uce", "did you mean"]),
    ("--config.hparams.lamda=1", ["lamda"]),
    ("--config.sampling.sampler=ddimm", ["ddimm", "ddim"]),
    ("--config.model=/no/such/folder", ["/no/such/folder"]),
    ("--config.batch_size=0", ["batch_size=0"]),
  ],
)
def test_a_wrong_config_writes_nothing(override, words, erase, tmp_path):
  result = erase(f"{CONFIGS}/erase_uce.py:tiny", tmp_path / "run", override)
  assert result.returncode == 1 and "Traceback" not in result.stderr
  error = result.stderr[result.stderr.index("error: ") :]
  for word in words:
    assert word in error, result.stderr[-1500:]
  assert not (tmp_path / "run" / "edit.safetensors").exists()
  assert not (tmp_path / "run" / "results.jsonl").exists()


@pytest.mark.slow
def test_a_resume_with_another_config_is_refused(erase, made):
  result = erase(f"{CONFIGS}/erase_uce.py:tiny", made, "--config.seed=1")
  assert result.returncode != 0 and "seed" in result.stderr


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.stem)
def test_training_configs_name_their_stage(path):
  namespace = {"__name__": path.stem}
  exec(compile(path.read_text(), path, "exec"), namespace)
  config = namespace["get_config"]()
  assert config.stage == path.stem.removeprefix("train_shapes_")
