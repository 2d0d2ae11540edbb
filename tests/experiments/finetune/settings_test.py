"""Settings of fine-tuning: what configs make, what is refused, what is free."""

import json
import sys

import pytest
from unlearning_jax.configs import finetune_full, finetune_lora

from tests.support.tunings import given
from unlearning_jax import settings
from unlearning_jax.experiments.finetune import Settings

CONFIGS = {"full": finetune_full, "lora": finetune_lora}


@pytest.mark.parametrize("size", ["tiny", "sd14", "sd21"])
@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_sound(name, size):
  config = CONFIGS[name].get_config(size)
  built = settings.build(Settings, config.to_dict())
  assert built.train == name
  assert (built.model == "shapes") == (size == "tiny")
  assert built.checkpoints[-1] == built.num_steps
  # A config has every key, and nothing is lost on the way.
  plain, told = settings.plain(built), config.to_dict()
  assert json.dumps(plain, sort_keys=True) == json.dumps(told, sort_keys=True)


def test_flags_can_set_what_is_none():
  built = given(
    **{
      "lora.alpha": 8.0,
      "loss.snr_gamma": 5.0,
      "defense.num_directions": 3,
      "mesh.data": 2,
    }
  )
  assert (built.lora.alpha, built.loss.snr_gamma) == (8.0, 5.0)
  assert (built.defense.num_directions, built.mesh.data) == (3, 2)


def test_what_no_result_depends_on():
  assert None not in settings.marks(Settings).values()
  assert set(settings.free(Settings)) == {
    "remat", "allow_overlap", "checkpoint_every", "log_every", "mesh.data",
    "mesh.fsdp", "tensorboard",
  }  # fmt: skip


@pytest.mark.parametrize(
  "key, value, words",
  [
    ("train", "lorra", "train='lorra'.*did you mean 'lora'"),
    ("dtype", "float16", "dtype='float16'.*float32, bfloat16"),
    ("num_steps", 0, "num_steps=0"),
    ("batch_size", 0, "batch_size=0: must be at least 1"),
    ("checkpoint_every", 0, "checkpoint_every=0: must be at least 1"),
    ("checkpoints", (5, 151), r"checkpoints=\[151\].*exceed num_steps=150"),
    ("accumulate", 5, "batch_size=48 is not a multiple of accumulate=5"),
    ("data.source", "web", "data.source='web'.*shapes, folder, csv"),
    ("defense.kind", "projet", "defense.kind='projet'.*did you mean 'project'"),
    ("optimizer.schedule", "linear", "schedule='linear'"),
    ("optimizer.learning_rate", -1e-4, "learning_rate=-0.0001: .* at least 0"),
    ("optimizer.learning_rate", float("inf"), "optimizer.learning_rate=inf"),
    ("optimizer.warmup", 100.0, "optimizer.warmup=100.0: .* share of the"),
    ("optimizer.warmup", 1.0, "optimizer.warmup=1.0: .* from 0 to below 1"),
    ("optimizer.clip_norm", -1.0, "clip_norm=-1.0: .* 0 for no clipping"),
    ("optimizer.b2", 1.0, "optimizer.b2=1.0"),
    ("optimizer.weight_decay", -0.1, "optimizer.weight_decay=-0.1"),
    ("loss.snr_gamma", 0.0, "loss.snr_gamma=0.0: must be above 0; None"),
    ("loss.caption_dropout", 10.0, "caption_dropout=10.0: .* a share, from 0"),
    ("ema_decay", 1.5, "ema_decay=1.5: must be up to 1, or 0 for no average"),
    ("lora.rank", 0, "lora.rank=0: must be at least 1"),
    ("lora.alpha", 0.0, "lora.alpha=0.0: must be above 0"),
    ("defense.num_directions", 0, "defense.num_directions=0"),
    ("defense.energy", 1.5, "defense.energy=1.5"),
    ("defense.weight", -1.0, "defense.weight=-1.0: .* defense.kind='none'"),
  ],
)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_what_cannot_be_is_refused(schedule, key, value, words):
  changes = {"optimizer.schedule": schedule, key: value}
  with pytest.raises(ValueError, match=words):
    given("full", **changes)


def test_a_defense_of_text_states_that_move():
  with pytest.raises(ValueError, match="moves the states themselves"):
    given(train="text_encoder", **{"defense.kind": "anchor"})


def test_events_need_their_package(monkeypatch):
  """Which is found missing before anything is loaded."""
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  with pytest.raises(ValueError, match=r"unlearning_jax\[tracking\]"):
    given(tensorboard=True)
