"""A device that is none: its tensors have their numbers on the CPU, but are kept apart from the CPU's tensors as those
of an accelerator are. What mixes the two is an error; what makes the host wait for the device is noted.

    register()    # first of all in a process: autograd must know the device from its start
    with pretended_device() as device:
        model.to(DEVICE).generate(num_steps=2)
        device.waits    # operations

It does not know what a kernel of an accelerator can do, nor forward-mode derivatives, nor saving (move to the CPU).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

DEVICE = "pretended:0"
aten = torch.ops.aten
_LIBRARY = torch.library.Library("aten", "IMPL")


class There(torch.Tensor):
    """A tensor of the device; its numbers are `here`."""

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        layout = dict(strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype)
        return torch.Tensor._make_wrapper_subclass(cls, here.shape, device=DEVICE, **layout)

    def __init__(self, here: Tensor):
        self.here = here

    def tolist(self) -> list:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of `pretended_device`")


class Device(TorchDispatchMode):
    """The device while it is in use; `waits` lists the operations that the host had to wait for. Without `float64` it
    refuses such tensors, as MPS does."""

    def __init__(self, float64: bool = True):
        super().__init__()
        self.float64 = float64
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [x for x in tensors if isinstance(x, There)]
        copies = func in (aten._to_copy.default, aten.copy_.default)
        if there and not copies:
            others = [x for x in tensors if not isinstance(x, There) and x.dim() > 0]
            assert not others, f"{func} has tensors of two devices"
        stays = bool(there)
        if kwargs.get("device") is not None:
            stays = torch.device(kwargs["device"]) == torch.device(DEVICE)
            kwargs["device"] = torch.device("cpu")
        if there and depends_on_values(func, args) or copies and _blocks(func, args, kwargs, stays):
            self.waits.append(str(func))
        args_here, kwargs_here = tree_map(lambda x: x.here if isinstance(x, There) else x, (args, kwargs))
        result = func(*args_here, **kwargs_here)
        if func is aten.copy_.default:
            return args[0]
        own = {id(x.here): x for x in there}  # what is changed in place is the same tensor afterwards

        if stays and not self.float64:
            wide = [x for x in tree_leaves(result) if isinstance(x, Tensor) and x.dtype == torch.float64]
            assert not wide, f"{func} makes float64, which the device does not have"

        def back(x):
            return own.get(id(x), There(x)) if stays and isinstance(x, Tensor) else x

        return tree_map(back, result)


def depends_on_values(func, args) -> bool:
    """Whether the result of an operation, or its shape, does: `item`, `bool`, `equal`, `nonzero`, ..."""
    if func is aten.index.Tensor and all(i is None or i.dtype != torch.bool for i in args[1]):
        return False  # by numbers of rows, not by a mask
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


def _blocks(func, args, kwargs, stays: bool) -> bool:
    """Whether a copy goes from one device to the other, and the host waits for it."""
    if func is aten.copy_.default:
        return isinstance(args[0], There) != isinstance(args[1], There) and not any(args[2:])
    return isinstance(args[0], There) != stays and not kwargs.get("non_blocking")


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None) -> Tensor:
    return There(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    source, here = (x.here if isinstance(x, There) else x for x in (source, target))
    here.copy_(source)
    return target


class _Generator(torch.Generator):
    """One of the CPU, wherever it is asked for."""

    def __new__(cls, device=None):
        return super().__new__(cls)


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def register() -> None:
    """Give the device its name."""
    _setup_privateuseone_for_python_backend(DEVICE.split(":")[0], _Backend())
    # `torch.tensor(number, device=...)` calls these past all modes.
    _LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
    _LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")


@contextmanager
def pretended_device(float64: bool = True) -> Iterator[Device]:
    without = set() if float64 else {DEVICE.split(":")[0]}
    known = mock.patch("modeling_flm.clock_flm._WITHOUT_FLOAT64", without)
    with mock.patch("torch.Generator", _Generator), known, Device(float64) as device:
        yield device
