"""The programs in `benchmarks` are no package: they import one another by name."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
