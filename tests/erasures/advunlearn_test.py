"""AdvUnlearn: against its release and float64, with a bank and without.

The UNet is one line, so that programs are small.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from unlearning_jax.configs import erase_advunlearn

from tests.stable_diffusion_test import make_files
from tests.support.closed_form_cases import GOLDENS, relative
from unlearning_jax import (
  convert,
  erasures,
  finetune,
  models,
  stable_diffusion,
)
from unlearning_jax.concepts import make_concepts
from unlearning_jax.convert.sd1 import CONFIGS
from unlearning_jax.erasures import Hooks, advunlearn
from unlearning_jax.erasures.advunlearn import attack, bank, options, training

pytestmark = pytest.mark.usefixtures("quickest_compiler")
CONCEPTS = make_concepts(["a b", "c"], ["d", ""], ["f", "g h", "d"])
W = np.cos(np.outer(np.arange(24), np.arange(1, 5)))
SHORT = {
  "attack_steps": 2, "num_inference_steps": 6, "num_trajectories": 4,
  "retain_batch": 3, "warmup_steps": 1, "batch_size": 2,
}  # fmt: skip


def network(x, t, c, xp=jnp):
  u = (c.mean(1) @ xp.asarray(W, dtype=c.dtype))[:, None, None, :]
  return xp.tanh(u) * x * (1 + t[:, None, None, None] / 1000) + u**2


@pytest.fixture
def one_line(monkeypatch):
  monkeypatch.setattr(
    stable_diffusion, "predict_noise", lambda sd, p, x, t, c: network(x, t, c)
  )
  yield
  # Compiled with the line above.
  bank._whole.clear_cache()


def made(folder, **changes):
  return stable_diffusion.from_files(make_files(folder, **changes))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return made(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def long(tmp_path_factory):
  """The release cannot read fewer than 77 tokens."""
  text = {"max_position_embeddings": 77}
  return made(tmp_path_factory.mktemp("long"), text_encoder=text)


def trainings(model, concepts=CONCEPTS, **options):
  """What an erasure hands to its trainer."""
  taken = {}

  def caught(loss, tx, trained, frozen, batches, key, **_):
    taken.update(
      loss=loss, trained=trained, frozen=frozen, batches=batches, key=key
    )
    return jax.tree.map(lambda leaf: leaf + 1, trained)

  h = advunlearn.Hparams(**SHORT | options)
  edit = advunlearn.erase(
    *model, concepts, jax.random.key(0), h, Hooks(trainer=caught)
  )
  return edit, taken


def evaluated(taken, steps):
  loss = jax.jit(jax.value_and_grad(taken["loss"], has_aux=True))
  found = []
  for step in steps:
    key = jax.random.fold_in(taken["key"], step)
    (value, _), slope = loss(
      taken["trained"], taken["frozen"], taken["batches"][step], key
    )
    found.append(
      (float(value), np.concatenate([*map(np.ravel, slope.values())]))
    )
  return found


@pytest.mark.slow
@pytest.mark.parametrize("preset", options.PRESETS)
def test_with_a_bank_and_without_a_step_is_the_same(preset, model, one_line):
  steps = range(4)  # the first without an attack
  pair = [
    evaluated(trainings(model, preset=preset, banked=banked)[1], steps)
    for banked in (True, False)
  ]
  for (value, slope), (wanted, other) in zip(*pair, strict=True):
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert relative(slope, other) < 1e-5
  assert len({value for value, _ in pair[0]}) == len(steps)


@pytest.fixture(scope="module")
def golden():
  return dict(np.load(GOLDENS / "advunlearn.npz"))


@pytest.mark.parametrize("name, kind", [("pgd", "pgd"), ("fast_at", "fast")])
def test_an_attack_and_a_step_are_the_releases(
  name, kind, golden, long, one_line
):
  sd, base = long
  given = json.loads(str(golden["provenance"]))["settings"]
  own = {
    k.partition("/")[2]: v for k, v in golden.items() if k.startswith(name)
  }
  part = finetune.subset(
    {"text_encoder": base["text_encoder"]}, options.trains(None)
  )
  trained = jax.tree.map(lambda x: x * np.float32(1.05), part.trained)
  phrase, retained = given["phrase"], given["retained"]
  ids, held = (
    stable_diffusion.tokenize(sd, texts) for texts in ([phrase], retained)
  )
  context, empty, own_context = (
    stable_diffusion.encode_prompts(sd, base, texts)
    for texts in ([phrase], [""], retained)
  )
  source = attack.layout(phrase, 3, given["tokens"], 77, legacy=True)[None]
  table = training._table(base)

  def loss(new, drawn):
    latents, t = drawn
    read = attack.spliced(table[ids], new, source)
    params = part.join(trained, part.frozen)
    mine = training.student(sd, params, {}, ids, read, latents, t)
    return attack.distance(mine, network(latents, t, context))

  new = attack.adversarial(
    loss, jnp.float32(own["start"]),
    (own["latents"][:, None], own["t"][:, None]),
    kind, given["attack_lr"], legacy=True,
  )  # fmt: skip
  read = attack.spliced(table[ids], new, source)
  first = attack.spliced(table[ids], jnp.float32(own["start"]), source)
  moved = own["adversarial"] - np.float64(first)
  assert np.abs(moved).max() > 0.05
  assert relative(np.float64(read) - np.float64(first), moved) < 1e-5

  t = np.full(1 + len(retained), own["scored_t"])
  at, kept = own["scored_latents"], own["retained_latents"]
  scored = bank.Scored(
    at, t[:1], network(at, t[:1], context), network(at, t[:1], empty)
  )
  holds = bank.Scored(kept, t[1:], network(kept, t[1:], own_context), None)

  def objective(trained):
    params = part.join(trained, part.frozen)
    mine = training.student(
      sd, params, {}, np.concatenate([ids, held]),
      jnp.concatenate([read, table[held]]), np.concatenate([at, kept]), t,
    )  # fmt: skip
    eta, weight = given["negative_guidance"], given["retain_loss_w"]
    return training.erasing_loss(mine, scored, holds, eta, weight)[0]

  value, slope = jax.jit(jax.value_and_grad(objective))(trained)
  np.testing.assert_allclose(value, own["loss"], rtol=1e-5)
  _, tx = training.prepared(sd, part.join, advunlearn.Hparams())
  update, _ = tx.update(slope, tx.init(trained), trained)
  tree = part.join(trained, part.frozen)["text_encoder"]
  sizes = {
    name: leaf.size
    for name, leaf in convert.to_torch(jax.tree.map(np.asarray, tree)).items()
  }
  names = golden["names"].tolist()
  ends = np.cumsum([sizes[name] for name in names])[:-1]
  theirs = {
    key: dict(zip(names, np.split(own[key], ends), strict=True))
    for key in ("gradient", "update")
  }
  largest = np.abs(own["gradient"]).max()
  for leaves, key in ((slope, "gradient"), (update, "update")):
    tree = part.join(leaves, {})["text_encoder"]
    state = convert.to_torch(jax.tree.map(np.asarray, tree))
    # The biases of keys have no gradient; see `options.trains`.
    left = set(names) - set(state)
    assert all(name.endswith("k_proj.bias") for name in left) and len(left) == 2
    # What there is, is rounding of the release's softmax, in float32.
    none = max(np.abs(theirs["gradient"][name]).max() for name in left)
    assert none < 1e-7 * largest
    mine, wanted, size = (
      np.concatenate([of[name].ravel() for name in sorted(state)])
      for of in (state, theirs[key], theirs["gradient"])
    )
    # Adam's first step is the sign where rounding does not drown a slope.
    clear = np.abs(size) > 1e-5 * largest
    assert clear.mean() > 0.9
    assert relative(mine[clear], wanted[clear]) < 2e-5


@pytest.mark.torch
@pytest.mark.parametrize("kind", attack.ATTACKS)
def test_fixed_is_the_paper_in_float64(kind, one_line):
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(3)
  phrases = rng.normal(size=(2, 6, 24)).astype(np.float32)
  start = rng.normal(size=(2, 1, 24)).astype(np.float32)
  latents = rng.normal(size=(3, 2, 4, 4, 4)).astype(np.float32)
  wanted = rng.normal(size=latents.shape).astype(np.float32)
  t = rng.integers(1000, size=(3, 2))
  mix = rng.normal(size=(24, 24)).astype(np.float32) / 5
  source = np.stack([attack.layout("a b", 2, 1, 6)] * 2)

  def loss(new, drawn):
    x, t, wanted = drawn
    states = jnp.tanh(attack.spliced(phrases, new, source) @ mix)
    return attack.distance(network(x, t, states), wanted)

  found = attack.adversarial(loss, start, (latents, t, wanted), kind, 0.05)

  wide = {k: torch.tensor(np.float64(v)) for k, v in (
    ("phrases", phrases), ("latents", latents), ("wanted", wanted),
    ("mix", mix), ("w", W), ("t", t),
  )}  # fmt: skip
  ones = torch.tensor(np.float64(start))
  first = second = torch.zeros_like(ones)
  for i in range(3):
    ones = ones.detach().requires_grad_()
    every = wide["phrases"]
    read = torch.cat([every[:, :1], ones, every[:, 1:-1]], 1)
    u = (torch.tanh(read @ wide["mix"]).mean(1) @ wide["w"])[:, None, None]
    late = 1 + wide["t"][i][:, None, None, None] / 1000
    error = torch.tanh(u) * wide["latents"][i] * late + u**2
    error = error - wide["wanted"][i]
    # Each row is attacked alone.
    (error**2).mean((1, 2, 3)).sum().backward()
    slope = ones.grad
    if kind == "fast":
      ones = ones.detach() - 0.05 * slope.sign()
      continue
    first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
    scale = (second / (1 - 0.999 ** (i + 1))).sqrt() + 1e-8
    ones = ones.detach() - 0.05 * first / (1 - 0.9 ** (i + 1)) / scale
  moved = ones.numpy() - start
  assert relative(np.float64(found) - start, moved) < 1e-5


def test_the_objective_in_float64():
  rng = np.random.default_rng(0)
  shape = (2, 3, 3, 4)
  mine, towards, empty, own, kept = rng.normal(size=(5, *shape))
  predicted = np.concatenate([mine, own])
  t = np.zeros(2, int)
  found, parts = training.erasing_loss(
    jnp.float32(predicted),
    bank.Scored(mine, t, jnp.float32(towards), jnp.float32(empty)),
    bank.Scored(kept, t, jnp.float32(kept), None), 1.5, 0.3,
  )  # fmt: skip
  erased = np.mean((mine - empty + 1.5 * (towards - empty)) ** 2)
  held = np.mean((own - kept) ** 2)
  np.testing.assert_allclose(found, erased + 0.3 * held, rtol=1e-5)
  np.testing.assert_allclose(parts["retained"], held, rtol=1e-5)


def test_where_the_new_tokens_stand():
  # "nu dity" is one word of two tokens: the release loses the second.
  assert attack.layout("nudity", 2, 1, 6).tolist() == [0, 6, 1, 2, 3, 4]
  legacy = attack.layout("nudity", 2, 1, 6, legacy=True)
  assert legacy.tolist() == [0, 6, 1, 3, 4, 5]
  with pytest.raises(ValueError, match="num_tokens=3: 'a b'.*together: 4"):
    attack.layout("a b", 2, 3, 6)


def test_what_trains_and_what_is_drawn(model):
  params = {"text_encoder": model[1]["text_encoder"]}
  every, first = (
    finetune.subset(params, options.trains(n)).trained for n in (None, 1)
  )
  assert all("layers_0" in path for path in first)
  assert {path.split("/")[2] for path in every} == {
    "encoder", "final_layer_norm",
  }  # fmt: skip
  h = advunlearn.Hparams(**SHORT)
  draws = training.Draws(2, 3, h, seed=1)
  taken = np.concatenate([draws[step]["retained"].ravel() for step in range(2)])
  assert all(sorted(turn) == [0, 1, 2] for turn in taken.reshape(-1, 3))
  assert not draws[0]["attacked"].any() and draws[1]["attacked"].all()


def test_a_bank_is_kept_and_checked(model, one_line, tmp_path):
  file = tmp_path / "bank.safetensors"
  first = trainings(model, bank=str(file))[1]
  again = trainings(model, bank=str(file), eta=2.0)[1]
  for name in ("concepts", "retained"):
    for one, other in zip(
      first["frozen"][name], again["frozen"][name], strict=True
    ):
      np.testing.assert_array_equal(one, other)
  with pytest.raises(ValueError, match="drawn with guidance=3.0, now 2.0"):
    trainings(model, bank=str(file), start_guidance=2.0)
  with pytest.raises(ValueError, match='drawn with concepts=.*now ."c".'):
    trainings(model, CONCEPTS[1:], bank=str(file))
  sd, params = model
  other = sd.schedule.to_config() | {"beta_end": 0.02}
  other = type(sd.schedule).from_config(other)
  with pytest.raises(ValueError, match="drawn with schedule=.*not there yet"):
    trainings((dataclasses.replace(sd, schedule=other), params), bank=str(file))
  other = jax.tree.map(lambda leaf: leaf * 2, params)
  with pytest.raises(ValueError, match="made from base .*not there yet"):
    trainings((sd, other), bank=str(file))


@pytest.mark.slow
def test_a_full_size_step_traces(model):
  """What the `sd14` config trains, as shapes alone."""
  h = erasures.bind("advunlearn", erase_advunlearn.get_config("sd14").hparams).h
  sd = dataclasses.replace(
    model[0],
    text_encoder=models.ClipTextModel.from_config(CONFIGS["text_encoder"]),
    unet=models.UNet2DCondition.from_config(CONFIGS["unet"]),
    latent_size=(64, 64),
  )
  params = convert.templates(CONFIGS)
  part = finetune.subset(
    {"text_encoder": params["text_encoder"]}, options.trains(h.layers)
  )
  assert len(part.trained) == 12 * 15 + 2

  def of(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)

  def drawn(count, phrases, ways):
    states = of(count, 50, ways, 64, 64, 4)
    t = of(count, 50, dtype=np.int32)
    return bank.Bank(states, t, of(phrases, 77, 768))

  ids = functools.partial(of, dtype=np.int32)
  frozen = {
    "params": part.frozen, "base": {"unet": params["unet"]},
    "ids": ids(1, 77), "source": ids(1, 77), "retained_ids": ids(79, 77),
    "concepts": drawn(128, 1, 3), "retained": drawn(79, 79, 2),
    "empty": of(1, 77, 768),
  }  # fmt: skip
  batch = jax.eval_shape(lambda: training.Draws(1, 79, h, 0)[0])
  loss, _ = training.prepared(sd, part.join, h)
  value, _ = jax.eval_shape(
    loss, part.trained, frozen, batch, jax.random.key(0)
  )
  assert value.shape == ()


@pytest.mark.parametrize(
  "concepts, given, message",
  [
    (make_concepts("c"), {}, "preserve nothing.*coco_objects"),
    (make_concepts("c", preserve=["a C b"]), {}, "'a C b'.*names 'c'"),
    (CONCEPTS, {"layers": 3}, "layers=3; allowed: 1 to 2"),
    (CONCEPTS, {"num_tokens": 7}, "num_tokens=7: 'a b' has 2 tokens"),
  ],
)
def test_what_cannot_be_erased(concepts, given, message, model):
  with pytest.raises(ValueError, match=message):
    trainings(model, concepts, **given)


@pytest.mark.parametrize(
  "given, message",
  [
    ({"attack": "pdg"}, "did you mean 'pgd'"),
    ({"attack_steps": -1}, "attack_steps=-1; allowed: from 0"),
    ({"retain_weight": float("nan")}, "retain_weight=nan"),
    ({"bank": "a", "banked": False}, "nothing would be kept"),
  ],
)
def test_hyperparameters(given, message):
  with pytest.raises(ValueError, match=message):
    advunlearn.Hparams(**given)
  fast = advunlearn.Hparams(attack="fast")
  assert fast.updates == 1 and advunlearn.Hparams().updates == 30
  assert dataclasses.replace(fast, preset="reference").updates == 30
