"""What every protocol promises: its name says all that its numbers rest on."""

import dataclasses

import pytest
from unlearning_jax.configs import evaluate_shapes

from unlearning_jax import extensions, protocols
from unlearning_jax.experiments import drawing, evaluate
from unlearning_jax.settings import build

STAR = "04b89520a6399c41d7b9bb6fa26657eafb00f172a5f0c7a3924ce8faa6082b31"


@pytest.mark.parametrize("name", protocols.names())
def test_a_shipped_protocol_is_what_was_frozen(name):
  protocol = protocols.find(name)
  assert protocols.frozen()[name] == protocol.hash
  settings = build(evaluate.Settings, protocol.config())
  assert settings.protocol == protocol.signed
  with pytest.raises(dataclasses.FrozenInstanceError):
    protocol.other_rows = 1  # pyright: ignore
  for field, value in {
    "other_rows": 7,
    "seed": 1,
    "judge": "",
    "model": "",
  }.items():
    other = dataclasses.replace(protocol, **{field: value})
    assert other.hash != protocol.hash
    with pytest.raises(ValueError, match=f"{name}.*content was changed"):
      protocols.check(other)


def test_every_class_of_the_world_has_one():
  concepts = extensions.world("shapes").concepts()
  assert len(protocols.names()) == sum(map(len, concepts.values()))
  assert protocols.find("shapes-quill-estane").targets == (
    {"task": "identity", "name": "Quill Estane"},
  )


def test_a_hash_never_moves():
  assert protocols.find("shapes-star").hash == STAR
  assert set(protocols.frozen()) == set(protocols.names())


def test_a_change_is_another_protocol():
  base = protocols.find("shapes-star")
  small = protocols.find("shapes-star~rows_per_group=2,num_inference_steps=3")
  assert small.name == "shapes-star~num_inference_steps=3,rows_per_group=2"
  assert (small.rows_per_group, small.sampling.num_inference_steps) == (2, 3)
  assert small.hash != base.hash and small.other_rows == base.other_rows
  # The order of changes is nobody's.
  assert (
    protocols.find("shapes-star~num_inference_steps=3,rows_per_group=2")
    == small
  )


@pytest.mark.parametrize(
  "name, message",
  [
    ("shapes-strar", "protocol='shapes-strar' is not known.*'shapes-star'"),
    ("shapes-star~pergroup=2", "key='pergroup'.*did you mean 'rows_per_group'"),
    ("shapes-star~rows_per_group=two", "rows_per_group='two'; allowed: a"),
    ("shapes-star~sampler=fast", "sampling.sampler='fast' is not known"),
  ],
)
def test_a_wrong_name_is_refused(name, message):
  with pytest.raises(ValueError, match=message):
    protocols.find(name)


@pytest.mark.parametrize("task", extensions.world("shapes").tasks())
def test_its_rows_are_those_of_the_config(task):
  name = extensions.world("shapes").default(task)
  given = evaluate_shapes.get_config(f"tiny,task={task},name={name}").to_dict()
  ours = protocols.find(f"shapes-{name.lower().replace(' ', '-')}").config()
  theirs, mine = (build(evaluate.Settings, one) for one in (given, ours))
  assert drawing.rows(mine) == drawing.rows(theirs)
  assert mine == dataclasses.replace(theirs, protocol=mine.protocol)
