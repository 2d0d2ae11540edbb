# %% [markdown]
# # Read a published edit
#
# Somebody published a file: “the model without X”. What is it, what does it
# change, does an attack bring X back, and how do you take it to other programs?
# Files of ESD, UCE, RECE, SalUn, AdvUnlearn and MACE are read as their authors
# write them: a UNet, a text encoder, some layers, a LoRA.

# %%
# Where the package is not installed yet, name what pip should install: a wheel
# that you uploaded, or git+https:// and the address of the repository.
SOURCE = ""
if SOURCE:
  # %pip install -q $SOURCE
  pass

# %% [markdown]
# Your file and its base. Left empty, the notebook makes a stand-in: a UNet that
# was erased from the small Shapes model, saved as a bare state dict.

# %%
FILE = ""  # "esd-church.pt", "unet.safetensors", ...
BASE = "shapes"  # a diffusers folder, or "CompVis/stable-diffusion-v1-4"
CONCEPT = "star"  # what it is said to have lost

# %%
import unlearning_jax as ul

base = ul.load(BASE)
if not FILE:
  FILE = "somebodys_unet.safetensors"
  made = ul.erase(base, ul.concept(base, CONCEPT), method="uce")
  made.save(FILE, format="unet", overwrite=True)

# %% [markdown]
# ## What is it?

# %%
ul.inspect(FILE)

# %% [markdown]
# Compared with its base: which layers differ, by how much, and of what rank.

# %%
ul.inspect(FILE, base=BASE)

# %% [markdown]
# ## What does it draw?

# %%
victim = ul.load(FILE, base=base)
ul.grid([base, victim], f"a red {CONCEPT}", seeds=[0, 1, 2])

# %% [markdown]
# ## Does an attack bring it back?
#
# A few prompts and a small budget, to see that it works. `docs/attack.md` says
# which budget a paper used.

# %%
attacked = ul.attack(
  victim,
  ul.concept(base, CONCEPT),
  control="random",
  rows=3,
  hparams={"blocks": 4, "iterations": 15},
)
attacked

# %% [markdown]
# ## Take it to A1111 and ComfyUI
#
# `single_file` is a whole model in one file, which both open. `delta` holds
# only the tensors that changed. What RECE or UCE made here can also be a LoRA:
# `format="kohya"`.

# %%
victim.save("victim_delta.safetensors", format="delta", overwrite=True)

# %%
victim.save("victim.safetensors", format="single_file", overwrite=True)
