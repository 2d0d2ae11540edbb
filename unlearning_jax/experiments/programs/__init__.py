"""Programs at their real size, compiled ahead of time from shapes alone.

build       the programs
measured    memory, work and collectives of a compiled one
record      the rows, as they are kept
compiling   compiles and records
devices     how much memory a chip has
needs       the programs of a run
fits        whether they fit a chip
"""

from unlearning_jax.experiments.programs.compiling import Settings as Settings
from unlearning_jax.experiments.programs.compiling import run as run
from unlearning_jax.experiments.programs.record import RECORD as RECORD
from unlearning_jax.experiments.programs.record import listed as listed
from unlearning_jax.experiments.programs.record import table as table
