#!/usr/bin/env bash
# transformers 5.23.0: with the padding of Stable Diffusion 2 and SDXL, each
# exclamation mark of a prompt becomes padding.
#
# Most expect: a tokenizer's padding token touches padding alone, so that two
# CLIP tokenizers of one vocabulary read a prompt alike.
# Seen: CLIP's vocabulary has "!" (id 0, inside a word) and "!</w>" (id 256, at
# its end). SD 2 and SDXL's second tokenizer pad with "!". A padding token is
# cut out of the text first, so "wow!" ends in id 0 where the text encoder was
# trained on 256, `decode(skip_special_tokens=True)` loses the mark, and a mask
# made by `ids != pad_token_id` hides it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3
cd "$folder"
bin/python - <<'EOF'
import json
import pathlib
import sys
import tempfile

import transformers
from transformers import CLIPTokenizer

# The first 512 ids of CLIP's vocabulary: its bytes, and these at a word's end.
visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
other = [b for b in range(256) if b not in visible]
letters = [chr(b) for b in visible] + [chr(256 + n) for n in range(len(other))]
vocabulary = [
  *letters,
  *(c + "</w>" for c in letters),
  "<|startoftext|>",
  "<|endoftext|>",
]
folder = tempfile.mkdtemp()
numbers = {word: index for index, word in enumerate(vocabulary)}
pathlib.Path(folder, "vocab.json").write_text(json.dumps(numbers))
pathlib.Path(folder, "merges.txt").write_text("#version: 0.2\n")


def tokenizer(padding):
  return CLIPTokenizer(
    folder + "/vocab.json", folder + "/merges.txt", pad_token=padding
  )


first, second = tokenizer("<|endoftext|>"), tokenizer("!")
prompt = "no! stop!"
ids = first(prompt).input_ids, second(prompt).input_ids
text = second.decode(ids[1], skip_special_tokens=True)
print("transformers", transformers.__version__)
print("Expected: both tokenizers give", ids[0])
print("Seen with the padding '!':    ", ids[1])
print("Decoded without special tokens:", repr(text))
same = (
  ids[0].count(256) == 2
  and ids[1].count(0) == 2
  and 256 not in ids[1]
  and second.pad_token_id == 0
  and "!" not in text
)
sys.exit(0 if same else "The behaviour changed.")
EOF
