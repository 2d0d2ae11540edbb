"""Protocols: frozen, hashed presets of an evaluation.

Numbers of two models compare if their protocols have the same name and hash.

  find("shapes-star")                   # as it ships
  find("shapes-star~rows_per_group=2")  # another one: own name, own hash

A module of this package, or `world.py` of an embedded world, has

  protocols() -> a mapping with the fields of `Protocol` for each

`hashes.json` holds the hash that each protocol had when it was frozen. One with
another content is refused until it has another name. `freeze` adds the hashes
of new protocols:

  python -c "from unlearning_jax import protocols; protocols.freeze()"
"""

import dataclasses
import hashlib
import importlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from unlearning_jax import durable, extensions, renamed
from unlearning_jax.concepts import check_choice
from unlearning_jax.sampling import Sampling

_HASHES = pathlib.Path(__file__).with_name("hashes.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
  """What an evaluation draws, how, which judge looks, and what is computed.

  Attributes:
    name: its name in tables and in hashes.json.
    model: the embedded world whose prompts these are, or "".
    judge: the judge's name.
    targets: what was erased, each with `task` and `name`, or `head` and
      `label`.
    rows_per_group: prompts of each target in each group.
    other_rows: prompts that ask for none of the targets.
    seed: draws prompts, words and noise.
    sampling: how images are drawn.
    metrics: names of metrics besides accuracy.
  """

  name: str
  model: str
  judge: str
  targets: tuple[Mapping[str, str], ...]
  rows_per_group: int
  other_rows: int
  seed: int = 0
  sampling: Sampling = Sampling()
  metrics: tuple[str, ...] = ()

  @property
  def hash(self) -> str:
    """SHA-256 of all fields but the name.

    Empty fields are left out, so that a field of a later version changes no
    hash as long as it is empty.
    """
    # By the names that fields had when the first were frozen: a protocol is
    # what it was, however its settings are called.
    facts = renamed.before(_said(dataclasses.asdict(self)), ("", "sampling"))
    del facts["name"]
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()

  @property
  def signed(self) -> str:
    """Name and hash, as records hold them."""
    return f"{self.name} {self.hash}"

  def config(self) -> dict[str, Any]:
    """Settings of `experiments.evaluate`, as plain values."""
    facts = dataclasses.asdict(self)
    name = facts.pop("name")
    said = ", ".join(t.get("name", t.get("label", "")) for t in self.targets)
    title = f"{said}: before and after" if said else name
    return facts | {"title": title, "protocol": self.signed}


def _said(facts: Mapping[str, Any]) -> dict[str, Any]:
  return {
    key: _said(value) if isinstance(value, Mapping) else value
    for key, value in facts.items()
    if value not in (None, "", ())
  }


def shipped() -> dict[str, Protocol]:
  """All shipped protocols by name."""
  places = [f"{__name__}.{name}" for name in extensions.modules(__name__)]
  modules = [importlib.import_module(place) for place in places]
  modules += [extensions.world(name) for name in extensions.worlds()]
  found = [Protocol(**one) for m in modules for one in m.protocols()]
  return {one.name: one for one in found}


def names() -> tuple[str, ...]:
  """The names of the shipped protocols."""
  return tuple(shipped())


def find(name: str) -> Protocol:
  """A protocol by its name, or a changed copy of it.

  Args:
    name: as `shapes-star`, or `shapes-star~key=value,key=value` with fields of
      `Protocol` and of its sampling.

  Raises:
    ValueError: an unknown protocol, key or value, or a protocol whose content
      is not what was frozen.
  """
  base, tilde, text = str(name).partition("~")
  known = shipped()
  check_choice("protocol", base, known)
  protocol = known[base]
  check(protocol)
  if not tilde:
    return protocol
  pairs = [part.partition("=")[::2] for part in sorted(text.split(","))]
  for key, value in pairs:
    protocol = _changed(protocol, key, value, name)
  called = ",".join(f"{key}={value}" for key, value in pairs)
  return dataclasses.replace(protocol, name=f"{base}~{called}")


def _changed(protocol: Protocol, key: str, text: str, what: str) -> Protocol:
  sampling = protocol.sampling
  inner = {
    f.name: getattr(sampling, f.name) for f in dataclasses.fields(sampling)
  }
  outer = {
    k: getattr(protocol, k) for k in (("rows_per_group", "other_rows", "seed"))
  }
  check_choice(f"protocol={what!r}: key", key, [*outer, *inner])
  was = (outer | inner)[key]
  kind = str if was is None else type(was)
  try:
    value = kind(text)
  except ValueError as error:
    raise ValueError(
      f"protocol={what!r}: {key}={text!r}; allowed: a value of type "
      f"{kind.__name__}"
    ) from error
  if key in outer:
    return dataclasses.replace(protocol, **{key: value})
  changed = dataclasses.replace(sampling, **{key: value})
  return dataclasses.replace(protocol, sampling=changed)


def frozen() -> dict[str, str]:
  """The hash of each protocol when it was frozen, by name."""
  return json.loads(_HASHES.read_text())


def check(protocol: Protocol):
  """Checks that a protocol's content is what was frozen under its name.

  Raises:
    ValueError: it is not.
  """
  was = frozen().get(protocol.name, protocol.hash)
  if was != protocol.hash:
    raise ValueError(
      f"protocol={protocol.name!r}: its content was changed (hash "
      f"{protocol.hash[:12]}, frozen as {was[:12]}), so its numbers would not "
      f"compare; give it another name, as {protocol.name}-2"
    )


def freeze():
  """Adds the hashes of new protocols to hashes.json; changes no other.

  Raises:
    ValueError: a protocol's content was changed under its name.
  """
  made = shipped()
  for protocol in made.values():
    check(protocol)
  hashes = {name: protocol.hash for name, protocol in made.items()} | frozen()
  with durable.replacing(_HASHES) as file:
    file.write((json.dumps(hashes, indent=1) + "\n").encode())
