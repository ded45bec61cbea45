"""A pretended GPU: tensors that say they are on "cuda" and compute on the CPU.

It has the rules that code written on a CPU breaks on a GPU: tensors of two devices do not mix, NumPy
cannot read a tensor before it is on the host, and some operations make the host wait for the device. Those are counted
(`Gpu.waits`). It does not cover arithmetic, kernels, memory, streams and speed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

torch._disable_dynamo(lambda: None)()  # loads itself at its first call, which must not get stand-ins

HOST, DEVICE = torch.device("cpu"), torch.device("cuda", 0)
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"}
READS |= {"bincount"}  # its length is a number on the device
CHOOSES = {"index", "index_put", "index_put_", "_index_put_impl_"}  # a mask, or an index on the host, waits
MIXES = {"copy_", "_to_copy"} | CHOOSES


class OnGpu(Tensor):
    """A tensor that torch takes for one on a GPU; `value` is the real tensor."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> OnGpu:
        with torch._C.DisableTorchFunction(), torch.inference_mode(False):
            shell = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            return torch.Tensor._make_subclass(cls, shell, False, dispatch_device=True, device_for_backend_keys=HOST)

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach()

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnGpu({self.value})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = OnGpu(self.value.clone())
        copy = torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy
        memo[id(self)] = copy
        return copy

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _current().compute(function, args, kwargs or {})


class Gpu(TorchFunctionMode):
    """Inside this context, `device="cuda"` is this one. `waits`: operation -> number of waits of the host."""

    active: Gpu | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.patches = ExitStack()

    def __enter__(self) -> Gpu:
        for name, stand_in in _stand_ins().items():
            self.patches.enter_context(mock.patch(name, stand_in))
        Gpu.active = self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        Gpu.active = None
        self.patches.close()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        tensor = args[0] if args and isinstance(args[0], Tensor) else None
        if tensor is not None and name in ("to", "cuda", "cpu"):
            return self._moved(function, name, tensor, args[1:], kwargs)
        if name == "pin_memory":
            return tensor
        if isinstance(tensor, OnGpu) and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy: bring it to the host first")
        if isinstance(tensor, OnGpu) and function is Tensor.data.__set__:  # type: ignore[attr-defined]
            tensor.value = args[1].value
        if isinstance(tensor, OnGpu) and name == "tolist":
            self.waits[name] += 1
            return tensor.value.tolist()
        inside = any(isinstance(value, OnGpu) for value in _tensors((*args, *kwargs.values())))
        if _is_gpu(kwargs.get("device")) and not inside:
            made = function(*args, **{**kwargs, "device": HOST})  # zeros, arange, tensor, ...
            return OnGpu(made).requires_grad_(made.requires_grad) if isinstance(made, Tensor) else made
        with _Factories() if inside else nullcontext():
            return function(*args, **kwargs)

    def _moved(self, function: Any, name: str, tensor: Tensor, args: Any, kwargs: Any) -> Tensor:
        places = {"cuda": DEVICE, "cpu": HOST}
        if name in places:
            target, dtype, asynchronous, layout = places[name], None, False, None
        else:
            copied = kwargs.pop("copy", False)
            if args and isinstance(args[0], Tensor):  # x.to(y)
                args = (args[0].device, args[0].dtype, *args[1:])
            target, dtype, asynchronous, layout = torch._C._nn._parse_to(*args, **kwargs)
            target = torch.device(target or tensor.device)
            if target.type == tensor.device.type:
                options = {"memory_format": layout} if layout else {}
                return function(tensor, dtype=dtype or tensor.dtype, copy=copied, **options)
        if target.type == tensor.device.type:
            return tensor
        if tensor.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError("a gradient across devices")
        if not asynchronous:
            self.waits[f"copy to {target.type}"] += 1
        value = tensor.value if isinstance(tensor, OnGpu) else tensor
        options = {"memory_format": layout} if layout else {}
        value = value.detach().to(dtype=dtype or value.dtype, copy=True, **options)
        return OnGpu(value) if target.type == "cuda" else value

    def compute(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation on the real tensors; the result is on the GPU again."""
        name = function.overloadpacket.__name__
        if name == "device":  # called by C++ code, which would look for streams
            return HOST
        self._require_one_device(name, args, kwargs)
        if name in READS or (name in CHOOSES and any(_waits_for(index) for index in args[1])):
            self.waits[name] += 1
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.waits[name] += 1
        if "device" in kwargs:
            kwargs = {**kwargs, "device": HOST}
        result = function(*map(_inner, args), **{key: _inner(value) for key, value in kwargs.items()})
        if name == "copy_" and not isinstance(args[0], OnGpu):
            self.waits[name] += not (len(args) > 2 and args[2])
        if function._schema.is_mutable:
            return self._written(function, args, kwargs, result)
        return _wrapped(result)

    def _written(self, function: Any, args: Any, kwargs: Any, result: Any) -> Any:
        """In-place operations and `out=` return their argument."""
        if "out" in kwargs:
            return kwargs["out"]
        if isinstance(result, Tensor):
            return args[0]
        return _wrapped(result)

    def _require_one_device(self, name: str, args: Any, kwargs: Any) -> None:
        if name in MIXES:
            return
        for value in _tensors((*args, *kwargs.values())):
            if not isinstance(value, OnGpu) and value.ndim:
                raise RuntimeError(f"{name}: tensors on cuda:0 and a tensor {tuple(value.shape)} on cpu")


class _Factories(TorchDispatchMode):
    """Tensors that C++ code creates inside an operation on the GPU (such as padding) are also on the GPU."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if OnGpu in types:
            return _current().compute(function, args, kwargs or {})
        return _wrapped(function(*args, **(kwargs or {})))


class _Generator(torch.Generator):
    """Random numbers of the host for every device."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]


class _Event:
    """An event that has always happened."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def _stand_ins() -> dict[str, Any]:
    """The parts of torch that ask C++ code for a device, or the driver for anything."""
    by_device = ("autocast", "is_autocast_enabled", "get_autocast_dtype")
    return {f"torch.{name}": _on_host(getattr(torch, name)) for name in by_device} | {
        # `module.to` replaces a parameter that changes its class, and fills one that does not.
        "torch._has_compatible_shallow_copy_type": lambda one, other: type(one) is type(other),
        "torch._C._group_tensors_by_device_and_dtype": _grouped(torch._C._group_tensors_by_device_and_dtype),
        "torch.Generator": _Generator,
        "torch.cuda.Event": _Event,
        "torch.cuda.get_device_properties": lambda _: SimpleNamespace(name="pretended GPU", total_memory=16 * 10**9),
        "torch.amp.grad_scaler.torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.reset_peak_memory_stats": lambda: None,
        "torch.cuda.get_device_name": lambda: "a pretended GPU",
        "torch.cuda.memory_allocated": lambda: 0,
        "torch.cuda.max_memory_allocated": lambda: 2**30,
    }


def _on_host(function: Any) -> Any:
    """A function of a device type, called for the host, which has the numbers."""
    return lambda device_type, *args, **kwargs: function("cpu", *args, **kwargs)


def _grouped(group: Any) -> Any:
    """C++ groups of tensors, under the device that they claim."""

    def call(lists: Any, with_indices: bool) -> Any:
        groups = {}
        for (device, dtype), (members, indices) in group(lists, with_indices).items():
            on_gpu = any(isinstance(member, OnGpu) for member in members[0])
            groups[DEVICE if on_gpu else device, dtype] = members, indices
        return groups

    return call


def _current() -> Gpu:
    if Gpu.active is None:
        raise RuntimeError("the pretended GPU is switched off")
    return Gpu.active


def _is_gpu(device: Any) -> bool:
    return device is not None and not isinstance(device, int) and torch.device(device).type == "cuda"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _inner(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_inner, value))
    return value.value if isinstance(value, OnGpu) else value


def _wrapped(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_wrapped, value))
    return OnGpu(value) if isinstance(value, Tensor) and not isinstance(value, OnGpu) else value


def _waits_for(index: Any) -> bool:
    return index is not None and (not isinstance(index, OnGpu) or index.dtype in (torch.bool, torch.uint8))
