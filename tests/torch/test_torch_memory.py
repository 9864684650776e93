"""Outputs are ordinary tensors, and the buffer cache reuses the memory of large ones."""

import copy
import pickle
import sys
import weakref

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

import layernorm.torch as ours  # noqa: E402

X = torch.randn(512, 1024)  # 2 MiB
SHAPE = (1024,)


def by_fast_path(x):
    return ours.layer_norm(x, SHAPE)


def by_operators(x):
    return ours.layer_norm(x, SHAPE, axis=-1)


def accelerated(x):
    with ours.accelerate():
        return F.layer_norm(x, SHAPE)


def gradient_by_fast_path(x):
    x = x.detach().requires_grad_()
    (dx,) = torch.autograd.grad(ours.layer_norm(x, SHAPE), x, x.detach())
    return dx


def page_faults() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux's")
each_way = pytest.mark.parametrize(
    "way", [by_fast_path, by_operators, accelerated, gradient_by_fast_path]
)


@linux_only
@each_way
@pytest.mark.filterwarnings("ignore:.*Warning only once for all operators.*")
def test_the_next_output_reuses_the_memory_of_a_deleted_one(way) -> None:
    if torch.__version__ < "2.11" and way in (by_operators, accelerated):
        pytest.skip("the operators' outputs have PyTorch's memory before 2.11")
    x = torch.randn(9 * 1024, 1024)  # 36 MiB, which malloc returns to the system each time
    for _ in range(8):
        way(x)
    before = page_faults()
    for _ in range(8):
        way(x)
    # Fresh memory takes at least 18 huge pages a call; Python itself needs a few pages.
    assert page_faults() - before < 8 * 18 / 2


@each_way
@pytest.mark.filterwarnings("ignore:.*Warning only once for all operators.*")
def test_outputs_that_are_alive_share_no_memory(way) -> None:
    many = [way(X + each) for each in range(12)]
    for each, result in enumerate(many):
        assert torch.equal(result, way(X + each))


def test_an_output_takes_no_shorter_place() -> None:
    y = by_fast_path(X[:500])
    place = y.data_ptr()
    del y
    assert by_fast_path(X).data_ptr() != place


def test_nothing_outlives_its_use() -> None:
    inputs = [torch.randn(size, requires_grad=True) for size in ((3, 5), (5,), (5,))]
    y = ours.layer_norm(inputs[0], (5,), *inputs[1:])
    gradients = torch.autograd.grad(y, inputs, torch.randn(3, 5))
    seen = [weakref.ref(each) for each in (*inputs, y, *gradients)]
    del inputs, y, gradients
    assert not any(each() is not None for each in seen)


@linux_only
def test_many_calls_take_no_more_memory_than_a_few() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    # 256 KiB, from malloc; the statistics are nearly as large.
    x, dy = torch.randn(16384, 4, requires_grad=True), torch.randn(16384, 4)
    for call in range(220):
        torch.autograd.grad(ours.layer_norm(x, (4,)), x, dy)
        if call == 20:
            before = resident()
    assert resident() - before < 200 * 2**18 / 4


def test_views_keep_the_memory() -> None:
    row = by_fast_path(X)[7]
    others = [by_fast_path(X + 1) for _ in range(3)]
    assert torch.equal(row, by_fast_path(X[7:8])[0])
    assert all(torch.equal(each, others[0]) for each in others)


@pytest.mark.parametrize("rows", [3, 512])
def test_outputs_are_tensors_like_any_other(rows) -> None:
    x = X[:rows]
    y = by_fast_path(x)
    assert type(y) is torch.Tensor
    assert y.device == x.device
    assert y.is_contiguous()
    assert torch.equal(y, by_operators(x))
    for other in (copy.deepcopy(y), pickle.loads(pickle.dumps(y)), torch.from_numpy(y.numpy())):
        assert torch.equal(other, y)
    expected = y.clone()
    y.share_memory_()
    assert y.is_shared()
    assert torch.equal(y, expected)
    y.mul_(2)
    assert torch.equal(y, 2 * expected)


def test_the_layout_of_a_large_output_is_that_of_x() -> None:
    images = torch.randn(8, 96, 28, 28).to(memory_format=torch.channels_last)
    y = ours.layer_norm(images, (96,), axis=1)
    assert y.stride() == images.stride()
    expected = ours.layer_norm(images.permute(0, 2, 3, 1), (96,)).permute(0, 3, 1, 2)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("rows", [8, 512])
def test_the_storage_of_an_output_cannot_be_resized(rows) -> None:
    y = by_fast_path(X[:rows])
    assert not y.untyped_storage().resizable()
    with pytest.raises(RuntimeError, match="not resizable"):
        y.resize_(4096, 1024)
    y.resize_(rows // 2, 1024)  # within the memory that it has


def test_small_outputs_of_any_number_of_axes_are_aligned_to_cache_lines() -> None:
    for axes in (1, 2, 3, 7, 64):
        x = torch.randn(*[1] * (axes - 1), 5, requires_grad=True)
        y = ours.layer_norm(x, (5,))
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        for each in (y, dx):
            assert each.shape == x.shape
            assert each.is_contiguous()
            assert each.data_ptr() % 64 == 0
