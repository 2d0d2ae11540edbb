"""Parts that launch scripts share: common flags, configs by name, the start.

_CONFIG = flags.config()
_WORKDIR = flags.workdir()

def main(_):
  ...

if __name__ == "__main__":
  flags.run(main, listed)
"""

import atexit
import dataclasses
import importlib
import importlib.util
import logging as std_logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from absl import app, flags, logging
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from . import checks, errors

T = TypeVar("T")
# --help shows a flag below the script that asks for it.
flags.disclaim_key_flags()


def config(
  values: flags.FlagValues = flags.FLAGS,
) -> flags.FlagHolder[ConfigDict]:
  """Defines `--config`: a file, or the name of a shipped config."""
  holder = config_flags.DEFINE_config_file(
    "config",
    help_string="A config file, or a shipped config's name; then, after a "
    "colon, its options. --config.<key>=<value> changes a value.",
    flag_values=values,
  )
  values["config"].parser = _ByName("config")
  return holder


def sizes() -> dict[str, flags.FlagHolder[int | None]]:
  """Defines what is computed at once, by name; 0 leaves the config's."""
  return {
    "lanes": flags.DEFINE_integer("lanes", 0, "Rows attacked at once."),
    "batch_size": flags.DEFINE_integer("batch_size", 0, "Images at once."),
  }


def workdir(what: str = "The run's folder.") -> flags.FlagHolder[str]:
  """Defines `--workdir`; `--judges_dir` and those of `processes`, for `run`."""
  processes()
  flags.DEFINE_string("judges_dir", None, "The folder of judges' weights.")
  return flags.DEFINE_string("workdir", None, what, required=True)


def processes():
  """Defines the flags of a script that several processes can share."""
  flags.DEFINE_bool("distributed", False, "Join other processes.")
  flags.DEFINE_string(
    "coordinator",
    "",
    "Join them by host:port,n,i: where process 0 listens, how many there are, "
    "and which this is. No cluster is looked for.",
  )
  checks.define()


def mesh() -> flags.FlagHolder[str]:
  """Defines `--mesh`; see `with_mesh`."""
  return flags.DEFINE_string(
    "mesh",
    "",
    "How devices share the work: data=4,fsdp=2 is four copies of the model, "
    "each split over two devices. The config's if not given.",
  )


def with_mesh(config: ConfigDict, text: str) -> dict[str, Any]:
  """A config's values with the mesh of `--mesh`.

  Open the record with the config itself: the next start may have another mesh.
  """
  from unlearning_jax import sharding

  values = config.to_dict()
  return values | {"mesh": values.get("mesh", {}) | sharding.parse_mesh(text)}


class _Named(flags.ListParser):
  """Names parted by commas, as their options are: `fid~few=allow,count=9`."""

  def parse(self, argument: Any) -> list[str]:
    found: list[str] = []
    for part in super().parse(argument):
      if found and "~" in found[-1] and "=" in part and "~" not in part:
        found[-1] += f",{part}"
      else:
        found.append(part)
    return found


def metrics(what: str) -> flags.FlagHolder[list[str]]:
  """Defines `--metrics`, names of metrics with their options."""
  return flags.DEFINE(
    _Named(), "metrics", [], what, serializer=flags.ListSerializer(",")
  )


def settings(cls: type[T], config: ConfigDict | dict[str, Any]) -> T:
  """The settings that a config's values make.

  Raises:
    ValueError: as `settings.build`; or the config is of another verb.
  """
  from unlearning_jax.settings import build, fits

  values = config if isinstance(config, dict) else config.to_dict()
  try:
    return build(cls, values)
  except ValueError as error:
    known = {verb: one for verb, one in _settings() if fits(one, values)}
    if not known or cls in known.values():
      raise
    verb, own = next(iter(known)), pathlib.Path(sys.argv[0]).stem
    typed = [text for text in sys.argv if text.startswith("--config=")]
    raise ValueError(
      f"--config: holds the settings of {verb}, not of {own}; run "
      f"unlearning-jax {' '.join([verb, *typed])}"
    ) from error


def _settings() -> Iterator[tuple[str, Any]]:
  """Every verb that takes a config, and the class of its settings."""
  for verb in (
    "erase", "attack", "attack_matrix", "diagnose", "evaluate", "finetune",
    "resurgence",
  ):  # fmt: skip
    name = {"attack_matrix": "matrix"}.get(verb, verb)
    module = importlib.import_module(f"unlearning_jax.experiments.{name}")
    yield verb, module.Settings


def built(cls: type[T]) -> T:
  """The settings that flags of the same names make.

  Raises:
    ValueError: as the class.
  """
  names = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore
  values = {name: flags.FLAGS[name].value for name in names}
  return cls(
    **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
  )


def run(
  main: Callable[[list[str]], Any],
  listed: Callable[[], Iterable[str]] | None = None,
  *,
  names: bool = False,
  polled: bool = False,
):
  """Reads the flags and runs a script.

  Args:
    main: takes the rest of the command line.
    listed: lines that `--list` prints instead.
    names: whether the script takes names without a flag.
    polled: whether all its processes stop after the same step, see `stops`.
  """
  if listed is not None:
    flags.DEFINE_bool("list", False, "Print the choices.")
    if {"--list", "-list"} & set(sys.argv[1:]):
      # Nothing has been parsed yet: a list needs no other flag.
      named = (a.partition("judges_dir=")[2] for a in sys.argv[1:])
      _judges_dir(next(filter(None, named), None))
      return print(*listed(), sep="\n")
  # Before a config imports JAX, which reads its variables then.
  _keep_programs()
  flags.DEFINE_bool("traceback", False, "Print where an error was raised.")
  named = flags.FLAGS.flag_values_dict()
  # A protocol, or a default, can replace a config.
  if named.get("config", "") is None and "protocol" not in named:
    flags.mark_flag_as_required("config")
  app.run(
    lambda argv: _started(main, argv, polled, names), flags_parser=_parsed
  )


def _parsed(argv: list[str]) -> list[str]:
  """Parses the flags; what is wrong with them is one paragraph."""
  try:
    return flags.FLAGS(argv)
  except (AttributeError, KeyError) as error:
    # What a ConfigDict raises of `--config.<key>=<value>`.
    sys.exit(f"error: --config.<key>: the config has no such key: {error}")
  except flags.Error as error:
    sys.exit(errors.of_flags(error, traced="--traceback" in argv))


def _started(
  main: Callable[[list[str]], Any],
  argv: list[str],
  polled: bool = False,
  names: bool = False,
) -> Any:
  if len(argv) > 1 and not names:
    sys.exit(errors.of_words(argv[1:]))
  if "judges_dir" in flags.FLAGS:
    _judges_dir(flags.FLAGS["judges_dir"].value)
  # JAX says there which kinds of devices the machine lacks.
  std_logging.getLogger("jax").setLevel(std_logging.WARNING)
  try:
    if "distributed" in flags.FLAGS:
      return _together(main, argv, polled)
    return main(argv)
  except Exception as error:
    way_out = errors.of_disk(error)
    if way_out or isinstance(error, (ValueError, OSError, FloatingPointError)):
      return _failed(error, str(error) + way_out)
    if not errors.is_out_of_memory(error):
      raise
    config = flags.FLAGS["config"].value if "config" in flags.FLAGS else {}
    return _failed(error, errors.of_memory(error, config))


def _failed(error: Exception, text: str):
  """Ends the script with an error in one paragraph."""
  if flags.FLAGS["traceback"].value:
    raise error
  process = os.environ.get("JAX_PROCESS_ID", os.environ.get("SLURM_PROCID"))
  who = f"process {process}: " if process else ""
  sys.exit(f"{who}error: {text}\n(--traceback prints where it was raised)")


def _keep_programs():
  """Keeps compiled programs between runs, unless JAX's variables say where."""
  if "JAX_COMPILATION_CACHE_DIR" in os.environ or "jax" in sys.modules:
    return
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  folder = pathlib.Path(home) / "unlearning_jax" / "programs"
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    # Without a home, as some clusters have none, each run compiles anew.
    return
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
  # The programs of a small world are many, and each is quick to compile.
  for variable, value in {
    "COMPILE_TIME_SECS": "0",
    "ENTRY_SIZE_BYTES": "-1",
  }.items():
    name = f"JAX_PERSISTENT_CACHE_MIN_{variable}"
    os.environ[name] = os.environ.get(name, value)


def _together(
  main: Callable[[list[str]], Any], argv: list[str], polled: bool
) -> Any:
  """Runs a script that several processes can share."""
  by_hand = flags.FLAGS["coordinator"].value
  distributed = bool(flags.FLAGS["distributed"].value or by_hand)
  # Users follow the progress line; libraries only warn.
  logging.set_verbosity(logging.WARNING)
  from unlearning_jax import checking, processes, stops

  if by_hand:
    processes.name_coordinator(by_hand)
  processes.initialize_distributed(distributed, polled=polled)
  stops.listen(shared=distributed and polled)
  checking.ask(bool(checks.begin()))
  try:
    try:
      status = main(argv)
    except checking.Checked as checked:
      status = checks.said(checked)
    # One that left early would end the slower ones, `processes.SHUTDOWN_S`.
    if distributed:
      processes.wait_for_all("ended")
    # Not yet: who calls a script within a process of their own goes on.
    atexit.register(stops.ended)
  except stops.Stopped:
    print("\nstopped; the same command goes on", file=sys.stderr)
    processes.say_stopped()
    raise
  except Exception as error:
    # Alone it would start a device, to say it to nobody.
    if distributed:
      processes.say_failed(error, leaves=True)
    raise
  return status


def status(failed: int, what: str) -> int:
  """The exit status of a run, 3 if a part of it failed, which it prints."""
  if failed:
    print(f"{failed} {what}", file=sys.stderr)
  return 3 if failed else 0


def _judges_dir(folder: str | None):
  """As the variable, so that processes of this one know it too."""
  if folder:
    os.environ["UNLEARNING_JAX_JUDGES"] = folder


def shipped() -> dict[str, pathlib.Path]:
  """The configs that come with the package: name -> file."""
  spec = importlib.util.find_spec("unlearning_jax.configs")
  assert spec is not None and spec.submodule_search_locations
  (folder,) = spec.submodule_search_locations
  return {
    path.stem: path
    for path in sorted(pathlib.Path(folder).glob("*.py"))
    if "\ndef get_config(" in path.read_text(encoding="utf-8")
  }


class _ByName(config_flags.ConfigFileFlagParser):
  """Reads a config from its file or, if there is none, by its name."""

  def parse(self, path: Any) -> Any:
    """The config of `file-or-name[:options]`."""
    name, colon, options = path.partition(":")
    config = super().parse(f"{_found(name)}{colon}{options}")
    for arg in sys.argv[1:]:
      if found := re.match(r"--?(?:no)?config\.([^=]+)", arg):
        _check_key(config, found[1])
    return config


def _check_key(config: Any, key: str):
  """Refuses a key that a config lacks; names the nearest that it has."""
  from unlearning_jax.concepts import check_choice

  place = "--config"
  # A list's element, as in `targets[0].name`, is the config library's to check.
  for name in key.partition("[")[0].split("."):
    if not isinstance(config, ConfigDict):
      return
    check_choice(f"{place}: key", name, sorted(config))
    config, place = config.get(name), f"{place}.{name}"


def _found(name: str) -> str:
  from unlearning_jax.concepts import check_choice

  if pathlib.Path(name).is_file():
    return name
  known, given = shipped(), pathlib.Path(name)
  # Its path in the checkout is a name too, from any folder.
  if given.parent.name in ("", "configs") and given.suffix in ("", ".py"):
    name = given.stem
  check_choice("--config", name, list(known))
  return str(known[name])
