"""Images of requests: in their order, judged by any judge, kept by name."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax import judges, sampling, shapes, stable_diffusion
from unlearning_jax.attacks import Victim
from unlearning_jax.experiments.attack import check
from unlearning_jax.judges import Judge, Target
from unlearning_jax.sampling import Request, Sampling

HOW = Sampling(num_inference_steps=2, guidance_scale=4.0, sampler="dpm++2m")
STAR = Target("object", "star")


def test_requests_are_judged_in_their_own_order(monkeypatch):
  drawn = []

  def draw(sd, params, requests, how, **options):
    drawn.append([r.prompt for r in requests])
    assert how == HOW and options["batch_size"] == 3
    for request in requests:
      yield np.full((1, 2, 2, 3), len(request.prompt), np.uint8)

  def score(images):
    star = images[:, 0, 0, 0].astype(float) / 10
    return {"object": np.stack([1 - star, star], 1)}

  monkeypatch.setattr(sampling, "draw", draw)
  judge, kept = Judge("j", score, {"object": ("circle", "star")}), []
  asked = [
    Request("12345678", 0, None),
    Request("12", 1, 1.0),
    Request("123456", 2, 7.0),
    Request("1234", 3, 4.0, np.zeros(2)),
  ]
  ask = check.drawn(
    stable_diffusion.load(shapes.model_folder())[0], Victim({}), HOW,
    lambda *seen: kept.append(seen), judge, STAR, batch_size=3,
  )  # fmt: skip
  found = ask(asked)
  assert [v.success for v in found] == [True, False, True, False]
  assert [v.score for v in found] == pytest.approx([0.8, 0.2, 0.6, 0.4])
  # Scales are mixed; unguided requests and text states are apart.
  assert drawn == [["12345678", "123456"], ["12"], ["1234"]]
  assert len(kept) == 4 and kept[0][1].score == pytest.approx(0.8)
  # What shows it may be a matter of a threshold: the judge's own decision.
  strict = dataclasses.replace(judge, thresholds={"star": 0.7})
  ask = check.drawn(
    stable_diffusion.load(shapes.model_folder())[0], Victim({}), HOW, None,
    strict, STAR, batch_size=3,
  )  # fmt: skip
  assert [v.success for v in ask(asked)] == [True, False, False, False]


def test_rows_of_several_guidance_scales_are_one_batch(monkeypatch):
  """Each is the image that `generate` makes at its own scale alone."""
  sd, params = stable_diffusion.load(shapes.model_folder())
  asked = [
    Request("a star", 3, 7.0),
    Request("a red star", 4, None),
    Request("a circle", 5, 2.5),
    Request("a star", 6, 1.0),
  ]
  wanted = [
    next(
      sampling.generate(
        sd, params, [r.prompt], [r.seed], guidance_scale=r.guidance or 4.0,
        batch_size=4, num_inference_steps=2, sampler="dpm++2m",
        negative_prompt="a fish",
      )
    )[0]
    for r in asked
  ]  # fmt: skip
  calls, sample = [], stable_diffusion.sample
  monkeypatch.setattr(
    stable_diffusion,
    "sample",
    lambda *a, **k: calls.append(k["guidance_scale"]) or sample(*a, **k),
  )
  found = {}
  ask = check.drawn(
    sd, Victim(params, negative_prompt="a fish"), HOW,
    lambda r, _, image: found.setdefault(r.seed, image), batch_size=4,
  )  # fmt: skip
  assert [v.success for v in ask(asked)] == [None] * 4
  assert [np.asarray(call).tolist() for call in calls] == [
    [7.0, 4.0, 2.5, 2.5], [1.0] * 4,
  ]  # fmt: skip
  for request, image in zip(asked, wanted, strict=True):
    np.testing.assert_array_equal(found[request.seed], image)
  # Without scales of its own a table keeps the one number.
  ask([r._replace(guidance=None) for r in asked])
  assert calls[2:] == [4.0]


@pytest.mark.slow
def test_text_and_its_states_are_the_same_image():
  sd, params = stable_diffusion.load(shapes.model_folder())
  images = []
  ask = check.drawn(
    sd, Victim(params, lambda states: 0.5 * states), HOW,
    lambda request, verdict, image: images.append(image),
    judges.load("shapes"), STAR, batch_size=2, place=jnp.asarray,
    fetch=np.asarray,
  )  # fmt: skip
  ids = stable_diffusion.tokenize(sd, ["a star", "a fish"])
  states = 0.5 * np.asarray(stable_diffusion.encode_text(sd, params, ids))
  texts = [Request("a star", 3, None), Request("a fish", 4, None)]
  soft = [
    Request("", r.seed, None, s) for r, s in zip(texts, states, strict=True)
  ]
  found = ask([texts[0], soft[0], soft[1], texts[1]])
  np.testing.assert_allclose(found[0].score, found[1].score, rtol=1e-3)
  np.testing.assert_allclose(found[3].score, found[2].score, rtol=1e-3)
  star, fish, soft_star, soft_fish = (i.astype(int) for i in images)
  assert abs(star - soft_star).max() <= 1 and abs(fish - soft_fish).max() <= 1
  assert abs(star - fish).max() > 20


def test_images_have_names_of_their_own():
  asked = [Request("a/../b", 0, None), Request("a", 0, None)]
  asked += [Request("a", 0, 2.0), Request("a", 1, None)]
  asked += [
    Request("a", 0, None, np.zeros(2)),
    Request("a", 0, None, np.ones(2)),
  ]
  names = [check.image_name(request) for request in asked]
  assert len(set(names)) == 6
  assert all(name.replace("-", "").isalnum() for name in names)
