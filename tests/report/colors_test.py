"""A method has one color, whatever else stands on the page."""

import itertools
import pathlib
import re

import numpy as np
import pytest

from unlearning_jax.report import colors

# What people without one kind of cone see, on linear RGB (Machado et al. 2009).
EYES = {
  "normal": np.eye(3),
  "protanopia": [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
  ],
  "deuteranopia": [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
  ],
  "tritanopia": [
    [1.255528, -0.076749, -0.178779],
    [-0.078411, 0.930809, 0.147602],
    [0.004733, 0.691367, 0.303900],
  ],
}
TO_XYZ = [
  [0.4124, 0.3576, 0.1805],
  [0.2126, 0.7152, 0.0722],
  [0.0193, 0.1192, 0.9505],
]


def linear(color):
  rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
  return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
  xyz = TO_XYZ @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
  f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
  return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_everybody_can_tell_the_hues_apart(scheme):
  style = pathlib.Path(colors.__file__).with_name("style.css").read_text()
  found = style.split("@media (prefers-color-scheme: dark)")[scheme]
  known = dict(re.findall(r"--(\w+): (#\w{6})", found))
  hues = {
    name: linear(known[name]) for name in ("s0 s1 s2 s3 s4 s5 s6").split()
  }
  for eye, matrix in EYES.items():
    seen = {name: lab(np.array(matrix) @ hue) for name, hue in hues.items()}
    for one, other in itertools.combinations(seen, 2):
      # A difference of 2.3 is just noticed.
      far = np.linalg.norm(seen[one] - seen[other])
      assert far > 12, (eye, one, other, far)
  # On a card a hue stands out as WCAG asks of graphics.
  card = linear(known["card"]) @ TO_XYZ[1]
  for name, hue in hues.items():
    light, dark = sorted((hue @ TO_XYZ[1], card), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3, name


def test_a_method_keeps_its_color():
  alone = colors.classes(["rece"])["rece"]
  page = colors.classes(["base", "uce", "rece", "mine"])
  assert page["rece"] == alone and page["base"] == "s0 d0"
  # By another spelling, and with a preset's year.
  found = colors.classes(["UCE2023"])
  assert found["UCE2023"] == page["uce"]


def test_other_names_take_the_hues_that_are_left():
  names = ["original", "uce", "rece", "misses", "neighbor", "collapsed"]
  found = colors.classes(names)
  assert [*found] == names
  assert len({color.split()[0] for color in found.values()}) == 6
  assert found["uce"] == colors.classes(["uce"])["uce"]


def test_names_on_one_page_differ():
  names = ["uce", "UCE2023", "uce-2", "base", "random", "timely", "time"]
  found = colors.classes(names)
  assert len(set(found.values())) == len(names)
  assert found["uce"].split()[0] == found["UCE2023"].split()[0]
  # A longer word is no method's name.
  assert found["timely"] != colors.classes(["time"])["time"]
