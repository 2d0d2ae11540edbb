"""The command `unlearning-jax VERB --flags`; each launch script is a verb.

unlearning-jax --list
unlearning-jax erase --config=erase_rece:tiny --workdir=runs/rece
"""

import ast
import pathlib
import runpy
import sys

USAGE = """usage: unlearning-jax VERB [flags]
       unlearning-jax VERB --help       its flags
       unlearning-jax VERB --list       what it can choose from
       unlearning-jax --list            the verbs
"""

# What the scripts share.
PARTS = ("__init__", "checks", "errors", "flags", "main", "places")


def verbs() -> dict[str, str]:
  """The launch scripts: name -> the first line of the docstring."""
  folder, found = pathlib.Path(__file__).parent, {}
  files = {p.stem: p for p in folder.glob("*.py") if p.stem not in PARTS}
  files |= {p.parent.name: p for p in folder.glob("*/__main__.py")}
  for name, path in sorted(files.items()):
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    found[name] = (said or "").split("\n\n")[0].replace("\n", " ")
  return found


def verb(asked: str, known: list[str]) -> str:
  """The script that is asked for; a ValueError names the nearest."""
  from unlearning_jax.concepts import check_choice

  check_choice("verb", name := asked.replace("-", "_"), known)
  return name


def main():
  """Runs the verb of the command line as `python -m launch.VERB` does."""
  asked, known = (sys.argv[1:2] or ["--help"])[0], verbs()
  if asked.lstrip("-") in ("help", "h", "list"):
    head = "" if asked == "--list" else USAGE + "\n"
    wide = max(map(len, known))
    return print(head + "\n".join(f"{n:{wide}}  {s}" for n, s in known.items()))
  try:
    name = verb(asked, list(known))
  except ValueError as error:
    sys.exit(f"unlearning-jax: {error}")
  sys.argv = sys.argv[1:]
  runpy.run_module(
    f"unlearning_jax.launch.{name}", run_name="__main__", alter_sys=True
  )


if __name__ == "__main__":
  main()
