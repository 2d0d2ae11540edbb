"""Each published protocol has a page, whose table is what the protocol is."""

import pathlib

import pytest

from unlearning_jax import protocols

PAGES = pathlib.Path(__file__).resolve().parents[1] / "docs/protocols"
NAMES = [name for name in protocols.names() if not name.startswith("shapes-")]


def _list(values):
  return ", ".join(f"`{value}`" for value in values) or "none"


def facts(protocol):
  """The rows of the page's table."""
  sampling = protocol.sampling
  own = "its own" if protocol.prompts.template else "any table"
  tables = [
    f"`{table['file']}` of {table['source']}, {table['rows']:,} rows"
    for table in protocol.tables
  ]
  sampler = f"`{sampling.sampler}`" if sampling.sampler else "the model's own"
  rows = {
    "prompts": "; ".join(tables) or own,
    "images a prompt": str(
      len(protocol.prompts.seeds) or protocol.prompts.images
    ),
    "sampler": f"{sampler}, {sampling.num_inference_steps} steps",
    "guidance": f"{sampling.guidance_scale:g} where a row has none",
    "noise": f"`{sampling.noise_source}`",
    "dtype": f"`{protocol.dtype}`" if protocol.dtype else "the run's own",
    "judge": f"`{protocol.judge.split('~')[0]}`" if protocol.judge else "none",
    "a share of": protocol.denominator,
    "columns": _list(protocol.columns),
  }
  return [f"| {what} | {value} |" for what, value in rows.items()]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_what_its_protocol_is(name):
  lines = (PAGES / f"{name}.md").read_text(encoding="utf-8").splitlines()
  assert lines[0] == f"# {name}"
  start = lines.index("|---|---|") + 1
  expected = facts(protocols.find(name))
  assert lines[start : start + len(expected)] == expected, "\n".join(expected)
  text = "\n".join(lines)
  for part in (
    "**Counted:**",
    "**By whom:**",
    "**Differs:**",
    f"--protocol={name}",
  ):
    assert part in text, part
