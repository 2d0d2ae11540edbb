"""The prompt rows of a published protocol: of a table, or of a template."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unlearning_jax import prompt_tables
from unlearning_jax.concepts import check_choice
from unlearning_jax.judges import Judge, Target
from unlearning_jax.prompt_tables import Prompt, PromptTable
from unlearning_jax.settings import Free, Output

Rows = list[dict[str, Any]]
SIZES = ("model", "row")
EXPLICIT, SYNONYMS, OTHERS = "explicit", "synonyms", "others"
# Rows of a table that does not say which of them name what was erased.
TABLE = "table"
# In place of a column's name: the label is in the prompt's own text.
IN_PROMPT = "prompt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
  """Where prompts come from, and what each asks for.

  A table is the user's own file. A template is filled with every phrase of
  every head, and drawn from every seed.

  Attributes:
    path: the table's file; "" for a template.
    sha256: of the table, where it is no published one, see `PromptTable`.
    template: as "a photo of the {object}", with a place for each head.
    phrases: head -> the phrases that fill its place.
    labels: phrase -> the judge's label, where they differ.
    synonyms: label -> other phrases for it, drawn where it was erased.
    seeds: of a template's noise.
    asks: head -> the column that holds the label a row asks for, or `prompt`
      where the prompt's text holds it; empty where every row asks for the
      target.
    group_column: the column that says whether a row asks for what was erased;
      "" where no column does, and all rows are of the group `table`.
    groups: value of that column -> explicit or others.
    rows: how many of the first rows are drawn; 0 for all.
    images: images of a row, from one generator after another.
    sizes: `row` follows a row's own width and height, `model` does not.
    task: `unsafe` blurs images on pages.
  """

  path: Free[str] = ""
  sha256: Output[str] = ""
  template: Output[str] = ""
  phrases: Output[Mapping[str, tuple[str, ...]]] = dataclasses.field(
    default_factory=dict
  )
  labels: Output[Mapping[str, str]] = dataclasses.field(default_factory=dict)
  synonyms: Output[Mapping[str, tuple[str, ...]]] = dataclasses.field(
    default_factory=dict
  )
  seeds: Output[tuple[int, ...]] = ()
  asks: Output[Mapping[str, str]] = dataclasses.field(default_factory=dict)
  group_column: Output[str] = ""
  groups: Output[Mapping[str, str]] = dataclasses.field(default_factory=dict)
  rows: Output[int] = 0
  images: Output[int] = 1
  sizes: Output[str] = "model"
  task: Output[str] = ""

  def __post_init__(self):
    check_choice("sizes", self.sizes, SIZES)
    if self.rows < 0 or self.images < 1:
      raise ValueError(
        f"rows={self.rows}, images={self.images}: rows must not be negative, "
        "images must be at least 1"
      )

  @property
  def table(self) -> PromptTable | None:
    """The table; None for a template."""
    return prompt_tables.read(self.path) if self.path else None

  @property
  def columns(self) -> tuple[str, ...]:
    """The table's columns of labels, which say what each row asks for."""
    named = {self.group_column, *self.asks.values()} - {"", IN_PROMPT}
    return tuple(sorted(named))

  def notes(self) -> list[str]:
    """What was left out of the table or assumed, and why."""
    table = self.table
    if table is None:
      return []
    other = sum(row.size is not None for row in table.prompts)
    said = [*table.notes]
    if other and self.sizes == "model":
      said.append(
        f"{other:,} rows have a size of their own: all are drawn at the "
        "model's, as the protocol does."
      )
    return said

  def listed(self, targets: Sequence[Target], judge: Judge | None) -> Rows:
    """The rows to draw.

    Args:
      targets: what was erased.
      judge: knows the labels that a prompt may hold.

    Raises:
      ValueError: the table lacks a column, or a row asks for nothing that the
        judge can see.
    """
    found = self._of_table(targets, judge) if self.path else self._made(targets)
    rows: Rows = []
    for number, row in itertools.islice(found, self.rows or None):
      for sample in range(self.images):
        # Ids are older than the group of a table's rows.
        kind = EXPLICIT if row["group"] == TABLE else row["group"]
        name = f"{number:06d}-{kind}"
        more: dict[str, Any] = {"sample": sample} if self.images > 1 else {}
        name += f"-{sample}" if self.images > 1 else ""
        # Published code cuts a long prompt and goes on.
        more |= {"unsafe": self.task == "unsafe", "truncate": True}
        rows.append({"id": name, **row, **more})
    return rows

  def _of_table(
    self, targets: Sequence[Target], judge: Judge | None
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    table = self.table
    assert table is not None
    for row in table.prompts:
      asked: dict[str, str | None] = {t.head: t.label for t in targets}
      for head, column in self.asks.items() if judge else ():
        asked[head] = self._label(row, head, column, judge)
      group = TABLE
      if self.group_column:
        value = self._cell(row, self.group_column)
        check_choice(
          f"{self._where(row)}: {self.group_column}", value, self.groups
        )
        group = self.groups[value]
      yield (
        row.case_number,
        {
          "group": group,
          "prompt": row.prompt,
          "seed": row.seed,
          "guidance": row.guidance,
          "size": row.size if self.sizes == "row" else None,
          "attributes": asked if judge else {},
        },
      )

  def _made(
    self, targets: Sequence[Target]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    erased = {target.label for target in targets}
    filled = []
    for head, phrases in self.phrases.items():
      own = [(head, p, self.labels.get(p, p), False) for p in phrases]
      more = [
        (head, synonym, label, True)
        for label in erased & self.synonyms.keys()
        for synonym in self.synonyms[label]
      ]
      filled.append(own + more)
    seeds = [*enumerate(self.seeds)]
    every = itertools.product(itertools.product(*filled), seeds)
    for number, (parts, (repeat, seed)) in enumerate(every):
      labels = {head: label for head, _, label, _ in parts}
      synonym = any(is_synonym for *_, is_synonym in parts)
      hit = any(labels.get(t.head) == t.label for t in targets)
      group = (SYNONYMS if synonym else EXPLICIT) if hit else OTHERS
      said = {head: phrase for head, phrase, *_ in parts}
      yield (
        number,
        {
          "group": group,
          "prompt": self.template.format(**said),
          "seed": seed,
          "attributes": labels,
          # Which image of its prompt: a rate's interval draws whole prompts.
          **({"repeat": repeat} if repeat else {}),
        },
      )

  def _label(
    self, row: Prompt, head: str, column: str, judge: Judge | None
  ) -> str | None:
    """The judge's label that a row asks for."""
    assert judge is not None
    known = judge.labels.get(head, ())
    text = row.prompt if column == IN_PROMPT else self._cell(row, column)
    same = [n for n in known if n.casefold() == text.casefold()]
    if column == IN_PROMPT:
      # The longest: "Amy Adams" is not "Amy".
      inside = (n for n in known if n.casefold() in text.casefold())
      same = sorted(inside, key=len)[-1:]
    if not same:
      what = "names none of" if column == IN_PROMPT else f"{column}={text!r} is"
      if column != IN_PROMPT:
        check_choice(f"{self._where(row)}: {column}", text, known)
      raise ValueError(
        f"{self._where(row)}: {row.prompt!r} {what} the {len(known)} labels of "
        f"judge {judge.name}; name a judge that knows them"
      )
    return same[0]

  def _cell(self, row: Prompt, column: str) -> str:
    if column not in row.labels:
      raise ValueError(
        f"{self.path}: no column {column!r}, which says what a row asks for; "
        f"found: prompt, {', '.join(row.labels)}"
      )
    return row.labels[column].strip()

  def _where(self, row: Prompt) -> str:
    return f"{self.path}, case_number {row.case_number}"
