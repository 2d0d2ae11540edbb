"""Pieces that several configs share."""

import ml_collections

from unlearning_jax.concepts import check_choice

# What a config file's argument (`config.py:tiny`) may be.
SIZES = ("tiny", "sd14", "sd21")


def parse(argument: str, **defaults: str) -> dict[str, str]:
  """Reads what follows a config's colon: a size, then `key=value` parts.

  Args:
    argument: as `sd14,task=unsafe`; a part without `=` is the size.
    **defaults: the keys that this config knows.

  Raises:
    ValueError: an unknown key or size, with what is allowed.
  """
  found = dict(defaults)
  for part in filter(None, argument.split(",")):
    key, _, value = part.rpartition("=")
    key = key or "size"
    check_choice("config argument", key, defaults)
    found[key] = value
  check_choice("config argument size", found["size"], SIZES)
  return found


def comparison(size: str) -> ml_collections.ConfigDict:
  """What to draw before and after an erasure, and with which model.

  `tiny` judges the embedded Shapes model; the full sizes draw the prompts in
  `prompts` and judge nothing. Set `--config.model` to a folder or a hub id;
  `launch.convert` makes a folder of a file.
  """
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dtype = "float32"
  # Or "cudnn": faster, on NVIDIA's GPUs and in bfloat16; `models.attention`.
  config.attention = "auto"
  # Groups of prompts of one's own, for a model without a judge.
  config.prompts = ml_collections.ConfigDict()
  config.targets = ()
  # Rows of each group whose images are kept for the report.
  config.grid = 6
  if size == "tiny":
    config.model = "shapes"
    config.judge = "shapes"
    config.per_group = 50
    config.others = 100
    config.batch_size = 50
    config.sampling = {
      "num_steps": 15,
      "guidance_scale": 4.0,
      "sampler": "dpm++2m",
      "noise_source": "jax",
    }
    return config
  config.model = {
    "sd14": "CompVis/stable-diffusion-v1-4",
    "sd21": "stabilityai/stable-diffusion-2-1-base",
  }[size]
  config.judge = ml_collections.config_dict.placeholder(str)
  config.per_group = config.others = 0
  config.batch_size = 4
  config.sampling = {
    "num_steps": 50,
    "guidance_scale": 7.5,
    "sampler": ml_collections.config_dict.placeholder(str),
    # The noise of the published scripts on a CPU generator.
    "noise_source": "torch",
  }
  return config


def train_shapes(stage: str) -> ml_collections.ConfigDict:
  """What the four training stages of the Shapes model have in common."""
  config = ml_collections.ConfigDict()
  config.stage = stage
  config.seed = 0
  # A model folder whose weights this part starts from; "" starts afresh.
  config.init = ""
  # `without`: classes that are never seen, as `object/star,style/neon`.
  config.data = {"size": 60_000, "seed": 0, "without": ""}
  config.batch_size = 64
  config.optimizer = {"learning_rate": 1e-3, "weight_decay": 0.01}
  config.ema_decay = 0.995
  config.log_every = 50
  config.checkpoint_every = 500
  return config


def finetune(size: str) -> ml_collections.ConfigDict:
  """What fine-tuning runs have in common: data, checkpoints, no defence.

  On `tiny` the data are renders of the Shapes world; at full size a folder of
  images with captions, `--config.data.path`.
  """
  placeholder = ml_collections.config_dict.placeholder
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dtype = "float32" if size == "tiny" else "bfloat16"
  config.attention = "auto"
  config.remat = size != "tiny"
  config.model = {
    "tiny": "shapes",
    "sd14": "CompVis/stable-diffusion-v1-4",
    "sd21": "stabilityai/stable-diffusion-2-1-base",
  }[size]
  config.data = {
    "source": "shapes" if size == "tiny" else "folder",
    "path": "",
    "caption": "text",
    # Of a tfds dataset: source="tfds", its prepared folder as `path`.
    "split": "train",
    # A mirrored arrow points elsewhere, a mirrored photo is as good.
    "flip": size != "tiny",
    # Of the Shapes world: how many, and which, as `object/circle+square`.
    "count": 250,
    "seed": 1,
    "only": "",
    "without": "",
  }
  # Tune on captions that say what was erased.
  config.allow_overlap = False
  # Several targets, as "cross,ff/net_2", have commas between them.
  config.lora = {"rank": 4, "alpha": placeholder(float), "targets": "attention"}
  config.optimizer = {
    "learning_rate": 1e-4,
    "schedule": "cosine",
    # Share of the steps.
    "warmup": 0.0,
    "weight_decay": 0.01,
    "decay_all": True,
    # 0 for none.
    "clip_norm": 1.0,
    "b2": 0.999,
  }
  config.loss = {"snr_gamma": placeholder(float), "caption_dropout": 0.0}
  # None or 0 for no average.
  config.ema_decay = placeholder(float)
  config.num_steps = 1000
  config.log_every = 10
  # Dense at first: most of what comes back does so in the first hundred.
  config.checkpoints = (5, 10, 20, 40, 70, 100, 200, 300, 500, 700, 1000)
  # Steps between states to go on from, besides those at `checkpoints`.
  config.checkpoint_every = 200
  config.mesh = {"data": placeholder(int), "fsdp": 1}
  # none, project, anchor or reassert; see finetune/defences.py.
  config.defence = {
    "kind": "none",
    # `project` holds so many directions of the erased states, or else those
    # that have so much of them.
    "k": placeholder(int),
    "energy": 0.99,
    "centre": True,
    # Of what was erased: in the loss of `anchor`, in what `reassert` solves.
    "weight": 1.0,
  }
  config.tensorboard = False
  return config
