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


def verbs() -> dict[str, str]:
  """The launch scripts: name -> the first line of the docstring."""
  found = {}
  for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
    if path.stem not in ("__init__", "errors", "flags", "main"):
      said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
      found[path.stem] = (said or "").split("\n\n")[0].replace("\n", " ")
  return found


def main():
  """Runs the verb of the command line as `python -m launch.VERB` does."""
  asked = sys.argv[1:2] or ["--help"]
  if asked[0].lstrip("-") in ("help", "h", "list"):
    head = "" if asked == ["--list"] else USAGE + "\n"
    width = max(map(len, verbs()))
    print(head + "\n".join(f"{n:{width}}  {s}" for n, s in verbs().items()))
    return
  verb = asked[0].replace("-", "_")
  if verb not in verbs():
    from unlearning_jax.concepts import check_choice

    try:
      check_choice("verb", verb, list(verbs()))
    except ValueError as error:
      sys.exit(f"unlearning-jax: {error}")
  sys.argv = sys.argv[1:]
  runpy.run_module(
    f"unlearning_jax.launch.{verb}", run_name="__main__", alter_sys=True
  )


if __name__ == "__main__":
  main()
