"""The field's published protocols, as their public code runs them.

docs/protocols/ says of each what is counted, by whom, and what differs from
its paper. Prompt tables are the user's own files: a protocol knows the
published ones by their content (`PromptTable.sha256`), whatever their names.
"""

from typing import Any

from unlearning_jax.judges.unlearncanvas_vit import OBJECTS, STYLES
from unlearning_jax.protocols._prompts import (
  EXPLICIT,
  IN_PROMPT,
  OTHERS,
  Prompts,
)
from unlearning_jax.sampling import Sampling

_LMS = Sampling(50, 7.5, "lms", "torch")
_LMS_100 = Sampling(100, 7.5, "lms", "torch")
_DDIM = Sampling(50, 7.5, "ddim", "torch")
_ALL = "all rows of the table that have a prompt"
_UDM = "github.com/OPTML-Group/Diffusion-MU-Attack"
_ADV = "github.com/OPTML-Group/AdvUnlearn"
_ESD = "github.com/rohitgandikota/erasing"
_MACE = "github.com/Shilin-LU/MACE"
_FID = ",count={rows},reference_count={rows},reference="
_LEADERBOARD = ("pre_asr", "asr", "fid", "clip-score")


def _table(
  file: str, source: str, rows: int, sha256: str, subject: str = ""
) -> dict[str, Any]:
  facts = {"file": file, "source": source, "rows": rows, "sha256": sha256}
  return facts | ({"subject": subject} if subject else {})


# --- The Unlearned-DM benchmark ---

_NUDITY = _table(
  "prompts/nudity.csv", _UDM, 142,
  "7bf9b6c43d7b204ee745c9b73504f0b9ed3689cb6e1d5625fc20d62115fd07ab",
)  # fmt: skip
_VAN_GOGH = _table(
  "prompts/vangogh.csv", _UDM, 50,
  "73b005c90ec03d15c93ae40bf8c372f59f7e0d7c9d9b7dd3b0c3ed4f07f80d4e",
)  # fmt: skip
_OBJECTS = (
  (
    "church",
    "e217ff695431aafdae8c734d33a20d64c5013ec8f17bc2e70e6dc67806e49cd1",
  ),
  (
    "garbage_truck",
    "52afd45da19a96d2223928b22f47a329da22e12bdad979ea89ce6afe8e13e309",
  ),
  (
    "parachute",
    "a4c0ebb8ea89dc9611d771d6fac5fd0a68cc7cdde73b8bcb55bbf16a8980b288",
  ),
  ("tench", "165d1c98e4d1960137a14b6ce0b8b682774ca9be8658d32f18f0bffe1357f42c"),
)
_HARM = (
  _table(
    "prompts/violence.csv", _UDM, 756,
    "061d810397d5f00a0bce97fd47a7ef766da8b8bfb399edbc0be870460955443a",
    "violence",
  ),
  _table(
    "prompts/illegal.csv", _UDM, 727,
    "a796c4b493f49bea82311cdec40fe480e8d6e5bbcb48efceb76d26f3d8b4bc05",
    "illegal",
  ),
)  # fmt: skip
_COCO_10K = (
  _table(
    "data/prompts/coco_10k.csv", _ADV, 10_000,
    "ba3deee5723ef763acc9b21756497ff79b7f9424cb5d0f7ae8eab5c2a35e64e8",
  ),
  # Another file of the same name.
  _table(
    "prompts/coco_10k.csv", _UDM, 9_969,
    "88f2146fd358a992e887d7f34990b6c9be0975149acef47ab2a5bda661ed25e6",
    "9969",
  ),
)  # fmt: skip
# ResNet-50's names of Imagenette's classes, by those of the prompt files.
_IMAGENETTE = (
  ("church", "church"), ("garbage_truck", "garbage truck"),
  ("parachute", "parachute"), ("tench", "tench"),
  ("english_springer", "English springer"),
  ("cassette_player", "cassette player"), ("chain_saw", "chain saw"),
  ("french_horn", "French horn"), ("gas_pump", "gas pump"),
  ("golf_ball", "golf ball"),
)  # fmt: skip

# --- I2P, COCO, ESD ---

_I2P = (
  _table(
    "unsafe-prompts4703.csv", _ESD, 4_703,
    "47ec0b479e820daa8d41ff0424f29715ffb30b901a0044620285959dc8b87d9a",
  ),
  # The only copy whose row 2261 still has its prompt.
  _table(
    "prompts/i2p.csv", _UDM, 4_703,
    "e6fdf588c5c7a64c5a1da72e5b31fc5f5414f9d7ccede7846d415ed7615deec7",
    "udm",
  ),
)  # fmt: skip
_COCO_30K = _table(
  "coco_30k.csv", f"{_ESD} or {_MACE}", 30_000,
  "9b164e68644ec80928e30fc2b27efe0f160102d664e37ba51f78749a6ac233b0",
)  # fmt: skip
_SMALL_IMAGENET = _table(
  "data/small_imagenet_prompts.csv", _ESD, 100,
  "8b38c6bf7fed238dae6a8e4bf38b4cbfe96ad4158ec36b298d3bdb8d327439ed",
)  # fmt: skip

# --- MACE ---

_CIFAR = {
  "airplane": ("aircraft", "plane", "jet"),
  "automobile": ("car", "vehicle", "motorcar"),
  "bird": ("avian", "fowl", "winged creature"),
  "cat": ("feline", "kitty", "housecat"),
  "deer": ("hart", "stag", "doe"),
  "dog": ("canine", "pooch", "hound"),
  "frog": ("amphibian", "anuran", "tadpole"),
  "horse": ("equine", "steed", "mount"),
  "ship": ("vessel", "boat", "watercraft"),
  "truck": ("lorry", "rig", "hauler"),
}
_CELEBS = (
  _table(
    "prompts_csv/celebrity_100_concepts.csv", _MACE, 5_000,
    "de95283181017fdb64bad1a804318023100ea7d687fe2bc0ef67f13200ce474d",
  ),
  *(
    _table(
      f"prompts_csv/celebrity_{count}_concepts.csv", _MACE, 2_750, sha, count
    )
    for count, sha in (
      (
        "10",
        "9a546b55d834af150dd61981c0506c5425ab3c090ff6ecb9b150f37c510198b8",
      ),
      ("5", "b2307874a6649efad9406ff9a9a41bacef5278d700369d61d831965f55a07eff"),
      ("1", "e9b8185d116d26304d24069b32bc177dfc0b3551f46ae7e49281bc3f00c9bdcf"),
    )
  ),
)  # fmt: skip
_ARTISTS = _table(
  "prompts_csv/art_100_concepts.csv", _MACE, 5_000,
  "1bee8c911d601eb24b918cca27119787033ea41a8d77bd711cdd90f36240a6c2",
)  # fmt: skip

# --- UnlearnCanvas ---

# A theme's own name, and what its prompts call it.
_SAID = {
  "Photo" if n == "Seed_Images" else n.replace("_", " "): n for n in STYLES
}


def _udm() -> tuple[dict[str, Any], ...]:
  nude = {"head": "esd-9", "label": "nude"}
  return (
    {
      "name": "udm-nudity",
      "judge": "nudenet-udm",
      "targets": (nude,),
      "sampling": _LMS,
      "prompts": Prompts(task="unsafe"),
      "tables": (_NUDITY,),
      "columns": (*_LEADERBOARD, "counts"),
      "denominator": _ALL,
    },
    {
      "name": "udm-style",
      "judge": "style-vit-129",
      "targets": ({"head": "style", "label": "vincent-van-gogh"},),
      "sampling": _LMS,
      "prompts": Prompts(),
      "tables": (_VAN_GOGH,),
      "columns": _LEADERBOARD,
      "denominator": _ALL,
    },
    {
      "name": "udm-object",
      "judge": "resnet50-microsoft",
      "targets": (),
      "sampling": _LMS,
      "prompts": Prompts(),
      "tables": tuple(
        _table(f"prompts/{name}.csv", _UDM, 50, sha, name)
        for name, sha in _OBJECTS
      ),
      "subjects": tuple(
        {"name": name, "head": "object", "label": label}
        for name, label in _IMAGENETTE
      ),
      "columns": _LEADERBOARD,
      "denominator": _ALL,
    },
    {
      "name": "udm-harm",
      "judge": "q16",
      "targets": ({"head": "q16", "label": "inappropriate"},),
      "sampling": _LMS,
      "prompts": Prompts(task="unsafe"),
      "tables": _HARM,
      "columns": _LEADERBOARD,
      "denominator": _ALL,
    },
    {
      "name": "udm-utility",
      "judge": "",
      "targets": (),
      "sampling": _LMS_100,
      "prompts": Prompts(),
      "tables": _COCO_10K,
      "metrics": ("fid~stack=t2i" + _FID, "clip-score"),
      "columns": ("fid", "clip-score"),
      "denominator": _ALL,
    },
  )


def _esd() -> tuple[dict[str, Any], ...]:
  shared = {
    "judge": "resnet50-v2",
    "targets": (),
    "tables": (_SMALL_IMAGENET,),
    "columns": ("accuracy",),
    "denominator": "all images of all rows",
  }
  prompts = Prompts(asks={"object": "class"}, images=10)
  return (
    shared
    | {
      "name": "esd-legacy",
      "sampling": _LMS_100,
      "prompts": prompts,
      "metrics": ("lpips~network=alex,size=64",),
    },
    shared
    | {
      "name": "esd-2025",
      "sampling": Sampling(20, 7.5, None, "torch"),
      "dtype": "bfloat16",
      "prompts": prompts,
    },
  )


def _mace() -> tuple[dict[str, Any], ...]:
  return (
    {
      "name": "mace-objects",
      "judge": f"clip-zero-shot~texts={'|'.join(_CIFAR)},"
      "template=a photo of the {},tower=b32",
      "targets": (),
      "sampling": _DDIM,
      "prompts": Prompts(
        template="a photo of the {text}",
        phrases={"text": tuple(_CIFAR)},
        synonyms=_CIFAR,
        seeds=tuple(range(200)),
      ),
      "subjects": tuple(
        {"name": name, "head": "text", "label": name} for name in _CIFAR
      ),
      "columns": ("h_o", "h_o (mean probability)"),
      "denominator": "200 images of each class and synonym",
    },
    {
      "name": "mace-celebs",
      "judge": "faces",
      "targets": (),
      "sampling": _DDIM,
      "prompts": Prompts(
        asks={"identity": IN_PROMPT},
        group_column="type",
        groups={"erased": EXPLICIT, "others": OTHERS},
      ),
      "tables": _CELEBS,
      "columns": ("h_c",),
      "denominator": "images with a face",
    },
    {
      "name": "mace-artists",
      "judge": "",
      "targets": (),
      "sampling": _DDIM,
      "prompts": Prompts(
        group_column="type", groups={"0": EXPLICIT, "1": OTHERS}
      ),
      "tables": (_ARTISTS,),
      "metrics": ("clip-score~scale=times-100",),
      "columns": ("h_a",),
      "denominator": "images of each group",
    },
  )


def _others() -> tuple[dict[str, Any], ...]:
  return (
    {
      "name": "i2p-full",
      "judge": "nudenet",
      "targets": ({"head": "strict-5", "label": "nude"},),
      "sampling": _DDIM,
      "prompts": Prompts(sizes="row", task="unsafe"),
      "tables": _I2P,
      "columns": ("shown", "counts"),
      "denominator": _ALL,
    },
    {
      "name": "coco-30k",
      "judge": "",
      "targets": (),
      "sampling": _DDIM,
      "prompts": Prompts(),
      "tables": (_COCO_30K,),
      "metrics": (
        "fid~stack=pytorch-fid" + _FID,
        "clip-score~scale=times-100",
      ),
      "columns": ("fid", "clip-score"),
      "denominator": _ALL,
    },
    {
      "name": "fid-to-base",
      "judge": "",
      "targets": (),
      "sampling": _DDIM,
      "prompts": Prompts(),
      "metrics": ("fid-to-base",),
      "columns": ("fid-to-base",),
      "denominator": "the base's pictures of the same rows",
    },
    {
      "name": "unlearncanvas",
      "judge": "unlearncanvas-vit",
      "targets": (),
      "sampling": Sampling(100, 9.0, "ddim", "torch"),
      "prompts": Prompts(
        template="A {object} image in {style} style.",
        phrases={"style": tuple(_SAID), "object": OBJECTS},
        labels={said: name for said, name in _SAID.items() if said != name},
        seeds=(188, 288, 588, 688, 888),
      ),
      "subjects": tuple(
        {"name": name, "head": head, "label": name}
        for head, names in (("style", STYLES), ("object", OBJECTS))
        for name in names
        if name != "Seed_Images"
      ),
      "columns": ("ua", "ira", "cra", "cra_all"),
      "denominator": "images of prompts with and without what was erased",
    },
  )


def protocols() -> tuple[dict[str, Any], ...]:
  """The fields of each, see `Protocol`."""
  shared = {"model": "", "rows_per_group": 0, "other_rows": 0}
  return tuple(shared | one for one in (*_udm(), *_esd(), *_mace(), *_others()))
