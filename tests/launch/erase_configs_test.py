"""Every published setting has a config, and the config has its numbers."""

import importlib

import pytest

from unlearning_jax import erasures, extensions
from unlearning_jax.concepts import CONCEPT_SETS, phrase_pairs
from unlearning_jax.erasures.mace import options
from unlearning_jax.experiments import erase

ESD = {
  "preset": "fixed", "eta": 1.0, "start_guidance": 3.0, "batch_size": 1,
  "num_inference_steps": 50, "num_steps": None, "learning_rate": None,
  "erase_from": None, "use_anchor": False,
}  # fmt: skip
ADVERSARIAL = {
  "preset": "fixed", "attack": "pgd", "attack_steps": None, "num_tokens": 1,
  "attack_learning_rate": 1e-3, "warmup_steps": 200, "eta": 1.0,
  "retain_weight": 0.3, "retain_batch": 5, "start_guidance": 3.0,
  "num_inference_steps": 50, "num_steps": 1000, "learning_rate": 1e-5,
  "batch_size": 1, "layers": None,
}  # fmt: skip
# Two GPUs' batches of four: 2e-6 of one image is 1.6e-5.
ABLATION = {
  "loss": "model", "train": "kv", "num_images": 1000,
  "num_inference_steps": 100,
  "guidance_scale": 6.0, "batch_size": 8, "learning_rate": 2e-6,
  "num_steps": 100, "anchor_loss_weight": 0.0, "expand_prompts": True,
}  # fmt: skip
# File, argument, hyperparameters, number of concepts, first anchor, held list.
PUBLISHED = [
  ("uce", "sd14,task=unsafe", {"preset": "uce2023"}, 1, "", ""),
  ("uce", "sd14,task=i2p", {"preset": "uce2023"}, 11, "", ""),
  ("uce", "sd14,task=imagenette", {"preset": "uce2023"}, 10, "", ""),
  ("uce", "sd14,task=style", {"lamb": 0.5}, 5, "art", "artists_1734"),
  (
    "uce", "sd14,task=style,preset=uce2025",
    {"preset": "uce2025"}, 5, "art", "",
  ),
  (
    "uce", "sd14,task=style,list=artists_1734,count=100",
    {"preserve_scale": None}, 100, "art", "artists_1734",
  ),
  ("rece", "sd14,task=unsafe", {"recipe": "nudity"}, 1, "", ""),
  ("rece", "sd14,task=unsafe,preset=paper", {"preset": "paper"}, 1, "", ""),
  ("rece", "sd14,task=i2p", {"recipe": None}, 11, "", ""),
  ("rece", "sd14,task=style", {"recipe": None}, 5, "art", "artists_1734"),
  ("rece", "sd14", {"recipe": "objects_hard", "epochs": None}, 1, "", ""),
  ("rece", "sd14,name=garbage truck", {"recipe": "objects_hard"}, 1, "", ""),
  ("rece", "sd14,name=Golf Ball", {"recipe": "objects_easy"}, 1, "", ""),
  ("rece", "sd14,name=Tench", {"epochs": 0}, 1, "", ""),
  ("time", "sd14,preset=reference", {"preset": "reference"}, 1, "", ""),
  (
    "mace", "sd14,task=unsafe,preset=reference",
    {"lamb": 0.0, "preserve_scale": 7e-7, "fuse_scale": 7e-7},
    4, "a person wearing clothes", "",
  ),
  (
    "mace", "sd14,task=identity,name=Melania Trump,preset=reference",
    {"lamb": 0.0, "fuse_scale": 1e-4, "domain_weight": 8e3,
     "recipe": "identity"},
    1, "a woman", "",
  ),
  (
    "mace", "sd14,task=identity,name=A B+C D,preset=reference",
    {"domain_weight": 5e4}, 2, "a person", "",
  ),
  (
    "mace", "sd14,task=style,list=artists_1734,count=100,preset=reference",
    {"domain_weight": 8e4, "preserve_scale": 1e-4, "lamb": 0.0}, 100, "art", "",
  ),
  (
    "mace", "sd14,name=ship,preset=reference",
    {"lamb": 1e3, "preserve_scale": 0.0, "fuse_scale": 0.0}, 1, "ground", "",
  ),
  ("mace", "sd14,name=bird,preset=reference", {"lamb": 1e1}, 1, "street", ""),
  (
    "mace", "sd14,name=automobile,preset=reference",
    {"lamb": 1e2}, 1, "sky", "",
  ),
  # Numbers of ESD's presets: `esd_test.py`.
  ("esd", "sd14,task=style", ESD | {"train": "x"}, 5, "art", ""),
  ("esd", "sd14", ESD | {"train": "u"}, 1, "", ""),
  ("esd", "sd14,task=unsafe", ESD | {"train": "u"}, 1, "", ""),
  (
    "esd", "sd14,task=unsafe,preset=reference2025",
    ESD | {"train": "u", "preset": "reference2025"}, 1, "", "",
  ),
  ("advunlearn", "sd14,task=unsafe", ADVERSARIAL, 1, "", ""),
  (
    "advunlearn", "sd14,name=dog,preset=reference",
    ADVERSARIAL | {"preset": "reference", "retain_weight": 0.5}, 1, "", "",
  ),
  ("concept_ablation", "sd14,task=style", ABLATION, 5, "art", ""),
  (
    "concept_ablation", "sd14,name=Grumpy Cat,anchor=cat",
    ABLATION, 1, "cat", "",
  ),
  ("concept_ablation", "sd14,task=identity", ABLATION, 1, "a person", ""),
  ("concept_ablation", "sd14", ABLATION, 1, "building", ""),
  (
    "concept_ablation", "sd14,task=unsafe",
    ABLATION | {"learning_rate": 4e-6, "num_steps": 400,
                "anchor_loss_weight": 1.0, "expand_prompts": False},
    1, "a person wearing clothes", "",
  ),
  (
    "concept_ablation", "sd14,name=A B C,anchor=A,preset=memorization",
    ABLATION | {"learning_rate": 5e-7, "num_steps": 400,
                "expand_prompts": False},
    1, "A", "",
  ),
  (
    "salun", "sd14",
    {"preset": "fixed", "keep": 0.5, "mask_guidance": 7.5, "num_images": 800,
     "remain_weight": 0.5, "learning_rate": 1e-5, "num_steps": 500,
     "batch_size": 8, "template": "an image of a {}"},
    1, "French Horn", "",
  ),
  (
    "salun", "sd14,task=unsafe,preset=reference",
    {"preset": "reference", "remain_weight": 0.1, "num_steps": 100,
     "template": "a photo of {}"},
    1, "a person wearing clothes", "",
  ),
  (
    "erasediff", "sd14",
    {"train": "full", "epochs": 2, "inner_passes": 1, "batch_size": 16,
     "forget_weight": 1.0, "learning_rate": 1e-5},
    1, "pokemon", "",
  ),
  (
    "erasediff", "sd14,task=unsafe,preset=reference",
    {"train": "u", "epochs": 5, "inner_passes": 2, "template": "{}"},
    4, "a photo of a pokemon", "",
  ),
  (
    "fmn", "sd14,task=style,name=Van Gogh",
    {"template": "a photo in the style of {}", "num_steps": 35,
     "learning_rate": 2e-6, "batch_size": 1},
    1, "art", "",
  ),
  (
    "resalign", "sd14,task=unsafe,preset=paper_code",
    {"preset": "paper_code", "drawn": 3, "terms": 5, "resilience": 0.8,
     "remain_weight": 1.6, "last_remain_weight": 2.0, "rank": 4, "cap": 0.2,
     "num_steps": 160, "learning_rate": 2e-4, "batch_size": 4},
    1, "", "",
  ),
  (
    "meta_unlearning", "sd14,task=unsafe",
    {"preset": "fixed", "wrapped": "esd",
     "related": ("woman", "a photo of a man"), "lanes": ("adam/1e-5/3/0",),
     "num_images": 30, "batch_size": 10, "num_steps": 100,
     "learning_rate": 1e-5, "clip_norm": 1.0},
    1, "", "",
  ),
  (
    "spm", "sd14,name=pikachu",
    {"rank": 1, "alpha": 1.0, "eta": 1.0, "anchor_weight": 1000.0,
     "anchors": 4, "num_inference_steps": 30, "num_steps": 3000,
     "learning_rate": 1e-4},
    1, "", "",
  ),
]  # fmt: skip


def config(method, argument):
  module = importlib.import_module(f"unlearning_jax.configs.erase_{method}")
  return module.get_config(argument)


def wanted(found):
  return erase.wanted(found.concepts, found.preserve)


@pytest.mark.parametrize(
  "method, argument, hparams, count, anchor, held", PUBLISHED
)
def test_published_settings(method, argument, hparams, count, anchor, held):
  found = config(method, argument)
  erasures.bind(method, found.hparams)
  assert {name: found.hparams[name] for name in hparams} == hparams
  assert len(found.concepts) == count
  assert (found.concepts[0]["anchor"], found.preserve) == (anchor, held)
  # Templates are asked for only where the task has some.
  phrase_pairs(
    wanted(found),
    expand=found.hparams.get("expand_prompts", False),
    template_anchors=True,
  )


def test_adversarial_training_retains_what_names_nothing_erased():
  held = wanted(config("advunlearn", "sd14,task=unsafe"))[0].preserve
  assert len(held) == 79
  dogless = wanted(config("advunlearn", "sd14,name=dog"))[0].preserve
  assert set(held) - set(dogless) == {
    "a photo of a dog",
    "a photo of a hot dog",
  }


def test_a_list_is_held_but_for_what_is_erased():
  found = wanted(config("uce", "sd14,task=style"))
  assert [c.erase for c in found] == list(CONCEPT_SETS["artists"])
  # All five are among the 1,734.
  assert len(found[0].preserve) == 1_729
  assert found[0].preserve == found[1].preserve
  one = config("uce", "sd14,task=style")
  one.preserve = "artists_1735"
  with pytest.raises(ValueError, match="did you mean 'artists_1734'"):
    wanted(one)


@pytest.mark.parametrize(
  "method, hparams",
  [
    # As measured: the release's own are for 768 dimensions.
    ("uce", {"preserve_scale": 1.0, "lamb": 0.5}),
    ("rece", {"uce_preserve_scale": 1.0, "rows": "joint"}),
    ("concept_ablation", {"anchor_loss_weight": 1.0, "expand_prompts": False}),
    ("sld", {"preset": "medium", "concept": ""}),
  ],
)
def test_what_the_shapes_model_needs(method, hparams):
  found = config(method, "tiny")
  assert {name: found.hparams[name] for name in hparams} == hparams


@pytest.mark.parametrize(
  "names, anchor",
  [
    ("star", "circle"),
    ("circle", "square"),
    # Half way to the first anchor a model still draws them.
    ("square", "ring"),
    ("cross", "star"),
    ("square+cross", "ring"),
    ("cross+star", "circle"),
    ("square+ring", "circle"),
  ],
)
def test_what_an_erased_object_means(names, anchor):
  for method in ("uce", "mace"):
    found = config(method, f"tiny,name={names}").concepts
    bare = [c["anchor"] for c in found if c["erase"] in names.split("+")]
    assert set(bare) == {anchor}


def test_guidance_has_room_for_names_alone():
  for method in ("sld", "negative_prompt"):
    found = config(method, "tiny,task=unsafe")
    assert [c["erase"] for c in found.concepts] == [
      "warning tape", "hazard stripes",
    ]  # fmt: skip
  published = config("sld", "sd14,task=i2p,preset=max")
  assert [c["erase"] for c in published.concepts] == [*CONCEPT_SETS["i2p"]]


def test_several_classes_of_the_shapes_world():
  found = config("uce", "tiny,task=identity,name=all")
  assert len(found.targets) == 20 and found.rows_per_group == 3
  assert {c["anchor"] for c in found.concepts} == {
    "a person", "a portrait of a person", "the face of a person",
    "this is a person",
  }  # fmt: skip
  two = config("mace", "tiny,name=star+circle")
  assert [c["erase"] for c in two.concepts] == ["star", "circle"]
  assert {c["anchor"] for c in two.concepts} == {"square"}
  assert len(two.targets) == 2 and two.rows_per_group == 25
  assert not any(
    "star" in phrase or "circle" in phrase
    for phrase in two.concepts[0]["preserve"]
  )


@pytest.mark.parametrize("task", extensions.world("shapes").tasks())
def test_mace_has_sentences_enough(task):
  found = config("mace", f"tiny,task={task}")
  (sentences,) = found.hparams.templates.values()
  assert len(set(sentences)) >= found.hparams.num_prompts >= 15


@pytest.mark.parametrize(
  "argument, message",
  [
    ("tiny,list=artists", "argument list: of full-size models only"),
    ("sd14,list=artists,name=x", "list and name: give one"),
    ("sd14,task=style,count=ten", "count='ten' is no whole number"),
    ("sd14,task=style,count=6", "count=6; allowed: 1 to 5"),
    ("sd14,list=artits", "did you mean 'artists'"),
  ],
)
def test_arguments_that_cannot_be(argument, message):
  with pytest.raises(ValueError, match=message):
    config("uce", argument)


def test_an_anchor_of_ones_own():
  for method in ("uce", "mace", "concept_ablation"):
    found = config(method, "sd14,name=A B,anchor=an A")
    assert found.concepts[0]["anchor"] == "an A"


@pytest.mark.parametrize(
  "text, phrases",
  [
    ("violence, nudity, harm", ["violence", "nudity", "harm"]),
    ("violence;nudity ; harm", ["violence", "nudity", "harm"]),
    ("violence+nudity, harm", ["violence", "nudity", "harm"]),
    ('"blood, guts + gore", harm', ["blood, guts + gore", "harm"]),
    ('"rock; roll"', ["rock; roll"]),
  ],
)
def test_phrases_are_parted_by_marks(text, phrases):
  for key in ("name", "anchor", "preserve"):
    # A key may stand behind them, and the size anywhere.
    argument = f"task=unsafe,{key}={text},preset=uce2023,sd14"
    if key == "anchor":
      argument = f"name={'+'.join('abc'[: len(phrases)])},{argument}"
    found = config("uce", argument)
    concepts = found.concepts
    said = {
      "name": [c["erase"] for c in concepts],
      "anchor": [c["anchor"] for c in concepts],
      "preserve": [*concepts[0]["preserve"]],
    }
    assert said[key] == phrases
    assert found.hparams.preset == "uce2023" and found.model != "shapes"


def test_classes_of_the_world_are_parted_by_the_same_marks():
  names = [t["name"] for t in config("uce", "tiny,name=star, ring").targets]
  assert names == ["star", "ring"]


def test_a_list_to_preserve_is_named_in_the_same_place():
  found = config("uce", "sd14,task=style,preserve=imagenette")
  assert (found.preserve, found.concepts[0]["preserve"]) == ("imagenette", ())
  # Phrases take the place of the published list.
  found = config("uce", "sd14,task=style,preserve=a+b")
  assert (found.preserve, found.concepts[0]["preserve"]) == ("", ("a", "b"))


@pytest.mark.parametrize(
  "method, argument, message",
  [
    ("uce", "sd14,name=a+b,anchor=c+d+e", "3 anchors for 2 concepts; give one"),
    ("uce", 'sd14,name="a', "a quote has no end"),
    ("time", "tiny,anchor=x", "argument anchor: of full-size models only"),
    ("concept_ablation", "sd14,preset=x", "instance, nudity, memorization"),
    ("concept_ablation", "tiny,preset=nudity", "preset: of full-size models"),
    ("concept_ablation", "sd14,name=A B", "anchor: missing for 'A B';"),
    ("concept_ablation", "sd14,task=i2p", "anchor: missing for 'hate' and"),
    (
      "concept_ablation",
      "sd14,task=unsafe,name=gore",
      "anchor: missing for 'gore'",
    ),
  ],
)
def test_presets_and_anchors_that_cannot_be(method, argument, message):
  with pytest.raises(ValueError, match=message):
    config(method, argument)


def test_a_config_may_tell_each_concepts_recipe():
  found = config("mace", "sd14,name=A B+bird")
  with found.ignore_type():
    found.hparams.recipe = {"A B": "identity"}
  h = erasures.bind("mace", found.hparams).h
  recipes = [h.recipe_of(concept) for concept in wanted(found)]
  assert recipes == [options.RECIPES["identity"], options.RECIPES["object"]]
