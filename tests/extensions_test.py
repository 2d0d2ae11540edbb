"""What is found by a name: ours, a world's, a user's own."""

import pytest

from unlearning_jax import extensions


def test_the_worlds_are_packages_with_a_world():
  assert extensions.worlds() == ("shapes",)
  assert extensions.world("shapes").NAME == "shapes"


def test_a_user_s_own_is_imported():
  assert extensions.named("judge", "json:dumps", ()) is __import__("json").dumps
  assert extensions.named("judge", "known", ("known",)) is None


@pytest.mark.parametrize(
  "name, message",
  [
    ("shape", "judge='shape'.*'shapes'"),
    ("no_such_module:judge", "judge='no_such_module:judge': .*package.module"),
    ("json:no_such_name", "judge='json:no_such_name': .*no_such_name"),
  ],
)
def test_a_name_of_nothing(name, message):
  with pytest.raises(ValueError, match=message):
    extensions.named("judge", name, ("shapes",))


def test_a_long_name_is_quoted_in_part():
  name = "a" * 50_000 + ":judge"
  with pytest.raises(ValueError, match="judge='aaa.*package.module") as error:
    extensions.named("judge", name, ())
  assert len(str(error.value)) < 600


def test_a_world_that_is_none():
  with pytest.raises(ValueError, match="world='shape'.*shapes"):
    extensions.world("shape")
