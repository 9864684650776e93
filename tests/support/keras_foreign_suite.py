"""Keras's own tests of its layers, run on ours: python keras_foreign_suite.py SDIST.

The tests are in Keras's source distribution, not in its wheel. The two files run unchanged, with
our layers in place of Keras's. KERAS_BACKEND selects the backend.
"""

import sys
import tarfile
import types
import unittest
from pathlib import Path
from unittest import mock

import keras
from keras.src import layers

import layernorm.keras as ours

FILES = ("layer_normalization_test.py", "rms_normalization_test.py")

# The Makefile puts the source distribution there.
SDISTS = sorted(Path(__file__).parents[2].glob("build/sdists/keras-*.tar.gz"))


def run(sdist: Path) -> unittest.TestResult:
    """Run the tests; return how many ran, and which failed."""
    name = sdist.name.removesuffix(".tar.gz")
    assert name == f"keras-{keras.__version__}", f"{name}, beside Keras {keras.__version__}"
    suite = unittest.TestSuite()
    with tarfile.open(sdist) as archive:
        for file in FILES:
            source = archive.extractfile(f"{name}/keras/src/layers/normalization/{file}").read()
            module = types.ModuleType(file.removesuffix(".py"))
            exec(compile(source, file, "exec"), vars(module))
            suite.addTests(unittest.defaultTestLoader.loadTestsFromModule(module))
    replaced = {each.__name__: each for each in (ours.LayerNormalization, ours.RMSNormalization)}
    with mock.patch.multiple(layers, **replaced):
        return unittest.TextTestRunner(verbosity=2).run(suite)


if __name__ == "__main__":
    done = run(Path(sys.argv[1]))
    sys.exit(not done.wasSuccessful())
