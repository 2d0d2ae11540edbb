"""Compares two audits, and fails where the second is worse.

  python -m launch.compare runs/audit-1 runs/audit-2 --fail_on=fail

Rows that both audits have are compared in pairs. `--fail_on=fail` ends with
status 4 if rows surely got worse or a verdict became a failure. With
`--fail_on=warn` any worse verdict does.
"""

import sys

from absl.flags import DEFINE_enum

from . import flags

_FAIL_ON = DEFINE_enum("fail_on", "", ["", "warn", "fail"], "A gate for CI.")


def main(argv: list[str]) -> int:
  """Reads both audits and prints what changed."""
  from unlearning_jax.experiments.audit import compare

  if len(argv) != 3:
    sys.exit("compare: name two folders of finished audits")
  changes = compare.compare(*argv[1:])
  print(compare.printed(changes))
  return 4 if compare.regressions(changes, _FAIL_ON.value) else 0


def listed() -> list[str]:
  """The questions that are compared."""
  from unlearning_jax.metrics import verdicts

  return [f"{name:9} {title}" for name, title in verdicts.TITLES.items()]


if __name__ == "__main__":
  flags.run(main, listed, names=True)
