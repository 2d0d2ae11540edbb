"""A method has one color, whatever else stands on the page."""

from unlearning_jax.report import colors


def test_a_method_keeps_its_color():
  alone = colors.classes(["rece"])["rece"]
  page = colors.classes(["base", "uce", "rece", "mine"])
  assert page["rece"] == alone and page["base"] == "s0 d0"
  # By another spelling, and with a preset's year.
  found = colors.classes(["UCE2023"])
  assert found["UCE2023"] == page["uce"]
  assert colors.classes(["mine"])["mine"] == page["mine"]


def test_names_on_one_page_differ():
  names = ["uce", "UCE2023", "uce-2", "base", "random", "timely", "time"]
  found = colors.classes(names)
  assert len(set(found.values())) == len(names)
  assert found["uce"].split()[0] == found["UCE2023"].split()[0]
  # A longer word is no method's name.
  assert found["timely"] != colors.classes(["time"])["time"]
