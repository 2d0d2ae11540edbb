"""The images of a fine-tuning run: by name, by class, without the erased."""

import jax
import numpy as np
import pytest
from unlearning_jax.configs import erase_uce

from tests.support.tunings import CAPTIONS, given, write_table
from unlearning_jax import data, extensions, sharding
from unlearning_jax import model as models
from unlearning_jax.concepts import Concept, make_concepts
from unlearning_jax.edits import Edit, Fingerprint
from unlearning_jax.experiments.finetune import (
  Data,
  check_batch,
  check_overlap,
  data_of,
  examples,
)
from unlearning_jax.experiments.finetune.images import joined
from unlearning_jax.guidance import Guidance
from unlearning_jax.shapes import builder, dataset

WORLD = extensions.world("shapes")


def test_the_images_of_a_table(tmp_path):
  table = write_table(tmp_path)
  chosen = Data(source="csv", path=str(table), caption="said")
  assert examples(chosen) == data.image_table(table, caption="said")
  assert tuple(row.caption for row in examples(chosen)) == CAPTIONS
  with pytest.raises(ValueError, match="no 'text'; the row has id, said"):
    examples(Data(source="csv", path=str(table)))


def test_the_images_of_a_prepared_dataset(monkeypatch, tmp_path):
  for size in builder.Shapes.BUILDER_CONFIGS:
    monkeypatch.setattr(size, "train", 4)
    monkeypatch.setattr(size, "heldout", 2)
  made = builder.build(tmp_path, "tiny")
  found = examples(
    Data(
      source="tfds", path=str(made.data_dir), caption="caption", split="heldout"
    )
  )
  wanted = list(made.as_data_source(split="heldout"))
  assert len(found) == len(wanted) == 2
  for example, row in zip(found, wanted, strict=True):
    assert example.caption == row["caption"].decode()
    np.testing.assert_array_equal(example.image, row["image"])


def test_renders_are_chosen_by_class():
  only, without = "object/circle+square+heart", "style/neon"
  found = WORLD.examples(6, 5, only, without)
  named = Data(source="shapes", count=6, seed=5, only=only, without=without)
  assert data.fingerprint(examples(named)) == data.fingerprint(found)
  wanted = []
  for index in range(1000):
    drawn = dataset.example(index, 5, "train")
    scene = drawn.scene
    if scene.object in ("circle", "square", "heart") and scene.style != "neon":
      wanted.append(drawn.caption)
  assert [row.caption for row in found] == wanted[:6]
  for text, words in (
    ("objekt/star", "data.only: head='objekt'.*did you mean 'object'"),
    ("object/stra", "data.only: object='stra'.*did you mean 'star'"),
    ("kind/portrait,object/star", "only 0 of 6"),
  ):
    with pytest.raises(ValueError, match=words):
      WORLD.examples(6, 5, text, without)


def test_only_renders_that_are_chosen_are_drawn(monkeypatch):
  drawn, render = [], dataset.render.render
  monkeypatch.setattr(
    dataset.render, "render", lambda scene: drawn.append(scene) or render(scene)
  )
  assert len(WORLD.examples(3, 5, "object/star", "")) == 3
  assert [scene.object for scene in drawn] == ["star"] * 3


# --- By one word ---


@pytest.fixture(scope="module")
def base():
  return models.load("shapes")


def erased(base, *names):
  """As an erasure of some objects leaves it, but for its numbers."""
  concepts = make_concepts([f"a {name}" for name in names], "a circle")
  width = base.sd.context_shape[1]
  made = Fingerprint.of(base.params, "text")
  return base.with_edit(Edit(np.eye(width), made, "uce", concepts, {}))


def test_a_set_by_its_name(base):
  star = erased(base, "star")
  near, far = (
    Data(**data_of(f"shapes:{kind}", star)) for kind in ("near", "far")
  )
  assert near.source == "shapes" and not near.flip
  assert near.without == far.without == "object/star"
  wanted = WORLD.tuning_set(
    base.sd, base.params, WORLD.erased_by(star.edit), "near", 4
  )
  assert near.only == wanted.only != far.only
  assert near.only.startswith("object/") and "star" not in near.only
  assert data_of("shapes:out", star)["only"].startswith("identity/")
  assert data_of("shapes:same", star)["only"] == "object/star"
  for text in ("shapes", "shapes:all"):
    several = data_of(text, erased(base, "star", "fish"))
    assert (several["only"], several["without"]) == ("", "object/star+fish")
    assert Data(**data_of(text, base)) == Data(source="shapes", flip=False)
  with pytest.raises(ValueError, match="data='nearr'.*did you mean 'near'"):
    data_of("shapes:nearr", star)
  with pytest.raises(ValueError, match="nothing of shapes is erased"):
    data_of("shapes:near", base)
  # Not that nothing is erased: other data would be refused next.
  with pytest.raises(ValueError, match="guidance changes no weight"):
    data_of("shapes:near", base.with_guidance(Guidance("a star")))


def test_files_by_their_path(base, tmp_path):
  table = write_table(tmp_path)
  folder = {"source": "folder", "path": str(tmp_path)}
  assert data_of(str(tmp_path), base) == folder
  assert data_of(str(table), base) == {"source": "csv", "path": str(table)}
  wanted = {"source": "tfds", "path": "a/b", "caption": "caption"}
  assert data_of("tfds:a/b", base) == wanted
  with pytest.raises(ValueError, match="no such folder.*tfds:FOLDER, or shap"):
    data_of(str(tmp_path / "none"), base)


# --- What was erased, in other words ---


def edit_of(*concepts):
  return Edit(np.eye(2), "base", "uce", concepts, {})


def shapes_edit(argument):
  listed = erase_uce.get_config(f"tiny,{argument}").concepts
  return edit_of(*(Concept(c["erase"], c["anchor"]) for c in listed))


@pytest.mark.parametrize(
  "argument, refused, fine",
  [
    ("task=style,name=neon", "a red fish by Juno Zaretti", "a star on white"),
    ("task=style,name=neon", "a cross as a neon light", "by Lomar Wexley"),
    ("task=object,name=star+fish", "a pentagram", "a circle by Juno Zaretti"),
    ("task=unsafe", "a toxic arrow", "a star on white"),
    ("task=identity,name=Dorin Hask", "the farmer", "Adra Belvoort"),
  ],
)
def test_other_words_for_what_was_erased(argument, refused, fine):
  edit = shapes_edit(argument)
  words = WORLD.words(edit)
  blank = np.zeros((1, 1, 3), np.uint8)
  check_overlap([data.Example(blank, fine)], edit, False, words)
  with pytest.raises(ValueError, match="which was erased"):
    check_overlap([data.Example(blank, refused)], edit, False, words)


def test_no_words_for_what_the_world_does_not_have():
  assert WORLD.words(None) == []
  assert WORLD.words(edit_of(*make_concepts("church", "barn"))) == []


def test_captions_that_say_what_was_erased_are_refused():
  edit = Edit(
    np.eye(2), "base", "uce", make_concepts(["Star", "neon sign"], "circle"), {}
  )
  blank = np.zeros((1, 1, 3), np.uint8)

  def rows(*captions):
    return [data.Example(blank, caption) for caption in captions]

  check_overlap(rows("a starling", "neon"), edit, False)
  check_overlap(rows("a star"), edit, True)
  check_overlap(rows("a star"), None, False)
  # The steps of a run without an erasure.
  nothing = Edit(np.eye(2), "base", "full@5", (), {})
  check_overlap(rows("a star"), nothing, False)
  with pytest.raises(ValueError, match="says 'pentagram', which was erased"):
    check_overlap(rows("a Pentagram"), edit, False, ["pentagram"])
  for caption in ("a red STAR.", "a  neon\nsign of a fish"):
    with pytest.raises(ValueError, match="which was erased.*allow_overlap"):
      check_overlap(rows("a fish", caption), edit, False)


def test_plurals_say_it_too():
  edit = Edit(
    np.eye(2), "base", "uce", make_concepts(["star", "cross"], "circle"), {}
  )
  blank = np.zeros((1, 1, 3), np.uint8)
  for caption in ("two stars", "Crosses on white"):
    with pytest.raises(ValueError, match="says '(star|cross)', which was"):
      check_overlap([data.Example(blank, caption)], edit, False)
  for caption in ("a starfish", "the start", "it starts", "she stares", "cros"):
    check_overlap([data.Example(blank, caption)], edit, False)


@pytest.mark.parametrize(
  "batch, parts, images, devices, processes, words",
  [
    (12, 1, 250, 8, 1, "batch_size=12 .* not a multiple of .* the 8 device"),
    (8, 1, 250, 8, 2, "batch_size=8 .* not a multiple of .* the 16 device"),
    # A row a part: three devices of four would wait for the one that has it.
    (4, 4, 250, 4, 1, "batch_size=4 with accumulate=4 .* the 4 device"),
    (8, 2, 250, 2, 2, ""),
    (4, 4, 250, 1, 1, ""),
    (48, 1, 40, 1, 1, "batch_size=48 is more than the 40 images"),
    (6, 1, 7, 1, 3, ""),
    (7, 1, 7, 1, 1, ""),
    (8, 1, 7, 1, 1, "batch_size=8 is more than the 7 images"),
  ],
)
def test_a_batch_that_cannot_be(
  batch, parts, images, devices, processes, words
):
  chosen = given(batch_size=batch, accumulate=parts)
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  if not words:
    check_batch(chosen, images, mesh, processes)
    return
  with pytest.raises(ValueError, match=words):
    check_batch(chosen, images, mesh, processes)


@pytest.mark.parametrize("several", [(), (1,), (0, 1, 4)])
def test_processes_join_what_one_would_have_encoded(several):
  """Whichever images have several captions, and whoever encoded them."""

  def encoded(rows):
    """As `encode_examples` gives it; texts tell their image and place."""
    texts = [(i, n) for i in rows for n in range(1 + (i in several))]
    found = {
      "mean": np.array(rows, np.float32)[:, None],
      "context": np.array(texts, np.float32),
    }
    if len(texts) > len(rows):
      counts = np.array([1 + (i in several) for i in rows])
      first = np.cumsum(counts) - counts
      found |= {data.FIRST: first, data.COUNT: counts}
    return found

  rows = list(range(5))
  found = joined([encoded(data.share(rows, i, 2)) for i in range(2)])
  order = np.array([3, 0, 4, 1, 2])
  for draws in (None, np.full(5, 0.99)):
    now, whole = (
      data.taken(arrays, order, draws) for arrays in (found, encoded(rows))
    )
    for name in whole:
      np.testing.assert_array_equal(now[name], whole[name])
