# %% [markdown]
# # Audit your model
#
# A model was made to unlearn something. Is it gone, and does it stay gone? One
# call evaluates it, attacks it with two controls, tunes it on other pictures,
# and writes one page of verdicts.

# %%
# Where the package is not installed yet, name what pip should install: a wheel
# that you uploaded, or git+https:// and the address of the repository. Judges
# of full-size models come with the extra `judges`.
SOURCE = ""
if SOURCE:
  # %pip install -q $SOURCE
  pass

# %% [markdown]
# On Colab, a drive holds models and prompts, and keeps the audit when the
# machine goes. Run the same cells again to go on.

# %%
DRIVE = False
if DRIVE:
  from google.colab import drive

  drive.mount("/content/drive")

# %% [markdown]
# Your model. Left empty, the notebook audits a model of its own, from which
# “star” was erased.
#
# A published protocol needs its table of prompts, and pictures with captions to
# tune on; without them the page says what it could not ask. `ul.protocols()`
# lists the protocols.

# %%
MODEL = ""  # the base: a folder, or "CompVis/stable-diffusion-v1-4"
ERASED = ""  # what was erased from it: a file or a folder
PROTOCOL = "shapes-star"  # "udm-nudity", "udm-style/van-gogh", ...
PROMPTS = ""  # "/content/drive/MyDrive/nudity.csv"
DATA = ""  # "/content/drive/MyDrive/pictures"
OUT = "audit"  # "/content/drive/MyDrive/audit"

# %% [markdown]
# What fits: the compiled attack of Stable Diffusion 1.4 needs 3.7 GiB and 1.3
# GiB for each lane, in float32. So 4 lanes fit a T4's 15 GiB, and 8 a TPU
# v5e's 16 GiB. These are sizes of the compiled program; no T4 was tried.
# bfloat16 is for TPUs and for GPUs from the A100 on.

# %%
DTYPE = "float32"
LANES = 4

# %%
import unlearning_jax as ul

if MODEL:
  base = ul.load(MODEL, dtype=DTYPE)
  erased = ul.load(ERASED, base=base)
else:
  base = ul.load("shapes")
  erased = ul.erase(base, ul.concept(base, "star"), method="uce")
base, erased

# %% [markdown]
# The audit. It says what it will run and what it costs, then runs it. A stage
# that fails is on the page, and the others go on.

# %%
audit = ul.audit(
  erased,
  base=base,
  protocol=PROTOCOL,
  preset="quick",
  prompts=PROMPTS,
  data=DATA,
  lanes=LANES,
  out=OUT,
)

# %% [markdown]
# ## The verdicts
#
# `not shown` means that too few rows, or a missing control, leave it open.

# %%
for one in audit.verdicts:
  print(f"{one['victim']}: {one['title']} {one['verdict']}")
  print(f"   {one['reason']}")

# %% [markdown]
# ## The page
#
# `report.html` in the audit's folder is one file that opens from disk.

# %%
audit.show()
