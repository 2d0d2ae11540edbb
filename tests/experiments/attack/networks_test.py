"""A probe and its two control networks: one run, one record, one page."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy

from unlearning_jax import convert, settings
from unlearning_jax import model as models
from unlearning_jax.experiments import attack, common
from unlearning_jax.experiments.attack import control, networks, victims
from unlearning_jax.record import Memory
from unlearning_jax.record.workdir import Workdir

pytestmark = pytest.mark.usefixtures("quick_compiler")
VALUES = {
  "method": "noise_probe",
  "hparams": {"etas": (1.0, 1.85), "steps": 2},
  "judge": "shapes",
  "targets": ({"task": "object", "name": "star"},),
  "sampling": {
    "num_inference_steps": 2, "guidance_scale": 4.0, "sampler": "dpm++2m",
  },
  "rows_per_group": 2,
  "lanes": 2,
  "batch_size": 2,
}  # fmt: skip


def build(**changes):
  return settings.build(attack.Settings, VALUES | changes)


@pytest.fixture(scope="module")
def model():
  return models.load("shapes")


@pytest.fixture(scope="module")
def never_knew(model, tmp_path_factory):
  """A UNet of other weights, as a file."""
  path = tmp_path_factory.mktemp("never") / "unet.safetensors"
  state = convert.to_torch(model.params["unet"])
  state = {k: np.asarray(v) * np.float32(0.9) for k, v in state.items()}
  safetensors.numpy.save_file(state, path)
  return str(path)


class Stopping(Memory):
  """A record that is stopped after some rows."""

  left = 3

  def append_row(self, row):
    super().append_row(row)
    self.left -= 1
    if not self.left:
      raise KeyboardInterrupt


@pytest.mark.slow
def test_the_controls_run_on_the_same_rows_and_a_stop_goes_on(never_knew):
  given, record = build(never_knew=never_knew), Stopping(quiet=True)
  with pytest.raises(KeyboardInterrupt):
    attack.run(given, lambda: record)
  assert len(record.rows()) == 3
  found = attack.run(given, lambda: record)
  rows = {row["id"]: row for row in record.rows()}
  own = control.own(rows.values())
  assert len(rows) == 6 and len(own) == 2
  for row in own:
    # Whatever the prompt alone shows, a probe has its images.
    assert row["status"] != "pre" and row["blocks"]
    for name in (networks.NEVER_KNEW, networks.RANDOM):
      other = rows[f"{name}/{row['id']}"]
      assert (other["prompt"], other["seed"]) == (row["prompt"], row["seed"])
      assert other["network"] == name and other["victim"] != row["victim"]
  for name, one in found["networks"].items():
    assert one["accounting"]["n_all"] == 2 and one["paired"]["n"] == 2, name
  (said, *_) = found["reading"]
  page = str(record.files["report.html"])
  assert "ecovered: the victim alone shows" in said and said[:30] in page
  assert "network that never knew" in page and said in attack.printed(found)
  assert "never_knew/asr" in str(record.files["results.csv"])
  # 2 steps of the prompt's image and 2 of each probe's, guided.
  for row in rows.values():
    assert row["unet_calls"] == 4 * row["images"]


def test_what_the_controls_say():
  def rows(wins, name="", broken=0):
    return [
      {"id": f"{name}{i}", "prompt": "p", "seed": i, "success": i < wins,
       "pre_success": False, "budget": 2,
       "status": "numerical" if i >= 20 - broken else "success"}
      | ({"network": name[:-1]} if name else {})
      for i in range(20)
    ]  # fmt: skip

  def said_of(wins, broken=0):
    every = rows(wins) + rows(4, "never_knew/", broken)
    given = build(never_knew="never")
    return networks.reading(given, networks.compared(every))[-1]

  words = "Recovered: the victim alone shows the concept in 11 of 20"
  assert said_of(15).startswith(words)
  assert said_of(6).startswith("Not shown to be recovered")
  # A control that broke shows nothing of the victim.
  assert said_of(15, broken=10).startswith("10 rows broke")
  found = networks.compared(rows(15) + rows(4, "never_knew/", 10))
  assert found["never_knew"]["paired"]["n"] == 10
  assert said_of(15, broken=20).startswith("20 rows broke")
  (said,) = networks.reading(build(never_knew="none"), {})
  assert "cannot say whether the concept was recovered" in said


def test_weights_that_nobody_trained(model):
  drawn = networks.untrained(model.params, 0)
  assert drawn["vae"] is model.params["vae"]
  flat = jax.tree_util.tree_leaves_with_path(drawn["unet"])
  for path, leaf in flat:
    name = path[-1].key
    if name == "kernel":
      bound = 1 / np.sqrt(np.prod(leaf.shape[:-1]))
      assert 0.8 * bound < abs(leaf).max() <= bound
    if name == "scale":
      assert (leaf == 1).all()
  same = jax.tree.map(
    np.array_equal, drawn, networks.untrained(model.params, 0)
  )
  assert jax.tree.all(same)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({}, "never_knew='': a probe says nothing without"),
    ({"never_knew": "none", "diffusion_classifier": {"timesteps": 2}},
     "diffusion_classifier.timesteps=2: it scores prompts"),
  ],
)  # fmt: skip
def test_a_probe_without_its_control(changes, words):
  with pytest.raises(ValueError, match=words):
    victims.bind(build(**changes))


@pytest.mark.filterwarnings("ignore:.*no tensor differs:UserWarning")
def test_a_control_that_is_the_victim_or_the_base(model, never_knew, tmp_path):
  given = build(never_knew=never_knew, victim=never_knew)
  setup = victims.setup(given, victims.bind(given))
  with pytest.raises(ValueError, match="has the victim's own weights"):
    networks.of(setup)
  path = tmp_path / "unet.safetensors"
  state = convert.to_torch(model.params["unet"])
  safetensors.numpy.save_file(
    {k: np.asarray(v) for k, v in state.items()}, path
  )
  setup = dataclasses.replace(setup, given=build(never_knew=str(path)))
  with pytest.raises(ValueError, match="never_knew=.*very weights.*another"):
    networks.of(setup)


def test_a_network_is_not_drawn_with_the_victims_guidance(never_knew):
  given = build(
    method="controls", hparams={"blocks": 1}, never_knew=never_knew,
    guidance={"negative_prompt": "star"},
  )  # fmt: skip
  setup = victims.setup(given, victims.bind(given))
  with pytest.raises(ValueError, match="never_knew=.*acts by guidance"):
    networks.of(setup)
  given = build(
    method="controls", hparams={"blocks": 3}, never_knew=never_knew,
    sharing={"wave": 2, "tries": 1},
  )  # fmt: skip
  setup = victims.setup(given, victims.bind(given))
  with pytest.raises(ValueError, match="never_knew=.*sharing.wave=2"):
    networks.of(setup)


def test_a_victim_that_acts_by_guidance_is_no_victim_of_a_probe():
  given = build(never_knew="none", guidance={"negative_prompt": "star"})

  def opened():
    raise AssertionError("the record is opened: too late for an error")

  with pytest.raises(ValueError, match="guidance: a probe asks what the net"):
    attack.run(given, opened)


def test_a_run_from_before_there_were_networks_goes_on(tmp_path):
  config = settings.plain(build(method="controls", hparams={"blocks": 1}))
  old = {k: v for k, v in config.items() if k not in ("never_knew", "sharing")}
  Workdir(tmp_path, old).append_row({"id": "a"})
  found = common.workdir(str(tmp_path), config, attack.Settings)
  assert found.done_ids() == {"a"}
