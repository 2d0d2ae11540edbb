"""torchvision's ResNet-50, IMAGENET1K_V2: the objects of ESD, SalUn and RECE.

Another network than `resnet50-microsoft`, which the Unlearned-DM benchmark
uses: their numbers do not compare. The older weights V1 have the same shapes;
the file's hash differs.
"""

from unlearning_jax.convert import read_state_dict, vision
from unlearning_jax.judges import Judge, imagenet, networks, weights
from unlearning_jax.judges.pixels import Pixels
from unlearning_jax.models.resnet import ResNet

NEEDS = (
  weights.File(
    "resnet50-11ad3fa6.pth",
    "download.pytorch.org/models/resnet50-11ad3fa6.pth, torchvision's "
    "ResNet50_Weights.IMAGENET1K_V2",
    # torchvision names its files by their first digits.
    sha256="11ad3fa6",
  ),
)
_PIXELS = Pixels(
  232, 224, "bilinear", networks.IMAGENET_MEAN, networks.IMAGENET_STD, "round"
)


def judge(top: int = 1, judges_dir: str = "") -> Judge:
  """The likeliest of ImageNet's classes.

  Args:
    top: an image shows a class that is among so many of the likeliest.
    judges_dir: the folder of judges' weights; "" for the environment's.

  Raises:
    ValueError: the file is missing, or is another one.
  """
  path = NEEDS[0].find("resnet50-v2", judges_dir)
  state = read_state_dict(path)
  config = vision.torchvision_config(state, str(path))
  imagenet.check("resnet50-v2", config.classes)
  table = vision.TORCHVISION_RESNET
  params = vision.resnet(state, table, config, str(path))
  return Judge(
    name="resnet50-v2",
    score=networks.classifier(ResNet(config), params, _PIXELS, "object"),
    labels={"object": imagenet.labels()},
    weights_hash=weights.digest([path]),
    sees=str(_PIXELS),
    cannot_see="anything but ImageNet's thousand classes: one of them always "
    "fits best",
    top=top,
  )
