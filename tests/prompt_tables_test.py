"""Prompt tables as papers publish them: what is read, assumed, left out."""

import pytest

from unlearning_jax import prompt_tables
from unlearning_jax.prompt_tables import read

HEADER = "case_number,prompt,evaluation_seed,evaluation_guidance"


def table(tmp_path, *rows, header=HEADER):
  path = tmp_path / "prompts.csv"
  path.write_text("\n".join((header, *rows)), encoding="utf-8")
  return path


def test_reads_a_table(tmp_path):
  path = table(
    tmp_path,
    '7,"a dog, ""big""\nand red",4294967295,7.5,dog',
    "0,a cat,0,10,cat",
    header="\ufeff" + HEADER + ",class",
  )
  found = read(path)
  first, second = found.prompts
  assert (first.case_number, first.seed) == (7, 2**32 - 1)
  assert first.prompt == 'a dog, "big"\nand red'
  assert (first.guidance, second.guidance) == (7.5, 10.0)
  assert first.labels == {"class": "dog"} and first.size is None
  assert (found.notes, found.size) == ((), 2)


def test_guidance_is_optional(tmp_path):
  path = table(tmp_path, "1,a,2", header=HEADER.rsplit(",", 1)[0])
  found = read(path)
  assert (found.prompts[0].guidance, found.notes) == (None, ())


# Name, header, rows, numbers, seeds, and what the notes begin with: the
# structures of I2P, COCO, MACE, AdvUnlearn and of ESD.
PUBLISHED = [
  (
    "i2p",
    "prompt,categories,hard,sd_seed,sd_guidance_scale,sd_image_width,"
    "sd_image_height,sd_model",
    ["x,sexual,0,3059000677,7,512,768,sd-v1-4"],
    [0],
    [3059000677],
    [
      "There is no column 'evaluation_seed': 'sd_seed' is",
      "There is no column 'evaluation_guidance': 'sd_guidance_scale'",
      "There is no column 'case_number': rows are numbered by their place",
    ],
  ),
  (
    "coco",
    "image_id,source,prompt,evaluation_seed",
    ["000000203564,coco-30k,A bicycle,41337"],
    [203564],
    [41337],
    ["There is no column 'case_number': 'image_id' is"],
  ),
  (
    "mace",
    ",type,prompt,evaluation_seed",
    ["25,erased,A portrait of A,1", "26,others,A portrait of B,1"],
    [25, 26],
    [1, 1],
    ["There is no column 'case_number': '(the unnamed one)' is"],
  ),
  (
    "advunlearn",
    "case_num,source,prompt",
    ["1,coco_object,a photo of chair", "2,coco_object,a photo of chair"],
    [1, 2],
    [1, 2],
    ["2 rows (case_number 1, 2) without a seed: the row's own number"],
  ),
  (
    "index beside case_number",
    ",case_number,prompt,evaluation_seed,artist",
    ["0,4,a,5,b"],
    [4],
    [5],
    [],
  ),
  (
    "doubles",
    "case_number,prompt,evaluation_seed",
    ["1,a,5", "1,a,5", "2,b,6"],
    [0, 1, 2],
    [5, 5, 6],
    ["Column 'case_number' holds 1 numbers that came before: rows are"],
  ),
]


@pytest.mark.parametrize(
  "header, rows, numbers, seeds, notes",
  [one[1:] for one in PUBLISHED],
  ids=[one[0] for one in PUBLISHED],
)
def test_tables_as_published(header, rows, numbers, seeds, notes, tmp_path):
  found = read(table(tmp_path, *rows, header=header))
  assert [p.case_number for p in found.prompts] == numbers
  assert [p.seed for p in found.prompts] == seeds
  assert len(found.notes) == len(notes)
  for note, start in zip(found.notes, notes, strict=True):
    assert note.startswith(start)


I2P = (
  "categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,"
  "sd_safety_percentage,prompt_toxicity,lexica_url"
)
# The headers of the prompt tables of fifteen public repositories (2026): ESD,
# UCE, RECE, MACE, SPM, SalUn, EraseDiff, UnlearnDiffAtk, AdvUnlearn, EAP, P4D,
# UnlearnCanvas, Ring-A-Bell, SAFREE, ResAlign. Beside each stand the columns of
# the row's number, text and seed: the usual ones where none is named, - for
# none.
HEADERS = [
  (",case_number,prompt,evaluation_seed,artist", "case_number"),
  (",case_number,prompt,evaluation_seed,artist,type", "case_number"),
  (",case_number,prompt,evaluation_seed,class", "case_number"),
  (
    ",case_number,prompt,evaluation_seed,classes,evaluation_guidance",
    "case_number",
  ),
  (",case_number,evaluation_seed,prompt,label_idx,label_str", "case_number"),
  (",prompt,evaluation_seed,case_number", "case_number"),
  ("prompt,case_number,evaluation_seed,prompt1", "case_number"),
  ("case_number,prompt,class,evaluation_seed", "case_number"),
  ("case_number,prompt,label_str,evaluation_seed", "case_number"),
  ("case_number,data,prompt,artist,evaluation_seed", "case_number"),
  ("case_number,source,prompt,evaluation_seed,coco_id", "case_number"),
  ("case_number,prompt,evaluation_seed,profession,male_bias", "case_number"),
  ("\ufeffcase_number,prompt,evaluation_seed,class,classidx", "case_number"),
  ("Unnamed: 0,case_number,prompt,evaluation_seed,artist", "case_number"),
  (
    f",prompt,{I2P},evaluation_seed,evaluation_guidance,case_number",
    "case_number",
  ),
  (
    f"Unnamed: 0,prompt,{I2P},evaluation_seed,evaluation_guidance",
    "Unnamed: 0",
  ),
  (",type,artist,prompt,evaluation_seed", ""),
  ("case_num,source,prompt", "case_num", "prompt", "-"),
  ("image_id,source,prompt,evaluation_seed,width,height", "image_id"),
  (f"prompt,{I2P},sd_seed,sd_guidance_scale", "-", "prompt", "sd_seed"),
  ("prompt_index,prompt", "-", "prompt", "-"),
  ("prompt", "-", "prompt", "-"),
  ("sensitive prompt,normal prompt", "-", "sensitive prompt", "-"),
  ("target_prompt,adv_prompt,clean_prompt", "-", "adv_prompt", "-"),
]


@pytest.mark.parametrize(
  "header, number, text, seed",
  [(*one, "prompt", "evaluation_seed")[:4] if len(one) < 3 else one
   for one in HEADERS],
)  # fmt: skip
def test_a_header_as_published(header, number, text, seed, tmp_path):
  names = header.removeprefix("\ufeff").split(",")
  values = {name: str(10 + place) for place, name in enumerate(names)}
  (found,) = read(
    table(tmp_path, ",".join(values.values()), header=header)
  ).prompts
  assert found.prompt == values[text]
  assert found.case_number == (0 if number == "-" else int(values[number]))
  assert found.seed == (found.case_number if seed == "-" else int(values[seed]))


def test_a_table_that_is_not_there_says_which_flags_name_one(tmp_path):
  with pytest.raises(ValueError, match="gone.csv: there is no .*--prompts="):
    read(tmp_path / "gone.csv")


def test_a_row_has_its_own_size(tmp_path):
  path = table(
    tmp_path, "1,a,5,7,512,768", "2,b,5,7,,",
    header=HEADER + ",sd_image_width,sd_image_height",
  )  # fmt: skip
  first, second = read(path).prompts
  assert (first.size, second.size) == ((768, 512), None)
  assert first.labels == {}


def test_what_a_row_lacks_is_said_once_for_all(tmp_path):
  lines = [
    "2260,,5,7", "2261,NaN,6,7", "3,a,,7", "4,b,7,", "5,c,8,1", "6,d,9,1",
  ]  # fmt: skip
  lines += [f"{number},x,1,0.5" for number in range(10, 20)]
  found = read(table(tmp_path, *lines))
  assert found.size == 16 and len(found.prompts) == 14
  third, fourth = found.prompts[:2]
  assert (third.seed, fourth.guidance) == (3, None)
  assert found.notes == (
    "2 rows (case_number 2260, 2261) without a prompt: left out, not drawn and "
    "not counted.",
    "1 row (case_number 3) without a seed: the row's own number is its seed.",
    "1 row (case_number 4) without a guidance scale: the run's own scale is "
    "taken.",
    "12 rows (case_number 5, 6, 10, 11, 12, ...) with a guidance scale of 1 or "
    "less: drawn from the prompt's prediction alone, as the released code "
    "does.",
  )


def test_the_hash_is_of_what_is_drawn(tmp_path):
  plain = read(table(tmp_path, "7,a,5,7.5", "8,b,6,7")).sha256()
  quoted = read(table(tmp_path, '7,"a",05,7.50', "8,b,6,7.0")).sha256()
  columns = read(
    table(
      tmp_path, "a,5,7.5,x,70", "b,6,7,y,80",
      header="prompt,sd_seed,sd_guidance_scale,class,image_id",
    )
  ).sha256()  # fmt: skip
  assert plain == quoted == columns
  # Labels count where they are asked for.
  erased, kept = (
    read(table(tmp_path, f"a,5,{kind}", header="prompt,sd_seed,type"))
    for kind in ("erased", "others")
  )
  assert erased.sha256() == kept.sha256()
  assert len({t.sha256(labels) for t in (erased, kept)
              for labels in ((), ("type",))}) == 3  # fmt: skip
  others = ("7,a,5,7.5", "8,c,6,7"), ("8,b,6,7", "7,a,5,7.5"), ("7,a,5,7.5",)
  for rows in others:
    assert read(table(tmp_path, *rows)).sha256() != plain


@pytest.mark.parametrize(
  "rows, message",
  [
    (["1,a,-1,7"], "row 1: evaluation_seed='-1'"),
    (["1,a,1234.0,7"], "row 1: evaluation_seed='1234.0'"),
    (["1,a,4294967296,7"], "evaluation_seed='4294967296'.*4294967295"),
    (["1,a,1e3,7"], "evaluation_seed='1e3'"),
    (["1,a,٣,7"], "evaluation_seed="),
    (["1.0,a,1,7"], "case_number='1.0'"),
    (["1,a,1,nan"], "evaluation_guidance='nan' is not finite"),
    (["1,a,1,7 or so"], "evaluation_guidance='7 or so' is not a number"),
    (["1,a,1"], "row 1: more or fewer fields"),
    (["1,a,b,1,7"], "row 1: more or fewer fields"),
    ([], "no prompts"),
    (["1,,1,7", "2, ,1,7"], "no prompts"),
    (['1,"a,1,7'], "no CSV"),
  ],
)
def test_refuses_a_table(tmp_path, rows, message):
  path = table(tmp_path, *rows)
  with pytest.raises(ValueError, match=message) as error:
    read(path)
  assert str(path) in str(error.value)


@pytest.mark.parametrize(
  "header, message",
  [
    ("case_number,words", "no column 'prompt'; found: case_number, words. Ren"),
    ("", "no column 'prompt'; found: none"),
    (HEADER + ",prompt", "is repeated: .prompt.$"),
    (200 * "x" + "," + 200 * "x", "is repeated: .x{80}.$"),
  ],
)
def test_refuses_columns(tmp_path, header, message):
  with pytest.raises(ValueError, match=message):
    read(table(tmp_path, "1,a", header=header))


def test_a_folder_of_tables_is_not_one_table(tmp_path):
  path = table(tmp_path, "1,a,1,7")
  with pytest.raises(ValueError, match=f"is a folder; name one .*: {path}$"):
    read(tmp_path)
  path.unlink()
  with pytest.raises(ValueError, match="it holds no .csv"):
    read(tmp_path)


def test_refuses_a_table_in_another_encoding(tmp_path):
  path = table(tmp_path)
  path.write_bytes(HEADER.encode() + b"\n1,caf\xe9,1,7\n")
  with pytest.raises(ValueError, match="UTF-8"):
    read(path)


def test_no_name_stands_for_two_things():
  names = [name for some in prompt_tables.COLUMNS.values() for name in some]
  assert len(names) == len(set(names))
