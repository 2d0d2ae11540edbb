"""A run: what it keeps, what it goes on from, what it refuses."""

import dataclasses

import numpy as np
import PIL.Image
import pytest

from tests.support import events, tunings
from unlearning_jax import finetune, sharding
from unlearning_jax import model as models
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import Edit, Fingerprint, load_edit
from unlearning_jax.experiments import finetune as tuning
from unlearning_jax.guidance import Guidance
from unlearning_jax.record import Memory, Workdir

pytestmark = pytest.mark.usefixtures("quickest_compiler")


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  mesh = tunings.one_device()
  monkeypatch.setattr(sharding, "make_mesh", lambda *_: mesh)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return tunings.small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """Three captioned images."""
  path = tunings.write_table(tmp_path_factory.mktemp("images"))
  return tuning.Data(source="csv", path=str(path), caption="said")


def short(train, images, **changes):
  return tuning.Settings(
    train=train, model="small", data=images, batch_size=2, num_steps=2,
    checkpoints=(2,), log_every=1, **changes,
  )  # fmt: skip


def started(chosen, model, run=None):
  run = run or Memory(quiet=True)
  return run, tuning.run(chosen, lambda: run, model)


@pytest.mark.parametrize(
  "train",
  [
    pytest.param("full", marks=pytest.mark.slow),
    pytest.param("cross", marks=pytest.mark.slow),
    "kv",
    "text_encoder",
  ],
)
def test_what_is_asked_for_trains(train, model, images):
  """Two steps, read back as a user would have them."""
  run, files = started(short(train, images), model)
  assert run.is_done and run.summary == {"steps": 2, "examples": 3}
  (inputs,) = (start["inputs"] for start in run.provenance["runs"])
  assert set(inputs) == {"data", "processes"}
  edit = model.with_edit(load_edit(files[2])).edit
  parts = finetune.partition(model.params, train)
  assert edit.method == f"{train}@2" and set(edit.leaves) == set(parts.trained)
  for path, leaf in edit.leaves.items():
    assert leaf.dtype == np.float32 and np.isfinite(leaf).all()
    assert not np.array_equal(leaf, parts.trained[path])


def test_a_run_writes_the_events_of_its_metrics(model, images):
  pytest.importorskip("tensorboardX")
  chosen = short("lora", images, tensorboard=True, ema_decay=0.9)
  run, files = started(chosen, model)
  assert list(files) == [2] and (run.path / "lora.safetensors").exists()
  wanted = run.read_metrics()
  found = list(events.read(run.path / "events"))
  assert len(found) == 2 * 3
  for tag, step, value in found:
    number = wanted[step][tag.removeprefix("train/")]
    assert value.simple_value == pytest.approx(number)


# --- A resume ---


class Cut(Workdir):
  """A run that is killed once it has said what it depends on."""

  def record_provenance(self, **facts):
    super().record_provenance(**facts)
    raise InterruptedError


@pytest.fixture
def start(model, tmp_path):
  """A run on a folder of two images, up to its first encoding."""
  folder = tmp_path / "data"
  folder.mkdir()
  for name, value in (("a", 10), ("b", 200)):
    pixels = np.full((8, 8, 3), value, np.uint8)
    PIL.Image.fromarray(pixels).save(folder / f"{name}.png")
  table = folder / "metadata.csv"
  table.write_text("file_name,text\na.png,a moon\nb.png,a kite\n")
  chosen = short("kv", tuning.Data(path=str(folder)))
  return lambda: tuning.run(chosen, lambda: Cut(tmp_path / "run", {}), model)


def test_a_resume_on_other_data_is_refused(start, tmp_path):
  folder = tmp_path / "data"
  with pytest.raises(InterruptedError):
    start()
  image, table = folder / "a.png", folder / "metadata.csv"
  held, said = image.read_bytes(), table.read_text()
  changes = {
    image: (folder / "b.png").read_bytes(),
    table: said.replace("a moon", "a star").encode(),
  }
  for file, changed in changes.items():
    old = file.read_bytes()
    file.write_bytes(changed)
    with pytest.raises(ValueError, match="inputs.data: '.*' -> '"):
      start()
    file.write_bytes(old)
  # The same again, though written anew.
  assert image.read_bytes() == held
  with pytest.raises(InterruptedError):
    start()


def test_a_resume_of_several_processes_of_an_old_version_is_refused(
  start, tmp_path
):
  """Each shuffled rows of its own: other batches."""
  with pytest.raises(InterruptedError):
    start()
  (file,) = tmp_path.rglob("provenance.json")
  text = file.read_text()
  assert text.count('"processes": "1"') == 1
  file.write_text(text.replace('"processes": "1"', '"processes": "2"'))
  with pytest.raises(ValueError, match="2 processes of an earlier version"):
    start()
  # One that has ended trains on nothing.
  (file.parent / "DONE").touch()
  with pytest.raises(InterruptedError):
    start()


# --- What is refused before a record is opened ---


def unopened():
  raise AssertionError("opened")


def test_tuning_the_base_where_an_erased_model_is_meant(model, images):
  """An edit that changes nothing is found before anything is read."""
  width = model.sd.context_shape[1]
  concepts = make_concepts(["star"], "circle")
  nothing = Edit(
    np.eye(width), Fingerprint.of(model.params, "text"), "uce", concepts, {}
  )
  with pytest.raises(ValueError, match="uce: the model to tune is the base"):
    tuning.run(short("kv", images), unopened, model.with_edit(nothing))


def test_what_guidance_keeps_away_is_not_in_the_weights(model, images):
  guided = model.with_guidance(Guidance(negative_prompt="a star"))
  with pytest.raises(ValueError, match="guidance changes no weight.*base"):
    tuning.run(short("kv", images), unopened, guided)


def test_captions_may_not_say_what_was_erased(model, images):
  kernels = finetune.partition(model.params, "kv").trained
  path, leaf = next(iter(kernels.items()))
  edit = Edit(
    None, Fingerprint.of(model.params), "uce",
    make_concepts(["c"], "d"), {}, {path: np.asarray(leaf) + 1},
  )  # fmt: skip
  erased = model.with_edit(edit)
  with pytest.raises(ValueError, match="'c' says 'c', which was erased"):
    tuning.run(short("kv", images), unopened, erased)


def test_a_world_knows_other_words_for_what_was_erased(tmp_path):
  base = models.load("shapes")
  kernels = finetune.partition(base.params, "kv").trained
  path, leaf = next(iter(kernels.items()))
  edit = Edit(
    None, Fingerprint.of(base.params), "uce",
    make_concepts(["star"], "fish"), {}, {path: np.asarray(leaf) + 1},
  )  # fmt: skip
  table = tunings.write_table(tmp_path, ["a fish", "a pentagram"])
  images = tuning.Data(source="csv", path=str(table), caption="said")
  chosen = dataclasses.replace(short("kv", images), model="shapes")
  with pytest.raises(ValueError, match="says 'pentagram', which was erased"):
    tuning.run(chosen, unopened, base.with_edit(edit))


def test_the_choices_are_listed():
  said = tuning.listed()
  assert "data.source: shapes, folder, csv, tfds" in said
  assert "lora" in said[0] and "reassert" in said[1]
