"""The settings of a sweep's cells, from a config or a protocol."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from unlearning_jax.experiments import evaluate
from unlearning_jax.experiments.sweep import Base, of_config

# What a config calls the options that a grid names otherwise.
_CALLED = {"concept": "name"}
_OF_EVALUATION = ("protocol", "prompts", "model")
_OF_AUDIT = (*_OF_EVALUATION, "preset", "data")


def of_flags(
  values: flags.FlagValues, verb: str, protocol: str | None
) -> tuple[str, Base]:
  """The verb of a command line, and the settings of its cells.

  Args:
    values: the parsed flags, with `--config` and its changes.
    verb: what `--verb` says; "" finds it from the config.
    protocol: what `--protocol` says.

  Raises:
    ValueError: the flags name no verb, or no settings of it.
  """
  if values["distributed"].value or values["coordinator"].value:
    raise ValueError(
      "--distributed, --coordinator: workers of a sweep share its folder and "
      "do not join; start the command without the flag, as often as you like"
    )
  flag = values["config"]
  if flag.value is None:
    if not verb:
      raise ValueError("--verb: name it, where there is no --config")
    return verb, base(verb, protocol=protocol or "")
  verb = verb or of_config(flag.value.to_dict())
  text, changes = flag.config_filename, flag.override_values
  parse = flag.parser.parse
  return verb, base(verb, text, parse, protocol=protocol or "", changes=changes)


def base(
  verb: str,
  text: str = "",
  parse: Callable[[str], Any] | None = None,
  *,
  protocol: str = "",
  changes: Mapping[str, Any] | None = None,
) -> Base:
  """Where the settings of a sweep's cells come from.

  Args:
    verb: what each cell runs.
    text: a config with its options, as `erase_rece:tiny,task=style`; "" for
      none.
    parse: makes the config of such a text; None finds those that ship.
    protocol: the protocol of an evaluation or audit; "" for none.
    changes: dotted key -> value, for every config.
  """

  def config(options: Mapping[str, Any]) -> Any:
    found = (parse or _shipped)(_text(verb, text, options))
    for key, value in (changes or {}).items():
      *above, last = key.split(".")
      inner = found
      for name in above:
        inner = inner[name]
      inner[last] = value
    return found

  def made(options: Mapping[str, Any]) -> dict[str, Any]:
    named = {"protocol": protocol} if protocol else {}
    own = _OF_AUDIT if verb == "audit" else _OF_EVALUATION
    named |= {key: options[key] for key in own if key in options}
    rest = {k: v for k, v in options.items() if k not in own}
    if verb == "audit":
      if rest and not text:
        _refuse(rest, _OF_AUDIT)
      if "protocol" not in named:
        raise ValueError("--protocol: an audit needs one, as shapes-star")
      module = importlib.import_module("unlearning_jax.configs.audit")
      return module.values(**named, erase=config(rest) if text else None)
    if verb == "evaluate" and "protocol" in named:
      if rest:
        _refuse(rest, _OF_EVALUATION)
      if text:
        raise ValueError("--config, --protocol: give one of them")
      return evaluate.config(None, **named)
    if not text:
      raise ValueError(f"--config: {verb} needs one")
    return config(options).to_dict()

  return Base(made, frozenset(_options(verb, text)))


def _options(verb: str, text: str) -> tuple[str, ...]:
  """The options of a grid that may have the name of a setting."""
  if verb == "audit":
    return (*_OF_AUDIT, "concept") if text else _OF_AUDIT
  if verb == "evaluate":
    return ("protocol",) if text else _OF_EVALUATION
  name = text.partition(":")[0].rpartition("/")[2]
  has_methods = verb in ("erase", "attack") and name.startswith(f"{verb}_")
  return ("method",) if has_methods else ()


def _refuse(options: Mapping[str, Any], known: tuple[str, ...]):
  name = next(iter(options))
  raise ValueError(
    f"{name} is no setting and no option; options: {', '.join(known)}"
  )


def _text(verb: str, text: str, options: Mapping[str, Any]) -> str:
  """The text of a config with the options of a cell added."""
  name, _, argument = text.partition(":")
  parts = [argument] if argument else []
  for key, value in options.items():
    if key == "method":
      name = f"{verb}_{value}"
    else:
      parts.append(f"{_CALLED.get(key, key)}={value}")
  return f"{name}:{','.join(parts)}" if parts else name


def _shipped(text: str) -> Any:
  """The shipped config of `name:options`.

  Raises:
    ValueError: there is no such config.
  """
  name, colon, argument = text.partition(":")
  try:
    module = importlib.import_module(f"unlearning_jax.configs.{name}")
    make = module.get_config
  except (ImportError, AttributeError) as error:
    raise ValueError(
      f"config={name!r}: ships no config of that name; unlearning-jax --help "
      "says how they are named, as erase_rece:tiny"
    ) from error
  return make(argument) if colon else make()
