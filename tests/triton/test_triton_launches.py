"""The launches of the GPU kernels: their tiles and arguments, and what is compiled for them."""

import ast
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from machine_code import Launches, run  # noqa: E402
from triton_interpreter import INTERPRETED  # noqa: E402

from layernorm.torch.arguments import Definition  # noqa: E402
from layernorm.torch.gpu import backward as gpu_backward  # noqa: E402
from layernorm.torch.gpu import forward as gpu_forward  # noqa: E402
from layernorm.torch.gpu import quantized as gpu_quantized  # noqa: E402
from layernorm.torch.gpu.axis_order import order_of  # noqa: E402
from layernorm.triton import launch_config  # noqa: E402

COLS = (1, 2, 3, 5, 16, 17, 64, 257, 768, 769, 1024, 4096, 4097, 8192, 8193, 16384, 16385, 2**20)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("cols", COLS)
def test_a_tile_holds_its_rows(cols, itemsize, backward) -> None:
    for tile in (
        launch_config.row_tile(cols, itemsize, strided=False, backward=backward),
        launch_config.row_tile(cols, itemsize, strided=True, backward=backward),
    ):
        if tile is None:
            continue
        assert tile.high * tile.low >= cols
        assert tile.rows % tile.sum_rows == 0
        for size in (*tile[:5],):
            assert size & (size - 1) == 0, tile
        assert tile.warps <= 32
        if tile.vector:
            assert tile.low * itemsize == 16
            assert cols * itemsize % 16 == 0
    for strided in (False, True):
        tile = launch_config.long_row_tile(cols, itemsize, strided=strided)
        assert tile.blocks * tile.high * tile.low >= cols
        assert tile.padded_blocks >= tile.blocks


@pytest.mark.parametrize("order", ["channels first", "channels last"])
def test_a_sample_alone_is_read_in_the_order_of_a_batch_that_takes_a_copy(order) -> None:
    if order == "channels last":
        x = torch.empty(4, 9, 70)[:, :7, :67].transpose(1, 2)
    else:
        x = torch.empty(4, 5, 67, 14)[:, :3]
    strided = [order_of(each, (-2,)).is_strided for each in (x, x[:1])]
    assert strided == [order == "channels first"] * 2


@pytest.mark.parametrize("strided", [False, True])
def test_the_longest_rows_fit_32_bit_columns_and_the_largest_tile(strided) -> None:
    for itemsize in (2, 4, 8):
        tile = launch_config.long_row_tile(launch_config.MOST_COLS, itemsize, strided=strided)
        assert tile.blocks * tile.high * tile.low < 2**31  # columns are int32
        assert tile.rows * tile.padded_blocks <= 2**20  # the largest tile that Triton takes
        for cols in (16385, 2**20, launch_config.MOST_COLS):
            warps = launch_config.warps_for_partials(
                launch_config.long_row_tile(cols, itemsize, strided=strided)
            )
            assert 1 <= warps <= 16
            assert warps & (warps - 1) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("cols", "axis", "kernels"),
    [(64, -1, 3), (769, -1, 3), (6000, -1, 4), (20000, -1, 10), (48, 1, 3), (6000, 1, 10)],
)
def test_fifty_batch_sizes_compile_each_kernel_once(
    monkeypatch, dtype, cols, axis, kernels
) -> None:
    launches = Launches(monkeypatch)
    for rows in (*range(1, 50), 1000):
        shape = (rows, cols) if axis == -1 else (rows, cols, 1 + rows % 7, 3)
        x = torch.empty(rows + 1, *shape[1:], dtype=dtype)[1:]  # each at another alignment
        run(x, torch.empty_like(x), axis=axis)
    assert len(launches.compiled) == kernels, sorted(key[0] for key in launches.compiled)


READ_OR_WRITTEN = {"x_ptr", "dy_ptr", "y_ptr", "dx_ptr", "weight_ptr", "bias_ptr"}
READ_OR_WRITTEN |= {"addend_ptr", "total_ptr", "dtotal_ptr", "gate_ptr", "dgate_ptr", "q_ptr"}


# A GPU loads 16 bytes from a multiple of 16 only. The interpreter does not show it.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cols", [64, 6000, 20000])
def test_rows_read_16_bytes_at_a_time_start_at_a_multiple_of_16_bytes(
    monkeypatch, dtype, cols
) -> None:
    launches = Launches(monkeypatch)
    memory = torch.empty(5, cols + 3, dtype=dtype)
    shifted = memory.flatten()[1 : 1 + 4 * cols].view(4, cols)
    for given in (shifted, memory[:, 1 : 1 + cols], memory[:, :cols]):
        run(given, torch.empty_like(given))
        run(torch.empty(given.shape, dtype=dtype), given)
        run_members(given[:4].unflatten(0, (2, 2)), (1, 2, cols))
        run_sum(torch.empty(given.shape, dtype=dtype), given, given)
        run_gated(torch.empty(given.shape, dtype=dtype), given)
        gpu_quantized.quantized(given, None, None, Definition((-1,), 1e-5), "int8", None)
    vectorized = [launch for launch in launches.launched if launch[2].get("VECTOR")]
    assert vectorized
    for kernel, arguments, _ in vectorized:
        for name, given in zip(kernel.arg_names, arguments, strict=False):
            if name in READ_OR_WRITTEN:
                assert given.data_ptr() % 16 == 0, (kernel.__name__, name)
            if name.endswith(("outer_stride", "member_stride", "after_stride")):
                assert given * dtype.itemsize % 16 == 0, (kernel.__name__, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cols", [500, 2000, 3000, 20000])
def test_channels_first_is_read_and_written_without_a_copy(monkeypatch, dtype, cols) -> None:
    launches = Launches(monkeypatch)
    x, dy = (torch.empty(4, cols + 1, 12, dtype=dtype)[::2, 1:, 1:-1] for _ in range(2))
    definition = Definition((1,), 1e-5)
    y, *statistics = gpu_forward.forward(x, None, None, definition)
    given = (dy, x, None, dtype, definition, [True] * 3, statistics)
    dx, _, _ = gpu_backward.Backward(*given).run()
    tensors = {"x_ptr": x, "dy_ptr": dy, "y_ptr": y, "dx_ptr": dx}
    seen = set()
    for kernel, arguments, _ in launches.launched:
        for name, argument in zip(kernel.arg_names, arguments, strict=False):
            if name in tensors:
                assert argument.data_ptr() == tensors[name].data_ptr(), (kernel.__name__, name)
                seen.add(name)
    assert seen == set(tensors)


def run_sum(x, addend, dtotal, axis=-1) -> tuple[torch.Tensor, ...]:
    """Launch a forward and a backward with a residual."""
    definition = Definition((axis,), 1e-5)
    y, total, *statistics = gpu_forward.forward(x, None, None, definition, addend=addend)
    given = (torch.empty_like(total), total, None, x.dtype, definition, [True] * 3, statistics)
    return y, total, gpu_backward.Backward(*given, dtotal=dtotal).run()[0]


# Rows in one program, with their sums beside dx or not, long rows, and channels first.
@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 64), -1), ((4, 6000), -1), ((4, 20000), -1), ((3, 48, 12), 1)]
)
def test_a_residual_takes_no_further_launch_and_no_copy(monkeypatch, shape, axis) -> None:
    launches = Launches(monkeypatch)
    x, addend, dtotal = (torch.empty(shape) for _ in range(3))
    definition = Definition((axis,), 1e-5)
    y, *statistics = gpu_forward.forward(x, None, None, definition)
    gpu_backward.Backward(y, x, None, x.dtype, definition, [True] * 3, statistics).run()
    plain = [kernel.__name__ for kernel, _, _ in launches.launched]
    launches.launched.clear()
    y, total, dx = run_sum(x, addend, dtotal, axis)
    assert [kernel.__name__ for kernel, _, _ in launches.launched] == plain
    tensors = {"addend_ptr": addend, "y_ptr": y, "total_ptr": total}
    tensors |= {"dtotal_ptr": dtotal, "dx_ptr": dx}
    seen, sources = set(), set()
    for kernel, arguments, constants in launches.launched:
        for name, argument in zip(kernel.arg_names, arguments, strict=False):
            is_used = constants.get("ADDEND" if name in ("addend_ptr", "total_ptr") else "DTOTAL")
            if name in tensors and (is_used or name in ("y_ptr", "dx_ptr")):
                assert argument.data_ptr() == tensors[name].data_ptr(), (kernel.__name__, name)
                seen.add(name)
            if name == "x_ptr":
                sources.add((argument.data_ptr(), bool(constants.get("ADDEND"))))
    assert seen == set(tensors)
    assert sources == {(x.data_ptr(), True), (total.data_ptr(), False)}


def run_gated(x, gate, axis=-1, *, norm_before_gate=True) -> tuple[torch.Tensor, ...]:
    """Launch a forward and a backward with a gate; return y, dx and dgate."""
    definition = Definition((axis,), 1e-5, norm_before_gate=norm_before_gate)
    y, *statistics = gpu_forward.forward(x, None, None, definition, gate=gate)
    given = (torch.empty_like(x), x, None, x.dtype, definition, [True] * 4, statistics)
    dx, _, _, dgate = gpu_backward.Backward(*given, gate=gate).run()
    return y, dx, dgate


@pytest.mark.parametrize("norm_before_gate", [True, False])
@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 64), -1), ((4, 6000), -1), ((4, 20000), -1), ((3, 48, 12), 1)]
)
def test_a_gate_takes_no_further_launch_and_no_copy(
    monkeypatch, shape, axis, norm_before_gate
) -> None:
    launches = Launches(monkeypatch)
    x, gate = (torch.empty(shape) for _ in range(2))
    definition = Definition((axis,), 1e-5)
    y, *statistics = gpu_forward.forward(x, None, None, definition)
    gpu_backward.Backward(y, x, None, x.dtype, definition, [True] * 3, statistics).run()
    plain = [kernel.__name__ for kernel, _, _ in launches.launched]
    launches.launched.clear()
    y, dx, dgate = run_gated(x, gate, axis, norm_before_gate=norm_before_gate)
    assert [kernel.__name__ for kernel, _, _ in launches.launched] == plain
    tensors = {"x_ptr": x, "gate_ptr": gate, "y_ptr": y, "dx_ptr": dx, "dgate_ptr": dgate}
    seen = set()
    for kernel, arguments, constants in launches.launched:
        is_gated = constants.get("GATE_X") or constants.get("GATE_Y")
        for name, argument in zip(kernel.arg_names, arguments, strict=False):
            if name in tensors and (name != "gate_ptr" or is_gated):
                assert argument.data_ptr() == tensors[name].data_ptr(), (kernel.__name__, name)
                seen.add(name)
    assert seen == set(tensors)


# Rows in one program, contiguous and channels first; long rows.
@pytest.mark.parametrize("shape", [(4, 64), (4, 16384), (3, 48, 12), (4, 20000), (3, 6000, 12)])
def test_q_takes_one_launch_and_of_long_rows_one_after_the_norm(monkeypatch, shape) -> None:
    launches = Launches(monkeypatch)
    definition, is_long = Definition((1 - len(shape),), 1e-5), shape[1] in (20000, 6000)
    for rows in (1, 2, *shape[:1]):
        launches.launched.clear()
        x = torch.empty(rows, *shape[1:])
        q, scales = gpu_quantized.quantized(x, None, None, definition, "int8", None)
    names = [kernel.__name__ for kernel, _, _ in launches.launched]
    of_norm = ["long_row_sums", "long_row_squares", "long_row_forward", "quantize_rows"]
    assert names == (of_norm if is_long else ["forward"])
    assert len(launches.compiled) == len(names)
    kernel, arguments, _ = launches.launched[-1]
    given = dict(zip(kernel.arg_names, arguments, strict=False))
    assert given["q_ptr" if is_long else "y_ptr"].data_ptr() == q.data_ptr()
    assert given["scale_ptr"].data_ptr() == scales.data_ptr()
    if not is_long:
        assert given["x_ptr"].data_ptr() == x.data_ptr()


def run_members(x, parameter_shape, axis=-1) -> tuple[torch.Tensor, ...]:
    """Launch a forward and a backward with weight and bias that vary along kept axes."""
    definition = Definition((axis,), 1e-5)
    parameter = x.new_empty(parameter_shape)
    y, *statistics = gpu_forward.forward(x, parameter, parameter, definition)
    given = (torch.empty_like(x), x, parameter, x.dtype, definition, [True] * 3, statistics)
    return y, *gpu_backward.Backward(*given).run()


IN_PLACE = {
    "adaln, tokens sliced": (torch.empty(3, 50, 64)[:, 1:], (3, 1, 64)),
    "heads of a projection": (torch.empty(2, 9, 3, 4, 64)[:, :, 1], (1, 1, 4, 64)),
    "heads of a projection, one weight": (torch.empty(2, 9, 3, 4, 64)[:, :, 1], (64,)),
    "heads before positions": (torch.empty(2, 4, 9, 64), (1, 4, 1, 64)),
    "heads before positions, transposed": (
        *(torch.empty(2, 9, 4, 64).transpose(1, 2), (1, 4, 1, 64)),
    ),
    "long rows": (torch.empty(2, 9, 3, 20000)[:, :, 1:], (1, 1, 2, 20000)),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_members_are_read_without_a_copy(monkeypatch, name) -> None:
    launches = Launches(monkeypatch)
    x, parameter_shape = IN_PLACE[name]
    run_members(x, parameter_shape)
    read = [
        argument
        for kernel, arguments, _ in launches.launched
        for each, argument in zip(kernel.arg_names, arguments, strict=False)
        if each == "x_ptr"
    ]
    assert len(read) >= 2
    assert {each.data_ptr() for each in read} == {x.data_ptr()}


# 256: sums beside dx. 6000: in a kernel of their own.
@pytest.mark.parametrize("cols", [256, 6000])
def test_the_rows_of_a_member_are_cut_as_in_a_call_of_their_own(monkeypatch, cols) -> None:
    monkeypatch.setattr(gpu_backward, "multiprocessors", lambda device: 132)
    launches = Launches(monkeypatch)
    x = torch.empty(3, 300, cols)
    run_members(x, (3, 1, cols))
    members = len(launches.launched)
    run_members(x[0], (cols,))
    sizes = [
        dict(zip(kernel.arg_names, arguments, strict=False))
        for kernel, arguments, _ in launches.launched
    ]
    names = ("tiles", "programs", "splits")
    sizes = [{name: given[name] for name in names if name in given} for given in sizes]
    assert sizes[:members] == sizes[members:]
    assert sizes[-1]["programs"] > 1


def test_the_rows_of_a_member_are_read_in_the_order_of_a_call_of_their_own() -> None:
    x = torch.empty(5, 2, 4, 16).permute(1, 2, 0, 3)  # sample, head, position
    assert order_of(x[:, 1:2], (-1,)).axes == (2, 0, 3, 1)
    assert order_of(x, (-1,), (1, 4, 1, 16)).axes == (2, 0, 1, 3)


# 6000: the sums have a kernel of their own.
@pytest.mark.parametrize("cols", [64, 6000])
def test_with_one_program_to_a_member_nothing_is_left_to_add(monkeypatch, cols) -> None:
    launches = Launches(monkeypatch)
    _, _, dweight, _ = run_members(torch.empty(3, 5, cols), (3, 1, cols))
    written = [
        argument
        for kernel, arguments, _ in launches.launched
        for name, argument in zip(kernel.arg_names, arguments, strict=False)
        if name == "dweight_ptr"
    ]
    assert written[-1].data_ptr() == dweight.data_ptr()
    assert "add_programs" not in {kernel.__name__ for kernel, _, _ in launches.launched}


# Few rows of a member have one program, which stores dweight itself: a kernel more.
@pytest.mark.parametrize(
    ("shape", "kernels"),
    [(lambda rows: ((2, rows, 64), (2, 1, 64)), 4), (lambda rows: ((rows, 64), (rows, 64)), 2)],
)
def test_fifty_batch_sizes_compile_each_kernel_of_members_once(monkeypatch, shape, kernels) -> None:
    launches = Launches(monkeypatch)
    for rows in (*range(2, 51), 1000):
        x_shape, parameter_shape = shape(rows)
        run_members(torch.empty(x_shape), parameter_shape)
    assert len(launches.compiled) == kernels, sorted(key[0] for key in launches.compiled)


@pytest.mark.skipif(INTERPRETED, reason="compiles, which the interpreter does not")
def test_what_triton_compiles_depends_on_no_integer_and_no_address(monkeypatch) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    launches = Launches(monkeypatch)
    for cols in (64, 6000, 20000):
        run(torch.empty(3, cols), torch.empty(3, cols))
    backend = make_backend(GPUTarget("cuda", 90, 32))
    kernels = {}
    for kernel, arguments, constants in launches.launched:
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        kernels[kernel] = set()
        for number in (1, 2, 16, 17, 2**31, 2**33):
            for offset in (0, 1):  # in elements: the second is not aligned
                given = [
                    each.new_empty(4)[offset:] if isinstance(each, torch.Tensor) else number
                    for each in arguments
                ]
                kernels[kernel].add(str(bind(*given, **constants)[1]))
    assert len(kernels) == 10
    for kernel, specializations in kernels.items():
        assert len(specializations) == 1, (kernel.__name__, specializations)


def test_no_number_given_to_fma_needs_more_digits_than_float32() -> None:
    """Triton 3.6 rounds it to float32, also beside float64, where 3.9 does not."""
    for file in Path(launch_config.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.fma":
                for argument in node.args:
                    names = {each.id for each in ast.walk(argument) if isinstance(each, ast.Name)}
                    is_constant = all(name.lstrip("_").isupper() for name in names)
                    where = f"{file.name}:{argument.lineno}: {ast.unparse(argument)}"
                    assert not is_constant or ast.unparse(argument) in ("0.0", "1.0"), where
