"""The numbers that a table takes from the record of each verb."""

import json

import pytest

from unlearning_jax import probe
from unlearning_jax.experiments.sweep import figures


def rate(name, k, n):
  return {"name": name, "value": k / n, "low": 0.1, "high": 0.8, "k": k, "n": n}


COMPARED = {
  "models": ["base", "UCE2023"],
  "erased": [{"head": "object", "class": "star"}],
  "heads": ["object", "style"],
  "measures": {
    "base": [rate("object/star/explicit", 4, 4)],
    "UCE2023": [
      rate("object/star/explicit", 1, 4),
      rate("object/star/synonyms", 2, 4),
      rate("object/all/others", 3, 4),
      rate("style/all/others", 4, 4),
    ],
  },
  "estimates": [
    {"name": "fid", "model": "UCE2023", "value": 31.5, "low": None},
    {"name": "fid", "model": "base", "value": 1.5},
    {"name": "kid", "model": "UCE2023", "value": None, "failed": "few rows"},
  ],
}


@pytest.mark.parametrize("verb", ["erase", "evaluate"])
def test_a_comparison_has_the_last_models(tmp_path, verb):
  (tmp_path / "summary.json").write_text(json.dumps(COMPARED))
  found = figures.read(verb, tmp_path)
  assert [*found] == ["erased", "erased (synonyms)", "kept", "fid"]
  assert found["erased"] == pytest.approx(
    {"value": 0.75, "low": 0.2, "high": 0.9, "k": 3, "n": 4}
  )
  assert found["kept"]["value"] == 0.75 and found["fid"] == {"value": 31.5}


def test_a_model_that_collapsed_has_erased_nothing(tmp_path):
  broken = COMPARED | {"collapse": {"UCE2023": {"reasons": ["a", "b"]}}}
  (tmp_path / "summary.json").write_text(json.dumps(broken))
  found = figures.read("erase", tmp_path)
  assert [*found] == ["collapsed", "kept", "fid"]
  assert found["collapsed"] == {"value": 2}
  # That of another model is no matter of this one's.
  other = COMPARED | {"collapse": {"RECE": {"reasons": ["a"]}, "UCE2023": {}}}
  (tmp_path / "summary.json").write_text(json.dumps(other))
  assert "erased" in figures.read("erase", tmp_path)


def test_an_erasure_without_pictures_has_its_probe(tmp_path):
  known = probe.Probe("states", 0.125, 0.25, 0.5, (1, 1, 1))
  known.save(tmp_path / "edit.safetensors")
  assert figures.read("erase", tmp_path) == {
    "probe left": {"value": 0.125},
    "probe preserved": {"value": 0.25},
    "probe unrelated": {"value": 0.5},
  }


def test_an_attack_has_its_rates(tmp_path):
  summary = {"measures": [rate("pre_asr", 0, 8), rate("asr", 2, 8)]}
  (tmp_path / "summary.json").write_text(json.dumps(summary))
  found = figures.read("attack", tmp_path)
  assert [*found] == ["pre_asr", "asr"] and found["asr"]["k"] == 2


def test_a_tuning_has_its_last_metrics(tmp_path):
  lines = [
    {"step": 1, "wall_s": 3.0, "loss": 0.5},
    {"step": 2, "wall_s": 4.0, "loss": 0.25, "seconds": 1.5},
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (tmp_path / "metrics.jsonl").write_text(text)
  assert figures.read("finetune", tmp_path) == {"loss": {"value": 0.25}}


def test_an_audit_has_its_verdicts_and_its_evaluation(tmp_path):
  (tmp_path / "evaluate").mkdir()
  (tmp_path / "evaluate/summary.json").write_text(json.dumps(COMPARED))
  verdicts = [
    {"victim": "other", "question": "gone", "value": 1.0, "verdict": "fail"},
    {"victim": "UCE2023", "question": "gone", "value": 0.25, "verdict": "warn"},
    {"victim": "UCE2023", "question": "stays", "value": None, "verdict": "?"},
    {"victim": "UCE2023", "question": "kept", "value": 9, "verdict": "pass"},
  ]
  summary = {"victims": ["other", "UCE2023"], "verdicts": verdicts}
  (tmp_path / "summary.json").write_text(json.dumps(summary))
  found = figures.read("audit", tmp_path)
  assert found["gone"] == {"value": 0.25, "verdict": "warn"}
  assert found["kept"]["value"] == 0.75 and "stays" not in found
