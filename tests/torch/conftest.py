"""PyTorch's warnings about itself do not fail our tests."""

from pathlib import Path

import pytest

_OF_PYTORCH = (
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:.*legacy TorchScript-based ONNX.*:DeprecationWarning",
    "ignore:.*LeafSpec.*:FutureWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for each in _OF_PYTORCH:
                item.add_marker(pytest.mark.filterwarnings(each))


@pytest.fixture
def process_group():
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available():
        pytest.skip("PyTorch has no distributed")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
