"""Erase: what is made, kept and drawn, also by a module of one's own."""

import dataclasses

import numpy as np
import pytest
from unlearning_jax.configs import resurgence

from unlearning_jax import model as models
from unlearning_jax import settings as settings_
from unlearning_jax.experiments import common, erase
from unlearning_jax.experiments.resurgence import Settings as Study
from unlearning_jax.experiments.resurgence import study
from unlearning_jax.guidance import Guidance
from unlearning_jax.record import Memory
from unlearning_jax.sampling import Sampling

TOY = "tests.support.toy_erasure"
STAR = {"erase": "star", "anchor": "circle", "preserve": ("moon",)}
STAR |= {"task": "object"}
BLOCK = {
  "methods": ("toy",),
  "concepts": ("star",),
  "sets": ("near",),
  "algorithms": ("full",),
  "defenses": ("none",),
  "seeds": (0,),
}


@pytest.fixture(scope="module")
def base():
  return models.load("shapes")


def settings(**changes):
  small = erase.Settings(
    method=TOY, concepts=(STAR,), judge="shapes", rows_per_group=1,
    other_rows=1,
    targets=({"task": "object", "name": "star"},), grid_rows=1, batch_size=8,
    sampling=Sampling(2, 4.0, "dpm++2m", "jax"),
  )  # fmt: skip
  return dataclasses.replace(small, **changes)


def test_a_trained_erasure_of_ones_own(base, monkeypatch):
  record = Memory(quiet=True)
  erased, document = erase.run(settings(), lambda: record, base)
  assert document["models"] == ["base", "TOY"] and record.is_done
  assert list(erased.edit.leaves) == ["unet/conv_out/bias"]
  assert len(record.rows()) == 2 * len({r["prompt"] for r in record.rows()})
  # Read back, and no row is drawn again.
  monkeypatch.setattr(erase.erasures.Erasure, "__call__", lambda *_: 1 / 0)
  again, same = erase.run(settings(), lambda: record, base)
  assert same == document
  for path, leaf in erased.edit.leaves.items():
    np.testing.assert_array_equal(again.edit.leaves[path], leaf)


def test_it_is_an_erasure_of_a_study_too(base):
  counts = {"explicit": 1, "words": 1, "others": 1, "tuned": 1}
  uce = BLOCK | {"methods": ("uce",)}
  values = resurgence.study([uce], (1, 2), counts).to_dict()
  values["blocks"] = (BLOCK,)
  values["erasures"] = {"toy/star": values["erasures"]["uce/star"]}
  values["erasures"]["toy/star"] |= {"method": TOY, "hparams": {}}
  given = settings_.build(Study, values)
  opened = study.Study(
    given, Memory(quiet=True), base, common.load_judge(given)
  )
  (cell,) = given.cells
  made = opened.edit_of(cell)
  assert list(made.leaves) == ["unet/conv_out/bias"]
  again = opened.edit_of(cell)
  assert again is not made and again.concepts == made.concepts


@pytest.mark.parametrize("judge", ["shapes", None])
def test_an_edit_alone(judge, base, monkeypatch):
  """Nothing is drawn, also where neither judge nor prompts are known."""
  monkeypatch.setattr(erase.evaluate.drawing, "every", lambda *_: 1 / 0)
  given = settings(judge=judge, edit_only=True, targets=())
  record = Memory(quiet=True)
  erased, document = erase.run(given, lambda: record, base)
  assert erased.edit is not None and document == {}
  assert record.is_done and record.rows() == []


@pytest.mark.parametrize("method", ["sld", "negative_prompt"])
def test_guidance_is_kept_and_drawn(method, base):
  given, record = settings(method=method), Memory(quiet=True)
  guided, document = erase.run(given, lambda: record, base)
  assert document["models"] == ["base", method.upper()]
  assert guided.edit is None and guided.guidance.concepts[0].erase == "star"
  found = common.read_made(record.path)
  assert isinstance(found, Guidance) and found == guided.guidance
  assert base.with_made(found).guidance == guided.guidance
  (name,) = common.read_edits([str(record.path)])
  assert name == method.upper()


def never():
  raise AssertionError("a record is opened: too late for an error")


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"method": "ucee"}, "method='ucee'.*did you mean 'uce'"),
    ({"method": "uce", "hparams": {"lamd": 1}}, "hparams.lamd.*mean lamb"),
    ({"concepts": ()}, "no concept"),
    ({"preserve": "artits"}, "did you mean 'artists"),
    ({"concepts": ({**STAR, "anchr": "x"},)}, "'anchr'.*mean 'anchor'"),
    ({"concepts": ({**STAR, "erase": "star " * 80},)}, "tokens"),
    (
      {"method": "sld", "sampling": Sampling(2, 1.0, None, "jax")},
      "guidance_scale=1.0: SLD acts by guidance",
    ),
    ({"method": "sld", "hparams": {"preset": "strng"}}, "mean 'strong'"),
  ],
)
def test_what_is_refused_before_a_record_is_opened(changes, message, base):
  with pytest.raises(ValueError, match=message):
    erase.run(settings(**changes), never, base)


def test_an_erased_model_is_not_erased_again(base):
  guided = base.with_guidance(Guidance("star", method="negative_prompt"))
  with pytest.raises(
    ValueError, match="NEGATIVE_PROMPT was erased from before"
  ):
    erase.run(settings(), never, guided)


def test_a_damaged_guidance_file(tmp_path):
  file = tmp_path / common.GUIDANCE
  for text, message in (
    ("{", "not a guidance file"),
    ('{"format": "x"}', "format: allowed is"),
    (
      '{"format": "unlearning_jax guidance 1", "concepts": [], "safe": null,'
      ' "negative_prompt": " "}',
      "guides nothing",
    ),
  ):
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
      common.read_made(tmp_path)
