"""Training an update: what every method shares.

`updates/` says what an update *is* (roles, shapes, a formula for ΔW). A method here says how one is *trained*: how it
is initialised, which of its roles train, with which optimiser rule and schedule. A method is one file:

    @methods.register("lora")
    class LoRA(Method):
        kind = "low_rank"                    # what it trains
        Config = LoRAConfig                  # a frozen dataclass; its fields are the YAML keys
        def make(self, site, generator):     # a fresh Delta for one layer
            ...

Shapes are those of the map y = W x: W (d_out, d_in). Where a layer stores its weight as (d_in, d_out), as GPT-2's
Conv1D and every Embedding do, its `Site` says `transposed`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorascope.adapt.calibration import Calibration
from lorascope.adapt.hooks import HOOKS, recording
from lorascope.adapt.layer import Delta, Site, TrainedPart
from lorascope.adapt.protocols import AdaptedModel
from lorascope.adapt.settings import settings_of
from lorascope.errors import InputError
from lorascope.registry import Registry
from lorascope.weights.adapter import Adapter

methods: Registry[type["Method"]] = Registry("method", "lorascope.methods", "lorascope.methods")


class Method(ABC):
    """How one kind of update is trained. Subclasses register themselves and say how a fresh `Delta` is made.

    Everything else is a hook with a default: shared frozen matrices (`prepare`), an optimiser rule
    (`parameter_groups`), a schedule (`before_step`, `after_step`), a penalty, and state of its own. One instance serves
    one injected model, which `inject` puts into `injected`.

    A method that does not work layer by layer says `uses_targets = False`; it then makes no Delta but gives its
    trained parts in `install`.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    kind: ClassVar[str]
    Config: ClassVar[type]
    layer_kinds: ClassVar[tuple[str, ...]] = ("linear", "conv1d", "embedding")  # what it can adapt
    format: ClassVar[str] = "peft"  # which layout its adapters are written in: "lorascope" holds what PEFT's cannot
    not_identity: ClassVar[str | None] = None  # why a fresh adapter changes the output, where it does
    detached_terms: ClassVar[str | None] = None  # what the gradient leaves out by design, where it is not the exact one
    uses_targets: ClassVar[bool] = True  # whether it puts an update into each target layer
    not_sharded: str | None = None  # why the base cannot be sharded over processes, where it cannot
    calibrates: ClassVar[bool] = False  # whether it must look at the task before it trains; see `calibrate`

    injected: AdaptedModel | None = None

    overridden: ClassVar[frozenset[str]] = frozenset()  # those of HOOKS that do something in this method

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        hooks_here = [name for name in HOOKS if name in vars(cls)]
        for name in hooks_here:
            setattr(cls, name, recording(name, vars(cls)[name]))
        cls.overridden = cls.overridden | set(hooks_here)

    def __init__(self, config: Any = None, **settings: Any):
        """With its `Config`, or with settings as keywords, PEFT's names included: `LoRA(r=4)` is
        `LoRA(LoRA.Config(rank=4))`.

        Raises:
            InputError: a setting is unknown or ill-typed, or `config` is none of this method.
        """
        if config is None:
            config = settings_of(self.name, self.Config, settings)
        elif settings or not isinstance(config, self.Config):
            raise InputError(
                f"{self.name} takes a {self.Config.__name__} or settings as keywords",
                found="both" if settings else f"{config!r}",
                hint=f"write {type(self).__name__}(name=value, ...)",
            )
        self.config = config
        self.called: set[str] = set()  # hooks that somebody called; see `adapt/hooks.py`

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"

    def make(self, site: Site, generator: torch.Generator) -> Delta:
        """A fresh, initialised update for this layer. All randomness comes from `generator`, a CPU one."""
        raise NotImplementedError(f"{self.name} makes no update for a layer")

    def parameter_count(self, site: Site) -> int:
        """How many numbers are trained in this layer, by formula."""
        raise NotImplementedError(f"{self.name} trains nothing layer by layer")

    def total_parameter_count(self, model: nn.Module, sites: list[Site]) -> int:
        """How many numbers are trained in the whole model, by formula; `model` is the base, before `inject`."""
        return sum(self.parameter_count(site) for site in sites)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What a file of this method says of itself: JSON values under PEFT's names (`r`, `lora_alpha`, ...)."""

    def salt(self) -> str:
        """What the random draws depend on besides the seed and the layer's name; see `inject.layer_generator`."""
        return ""

    def prepare(self, model: nn.Module, sites: list[Site]) -> None:  # noqa: B027
        """Called once, before the first `make`: for whatever all layers share."""

    def default_targets(self) -> str | tuple[str, ...]:
        """The targets where none are named; () of a method that is set to train other parameters than layers'."""
        return "all-linear"

    def install(self, model: nn.Module, seed: int) -> dict[str, TrainedPart]:
        """Put trained parts into the model, frozen by now, and give them by stable name."""
        return {}

    def calibrate(self, calibration: Calibration) -> dict[str, Any]:
        """What it learns of the task before training, as JSON values, for `apply_calibration`.

        Called once, before there is an optimiser; afterwards every trained number is what it was before.
        """
        return {}

    def apply_calibration(self, learned: Mapping[str, Any]) -> None:  # noqa: B027
        """Put what `calibrate` gave into effect on the fresh adapter: now, and again in a run that is resumed."""

    def prepare_load(self, adapter: Adapter) -> None:  # noqa: B027
        """Called before the layers are filled from a file: for what they share. InputError where it does not fit."""

    def parameter_groups(self, injected: AdaptedModel, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for a torch optimiser."""
        return [{"params": list(injected.trainable().values()), "lr": lr, "weight_decay": weight_decay}]

    def before_step(self, step: int, total_steps: int) -> None:  # noqa: B027
        """Called when gradients are complete, before the optimiser's step."""

    def after_step(self, step: int, total_steps: int) -> None:  # noqa: B027
        """Called after the optimiser's step, while the gradients are still there."""

    def penalty(self) -> Tensor | None:
        """A scalar to add to the loss."""
        return None

    def idle_hooks(self) -> tuple[str, ...]:
        """Those of `before_step` and `after_step` that do nothing as the method is set."""
        return ()

    def summary(self) -> dict[str, Any]:
        """What a run's summary should say of the method besides the score, as JSON values."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State of the method itself that an exact resume needs, beyond the layers' own."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if state:
            raise InputError(f"{self.name} keeps no state of its own", found=", ".join(state))


def make_method(method: str | type[Method] | Method, settings: Mapping[str, Any], targets: object = None) -> Method:
    """The method by its registered name, its class, or itself; the first two with `settings`.

    Raises:
        InputError: no method has that name, a setting is wrong, there are settings in addition to an instance, or there
            are targets for a method that takes none.
    """
    if isinstance(method, str):
        method = methods.get(method)
    if isinstance(method, type) and issubclass(method, Method):
        if targets is not None and not method.uses_targets:
            raise InputError(f"{method.name} does not work layer by layer and takes no targets", found=targets)
        return method(**settings)
    if not isinstance(method, Method):
        raise InputError(
            "inject takes a method's name, its class or an instance",
            found=type(method).__name__,
            hint='write inject(model, "lora", r=8, target_modules=["q_proj", "v_proj"])',
        )
    if settings:
        raise InputError(
            f"{', '.join(settings)} cannot be set on a method that is made already",
            hint=f"write inject(model, {method.name!r}, ...) or put the settings into {type(method).__name__}(...)",
        )
    return method
