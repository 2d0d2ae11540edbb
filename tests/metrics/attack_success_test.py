"""Attack success on records with known answers."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax import (
  judges,
  sampling,
  shapes,
  stable_diffusion,
  statistics,
)
from unlearning_jax.attacks.engine.rows import Request
from unlearning_jax.metrics import attack_success
from unlearning_jax.shapes.prompts import Target


def record(name, status, blocks=0, survived=True, score=0.5):
  return {
    "id": name,
    "prompt": f"prompt {name}",
    "seed": 3,
    "status": status,
    "reason": "too long",
    "pre_success": status == "pre",
    "success": status in ("pre", "success"),
    "budget": 10,
    "images": 1 + blocks,
    "iterations": 40 * blocks,
    "pre_score": score,
    "blocks": [{"survived": survived, "score": score}] * blocks,
  }


ROWS = [
  record("a", "pre", score=0.95),
  record("b", "pre"),
  record("c", "success", 1, score=0.99),
  record("d", "success", 4, survived=False),
  record("e", "failure", 9, score=0.95),
  record("f", "failure", 9),
  record("g", "numerical", 2),
  record("h", "dropped"),
]


def test_every_rate_has_its_own_denominator():
  found = {m.name: m for m in attack_success.measure(ROWS)}
  counts = {name: (m.k, m.n) for name, m in found.items()}
  assert counts == {
    "pre_asr": (2, 8),
    "asr": (4, 8),
    "sure": (2, 8),
    "conditional": (2, 5),
    "asr@1": (2, 8),
    "asr@2": (3, 8),
    "asr@5": (4, 8),
    "asr@10": (4, 8),
    "survival": (21, 25),
  }
  asr = found["asr"]
  assert (asr.low, asr.high) == statistics.wilson(4, 8)
  assert asr.value == 0.5


def test_the_accounting_names_what_was_left_out():
  assert attack_success.accounting(ROWS) == {
    "n_all": 8,
    "n_pre": 2,
    "n_attacked": 5,
    "n_success": 2,
    "n_failure": 2,
    "n_unjudged": 0,
    "n_numerical": 1,
    "dropped": {"h": "too long"},
    "images": 8 + 25,
    "iterations": 40 * 25,
    "budget": 10,
  }


def test_nothing_but_dropped_rows_has_no_conditional_rate():
  names = {m.name for m in attack_success.measure([ROWS[-1]])}
  assert "asr" in names and not names & {"conditional", "survival"}
  with pytest.raises(ValueError, match="no rows"):
    list(attack_success.measure([]))


def test_the_control_is_compared_row_by_row():
  control = [
    record(r["id"], "failure" if r["status"] == "success" else r["status"], 9)
    for r in ROWS
  ]
  found = attack_success.against(ROWS, control)
  p = 2 * 0.5**2
  assert found == {
    "n": 8, "both": 2, "only_attack": 2, "only_control": 0, "p": p,
    "equal_budget": True,
  }  # fmt: skip
  assert attack_success.against(ROWS, ROWS)["p"] == 1
  short = attack_success.against(ROWS, [r | {"budget": 9} for r in ROWS])
  assert not short["equal_budget"]
  with pytest.raises(ValueError, match="not the same rows: h"):
    attack_success.against(ROWS, ROWS[:-1])


def test_requests_are_judged_in_their_own_order(monkeypatch):
  drawn = []

  def images(sd, params, requests, default, **options):
    drawn.append(([r.prompt for r in requests], default, options))
    for request in requests:
      yield np.full((1, 2, 2, 3), len(request.prompt), np.uint8)

  class Judge:
    labels = {"object": ("circle", "star")}

    def __call__(self, images):
      star = images[:, 0, 0, 0].astype(float) / 10
      return {"object": np.stack([1 - star, star], 1)}

  monkeypatch.setattr(attack_success, "_images", images)
  kept = []
  check = attack_success.shapes_check(
    None, {}, Judge(), Target("object", "star"), guidance_scale=4.0,
    num_steps=2, on_image=lambda *seen: kept.append(seen),
  )  # fmt: skip
  asked = [
    Request("12345678", 0, None),
    Request("12", 1, 1.0),
    Request("123456", 2, 7.0),
    Request("1234", 3, 4.0, np.zeros(2)),
  ]
  found = check(asked)
  assert [v.success for v in found] == [True, False, True, False]
  assert [v.score for v in found] == pytest.approx([0.8, 0.2, 0.6, 0.4])
  # Scales are mixed; unguided requests and text states are apart.
  options = {"num_steps": 2}
  assert drawn == [
    (["12345678", "123456"], 4.0, options), (["12"], 4.0, options),
    (["1234"], 4.0, options),
  ]  # fmt: skip
  assert len(kept) == 4 and math.isclose(kept[0][1].score, 0.8)


def test_rows_of_several_guidance_scales_are_one_batch(monkeypatch):
  """Each is the image that `generate` makes at its own scale alone."""
  sd, params = stable_diffusion.load(shapes.model_folder())
  options: dict[str, Any] = {
    "batch_size": 4,
    "num_steps": 2,
    "sampler": "dpm++2m",
    "negative_prompt": "a fish",
  }
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
        **options,
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
  check = attack_success.keep_images(
    sd, params, lambda r, _, image: found.setdefault(r.seed, image),
    guidance_scale=4.0, **options,
  )  # fmt: skip
  check(asked)
  assert [np.asarray(call).tolist() for call in calls] == [
    [7.0, 4.0, 2.5, 2.5], [1.0] * 4,
  ]  # fmt: skip
  for request, image in zip(asked, wanted, strict=True):
    np.testing.assert_array_equal(found[request.seed], image)
  # Without scales of its own a table keeps the one number.
  check([r._replace(guidance=None) for r in asked])
  assert calls[2:] == [4.0]


@pytest.mark.slow
def test_text_and_its_states_are_the_same_image():
  sd, params = stable_diffusion.load(shapes.model_folder())
  judge = judges.load("shapes")
  images = []
  check = attack_success.shapes_check(
    sd, params, judge, Target("object", "star"), guidance_scale=4.0,
    edit_context=lambda states: 0.5 * states, batch_size=2, num_steps=2,
    sampler="dpm++2m", noise_source="jax", place=jnp.asarray, fetch=np.asarray,
    on_image=lambda request, verdict, image: images.append(image),
  )  # fmt: skip
  ids = stable_diffusion.tokenize(sd, ["a star", "a fish"])
  states = 0.5 * np.asarray(stable_diffusion.encode_text(sd, params, ids))
  texts = [Request("a star", 3, None), Request("a fish", 4, None)]
  soft = [
    Request("", r.seed, None, s) for r, s in zip(texts, states, strict=True)
  ]
  found = check([texts[0], soft[0], soft[1], texts[1]])
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
  names = [attack_success.image_name(request) for request in asked]
  assert len(set(names)) == 6
  assert all(name.replace("-", "").isalnum() for name in names)


def test_curves_are_means_over_the_rows_that_got_there():
  rows = [
    {"blocks": [{"loss": 1.0, "text": "a"}, {"loss": 3.0, "text": "b"}]},
    {"blocks": [{"loss": 2.0, "text": "c"}]},
  ]
  assert attack_success.curves(rows) == {"loss": [1.5, 3.0]}
