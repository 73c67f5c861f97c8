"""An adapted model as its method and its hooks see it; `inject.Injected` is one."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class HookedMethod(Protocol):
    """A method as whoever calls its hooks sees it; `method.Method` is one."""

    name: ClassVar[str]
    called: set[str]
    overridden: ClassVar[frozenset[str]]
    calibrates: ClassVar[bool]

    def parameter_groups(self, injected: "AdaptedModel", lr: float, weight_decay: float) -> list[dict[str, Any]]: ...

    def penalty(self) -> Tensor | None: ...

    def idle_hooks(self) -> tuple[str, ...]: ...


@runtime_checkable
class AdaptedModel(Protocol):
    """A model with a method's updates in it.

    Attributes:
        layers: adapted layers by path, `adapt.layer.AdaptedLayer`.
        parts: what a method that does not work layer by layer trains, `adapt.layer.TrainedPart`, by name.
        stepped: whether an optimizer's step has been seen.
    """

    model: nn.Module
    method: Any
    stepped: bool

    @property
    def layers(self) -> Mapping[str, Any]: ...

    @property
    def parts(self) -> Mapping[str, Any]: ...

    def trainable(self) -> dict[str, nn.Parameter]: ...

    def drop(self, names: Collection[str]) -> None: ...
