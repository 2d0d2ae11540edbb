# %% [markdown]
# # Unlearn a concept, attack it, tune it, look
#
# A small text-to-image model draws shapes. We make it unlearn “star”, see
# whether the stars are gone, attack it, and tune it on innocent pictures.
# Everything runs on a CPU in a few minutes. Nothing is downloaded but the
# package.

# %%
# Where the package is not installed yet, name what pip should install: a wheel
# that you uploaded, or git+https:// and the address of the repository.
SOURCE = ""
if SOURCE:
  # %pip install -q $SOURCE
  pass

# %%
import unlearning_jax as ul

model = ul.load("shapes")
star = ul.concept(model, "star")
star

# %% [markdown]
# ## Erase
#
# RECE changes what the text says to the network, in closed form. It takes
# seconds.

# %%
erased = ul.erase(model, star, method="rece")
erased

# %% [markdown]
# ## Look
#
# The same prompts from the same noise: left the base, right the erased model.

# %%
ul.grid([model, erased], ["a red star", "a blue moon"], seeds=[0, 1])

# %% [markdown]
# A frozen protocol counts, with intervals, and a judge looks at the pictures.
# Here with fewer prompts than it has; without the `~` it takes a few minutes.

# %%
ul.evaluate(
  erased, base=model, protocol="shapes-star~rows_per_group=10,other_rows=30"
)

# %% [markdown]
# ## Attack
#
# Can a prompt bring it back? UnlearnDiffAtk searches five words for each of a
# few prompts. The control draws as many pictures after random words: only what
# the attack wins beyond the control says that it found something.

# %%
ul.attack(erased, star, method="unlearn_diff_atk", control="random", rows=4)

# %% [markdown]
# ## Tune
#
# Does innocent tuning bring it back? We train a LoRA on pictures of similar
# shapes, without a star among them.

# %%
tuned = ul.finetune(erased, data="shapes:near", train="lora", steps=60)
ul.grid([model, erased, tuned], "a red star", seeds=[0, 1, 2, 3])

# %% [markdown]
# R_norm is 0 if the concept stayed away, and 1 if it is back as if it had never
# been erased.

# %%
ul.resurgence(model, erased, tuned, prompts=10)

# %% [markdown]
# ## Take it with you
#
# The change as a LoRA file that ComfyUI and A1111 load.

# %%
erased.save("star.safetensors", format="kohya")
