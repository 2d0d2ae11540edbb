"""Training data: captioned images, and batches that are functions of a step.

listed    reads folders, tables, archives and prepared datasets
examples  holds a captioned image, and reads its pixels
batches   shuffles rows, and draws one of an image's captions
"""

from unlearning_jax.data.batches import COUNT as COUNT
from unlearning_jax.data.batches import FIRST as FIRST
from unlearning_jax.data.batches import TEXTS as TEXTS
from unlearning_jax.data.batches import Batches as Batches
from unlearning_jax.data.batches import share as share
from unlearning_jax.data.batches import taken as taken
from unlearning_jax.data.examples import Example as Example
from unlearning_jax.data.examples import fingerprint as fingerprint
from unlearning_jax.data.examples import read_images as read_images
from unlearning_jax.data.listed import image_folder as image_folder
from unlearning_jax.data.listed import image_table as image_table
from unlearning_jax.data.listed import prepared_dataset as prepared_dataset
from unlearning_jax.data.listed import source_examples as source_examples
