"""Keras's own tests of its layers, run on ours: KERAS_BACKEND=... python foreign_suite.py SDIST.

The tests are in Keras's source distribution, not in its wheel. pytest runs the two files as they
are, with our layers in the place of Keras's.
"""

import sys
import tarfile
import tempfile
from pathlib import Path

import keras
import pytest
from keras.src import layers

import layernorm.keras as ours

FILES = ("layer_normalization_test.py", "rms_normalization_test.py")


def main(sdist: str) -> int:
    expected = Path(sdist).name.removesuffix(".tar.gz")
    assert expected == f"keras-{keras.__version__}", f"{expected} beside {keras.__version__}"
    layers.LayerNormalization = ours.LayerNormalization
    layers.RMSNormalization = ours.RMSNormalization
    with tempfile.TemporaryDirectory() as folder, tarfile.open(sdist) as archive:
        for file in FILES:
            member = archive.extractfile(f"{expected}/keras/src/layers/normalization/{file}")
            (Path(folder) / file).write_bytes(member.read())
        return pytest.main(
            [folder, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", "/dev/null"]
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
