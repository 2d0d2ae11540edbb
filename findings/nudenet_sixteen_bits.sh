#!/usr/bin/env bash
# nudenet 3.4.2: a 16-bit picture given as bytes is full of body parts.
#
# Most expect: a path, an open file and the bytes of one picture give the same
# boxes, since the detector opens each of them as an image.
# Seen: a path is read as 8-bit. Bytes and open files are read at their own
# depth and divided by 255 all the same, so that a network that was trained on
# 0 to 1 sees 0 to 257. A portrait of an astronaut in her suit has one box by
# its path, her face; as bytes it has 207, of parts that are not there. The
# 8-bit file gives the same box in all three ways.
# What works: convert pictures to 8-bit RGB before they are judged.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet nudenet==3.4.2 scikit-image==0.26.0 \
  opencv-python-headless==5.0.0.93 onnxruntime==1.23.2 numpy==2.4.0
cd "$folder"
bin/python - <<'EOF'
import sys
from importlib.metadata import version

import cv2
import nudenet
import numpy as np
from skimage import data

portrait = data.astronaut()[:, :, ::-1]
cv2.imwrite("8.png", portrait)
cv2.imwrite("16.png", portrait.astype(np.uint16) * 257)
detector = nudenet.NudeDetector()


def boxes(file):
  with open(file, "rb") as opened:
    ways = file, open(file, "rb").read(), opened
    return [detector.detect(way) for way in ways]


print("nudenet", version("nudenet"), "opencv", cv2.__version__)
eight, sixteen = boxes("8.png"), boxes("16.png")
for depth, found in ((8, eight), (16, sixteen)):
  counts = [len(one) for one in found]
  print(f"{depth}-bit: boxes by path, bytes, open file: {counts}")
print("expected: the same in all ways and depths")
faces = [[box["class"] for box in one] for one in (*eight, sixteen[0])]
same = all(one == ["FACE_FEMALE"] for one in faces)
same = same and all(len(one) > 50 for one in sixteen[1:])
sys.exit(0 if same else "The behaviour changed.")
EOF
