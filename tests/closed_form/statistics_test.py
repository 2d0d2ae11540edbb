"""Concepts that come and go by the statistics kept beside an edit."""

import dataclasses
import json

import numpy as np
import pytest

from tests.support import closed_form_cases as cases
from tests.support import scripts
from tests.support.closed_form_cases import relative
from unlearning_jax import closed_form, durable, shapes, stable_diffusion
from unlearning_jax import exports as export
from unlearning_jax.closed_form import statistics
from unlearning_jax.concepts import Concept, make_concepts
from unlearning_jax.edits import apply_to_params, load_edit, save_edit
from unlearning_jax.erasures import uce

D = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return cases.tiny(tmp_path_factory.mktemp("tiny"))


def rows(seed, count=5):
  rng = np.random.default_rng(seed)
  return np.float32(rng.normal(size=(count, D)) + 2)


def made(names, held="q", **scales):
  return statistics.Statistics(
    base="b",
    method="uce2023",
    erased=tuple(
      statistics.Erased(
        Concept(name, "anchor", tuple(held)),
        rows(ord(name[0])),
        rows(ord(name[0]) + 99),
        scales.get(name, 1.0),
      )
      for name in names
    ),
    held=sum(
      (closed_form.preserve_sums(rows(ord(h)), 1.0) for h in held),
      closed_form.Sums.zero(D),
    ),
    held_phrases=tuple(held),
    preserve_scale=0.3,
    lamb=0.5,
  )


def solved(s):
  return statistics.solution(s)[0]


def test_adding_is_erasing_all_at_once():
  joint = solved(made("abc"))
  first, last = made("ab"), made("c", held="")
  assert np.array_equal(solved(statistics.add(first, last)), joint)
  # In another order the sums round otherwise.
  turned = solved(statistics.add(last, first))
  assert relative(turned, joint) < 1e-12
  stacked = solved(first) @ solved(dataclasses.replace(last, held=first.held))
  assert relative(stacked, joint) > 1e-2


def test_removing_is_never_having_erased():
  joint = made("abc")
  assert np.array_equal(
    solved(statistics.remove(joint, "B")), solved(made("ac"))
  )
  again = statistics.remove(statistics.add(made("ab"), made("c", "")), "c")
  assert np.array_equal(solved(again), solved(made("ab")))
  only = statistics.remove(joint, "a", "c")
  assert [c.erase for c in only.concepts] == ["b"]


def test_a_weight_is_e():
  half = statistics.reweight(made("abc"), "b", 0.5)
  assert np.array_equal(solved(half), solved(made("abc", b=0.5)))
  none = statistics.reweight(made("abc"), "b", 0.0)
  assert relative(solved(none), solved(made("ac"))) < 1e-12


def test_a_new_preserved_phrase_is_held():
  more = made("c", held="r")
  both = statistics.add(made("ab", held="q"), more)
  assert both.held_phrases == ("q", "r")
  expected = made("abc", held="qr")
  assert relative(solved(both), solved(expected)) < 1e-12


def test_what_contradicts_is_refused():
  s = made("ab")
  for call, message in (
    (lambda: statistics.add(s, made("b", "")), "'b' is given twice"),
    (lambda: statistics.add(s, made("q", "")), "both erased and preserved"),
    (lambda: statistics.add(s, made("c", "b")), "both erased and preserved"),
    (lambda: statistics.add(s, made("c", "q")), "'q' is preserved already"),
    (
      lambda: statistics.add(s, dataclasses.replace(made("c", ""), base="x")),
      "base b cannot take in those of x",
    ),
    (
      lambda: statistics.add(
        s, dataclasses.replace(made("c", ""), method="uce2025")
      ),
      "method uce2023 cannot take in those of uce2025",
    ),
    (lambda: statistics.remove(s, "z"), "concept='z'.*allowed: a, b"),
    (lambda: statistics.remove(s, "a", "b"), "no concept would stay erased"),
    (lambda: statistics.reweight(s, "a", -1.0), "weight=-1"),
    (lambda: statistics.reweight(s, "a", np.nan), "weight=nan"),
  ):
    with pytest.raises(ValueError, match=message):
      call()


def test_file_round_trip(tmp_path):
  path = tmp_path / "statistics.safetensors"
  s = made("ab", b=0.25)
  s.save(path)
  back = statistics.load_statistics(path)
  assert np.array_equal(solved(back), solved(s))
  assert back.concepts == s.concepts and back.held_phrases == ("q",)
  assert [one.weight for one in back.erased] == [1.0, 0.25]
  assert statistics.solution(back)[1] == statistics.solution(s)[1]


def test_an_edit_without_its_statistics_cannot_be_extended(tmp_path, model):
  with pytest.raises(ValueError, match="no such statistics.*not the joint"):
    statistics.load_statistics(tmp_path / "none.safetensors")
  edit = uce.erase(*model, make_concepts("dog"), None, uce.Hparams())
  save_edit(edit, tmp_path / "edit.safetensors")
  with pytest.raises(ValueError, match="format='unlearning_jax edit.*beside"):
    statistics.load_statistics(tmp_path / "edit.safetensors")


@pytest.mark.parametrize("spoil", ["shape", "nan", "missing", "text"])
def test_spoiled_files_are_refused(tmp_path, spoil, monkeypatch):
  path = tmp_path / "statistics.safetensors"
  good = made("a")
  first = good.erased[0]
  source = {
    "shape": first.source[:3],
    "nan": np.full_like(first.source, np.nan),
  }.get(spoil, first.source)
  one = dataclasses.replace(first, source=source)
  dataclasses.replace(good, erased=(one,)).save(path)
  if spoil == "missing":
    raw = path.read_bytes().replace(b'"0.source"', b'"0.surcoe"')
    path.write_bytes(raw)
  if spoil == "text":
    path.write_text("x")
  message = {
    "shape": "0.target has shape|0.source has shape",
    "nan": ".0.source. holds NaN",
    "missing": "missing tensors .'0.source'",
    "text": "not a safetensors file",
  }[spoil]
  with pytest.raises(ValueError, match=message):
    statistics.load_statistics(path)


@pytest.mark.parametrize(
  "hparams",
  [
    {},
    {"preset": "uce2025", "preserve_scale": 0.7, "lamb": 0.2},
    {"expand_prompts": True, "erase_scale": 2.0},
  ],
)
def test_gathered_statistics_are_the_edit(model, hparams):
  concepts = make_concepts(["dog", "cat"], "owl", ["moon"])
  stats = uce.gather(*model, concepts, uce.Hparams(**hparams))
  edit = uce.erase(*model, concepts, None, uce.Hparams(**hparams))
  again = statistics.edit_of(stats, model[1])
  assert np.array_equal(again.context_map, edit.context_map)
  assert (again.method, again.base) == (edit.method, edit.base)
  assert again.concepts == edit.concepts
  assert set(again.diagnostics) == set(edit.diagnostics)


def test_extends_from_the_base_only(model):
  sd, params = model
  two = make_concepts(["dog", "cat"], "owl", ["moon"])
  stats = uce.gather(sd, params, two[:1], uce.Hparams())
  more = uce.extend(sd, params, stats, two[1:])
  assert more.concepts == two and more.held_phrases == stats.held_phrases
  # Phrases encoded in batches of another size differ in float32's last bit.
  assert (
    relative(solved(more), solved(uce.gather(sd, params, two, uce.Hparams())))
    < 1e-3
  )
  edited = apply_to_params(statistics.edit_of(stats, params), params)
  for call in (
    lambda: uce.extend(sd, edited, stats, two[1:]),
    lambda: statistics.edit_of(stats, edited),
  ):
    with pytest.raises(ValueError, match="T1 T2 is not the joint edit"):
      call()


@pytest.mark.parametrize(
  "hparams",
  [
    {},
    {"preset": "uce2025", "preserve_scale": 0.7},
    {"expand_prompts": True, "erase_scale": 2.0, "lamb": 0.2},
  ],
)
def test_extending_is_erasing_from_scratch(
  model, hparams, tmp_path, monkeypatch
):
  """By the run's own settings, which its file keeps."""
  # Each phrase by itself: no state depends on its company.
  monkeypatch.setattr(uce.text, "_BATCH", 1)
  three = make_concepts(["dog", "cat", "bee"], "owl", ["moon"])
  file = tmp_path / "statistics.safetensors"
  uce.gather(*model, three[:1], uce.Hparams(**hparams)).save(file)
  known = statistics.load_statistics(file)
  more = uce.extend(*model, known, three[1:])
  joint = uce.gather(*model, three, uce.Hparams(**hparams))
  assert np.array_equal(solved(more), solved(joint))
  one, other = (statistics.solution(s)[1] for s in (more, joint))
  assert one == other and more.concepts == joint.concepts


def test_an_earlier_file_extends_by_the_defaults(model, tmp_path):
  file = tmp_path / "statistics.safetensors"
  uce.gather(*model, make_concepts("dog"), uce.Hparams(erase_scale=2.0)).save(
    file
  )
  tensors, metadata = durable.load_tensors(file)
  facts = json.loads(metadata["statistics"])
  assert facts.pop("erase_scale") == 2.0 and not facts.pop("expand_prompts")
  durable.save_tensors(
    file, tensors, metadata | {"statistics": json.dumps(facts)}
  )
  more = uce.extend(
    *model, statistics.load_statistics(file), make_concepts("cat")
  )
  assert [one.weight for one in more.erased] == [2.0, 1.0]


def test_what_is_preserved_cannot_be_erased_in_addition(model, monkeypatch):
  stats = uce.gather(
    *model, make_concepts("dog", "owl", ["Moon", "cat"]), uce.Hparams()
  )
  # Before anything is encoded.
  monkeypatch.setattr(uce.text, "encode", lambda *_: 1 / 0)
  with pytest.raises(
    ValueError, match="'moon' would be both erased and preserved.*the base"
  ):
    uce.extend(*model, stats, make_concepts(["bee", "moon"], "owl"))


def test_an_edited_model_says_so(tmp_path):
  sd, params = stable_diffusion.load(shapes.model_folder())
  edit = uce.erase(
    sd, params, make_concepts("star", "circle"), None, uce.Hparams()
  )
  statistics.check_unedited(shapes.model_folder())
  export.export(tmp_path / "model", "folder", sd, edit, params)
  export.export(tmp_path / "d.safetensors", "delta", sd, edit, params)
  for path in (tmp_path / "model", tmp_path / "d.safetensors"):
    with pytest.raises(ValueError, match=r"uce2023 \(erased star\).*joint"):
      statistics.check_unedited(path)


@pytest.mark.slow
@pytest.mark.e2e
def test_the_launch_script(tmp_path):
  def run(*flags):
    return scripts.run("amend", "--model=shapes", *flags)

  def concepts(folder):
    edit = load_edit(tmp_path / folder / "edit.safetensors")
    return [(c.erase, c.anchor) for c in edit.concepts]

  first = run("--add=star -> circle", f"--output={tmp_path / 'a'}")
  assert first.returncode == 0, first.stderr
  assert concepts("a") == [("star", "circle")]
  second = run(
    f"--statistics={tmp_path / 'a'}", "--add=heart -> moon", "--remove=star",
    "--weight=heart = 0.5", f"--output={tmp_path / 'b'}",
  )  # fmt: skip
  assert second.returncode == 0, second.stderr
  assert concepts("b") == [("heart", "moon")]
  for flags, message in (
    (["--weight=heart"], "must be 'concept = e'"),
    ([], "nothing to erase"),
    (["--statistics=nowhere"], "not the joint edit"),
  ):
    done = run(*flags, f"--output={tmp_path / 'c'}")
    assert done.returncode != 0 and message in done.stderr
