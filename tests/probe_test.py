"""The probe of an erasure: what it flags, what it leaves, what it costs."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import pytest

import unlearning_jax as ul
from unlearning_jax import concepts, erasures, lists, probe, stable_diffusion
from unlearning_jax.edits import edit_between
from unlearning_jax.guidance import Guidance, preset
from unlearning_jax.probe import ErasureWarning, Probe, drawings, states
from unlearning_jax.probe import phrases as phrases_
from unlearning_jax.probe.measure import measure
from unlearning_jax.projections import cross_attention_kernels

NAN = float("nan")
STAR = ul.Concept("star", "circle", preserve=())


@pytest.fixture(scope="module")
def base():
  return ul.load("shapes")


def erased(base, subject, method="uce", **hparams):
  bound = erasures.bind(method, hparams)
  return bound(base.sd, base.params, subject, jax.random.key(0))


def probed(base, subject, method="uce", **hparams):
  return measure(base, erased(base, subject, method, **hparams), subject)


# --- What it flags ---


def test_the_shipped_recipe_passes(base):
  found = probed(base, ul.concept(base, "star").concepts, preserve_scale=1.0)
  assert found.verdict == "ok" and found.instrument == "states"
  assert found.left < 0.25
  assert found.preserved < 0.25 and found.unrelated < 0.25
  found.check("uce", strict=True)


@pytest.mark.parametrize("method", ["uce", "rece", "time"])
def test_a_name_without_a_preserve_list_is_damage(base, method):
  found = probed(base, (STAR,), method)
  assert "damage" in found.verdict and found.preserved is None


def test_a_list_that_weighs_too_much_leaves_the_concept(base):
  held = ul.concept(base, "star").concepts[0].preserve
  found = probed(base, (dataclasses.replace(STAR, preserve=held),))
  assert found.verdict == "still there"
  assert found.preserved < 0.2 and found.unrelated < 0.2


def test_guidance_that_does_nothing_is_flagged(base):
  # Its warmup is as long as the usual number of steps.
  found = measure(base, Guidance(safe=preset("weak", "star")), (STAR,))
  assert found.instrument == "drawings" and found.verdict == "still there"
  assert found.left > 0.95 and found.unrelated < 0.05


def with_leaf(base, path, scale, method="toy"):
  leaf = stable_diffusion_leaf(base.params["unet"], path)
  noise = np.random.default_rng(0).standard_normal(leaf.shape)
  changed = np.asarray(leaf + scale * leaf.std() * noise, np.float32)
  unet = replaced(base.params["unet"], path.split("/"), changed)
  new = {**base.params, "unet": unet}
  return edit_between(
    base.params, new, method=method, concepts=(STAR,), diagnostics={}
  )


def stable_diffusion_leaf(tree, path):
  for key in path.split("/"):
    tree = tree[key]
  return np.asarray(tree)


def replaced(tree, keys, leaf):
  inner = leaf if len(keys) == 1 else replaced(tree[keys[0]], keys[1:], leaf)
  return {**tree, keys[0]: inner}


def test_noise_on_the_weights_is_damage_and_a_little_is_nothing(base):
  rough = measure(base, with_leaf(base, "conv_in/kernel", 2.0), (STAR,))
  assert "damage" in rough.verdict
  slight = measure(base, with_leaf(base, "conv_in/kernel", 1e-4), (STAR,))
  assert slight.verdict == "still there"
  assert {rough.instrument, slight.instrument} == {"drawings"}


def test_trained_keys_are_drawn_where_they_seem_unchanged(base):
  path = next(iter(cross_attention_kernels(base.params)))
  found = measure(base, with_leaf(base, path, 1e-4), (STAR,))
  assert found.instrument == "drawings" and found.verdict == "still there"


# --- Its figures ---


def keys_and_values(base, edit, texts):
  """Of all blocks and all tokens, before and after, in double precision."""
  kernels = cross_attention_kernels(base.params)
  wide = np.concatenate([np.float64(leaf) for leaf in kernels.values()], axis=1)
  whole = np.float64(
    stable_diffusion.encode_prompts(base.sd, base.params, texts)
  )
  return whole @ wide, whole @ edit.context_map.T @ wide


@pytest.mark.parametrize("anchor", ["circle", "Adra Belvoort", ""])
def test_what_is_left_is_that_of_numpy(base, anchor):
  sentence = "a picture of a red {} on white"
  pair = (sentence.format("star"), " ".join(sentence.format(anchor).split()))
  asked = phrases_.Asked((pair,), (), ("a red house", "by Juno Zaretti"))
  edit = erased(base, (STAR,))
  found = states.measure(base, edit, asked)
  before, after = keys_and_values(base, edit, pair)
  ids = stable_diffusion.tokenize(base.sd, pair)
  ends = (ids == base.sd.tokenizer.eos_token_id).argmax(1)
  # "star", or the last word in its place; "on white"; the end and two paddings.
  own, other = (slice(end - 3, end + 3) for end in ends)
  assert ids[0, own][0] == stable_diffusion.tokenize(base.sd, ["star"])[0, 1]
  goal = before[1, other]
  way, rest = before[0, own] - goal, after[0, own] - goal
  np.testing.assert_allclose(
    found.left, max(0, (rest * way).sum() / (way * way).sum()), atol=1e-4
  )
  assert 0.01 < found.left < 0.99 and found.phrases == (1, 0, 2)


def test_how_far_others_moved_is_that_of_numpy(base):
  others = ("a red house", "by Juno Zaretti", "a fish")
  asked = phrases_.Asked((("star", "circle"),), ("a moon",), others)
  edit = erased(base, (STAR,))
  found = states.measure(base, edit, asked)
  before, after = keys_and_values(base, edit, [*others, "a moon"])
  before, after = before[:, 1:24], after[:, 1:24]
  ratios = []
  for i, new in enumerate(after):
    far = [np.linalg.norm(new - old) for old in before]
    near = min(far[j] for j in range(len(others)) if j != i)
    ratios.append(far[i] / (far[i] + near))
  np.testing.assert_allclose(found.unrelated, np.median(ratios[:3]), rtol=1e-4)
  np.testing.assert_allclose(found.preserved, ratios[3], rtol=1e-4)


def test_a_velocity_model_is_probed_as_any_other(base):
  schedule = dataclasses.replace(
    base.sd.schedule, prediction_type="v_prediction"
  )
  sd = dataclasses.replace(base.sd, schedule=schedule)
  velocity = dataclasses.replace(base, sd=sd)
  guidance = Guidance("star", method="negative_prompt")
  found = measure(velocity, guidance, (STAR,))
  assert found.instrument == "drawings" and np.isfinite(found.left)


def test_a_warmup_is_as_long_a_part_of_fewer_steps(base):
  guided = base.with_guidance(Guidance(safe=preset("strong", "star")))
  hurried = drawings._hurried(guided, 14).guidance.safe
  assert hurried.warmup == 2 and hurried.scale == guided.guidance.safe.scale
  assert drawings._hurried(base, 14) is base


def test_what_is_asked_never_names_the_concept(base):
  how = {"most": (6, 8, 99), "sentences": drawings.SENTENCES}
  asked = phrases_.ask(base.sd, (STAR,), "shapes", **how)
  assert asked.pairs[0] == ("a picture of star", "a picture of circle")
  bare = phrases_.ask(base.sd, (ul.Concept("star"),), "shapes", **how)
  assert bare.pairs[0] == ("a picture of star", "a picture of")
  assert len(asked.unrelated) > 20
  assert not any("star" in phrase.split() for phrase in asked.unrelated)
  # A phrase that the text encoder has no room for is not asked.
  other = phrases_.ask(base.sd, (STAR,), "other", **how)
  assert set(other.unrelated) <= set(lists.load("unrelated"))
  assert not set(lists.load("unrelated")) & set(lists.load("everyday"))


def test_a_sentence_that_fills_the_text_encoder_is_asked(base):
  # 29 words, and 11 tokens of the longest sentence: it leaves no padding.
  long = ul.Concept("star " * 28 + "star", "circle", preserve=())
  found = probed(base, (long,))
  assert found.instrument == "states" and found.phrases[0] == 3


def test_items_are_spread_evenly():
  assert phrases_.spread("abcdefg", 3) == ("a", "d", "g")
  assert phrases_.spread("ab", 3) == ("a", "b")


# --- Where it cannot run ---


def test_it_says_why_it_cannot_run_and_how_to_go_on(base, monkeypatch):
  monkeypatch.setattr(phrases_, "everyday", lambda _: ("a star",))
  found = measure(base, erased(base, (STAR,)), (STAR,))
  assert found.verdict == "unknown" and found.unrelated is None
  with pytest.warns(ErasureWarning, match="name the concept.*ul.grid"):
    found.check("uce", strict=False)
  with pytest.raises(ValueError, match="could not run.*launch.evaluate"):
    found.check("uce", strict=True)


@pytest.mark.parametrize("figures", [(NAN, None, 0.1), (0.1, NAN, 0.1)])
def test_figures_that_are_not_finite_are_no_verdict(base, figures, monkeypatch):
  nan = Probe("states", *figures, (1, 0, 1))
  monkeypatch.setattr(states, "measure", lambda *_: nan)
  found = measure(base, erased(base, (STAR,)), (STAR,))
  assert found.verdict == "unknown" and "not finite" in found.sentence


# --- From Python ---


def test_strict_leaves_no_edit_and_without_it_the_run_goes_on(base, tmp_path):
  with pytest.raises(ValueError, match="uce2023: The probe says: damage.*0.34"):
    ul.erase(base, STAR, strict=True, out=tmp_path)
  assert not [*tmp_path.glob("edit*")] and not (tmp_path / "DONE").exists()
  with pytest.warns(
    ErasureWarning, match="preserve more phrases.*where the method has it"
  ):
    made = ul.erase(base, STAR, out=tmp_path)
  assert made.probe.verdict == "damage" and "damage" in repr(made)
  facts = json.loads((tmp_path / "edit.probe.json").read_text())
  assert facts["unrelated"] == made.probe.unrelated
  assert ul.load(tmp_path).probe == made.probe
  # What was made before is probed no more, but flagged all the same.
  with pytest.raises(ValueError, match="damage"):
    ul.erase(base, STAR, strict=True, out=tmp_path)


def test_a_list_is_supplied_and_that_is_said(base):
  subject = ul.Concept("star", "circle")
  with pytest.warns(UserWarning, match="237 phrases that 'shapes' supplies"):
    made = ul.erase(base, subject, strict=True)
  assert made.probe.verdict == "ok" and "237 phrases" in made.probe.note
  assert made.edit.diagnostics["preserve_scale"] == 1 / 237
  assert made.edit.concepts[0].preserve == (
    ul.concept(base, "star").concepts[0].preserve
  )


def test_other_models_get_a_shipped_list_and_who_asks_for_none_has_none(base):
  other = dataclasses.replace(base, source="somewhere")
  with pytest.warns(UserWarning, match="'everyday' supplies"):
    made = ul.erase(other, ul.concept(other, "dog"))
  held = made.edit.concepts[0].preserve
  assert "a cat" in held and "a dog" in held
  assert "supplies the phrases" in repr(ul.concept(other, "dog"))
  with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    made = ul.erase(base, STAR)
    assert made.probe.note == ""
    # It preserves nothing: there is nothing to supply.
    ul.erase(base, ul.Concept("star"), method="negative_prompt")
  assert not [one for one in said if "supplies" in str(one.message)]


def test_a_tuned_or_other_model_has_no_probe_of_the_old_one(base):
  flagged = dataclasses.replace(base, probe=Probe(reason="a."))
  assert "could not run" in repr(flagged)
  assert flagged.base.probe is None
  assert flagged.with_guidance(Guidance("star")).probe is None


def test_a_file_that_is_no_probe_is_refused(tmp_path):
  file = tmp_path / "edit.safetensors"
  assert probe.of(file) is None
  probe.beside(file).write_text("{}")
  with pytest.raises(ValueError, match="edit.probe.json: not a probe"):
    probe.of(file)


@pytest.mark.parametrize(
  "held_to, verdict, said",
  [
    ({}, "ok", "limit 0.68"),
    ({"limits": [0.43, 0.6]}, "damage", "limit 0.60"),
    ({"limits": [0.43, 0.7]}, "ok", "limit 0.70"),
  ],
)
def test_a_record_keeps_the_verdict_of_its_time(
  tmp_path, held_to, verdict, said
):
  file = tmp_path / "edit.safetensors"
  figures = {"left": 0.1, "preserved": None, "unrelated": 0.65}
  facts = {"format": "unlearning_jax probe 1", "instrument": "states"}
  facts |= figures | {"phrases": [2, 0, 12]} | held_to
  probe.beside(file).write_text(json.dumps(facts))
  old = probe.of(file)
  assert old.verdict == verdict and said in old.sentence
  new = Probe("states", **figures, phrases=(3, 0, 12))
  assert new.verdict == "damage" and "limit 0.34" in new.sentence
  for one in (old, new):
    one.save(file)
    assert probe.of(file) == one


# --- The same in other words ---


@pytest.mark.parametrize(
  "one, other",
  [("stars", "Star"), ("a  box", "a boxes"), ("city", "cities")],
)
def test_plural_case_and_spaces_say_the_same(one, other):
  assert concepts.spellings(one) & concepts.spellings(other)
  with pytest.raises(ValueError, match="equals its anchor.*another anchor"):
    ul.Concept(one, other)
  for phrase in (other, f" {other.upper()}"):
    held = ul.Concept(one, "circle", preserve=(phrase,))
    with pytest.raises(ValueError, match="take it out of preserve"):
      concepts.check_concepts([held])
  assert concepts.without_erased([other, "moon"], [one]) == ("moon",)


def test_words_that_end_in_ss_are_no_plural():
  assert not concepts.spellings("cross") & concepts.spellings("cros")


@pytest.mark.parametrize(
  "subject, message",
  [
    (ul.Concept("star " * 80, "circle", preserve=()), "tokens.*Shorten it"),
    (ul.Concept("star", "moon " * 80, preserve=()), "tokens.*Shorten it"),
    (ul.Concept("star", "circle", preserve=(" STARS",)), "take it out"),
  ],
)
def test_bad_phrases_are_refused_before_a_folder_is_made(
  base, subject, message, tmp_path
):
  for method in ("uce", "esd", "sld"):
    with pytest.raises(ValueError, match=message):
      ul.erase(base, subject, method=method, out=tmp_path / method)
    assert not (tmp_path / method).exists()


def test_a_concept_without_tokens_is_refused(base, tmp_path, monkeypatch):
  # CLIP's own tokenizer leaves nothing of characters that it does not know.
  class Deaf:
    pad_token_id = eos_token_id = 1

    def __call__(self, texts, **_):
      return {"input_ids": [[0, 1] for _ in texts]}

  deaf = dataclasses.replace(base.sd, tokenizer=Deaf())
  with pytest.raises(ValueError, match="no tokens: nothing to erase; give"):
    ul.erase(dataclasses.replace(base, sd=deaf), STAR, out=tmp_path / "run")
  assert not (tmp_path / "run").exists()
