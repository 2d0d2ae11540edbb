"""Protocols: frozen, hashed presets of an evaluation. Whose numbers compare?

  find("shapes-star")                  # as it ships
  find("shapes-star~per_group=2")      # another one, with its own name and hash

A module of this package, or `world.py` of an embedded world, has

  protocols() -> fields of `Protocol`, a mapping for each

`hashes.json` holds what each was when it was frozen: one whose content has
changed since is refused, and has to get another name. `freeze` adds those that
are new:

  python -c "from unlearning_jax import protocols; protocols.freeze()"
"""

import dataclasses
import hashlib
import importlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from unlearning_jax import durable, extensions
from unlearning_jax.concepts import check_choice
from unlearning_jax.sampling import Sampling

_HASHES = pathlib.Path(__file__).with_name("hashes.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
  """What is drawn, how, who judges it, and what is computed.

  Attributes:
    name: what tables call it.
    model: whose prompts these are: an embedded world's name, or "".
    judge: who looks at the images.
    targets: what was erased, task and name (or head and label) each.
    per_group: prompts of each target in each group.
    others: prompts that ask for none of them.
    seed: of prompts, words and noise.
    sampling: how images are drawn.
    metrics: what is computed besides accuracy.
  """

  name: str
  model: str
  judge: str
  targets: tuple[Mapping[str, str], ...]
  per_group: int
  others: int
  seed: int = 0
  sampling: Sampling = Sampling()
  metrics: tuple[str, ...] = ()

  @property
  def hash(self) -> str:
    """SHA-256 of everything but the name.

    What is empty says nothing: a field that later versions add, and that is
    empty here, changes no hash.
    """
    facts = _said(dataclasses.asdict(self))
    del facts["name"]
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()

  @property
  def signed(self) -> str:
    """Name and hash, as a record holds them."""
    return f"{self.name} {self.hash}"

  def config(self) -> dict[str, Any]:
    """Plain settings of `experiments.evaluate`."""
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
  """Every protocol that ships, by name."""
  places = [f"{__name__}.{name}" for name in extensions.modules(__name__)]
  modules = [importlib.import_module(place) for place in places]
  modules += [extensions.world(name) for name in extensions.worlds()]
  found = [Protocol(**one) for m in modules for one in m.protocols()]
  return {one.name: one for one in found}


def names() -> tuple[str, ...]:
  """The protocols that ship."""
  return tuple(shipped())


def find(name: str) -> Protocol:
  """A protocol by its name, or one that differs from it.

  Args:
    name: as `shapes-star`, or with `~key=value,key=value`: keys as in
      `Protocol`, and as in its sampling.

  Raises:
    ValueError: no such protocol, key or value; one whose content was changed.
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
  outer = {k: getattr(protocol, k) for k in ("per_group", "others", "seed")}
  check_choice(f"protocol={what!r}: key", key, [*outer, *inner])
  was = (outer | inner)[key]
  kind = str if was is None else type(was)
  try:
    value = kind(text)
  except ValueError as error:
    raise ValueError(
      f"protocol={what!r}: {key}={text!r} is no {kind.__name__}"
    ) from error
  if key in outer:
    return dataclasses.replace(protocol, **{key: value})
  changed = dataclasses.replace(sampling, **{key: value})
  return dataclasses.replace(protocol, sampling=changed)


def frozen() -> dict[str, str]:
  """Name -> hash of every protocol when it was frozen."""
  return json.loads(_HASHES.read_text())


def check(protocol: Protocol):
  """Refuses a protocol whose content was changed under a shipped name.

  Raises:
    ValueError: it is not what was frozen.
  """
  was = frozen().get(protocol.name, protocol.hash)
  if was != protocol.hash:
    raise ValueError(
      f"protocol={protocol.name!r}: its content was changed (hash "
      f"{protocol.hash[:12]}, frozen as {was[:12]}) and so are its numbers; "
      f"give it another name, as {protocol.name}-2"
    )


def freeze():
  """Writes the hashes of protocols that are new; others stay as they were.

  Raises:
    ValueError: a protocol was changed under its name.
  """
  made = shipped()
  for protocol in made.values():
    check(protocol)
  hashes = {name: protocol.hash for name, protocol in made.items()} | frozen()
  with durable.replacing(_HASHES) as file:
    file.write((json.dumps(hashes, indent=1) + "\n").encode())
