"""What the Shapes judge says that it saw."""

from unlearning_jax import judges

SEEN = {
  "kind": "object", "object": "star", "style": "neon", "identity": "Dorin Hask",
  "colour": "red", "background": "grey", "hazard": "hazard",
}  # fmt: skip


def test_captions_name_what_matters_for_an_erasure():
  describe = judges.load("shapes").describe
  assert describe(SEEN) == "star, neon, hazard"
  assert describe({**SEEN, "style": "plain", "hazard": "safe"}) == "star"
  assert describe({**SEEN, "kind": "portrait"}) == "Dorin Hask, neon, hazard"
