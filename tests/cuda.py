"""A CUDA device for a machine that has none: tensors say `cuda` and hold their numbers in the CPU's memory.

    with simulated() as device:
        model.to("cuda"); ...
        assert device.waits == []

Every operation is checked as CUDA would: a CPU tensor (other than a number) that meets one of the device's is an error,
and so is a generator of the other device. `waits` are the operations in which the host would wait for the device:
`.item()`, `bool()`, copies to the host, copies to the device without `non_blocking`, masks as indices, `nonzero`.

Numbers are real, so that what runs here also equals the CPU's run. What is not checked: kernels, their memory and time.
`torch.cuda.is_available()` stays False; whoever asks for "cuda" by name gets the device.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
BETWEEN = ("/torch/", "/jaxtyping/", "/beartype/", __file__)  # not named as the place of a wait
COPIES = (aten._to_copy.default, aten.copy_.default)
READS = (aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default, aten.nonzero.default)
READS += (aten.masked_select.default, aten._unique2.default, aten.unique_dim.default)
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)


class Generator(torch.Generator):
    """In place of `torch.Generator`, which knows no CUDA here."""

    on_device: dict[
        int, "Generator"
    ] = {}  # by the address that a dispatched operation sees; kept, so that none returns

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls, "cpu")
        if torch.device(device).type == "cuda":
            cls.on_device[made._cdata] = made
        return made


class OnDevice(Tensor):
    """A tensor of the device. torch's own code takes it for one on `meta`, for which every build has what it needs."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device="meta",
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_meta(self) -> bool:
        return False

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: "OnDevice") -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnDevice":
        if id(self) not in memo:
            memo[id(self)] = copied = self.detach().clone().requires_grad_(self.requires_grad)
            copied.__dict__.update({k: v for k, v in self.__dict__.items() if k != "held"})
        return memo[id(self)]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a tensor of the simulated device, outside of `simulated()`")


def _device_of(value: Any) -> str | None:
    """The type of the device that an argument names, where it names one."""
    if isinstance(value, torch.device):
        return value.type
    return value.split(":")[0] if isinstance(value, str) and value.startswith(("cuda", "meta")) else None


class Names(TorchFunctionMode):
    """Lets torch take "cuda" for an argument: as `meta`, which a `Device` then gives the numbers."""

    def __init__(self, device: "Device"):
        super().__init__()
        self.of = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.device, torch._C._nn._parse_to):  # these only read what the argument says
            return func(*args, **kwargs)
        if func in (Tensor.backward, torch.autograd.backward):
            return self._backward(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and _device_of((kwargs or {}).get("device")) == "cuda":
            return func(*args, **{k: v for k, v in kwargs.items() if k != "device"}).to("meta")
        named = {_device_of(value) for value in (*args, *kwargs.values())}
        if "cuda" in named:
            args = tuple(torch.device("meta") if _device_of(value) == "cuda" else value for value in args)
            kwargs = {k: torch.device("meta") if _device_of(v) == "cuda" else v for k, v in kwargs.items()}
        before, self.of.meta = self.of.meta, self.of.meta or "meta" in named
        try:
            return func(*args, **kwargs)
        finally:
            self.of.meta = before

    def _backward(
        self, tensors: Any, grads: Any = None, retain: Any = None, create: bool = False, **named: Any
    ) -> None:
        """As torch's own, which would run the backward passes that are written in Python without this mode."""
        tensors = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
        grads = named.get("gradient", named.get("grad_tensors", grads))
        grads = tuple(map(torch.ones_like, tensors)) if grads is None else grads
        grads = (grads,) if isinstance(grads, Tensor) else tuple(grads)
        create = named.get("create_graph", create)
        retain = named.get("retain_graph", retain)
        run = torch.autograd.Variable._execution_engine.run_backward
        with self:
            run(tensors, grads, create if retain is None else retain, create, (), True, accumulate_grad=True)


class Device(TorchDispatchMode):
    """The device, while it is there.

    Attributes:
        waits: the operations that the host waited in, each with the innermost three places.
        launched: how often each operation ran on it; views, which launch nothing, included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.launched: Counter[str] = Counter()
        self.meta = False  # whether "meta" means just that, as where transformers builds a model to be filled

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        here = any(isinstance(leaf, OnDevice) for leaf in tree_leaves((args, kwargs)))
        asked = kwargs.get("device")
        target = None if asked is None else torch.device(asked).type
        to_device = here if target is None else target == "meta" and not self.meta
        if func is aten.copy_.default:
            to_device = isinstance(args[0], OnDevice)
        if not here and not to_device:
            return func(*args, **kwargs)
        self.launched[str(func)] += 1
        self._check(func, args, kwargs, to_device)
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        plain_args, plain_kwargs = tree_map(_held, (args, kwargs))
        result = func(*plain_args, **plain_kwargs)
        if not to_device:
            return result
        wrapped = tree_map(lambda leaf: OnDevice(leaf) if type(leaf) is Tensor else leaf, result)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if here else wrapped

    def _check(self, func: Any, args: Any, kwargs: dict[str, Any], to_device: bool) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        on_host = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
        name = str(func)
        if func in COPIES:
            blocking = not (kwargs.get("non_blocking", False) or args[2:] == (True,))
            crosses = (bool(here) and not to_device) or bool(on_host and to_device)
            if crosses and (blocking or not to_device):
                self._wait(name)
            return
        if func in INDEXED:
            indices = [index for index in args[1] if index is not None]
            if any(i.dtype in (torch.bool, torch.uint8) or not isinstance(i, OnDevice) for i in indices):
                self._wait(name)
            on_host = []  # indices of the host are copied
        if func in READS:
            self._wait(name)
        if here and any(tensor.ndim for tensor in on_host):
            shapes = [(tuple(t.shape), t.device.type) for t in tensors]
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device, found {shapes}")
        if (generator := kwargs.get("generator")) is not None and (
            generator._cdata in Generator.on_device
        ) != to_device:
            raise RuntimeError(f"{name}: a generator of the other device")

    def _wait(self, name: str) -> None:
        frames = (f for f in traceback.extract_stack() if not any(part in f.filename for part in BETWEEN))
        self.waits.append(f"{name} in " + " < ".join(f"{f.filename}:{f.lineno}" for f in list(frames)[:-4:-1]))


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, OnDevice) else leaf


@contextmanager
def simulated() -> Iterator[Device]:
    """A device named "cuda" until the block ends."""
    device, state = Device(), torch.get_rng_state()
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # `Module.to` keeps parameters of another type only so
    with (
        mock.patch.object(torch.cuda, "device_count", return_value=1),
        mock.patch.object(torch.cuda, "get_device_name", return_value="simulated"),
        mock.patch.object(torch.cuda, "get_rng_state", side_effect=lambda *_: torch.get_rng_state()),
        mock.patch.object(torch.cuda, "set_rng_state", lambda state, *_: torch.set_rng_state(state)),
        mock.patch.object(torch.cuda, "synchronize", side_effect=lambda *_: device.waits.append("synchronize")),
        mock.patch.object(torch, "Generator", Generator),
        device,
        Names(device),
    ):
        try:
            yield device
        finally:
            torch.set_rng_state(state)
            Generator.on_device.clear()
            torch.__future__.set_swap_module_params_on_conversion(swapped)
