"""Sums of long lists, streamed and sharded, against one phrase at a time."""

import jax
import numpy as np
import pytest

from tests.support import closed_form_cases as cases
from tests.support import scripts
from tests.support.closed_form_cases import relative
from unlearning_jax import closed_form, shapes, sharding, stable_diffusion
from unlearning_jax.closed_form import mass
from unlearning_jax.concepts import Concept, make_concepts
from unlearning_jax.edits import Edit, Fingerprint, load_edit, save_edit
from unlearning_jax.erasures import mace, uce

WORDS = [
  f"{a}{b}{c}" for a in "abcde" for b in "fgh" for c in ("", " xy", " z")
]
ANCHORS = ["q", "q r s", ""]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return cases.tiny(tmp_path_factory.mktemp("tiny"))


def mesh(devices):
  return sharding.make_mesh(devices=jax.devices()[:devices])


def pairs(count=45):
  return [(w, ANCHORS[i % 3]) for i, w in enumerate(WORDS[:count])]


def encoded(model, phrases, size):
  """Text states, `size` phrases at a time: float32 depends on it a little."""
  ids = stable_diffusion.tokenize(model[0], phrases)
  lasts = [len(model[0].tokenizer(p)["input_ids"]) - 2 for p in phrases]
  for start in range(0, len(ids), size):
    rows = np.minimum(np.arange(start, start + size), len(ids) - 1)
    states = stable_diffusion.encode_text(*model, ids[rows])
    for row, state in zip(rows[: len(ids) - start], states, strict=False):
      yield uce.TextState(np.asarray(state), lasts[row])


@pytest.mark.parametrize("preset", uce.PRESETS)
def test_equals_the_sums_of_uce(model, preset):
  tail = uce.PRESETS[preset].tail
  got = mass.erased_sums(*model, mesh(8), pairs(), tail=tail)
  got += mass.held_sums(*model, mesh(8), ["moon", "a b"], tail=tail)
  expected = closed_form.Sums.zero(cases.WIDTH)
  anchors = dict(zip(ANCHORS, encoded(model, ANCHORS, 1), strict=True))
  erased = encoded(model, [w for w, _ in pairs()], mass.PER_DEVICE)
  for state, (_, anchor) in zip(erased, pairs(), strict=True):
    rows = uce.paired_rows(state, anchors[anchor], preset)
    expected += closed_form.erase_sums(*rows, 1.0)
  for state in encoded(model, ["moon", "a b"], mass.PER_DEVICE):
    rows = state.rows if tail else state.rows[state.last : state.last + 1]
    expected += closed_form.preserve_sums(rows, 1.0)
  assert relative(got.gram, expected.gram) < 1e-13
  assert relative(got.cross, expected.cross) < 1e-13
  assert (got.erased, got.preserved) == (expected.erased, expected.preserved)


@pytest.mark.parametrize("count", [1, 17, 45])
def test_eight_devices_give_the_edit_of_one(model, count):
  maps = []
  for devices in (1, 8):
    sums = mass.erased_sums(*model, mesh(devices), pairs(count))
    sums += mass.held_sums(*model, mesh(devices), WORDS[-20:])
    maps.append(closed_form.solve(sums, 0.5)[0])
  assert relative(maps[1], maps[0]) < 1e-12


@pytest.mark.parametrize("preset", uce.PRESETS)
def test_is_the_edit_of_uce(model, preset):
  concepts = make_concepts(WORDS[:20], "q", ["moon"])
  tail = uce.PRESETS[preset].tail
  got = mass.erase(
    *model, mesh(8), concepts, mass.Weights(tail=tail, preserve_scale=0.5)
  )
  expected = uce.erase(
    *model, concepts, None, uce.Hparams(preset=preset, preserve_scale=0.5)
  )
  # float32 states of other batches.
  assert relative(got.context_map, expected.context_map) < 1e-3
  assert (got.method, got.base) == (expected.method, expected.base)
  for name in ("erased_rows", "preserved_rows"):
    assert got.diagnostics[name] == expected.diagnostics[name]


def test_nothing_grows_with_the_list(model):
  told, compiled = [], []
  before = mass._encode._cache_size()
  mass.erased_sums(*model, mesh(2), pairs(40), report=told.append)
  compiled.append(mass._encode._cache_size())
  mass.erased_sums(*model, mesh(2), pairs(7), report=told.append)
  compiled.append(mass._encode._cache_size())
  assert told == [32, 40, 7]
  assert compiled[0] == compiled[1] <= before + 1


def test_a_list_is_summed_once(model, tmp_path, monkeypatch):
  sd, params = model
  first = mass.held_sums(sd, params, mesh(2), WORDS, cache=tmp_path)
  (file,) = tmp_path.iterdir()
  monkeypatch.setattr(mass, "_stream", lambda *_: 1 / 0)
  again = mass.held_sums(sd, params, mesh(8), WORDS, cache=tmp_path)
  assert np.array_equal(first.gram, again.gram)
  assert again.preserved == first.preserved == len(WORDS) * cases.LENGTH
  other = jax.tree.map(lambda x: x + 1, params)
  for call in (
    lambda: mass.held_sums(sd, params, mesh(2), WORDS[1:], cache=tmp_path),
    lambda: mass.held_sums(
      sd, params, mesh(2), WORDS, tail=False, cache=tmp_path
    ),
    lambda: mass.held_sums(sd, other, mesh(2), WORDS, cache=tmp_path),
  ):
    with pytest.raises(ZeroDivisionError):
      call()
  # Another process does not see the file.
  with monkeypatch.context() as patch:
    patch.setattr(sharding, "on_all_processes", lambda here: False)
    with pytest.raises(ZeroDivisionError):
      mass.held_sums(sd, params, mesh(2), WORDS, cache=tmp_path)
  file.write_bytes(file.read_bytes()[:-9])
  with pytest.raises(ValueError, match="damaged, delete it"):
    mass.held_sums(sd, params, mesh(2), WORDS, cache=tmp_path)


def test_captions_hold_what_many_erasures_would_overwrite():
  """The collapse of joint erasure, and that a caption Gram counters it."""
  sd, params = stable_diffusion.load(shapes.model_folder())
  colours = "red", "blue", "green", "yellow", "purple", "orange"
  objects = "star", "heart", "house", "moon", "fish", "tree"
  carriers = "a {} {}", "the {} {}", "a drawing of a {} {}"
  erased = [
    carrier.format(c, o)
    for c in colours
    for o in objects[:4]
    for carrier in carriers
  ]
  captions = [f"a picture of a {c} {o}" for c in colours for o in objects[4:]]
  unseen = [f"a small {c} {o}" for c in colours for o in objects[4:]]
  (anchor,) = uce.encode(sd, params, ["circle"])
  gone = list(uce.encode(sd, params, erased))
  pairs = [uce.paired_rows(state, anchor) for state in gone]
  rows = np.concatenate([s.rows for s in uce.encode(sd, params, unseen)])
  moved, left = [], []
  for scale in (0.0, 1.0, 10.0):
    edit = mass.erase(
      sd,
      params,
      sharding.make_mesh(),
      make_concepts(erased, "circle"),
      mass.Weights(caption_scale=scale),
      captions,
    )
    moved.append(relative(rows @ edit.context_map.T, rows))
    left.append(closed_form.residual(edit.context_map, pairs))
  # Bystanders that no caption names are spared, though not the more the higher
  # the weight; it costs some of the erasure, not all.
  assert moved[0] > 1.5 * max(moved[1:])
  assert left[0] < left[1] < left[2] < 0.3


def test_a_list_is_written_once(model, tmp_path):
  """Thousands of concepts may hold a list of thousands."""
  held = [f"held phrase {i}" for i in range(300)]
  concepts = make_concepts([f"concept {i}" for i in range(300)], "x", held)
  concepts += (Concept("alone", "", ("other",)), Concept("bare"))
  edit = Edit(np.eye(3), Fingerprint("text", "b"), "m", concepts, {})
  path = tmp_path / "edit.safetensors"
  save_edit(edit, path)
  assert path.stat().st_size < 50_000
  assert load_edit(path).concepts == concepts


def test_mace_sums_captions_once(model, tmp_path, monkeypatch):
  options = {"domain_weight": 3.0, "cache": str(tmp_path)}
  call = (*model, ["a b", "c d"], ["moon"])
  first = mace.preserved_gram(*call, **options)
  held = (
    sum(s.rows.T.astype(float) @ s.rows for s in encoded(model, phrases, 16))
    for phrases in (["a b", "c d"], ["moon"])
  )
  assert relative(first, next(held) + 3.0 * next(held)) < 1e-6
  monkeypatch.setattr(mass, "_stream", lambda *_: 1 / 0)
  assert np.array_equal(mace.preserved_gram(*call, **options), first)


def test_what_cannot_be_summed(model):
  with pytest.raises(ValueError, match="no concept"):
    mass.erased_sums(*model, mesh(1), [])
  with pytest.raises(ValueError, match="' ' has no tokens"):
    mass.erased_sums(*model, mesh(1), [("a", ""), (" ", "")])
  with pytest.raises(ValueError, match="tokens, start and end"):
    mass.held_sums(*model, mesh(1), ["a " * 60])
  broken = jax.tree.map(lambda x: x * np.nan, model[1])
  with pytest.raises(ValueError, match="NaN or infinity"):
    mass.held_sums(model[0], broken, mesh(1), ["a"])
  assert mass.held_sums(*model, mesh(1), []).preserved == 0


@pytest.mark.parametrize("which", ["erased", "anchor", "captions"])
def test_a_long_phrase_is_refused_before_any_is_encoded(
  model, monkeypatch, which
):
  monkeypatch.setattr(mass, "_stream", lambda *_: 1 / 0)
  long = {which: "a " * 60}
  concept = Concept(long.get("erased", "b"), long.get("anchor", "q"), ("c",))
  with pytest.raises(ValueError, match="tokens, start and end included"):
    mass.erase(
      *model, mesh(1), [concept], mass.Weights(), [long.get("captions", "d")]
    )


@pytest.mark.e2e
@pytest.mark.slow
def test_the_launch_script(tmp_path):
  (tmp_path / "erase.txt").write_text("star\nheart\n")
  (tmp_path / "keep.txt").write_text("a house\n")
  out = tmp_path / "edit.safetensors"
  scripts.run(
    "erase_list", "--model=shapes", "--anchor=circle", f"--output={out}",
    f"--erase={tmp_path / 'erase.txt'}", f"--cache={tmp_path / 'cache'}",
    f"--captions={tmp_path / 'keep.txt'}",
  ).finish()  # fmt: skip
  edit = load_edit(out)
  assert [c.erase for c in edit.concepts] == ["star", "heart"]
  assert edit.diagnostics["captions"] == 1
  # The empty prompt's sums, and the captions'.
  assert len(list((tmp_path / "cache").iterdir())) == 2
