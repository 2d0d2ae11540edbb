"""A model that acts by guidance, as one verb knows it from another."""

from unlearning_jax import guidance
from unlearning_jax import model as models
from unlearning_jax.experiments import attack, published
from unlearning_jax.experiments.attack import victims
from unlearning_jax.settings import build


def test_a_guided_victim_is_known_however_it_was_named(tmp_path):
  """By the folder of its run, from Python, and by the attack's own settings."""
  base, path = models.load("shapes"), tmp_path / "mine.csv"
  path.write_text(
    "case_number,prompt,evaluation_seed,evaluation_guidance\n3,a star,5,2\n"
  )
  plain = {"method": "controls", "hparams": {"kind": "none"}}
  plain |= {"prompt_table": str(path)}
  given = build(attack.Settings, plain)
  own = plain | {"guidance": {"negative_prompt": "tape"}}
  made = guidance.Guidance("tape", method="negative_prompt")
  guidance.save(made, tmp_path / "guidance.json")
  guided = base.with_guidance(made)
  bound = victims.bind(given)
  found = {
    victims.setup(given, bound, edit=str(tmp_path)).name,
    victims.setup(given, bound, guided).name,
    victims.setup(build(attack.Settings, own), bound).name,
  }
  assert found == published._victims(guided) and len(found) == 2
  assert not found & published._victims(base)
