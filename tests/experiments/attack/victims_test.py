"""Whom an attack attacks: parts of models, fingerprints, what cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from unlearning_jax.configs import attack_concept_inversion, attack_new_word
from unlearning_jax.configs import attack_unlearn_diff_atk as uda

from unlearning_jax import (
  attacks,
  casting,
  convert,
  guidance,
  lora,
  sampling,
  settings,
  sharding,
)
from unlearning_jax import model as models
from unlearning_jax.attacks.engine import rows
from unlearning_jax.experiments import attack, common
from unlearning_jax.experiments.attack import pool, victims
from unlearning_jax.experiments.attack import rows as attack_rows
from unlearning_jax.record import Workdir


def build(config):
  return settings.build(attack.Settings, config.to_dict())


@pytest.fixture(scope="module")
def model():
  return models.load("shapes")


def text_encoder(params, factor=1.0, prefix=""):
  """AdvUnlearn's kind of checkpoint: the text encoder's state dict alone."""
  state = convert.to_torch(params["text_encoder"])
  return {prefix + k: np.asarray(v) * np.float32(factor)
          for k, v in state.items()}  # fmt: skip


def victim(tmp_path, model, state, **changes):
  config = uda.get_config("tiny")
  if state is not None:
    path = tmp_path / "text_encoder.safetensors"
    safetensors.numpy.save_file(state, path)
    config.victim = str(path)
  config.update_from_flattened_dict(changes)
  return victims.victim_of(build(config), model)[0]


@pytest.mark.parametrize("prefix", ["", "text_encoder.", "module."])
def test_a_text_encoder_is_a_victim(prefix, model, tmp_path):
  params = model.params
  state = text_encoder(params, 1.5, prefix)
  found = victim(tmp_path, model, state)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b * np.float32(1.5)),
    found.params["text_encoder"], params["text_encoder"],
  )  # fmt: skip
  # The rest is the original's, and is not held twice.
  assert jax.tree.all(
    jax.tree.map(lambda a, b: a is b, found.params["unet"], params["unet"])
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  placed = sharding.place(params, sharding.replicated(mesh))
  there = victims.place(model.sd, found, params, placed, mesh)
  ours, theirs = there.params["vae"], placed["vae"]
  pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
  assert all(
    a.unsafe_buffer_pointer() == b.unsafe_buffer_pointer() for a, b in pairs
  )


def test_a_victim_lies_in_the_type_that_it_computes_in(model):
  config = dataclasses.replace(model.sd.unet.config, dtype=jnp.bfloat16)
  sd = dataclasses.replace(model.sd, unet=type(model.sd.unet)(config))
  params, mesh = model.params, sharding.make_mesh(devices=jax.devices()[:1])
  unet = dict(params["unet"])
  unet["conv_in"] = jax.tree.map(lambda x: 2 * x, unet["conv_in"])
  own = attacks.Victim({**params, "unet": unet})
  placed = casting.placed(sd, params, mesh)
  there = victims.place(sd, own, params, placed, mesh).params
  kernel = there["unet"]["conv_in"]["kernel"]
  assert kernel.dtype == jnp.bfloat16
  wanted = unet["conv_in"]["kernel"].astype(jnp.bfloat16)
  np.testing.assert_array_equal(kernel, wanted)
  ours, theirs = (
    tree["unet"]["time_embedding"]["linear_1"]["kernel"]
    for tree in (there, placed)
  )
  assert ours.dtype == jnp.bfloat16
  assert ours.unsafe_buffer_pointer() == theirs.unsafe_buffer_pointer()


@pytest.mark.filterwarnings("ignore:.*no tensor differs:UserWarning")
@pytest.mark.parametrize(
  "make, words",
  [
    # What the published loader lets through: not one key matches.
    (lambda p: text_encoder(p, 1.5, "encoder.model."), "none of its"),
    (lambda p: text_encoder(p, 1.5) | {"extra.weight": np.ones(3, "f4")},
     "extra.weight"),
    (lambda p: {k: v[..., :1] if v.ndim > 1 else v
                for k, v in text_encoder(p, 1.5).items()}, "expected"),
    (lambda p: text_encoder(p, np.nan), "holds NaN"),
    (lambda p: text_encoder(p), "very weights"),
    (lambda p: dict(list(text_encoder(p, 1.5).items())[1:]),
     r"holds (\d+) of \d+ tensors of text_encoder, without .*launch.convert"),
  ],
  ids=["no key", "extra key", "shapes", "nan", "unchanged", "a key less"],
)  # fmt: skip
def test_a_text_encoder_that_is_none_of_this_model(
  make, words, model, tmp_path
):
  with pytest.raises(ValueError, match=words):
    victim(tmp_path, model, make(model.params))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_what_a_file_holds_is_told(part, model, tmp_path, capsys):
  """Of a UNet its edited layers; of a text encoder too, in a delta's file."""
  sd, params = model.sd, model.params
  base = convert.to_torch(params[part])
  some = [k for k in base if "attn2" in k or "fc1" in k]
  new = {k: base[k] * np.float32(1.5) if k in some else base[k] for k in base}
  if part == "unet":
    path = tmp_path / "layers.safetensors"
    safetensors.numpy.save_file(in_a_row({k: new[k] for k in some}), path)
  else:
    states = {p: convert.to_torch(tree) for p, tree in params.items()}
    whole = dataclasses.replace(sd.files, states=states)
    edited = dataclasses.replace(whole, states=states | {part: new})
    path = tmp_path / "delta.safetensors"
    convert.save_delta(path, whole, edited)
  config = uda.get_config("tiny")
  config.victim = str(path)
  given = build(config)
  loaded = victims.setup(given, victims.bind(given))
  count = f"{len(some)} of {len(base)} tensors"
  assert loaded.held == {part: count} and 0 < len(some) < len(base)
  assert f"victim={path}: {count} of {part}; all" in capsys.readouterr().out


def factors(params, seed=0):
  """A LoRA's tensors, both factors drawn."""
  fresh = lora.init(params, jax.random.key(0), rank=2, targets="attention")
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: np.float32(0.1 * rng.normal(size=leaf.shape)), fresh
  )


def in_a_row(tensors):
  """As safetensors must have them: it writes the memory as it lies."""
  return {k: np.ascontiguousarray(v) for k, v in tensors.items()}


def test_words_that_a_victim_added_are_left_out(model, tmp_path):
  # Forget-Me-Not begins with textual inversion and saves the whole pipeline.
  table = "text_model.embeddings.token_embedding.weight"
  states = {k: convert.to_torch(v) for k, v in model.params.items()}
  text = text_encoder(model.params, 1.5)
  more = {table: np.concatenate([text[table], text[table][:4]])}
  configs = dict(model.sd.files.configs)
  configs["text_encoder"] = {**configs["text_encoder"], "vocab_size": 1028}
  files = dataclasses.replace(
    model.sd.files,
    configs=configs,
    states=states | {"text_encoder": text | more},
  )
  folder = tmp_path / "forget_me_not"
  convert.save_folder(folder, files)
  found = victim(tmp_path, model, None, victim=str(folder)).params
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b * np.float32(1.5)),
    found["text_encoder"], model.params["text_encoder"],
  )  # fmt: skip
  assert found["unet"] is model.params["unet"] or jax.tree.all(
    jax.tree.map(lambda a, b: a is b, found["unet"], model.params["unet"])
  )


def test_a_lora_is_a_victim(model, tmp_path):
  params = model.params
  adapters = factors(params)
  found = victim(tmp_path, model, in_a_row(lora.to_torch(adapters))).params
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    found, lora.merge(params, adapters),
  )  # fmt: skip
  kept = jax.tree.map(lambda a, b: a is b, found, params)
  changed = [path for path, same in jax.tree.leaves_with_path(kept) if not same]
  assert len(changed) == len(adapters)


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda k, v: (k.replace("mid_block", "middle"), v),
     "'unet.middle.* fits no unet or text_encoder weight"),
    (lambda k, v: (k, v[:, :-1] if "lora_A" in k else v), "misshaped: .*to_"),
  ],
)  # fmt: skip
def test_a_lora_of_another_model(change, words, model, tmp_path):
  tensors = lora.to_torch(factors(model.params))
  tensors = dict(change(key, value) for key, value in tensors.items())
  with pytest.raises(ValueError, match=words):
    victim(tmp_path, model, in_a_row(tensors))


def test_a_fingerprint_tells_victims_apart(model, tmp_path):
  params = model.params
  found = [
    victim(tmp_path, model, None),
    victim(tmp_path, model, text_encoder(params, 1.5)),
    victim(tmp_path, model, text_encoder(params, 1.25)),
    victim(tmp_path, model, None, victim="scrambled"),
    victim(tmp_path, model, None, victim="scrambled", seed=1),
    victim(tmp_path, model, None, **{"guidance.negative_prompt": "star"}),
    victim(tmp_path, model, None, **{"guidance.safe": "max"}),
    victim(tmp_path, model, None, **{"guidance.safe": "weak"}),
  ]
  names = [victims.fingerprint(v, {}) for v in found]
  assert len(set(names)) == len(names)
  assert victims.fingerprint(victim(tmp_path, model, None), {}) == names[0]


def test_a_run_does_not_go_on_with_another_victim(model, tmp_path):
  """The same path, other weights: the config alone would not tell."""
  config, path = uda.get_config("tiny"), str(tmp_path / "run")

  def start(name):
    run = common.workdir(path, config, attack.Settings)
    common.begin(run, build(config), model.params, inputs={"victim": name})
    return run

  start("a" * 64).append_row({"id": "x"})
  start("a" * 64)
  with pytest.raises(ValueError, match="inputs.victim: 'aaaa.* -> 'bbbb"):
    start("b" * 64)


def test_a_scrambled_model_keeps_all_but_its_reading_of_the_text(model):
  params = model.params
  found = victims.scrambled(params, 0)
  same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), found, params)
  changed = [path for path, kept in jax.tree.leaves_with_path(same) if not kept]
  names = {jax.tree_util.keystr(path) for path in changed}
  assert changed and all("attn2" in name for name in names)
  assert all("to_k" in name or "to_v" in name for name in names)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"guidance.safe": "maxx"}, "did you mean 'max'"),
    ({"guidance.concept": "star"}, "guidance.concept='star'.*guidance.safe"),
    ({"guidance.safe": "max", "sampling.guidance_scale": 1.0}, "above 1"),
    ({"guidance.in_loss": True, "sampling.guidance_scale": 1.0}, "in_loss"),
    ({"victim": "/no/such/model"}, "/no/such/model"),
  ],
)
def test_a_victim_that_cannot_be(changes, words, model, tmp_path):
  with pytest.raises(ValueError, match=words):
    victim(tmp_path, model, None, **changes)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"pool.num_images": 0}, "pool.num_images=0"),
    ({"pool.concept": ""}, "pool.concept"),
    ({"pool.templates": ("a thing",)}, "'a thing' must hold one {}"),
  ],
)
def test_a_pool_that_cannot_be(changes, words):
  config = attack_concept_inversion.get_config("tiny,preset=concept")
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=words):
    build(config)


def test_a_caption_has_its_word_where_the_mark_was(model):
  sd = model.sd
  config = attack_concept_inversion.get_config("tiny,preset=concept")
  config.hparams.num_tokens, config.pool.num_images = 2, 2
  config.pool.templates = ("a {} on gray", "{}")
  config.sampling.num_inference_steps = 1
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  given = build(config)
  setup = victims.setup(given, victims.bind(given), model)
  found = pool.pool_of(dataclasses.replace(setup, mesh=mesh))
  assert found is not None and found.latents.shape == (2, *sd.latent_shape)
  both = np.concatenate([found.ids, [[-1, -2]] * 2], axis=1)
  body = [
    [int(i) for i in row[source] if i != sd.tokenizer.eos_token_id][1:]
    for row, source in zip(both, np.asarray(found.source), strict=True)
  ]
  words = [sd.tokenizer(t)["input_ids"][1:-1] for t in ("a", "on gray")]
  assert body == [[*words[0], -1, -2, *words[1]], [-1, -2]]
  named = sd.tokenizer("a star on gray")["input_ids"]
  assert found.named[0, : len(named)].tolist() == named


def test_words_come_from_a_finished_inversion(tmp_path):
  config = attack_new_word.get_config("tiny")
  with pytest.raises(ValueError, match="new_words=''"):
    victims.bind(build(config))
  config.new_words = str(tmp_path)
  with pytest.raises(ValueError, match="not a finished run"):
    victims.bind(build(config))
  run = Workdir(tmp_path, {"method": "concept_inversion", "hparams": {}})
  run.append_row({"id": "a", "status": "won", "embeds": [[0.0] * 128]})
  run.append_row({"id": "b", "status": "pre"})
  run.mark_done()
  h = victims.bind(build(config)).h
  assert (h.num_tokens, h.blocks, len(h.words)) == (1, 1, 1)
  config.method = "pez"
  with pytest.raises(ValueError, match="'new_word' needs"):
    victims.bind(build(config))
  with pytest.raises(ValueError, match=r"one shape, \(k, width\)"):
    attacks.bind("new_word", {"words": (((0.0,),), ((0.0, 1.0),))})


def test_guidance_is_what_images_are_drawn_with(model, tmp_path):
  changes = {"guidance.safe": "strong", "guidance.concept": "star"}
  found = victim(tmp_path, model, None, **changes)
  safe = guidance.preset("strong", "star")
  assert found.drawing == {
    "edit_context": None, "negative_prompt": "", "safe": safe,
  }  # fmt: skip
  assert found.image_rows == 3 and found.guide is None
  inside = victim(
    tmp_path, model, None, **changes, **{"guidance.in_loss": True}
  )
  assert inside.guide is not None and inside.guide.rows == 3
  p4d = attacks.bind("p4d", {"draws": 2})
  assert p4d.unet_calls(found) == 2 * (1 + 1)
  assert p4d.unet_calls(inside) == 2 * (3 + 2)


def test_targets_and_rows_of_a_released_choice(model, tmp_path, monkeypatch):
  config, seen = uda.get_config("tiny"), {}
  config.update(
    {"target_sampling": {"num_inference_steps": 7}, "max_tokens": 4}
  )

  def draw(sd, params, requests, how, **options):
    seen.update(dataclasses.asdict(how))
    yield np.zeros((len(requests), 32, 32, 3), np.uint8)

  def latents(sd, params, images):
    return [np.zeros(sd.latent_shape, np.float32) for _ in images]

  monkeypatch.setattr(sampling, "draw", draw)
  monkeypatch.setattr(rows, "target_latents", latents)
  table = [
    {"id": text, "number": i, "prompt": text, "seed": i, "guidance": None}
    for i, text in enumerate(["a star", "a red star"])
  ]
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  found = attack_rows.targeted(model, table, build(config), mesh, tmp_path)
  assert [row.left_out == "" for row in found] == [True, False]
  # The images that are judged keep their own.
  assert (
    seen["num_inference_steps"] == 7
    and config.sampling.num_inference_steps == 15
  )
  assert seen["sampler"] == config.sampling.sampler
