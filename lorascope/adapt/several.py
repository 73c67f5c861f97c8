"""Several adapters in one model: switched, weighted, taken out. Names as in PEFT.

One is active, and its layers alone are in the model; the others wait outside with their parameters, so that an unused
adapter costs memory and no time.

    ls.inject(model, "lora", r=8)                        # "default"
    ls.load(model, "other/adapter", adapter_name="other")
    adapters = ls.adapters(model)
    adapters.add_weighted_adapter(["default", "other"], [0.7, 0.3], "both", combination_type="cat")
    adapters.set_adapter("both")
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from lorascope.adapt import carried
from lorascope.adapt.inject import Injected
from lorascope.adapt.load import load
from lorascope.errors import InputError
from lorascope.weights.weighted import Combination, weighted


class Adapters:
    """The adapters that a model carries.

    Raises:
        InputError: it carries none.
    """

    def __init__(self, model: nn.Module):
        if carried.held_by(model) is None:
            raise InputError(
                f"this {type(model).__name__} carries no adapter", hint="put one in: lorascope.inject or lorascope.load"
            )
        self.model = model

    def __repr__(self) -> str:
        return f"<{', '.join(self.names)}; active: {self.active or 'none'}>"

    def __getitem__(self, name: str) -> Injected:
        held = self._held()
        if name not in held.adapters:
            raise InputError(f"the model has no adapter {name!r}", found=", ".join(held.adapters) or "none")
        return held.adapters[name]

    def _held(self) -> carried.Held:
        return carried.held_by(self.model) or carried.Held()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._held().adapters)

    @property
    def active(self) -> str | None:
        """The name of the active adapter; None after it was deleted."""
        return self._held().active or None

    def set_adapter(self, name: str) -> Injected:
        """Make this adapter the active one. An optimizer that trains the one before does not train this one.

        Raises:
            InputError: there is none of that name, or the active one is merged.
        """
        return carried.activate(self.model, name)

    def delete_adapter(self, name: str) -> None:
        """Take an adapter out for good; where it was the active one, the base alone is left. InputError as above."""
        self[name].remove()

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: Combination = "svd",
        svd_rank: int | None = None,
    ) -> Injected:
        """Σ wᵢ·ΔWᵢ of low-rank adapters as a new one, which is the active one then. See `weights.weighted.weighted`.

        Raises:
            InputError: an adapter is not there or not s·B·A, or the name is taken.
        """
        if adapter_name in self.names:
            raise InputError(f"the model has an adapter {adapter_name!r} already", hint="give this one another name")
        combined = weighted([self[name].export() for name in adapters], weights, combination_type, svd_rank)
        return load(self.model, combined, adapter_name)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base alone inside the `with` block."""
        active = self._held().adapters.get(self._held().active)
        if active is None:
            yield
            return
        with active.disabled():
            yield
