"""Layer norm and RMS norm of PyTorch tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.compiler import is_dynamo_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from layernorm import spec
from layernorm._native import torch_is_unwatched, torch_try_forward
from layernorm.torch import arguments, fallback, operators, sharding
from layernorm.torch.arguments import Definition
from layernorm.torch.autograd import Norm, apply, record_fast_path, requires_gradient
from layernorm.torch.fallback import is_overridden
from layernorm.torch.gpu import operators as gpu

_ORDINARY = (Tensor, torch.nn.Parameter, type(None))


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    axis: spec.Axis | None = None,
    zero_centered_weight: bool = False,
) -> Tensor:
    """Normalize `input` to zero mean and unit variance, then scale and shift.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with the biased variance. A replacement for
    `torch.nn.functional.layer_norm`, with the same results but smaller rounding errors.

    Args:
        input: x, a tensor of float16, bfloat16, float32 or float64, of any strides, on the
            CPU or (with Triton) a GPU. PyTorch's own function serves other types and devices.
        normalized_shape: the sizes of x's last axes, or of those that `axis` names.
        weight, bias: tensors of the normalized shape, or None. Or of a shape that broadcasts
            against x, with the normalized sizes: adaptive layer norm is `weight=scale[:, None],
            bias=shift[:, None], zero_centered_weight=True`. Of x's type, or float32 for a 16-bit
            x.
        eps: added to the variance, in units of x squared.
        axis: the normalized axes, an int or ints, if they are not the last: axis=1 for channels
            first. Neither that nor channels_last memory requires a copy.
        zero_centered_weight: multiply by 1 + weight.
    Returns: y, with x's shape and type; contiguous, like PyTorch's, or with `axis` in x's memory
        format.
    Raises: RuntimeError for shapes and types, IndexError if an axis is out of range,
        TypeError if it is not an int.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    if axis is None and not is_dynamo_compiling():
        y = torch_try_forward(
            input, weight, bias, normalized_shape, eps, True, zero_centered_weight
        )
        if y is not None:
            return record_fast_path(input, weight, bias, y) if type(y) is tuple else y
    if has_torch_function_variadic(input, weight, bias):
        if axis is None and not zero_centered_weight and is_overridden(input, weight, bias):
            shape = arguments.sizes_of(normalized_shape)
            return fallback.call(input, shape, weight, bias, eps, centered=True)
        return handle_torch_function(
            layer_norm,
            (input, weight, bias),
            input,
            normalized_shape,
            weight=weight,
            bias=bias,
            eps=eps,
            axis=axis,
            zero_centered_weight=zero_centered_weight,
        )
    return norm(
        input,
        normalized_shape,
        weight,
        bias,
        eps,
        axis,
        centered=True,
        zero_centered_weight=zero_centered_weight,
    )


def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    axis: spec.Axis | None = None,
    zero_centered_weight: bool = False,
) -> Tensor:
    """Divide `input` by its root mean square, then scale.

    y = x / sqrt(mean(x**2) + eps) * weight. A replacement for `torch.nn.functional.rms_norm`.

    Args:
        input, normalized_shape, weight, axis, zero_centered_weight: as in `layer_norm`.
        eps: added to the mean square, in units of x squared. None means the machine epsilon of
            float32, or of float64 for a float64 x.
    Returns: y, as `layer_norm` does, but of an x in channels_last memory in that memory too.
    Raises: as `layer_norm` does.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    if axis is None and not is_dynamo_compiling():
        y = torch_try_forward(
            input, weight, None, normalized_shape, eps, False, zero_centered_weight
        )
        if y is not None and not (type(y) is tuple and input.is_inference()):
            return record_fast_path(input, weight, None, y) if type(y) is tuple else y
    if has_torch_function_variadic(input, weight):
        if axis is None and not zero_centered_weight and is_overridden(input, weight):
            shape = arguments.sizes_of(normalized_shape)
            return fallback.call(input, shape, weight, None, eps, centered=False)
        return handle_torch_function(
            rms_norm,
            (input, weight),
            input,
            normalized_shape,
            weight=weight,
            eps=eps,
            axis=axis,
            zero_centered_weight=zero_centered_weight,
        )
    return norm(
        input,
        normalized_shape,
        weight,
        None,
        eps,
        axis,
        centered=False,
        zero_centered_weight=zero_centered_weight,
    )


def norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    axis: spec.Axis | None,
    *,
    centered: bool,
    zero_centered_weight: bool = False,
) -> Tensor:
    """Return y on the general path: check the arguments, then call the operators."""
    sizes = arguments.sizes_of(normalized_shape)
    is_compiled = torch.compiler.is_compiling()
    if type(x) is not Tensor and not is_compiled:
        sharding.prepare(x)
    if not fallback.serves(x, sizes, weight, bias, eps, centered=centered):
        return fallback.call(
            x,
            sizes,
            weight,
            bias,
            eps,
            axis,
            centered=centered,
            zero_centered_weight=zero_centered_weight,
        )
    x, weight, bias = gpu.as_under_autocast(x, weight, bias, centered=centered)
    axes = arguments.axes_of(x, sizes, axis)
    weight, bias = arguments.take_parameters(x, axes, weight, bias)
    if axis is None:
        memory = torch.contiguous_format if centered else suggest_memory_format(x)
        # Of an x with gaps, such as a part of a fused projection, y is contiguous without a copy.
        has_gaps = not is_compiled and operators.has_gaps(x)
        if not has_gaps or memory is not torch.contiguous_format:
            x = x.contiguous(memory_format=memory)
    if eps is None:
        eps = arguments.machine_epsilon(x.dtype)
    definition = Definition(axes, float(eps), centered, bool(zero_centered_weight))
    if is_compiled:  # the compiler must see an operator, which a node of ours would hide
        return operators.forward(x, weight, bias, definition)[0]
    if not requires_gradient(x, weight, bias):
        if gpu.may_bypass_dispatcher(x, weight, bias):
            parameters = arguments.repeated(weight, bias)
            return gpu.forward(x, *parameters, definition, save=False)[0]
        is_ordinary = all(type(each) in _ORDINARY for each in (x, weight, bias))
        if is_ordinary and torch_is_unwatched():  # no transform, no forward mode: no node is needed
            with torch._C._AutoDispatchBelowAutograd():
                return operators.forward(x, weight, bias, definition)[0]
    return apply(Norm, x, weight, bias, definition)[0]


# TorchScript compiles calls of our functions into PyTorch's operators. Its table knows functions by
# their ids, so its list keeps them, even when this module is reloaded.
for _pair in ((layer_norm, "aten::layer_norm"), (rms_norm, "aten::rms_norm")):
    torch.jit._builtins._builtin_ops.append(_pair)
    torch.jit._builtins._register_builtin(*_pair)
