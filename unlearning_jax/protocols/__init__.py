"""Protocols: frozen, hashed presets of an evaluation.

Numbers of two models compare if their protocols have the same name and hash.

  find("shapes-star")                   # as it ships
  find("shapes-star~rows_per_group=2")  # another one: own name, own hash
  find("udm-object/tench")              # of several subjects, one
  find("udm-nudity").bound("my.csv")    # with the user's own table of prompts

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
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from unlearning_jax import durable, extensions, prompt_tables, renamed
from unlearning_jax.concepts import check_choice
from unlearning_jax.protocols._prompts import Prompts as Prompts
from unlearning_jax.sampling import Sampling

# Other words for fields of `Sampling` in a change.
_SHORT = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
# What a change may name: of a world's protocol, of a published one, and of its
# prompts.
_OF_WORLD = ("rows_per_group", "other_rows", "seed")
_OF_PUBLISHED = ("judge", "dtype")
_LISTED = ("rows", "images", "sizes")
_CHANGES = (*_OF_PUBLISHED, *_LISTED, *_SHORT, *_OF_WORLD, "prompts", "target")
_CHANGES += tuple(f.name for f in dataclasses.fields(Sampling))
# Fields that a world's protocols do not have.
_PUBLISHED = ("prompts", "tables", "subjects", "subject", "columns")
_PUBLISHED += ("denominator", "dtype", "rules")
# The base of all of them, where the user names no other.
BASE = "CompVis/stable-diffusion-v1-4"
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
    metrics: names of metrics besides accuracy; `reference=` at an end is
      filled with the user's photographs, and `{rows}` with the pictures drawn.
    prompts: where prompts come from that are no world's.
    tables: the published tables of prompts: file, source, rows, sha256 and
      perhaps the `subject` that they belong to.
    subjects: what may have been erased, each with `name`, `head`, `label`.
    subject: the one that was, or the name of one of several tables.
    columns: numbers of the published table, see `experiments.columns`.
    denominator: what rates are shares of.
    dtype: the type that networks compute in; "" for the run's own.
    rules: the limits of an audit's verdicts, see `metrics.verdicts.rules`; ""
      for the first.
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
  prompts: Prompts | None = None
  tables: tuple[Mapping[str, Any], ...] = ()
  subjects: tuple[Mapping[str, str], ...] = ()
  subject: str = ""
  columns: tuple[str, ...] = ()
  denominator: str = ""
  dtype: str = ""
  rules: str = ""

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
    # Where a table lies changes nothing.
    facts.get("prompts", {}).pop("path", None)
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()

  @property
  def signed(self) -> str:
    """Name and hash, as records hold them."""
    return f"{self.name} {self.hash}"

  def config(self) -> dict[str, Any]:
    """Settings of `experiments.evaluate`, as plain values."""
    if self.prompts is not None:
      return self._published()
    facts = dataclasses.asdict(self)
    name = facts.pop("name")
    for key in _PUBLISHED:
      del facts[key]
    said = ", ".join(t.get("name", t.get("label", "")) for t in self.targets)
    title = f"{said}: before and after" if said else name
    return facts | {"title": title, "protocol": self.signed}

  def _published(self) -> dict[str, Any]:
    keys = ("targets", "seed", "sampling", "metrics", "columns")
    facts = {key: dataclasses.asdict(self)[key] for key in keys}
    rows = str(self._drawn())
    facts["metrics"] = tuple(m.replace("{rows}", rows) for m in self.metrics)
    if self.dtype:
      facts["dtype"] = self.dtype
    return facts | {
      "model": BASE,
      "judge": self.judge or None,
      "published": dataclasses.asdict(self.prompts),  # pyright: ignore
      "title": self.name,
      "protocol": self.signed,
      "batch_size": 4,
    }

  def _drawn(self) -> int:
    """How many pictures of the table are drawn; 0 where no table is known."""
    assert self.prompts is not None
    table = self.prompts.table
    own = (t for t in self.tables if t.get("subject", "") == self.subject)
    known = next(own, {"rows": 0})["rows"]
    count = len(table.prompts) if table else known
    return min(self.prompts.rows or count, count) * self.prompts.images

  def of(self, subject: str) -> "Protocol":
    """The protocol of one subject.

    Raises:
      ValueError: it has no such subject; the message names the nearest.
    """
    known = {one["name"]: one for one in self.subjects}
    tables = {t["subject"]: t for t in self.tables if "subject" in t}
    check_choice(
      f"protocol={self.name}/...: subject", subject, {**known, **tables}
    )
    base, tilde, changes = self.name.partition("~")
    found = dataclasses.replace(
      self, subject=subject, name=f"{base}/{subject}{tilde}{changes}"
    )
    if subject in known:
      target = {key: known[subject][key] for key in ("head", "label")}
      found = dataclasses.replace(found, targets=(target,))
    return found

  def bound(self, path: str | os.PathLike[str] = "") -> "Protocol":
    """The protocol with the user's own table of prompts.

    A published table is known by its content. With another one this is another
    protocol, whose name holds the table's hash.

    Args:
      path: the table; "" for a protocol that makes its own prompts.

    Raises:
      ValueError: the table is missing, or not wanted, or cannot be read; or
        nothing says which of the protocol's subjects was erased.
    """
    path, found = os.fspath(path), self
    if self.prompts is None or self.prompts.template:
      if path:
        raise ValueError(
          f"--prompts={path}: protocol {self.name} makes its own prompts; "
          "leave the flag out"
        )
    elif not path:
      files = [f"{t['file']} of {t['source']}" for t in self.tables]
      raise ValueError(
        f"protocol {self.name}: give its table of prompts, --prompts=FILE.csv"
        + (f": {'; or '.join(files)}" if files else "")
      )
    else:
      found = self._with_table(path)
    if found.subjects and not found.subject:
      names = [
        f"{found.name.partition('~')[0]}/{s['name']}" for s in self.subjects
      ]
      raise ValueError(
        f"protocol {found.name} does not say what was erased; name it: "
        f"{', '.join(names[:12])}{', ...' * (len(names) > 12)}"
      )
    return found

  def _with_table(self, path: str) -> "Protocol":
    assert self.prompts is not None
    digest = prompt_tables.read(path).sha256(self.prompts.columns)
    prompts = dataclasses.replace(self.prompts, path=path)
    same = [one for one in self.tables if one["sha256"] == digest]
    subjects = {one.get("subject", "") for one in same}
    if same and self.subject in ("", *subjects):
      found = dataclasses.replace(self, prompts=prompts)
      own = next(iter(subjects))
      return found.of(own) if own and not self.subject else found
    prompts = dataclasses.replace(prompts, sha256=digest)
    name = _renamed(self.name, {"prompts": digest[:12]})
    return dataclasses.replace(self, prompts=prompts, name=name)


def _said(facts: Mapping[str, Any]) -> dict[str, Any]:
  plain = {
    key: _said(value) if isinstance(value, Mapping) else value
    for key, value in facts.items()
  }
  return {k: v for k, v in plain.items() if v not in (None, "", (), {})}


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
  whole, tilde, text = str(name).partition("~")
  base, slash, subject = whole.partition("/")
  known = shipped()
  check_choice("protocol", base, known)
  protocol = known[base]
  check(protocol)
  if slash:
    protocol = protocol.of(subject)
  if not tilde:
    return protocol
  pairs = _pairs(text)
  for key, value in pairs.items():
    protocol = _changed(protocol, key, value, name)
  return dataclasses.replace(protocol, name=_renamed(whole, pairs))


def _pairs(text: str) -> dict[str, str]:
  """The changes in a name; a judge's own options hold commas too."""
  found: dict[str, str] = {}
  last = ""
  for part in text.split(","):
    key, _, value = part.partition("=")
    if last == "judge" and "~" in found[last] and key not in _CHANGES:
      found[last] += f",{part}"
      continue
    found[key], last = value, key
  return found


def _renamed(name: str, changes: Mapping[str, str]) -> str:
  """A protocol's name with more changes in it, in alphabetical order."""
  base, _, text = name.partition("~")
  pairs = (_pairs(text) if text else {}) | dict(changes)
  return f"{base}~{','.join(f'{k}={pairs[k]}' for k in sorted(pairs))}"


def _changed(protocol: Protocol, key: str, text: str, what: str) -> Protocol:
  sampling, prompts = protocol.sampling, protocol.prompts
  inner = {
    f.name: getattr(sampling, f.name) for f in dataclasses.fields(sampling)
  }
  own = _OF_WORLD if prompts is None else _OF_PUBLISHED
  outer = {k: getattr(protocol, k) for k in own}
  if prompts is not None and key == "target":
    head, slash, label = text.partition("/")
    if not (head and slash and label):
      raise ValueError(f"protocol={what!r}: target={text!r}: want head/label")
    target = {"head": head, "label": label}
    return dataclasses.replace(protocol, targets=(target,))
  listed = {} if prompts is None else {k: getattr(prompts, k) for k in _LISTED}
  given, key, more = key, _SHORT.get(key, key), ["target"] * bool(listed)
  check_choice(
    f"protocol={what!r}: key", key, [*outer, *listed, *inner, *_SHORT, *more]
  )
  was = (outer | listed | inner)[key]
  kind = str if was is None else type(was)
  try:
    value = kind(text)
  except ValueError as error:
    raise ValueError(
      f"protocol={what!r}: {given}={text!r}; allowed: a value of type "
      f"{kind.__name__}"
    ) from error
  if prompts is not None and key in listed:
    changed = dataclasses.replace(prompts, **{key: value})
    return dataclasses.replace(protocol, prompts=changed)
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
