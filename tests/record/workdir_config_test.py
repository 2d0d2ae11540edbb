"""A folder is continued with its own config alone; errors list what differs."""

import pytest

from unlearning_jax.record.workdir import Workdir

CONFIG = {"method": "uce", "hparams": {"scale": 0.5, "tasks": ("a", "b")}}


def test_a_resume_with_another_config_lists_what_differs(tmp_path):
  Workdir(tmp_path, CONFIG).metrics(0, loss=1.0)
  before = (tmp_path / "config.json").read_bytes()
  other = {"method": "rece", "hparams": {"tasks": ("a",)}, "seed": 1}
  with pytest.raises(ValueError) as error:
    Workdir(tmp_path, other)
  lines = str(error.value).splitlines()[1:]
  assert [line.strip() for line in lines] == [
    "hparams.scale: 0.5 -> '(absent)'",
    "hparams.tasks: ['a', 'b'] -> ['a']",
    "method: 'uce' -> 'rece'",
    "seed: '(absent)' -> 1",
  ]
  assert (tmp_path / "config.json").read_bytes() == before


def test_a_resume_may_change_what_no_row_depends_on(tmp_path):
  config = {"lanes": 8, "sampling": {"lanes": 8}}
  Workdir(tmp_path, config).append_row({"id": 1})
  again = Workdir(tmp_path, config | {"lanes": 100}, free=("lanes", "width"))
  assert again.done_ids() == {1}
  changed = {"lanes": 100, "sampling": {"lanes": 9}}
  with pytest.raises(ValueError, match=r"sampling.lanes: 8 -> 9$"):
    Workdir(tmp_path, changed, free=("lanes",))
  with pytest.raises(ValueError, match="  lanes: 8 -> 100"):
    Workdir(tmp_path, config | {"lanes": 100})


def test_a_key_that_an_older_run_lacks_has_its_default_at_any_depth(tmp_path):
  defaults = {"kernels": "exact"}
  old = {"attacks": {"seed": {"rows": 1}}, "rows": 2}
  Workdir(tmp_path, old).append_row({"id": 1})
  new = {"attacks": {"seed": {"rows": 1, "kernels": "exact"}}, "rows": 2}
  new["kernels"] = "exact"
  assert Workdir(tmp_path, new, defaults=defaults).done_ids() == {1}
  new["attacks"]["seed"]["kernels"] = "fast"
  with pytest.raises(
    ValueError, match="attacks.seed.kernels: '.absent.' -> 'f"
  ):
    Workdir(tmp_path, new, defaults=defaults)


def test_of_long_values_only_what_differs_is_listed(tmp_path):
  words = [f"word {i}" for i in range(500)]
  config = {"concepts": [{"erase": "a", "preserve": words}], "listed": words}
  Workdir(tmp_path, config).append_row({"id": 1})
  other = {
    "concepts": [{"erase": "b", "preserve": [*words[1:], "c"]}],
    "listed": words[1:],
  }
  other["concepts"][0]["preserve"] = [*words[:9], "c", *words[10:]]
  with pytest.raises(ValueError) as error:
    Workdir(tmp_path, other)
  lines = [line.strip() for line in str(error.value).splitlines()[1:]]
  assert lines[:2] == [
    "concepts[0].erase: 'a' -> 'b'",
    "concepts[0].preserve[9]: 'word 9' -> 'c'",
  ]
  assert "listed: ['word 0'" in lines[2] and len(lines[2]) < 300
  # A key that may change stays free, whichever of its entries differs.
  Workdir(tmp_path, other, free=("concepts", "listed"))
