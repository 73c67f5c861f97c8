"""What the public functions take: an adapter or a full model, by its path or in memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from lorascope.errors import InputError
from lorascope.weights import io
from lorascope.weights.adapter import Adapter

if TYPE_CHECKING:
    from torch import nn

    from lorascope.adapt.inject import Injected
    from lorascope.weights.checkpoint import Checkpoint

AdapterLike = Union[str, Path, Adapter, "Injected", "nn.Module", Mapping[str, Any]]
ModelLike = Union[str, Path, "Checkpoint", "nn.Module"]


def read(
    source: AdapterLike, *, config: Any = None, base: ModelLike | None = None, adapter_name: str | None = None
) -> Adapter:
    """The adapter in a file or in memory: one update per module, its settings, and what was skipped.

    A model in memory gives the numbers of the files that PEFT would write.

    Args:
        source: a path, a model with an adapter in it, a state dict, or an adapter.
        config: of a state dict, its `adapter_config.json`: a dictionary, a path or a PEFT config.
        base: the base model, which helps where a format's names or shapes are lossy (kohya, VeRA).
        adapter_name: of a file, a state dict or a model with several adapters, which; of a model, the active one by
            default.

    Raises:
        InputError: there is no adapter in it, or it cannot be read; see `weights.io.read`.
    """
    if isinstance(source, Adapter):
        return source
    opened = opened_base(base)
    if isinstance(source, str | Path):
        return io.read(source, opened, adapter_name)
    if callable(export := getattr(source, "export", None)):  # an injected model
        return export()
    from lorascope.weights import memory

    if memory.is_peft(source):
        return io.read_bundle(memory.bundle_of_peft(source, adapter_name), opened)
    if isinstance(source, Mapping):
        return io.read_bundle(memory.bundle_of_state(source, config), opened, adapter_name=adapter_name)
    if memory.is_model(source):
        if (injected := injected_into(source)) is not None:
            return injected.export()
        raise InputError(
            f"the {type(source).__name__} carries no adapter that can be read from the model alone",
            expected="a PeftModel, or what lorascope.inject returned",
            hint="two full models are compared by lorascope.delta(base, tuned)",
        )
    raise InputError(
        "this cannot be read as an adapter",
        found=f"a {type(source).__name__}",
        expected="a path, a model with an adapter, a state dict or an Adapter",
    )


def injected_into(model: Any) -> "Injected | None":
    """The active adapter that `inject` put into this `nn.Module`; None where there is none."""
    from lorascope.adapt.inject import injected_in

    return injected_in(model)


def open_model(model: ModelLike) -> "Checkpoint":
    """A full model's weights, read one at a time when they are used.

    Args:
        model: a folder, a file, a packaged or cached hub name, or an `nn.Module` without adapters.

    Raises:
        InputError: there is no such model, or the module carries an adapter.
    """
    from lorascope.weights.checkpoint import Checkpoint, open_checkpoint

    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, str | Path):
        from lorascope.models import assets

        return open_checkpoint(assets.resolve(str(model)))
    from lorascope.weights import memory

    return memory.checkpoint_of(model)


def opened_base(base: ModelLike | None) -> "Checkpoint | None":
    """The base model, where one is given: what every function and command opens it with."""
    return None if base is None else open_model(base)


def adapter_or_model(
    source: AdapterLike | ModelLike, base: "Checkpoint | None", adapter_name: str | None = None
) -> "Adapter | Checkpoint":
    """An adapter; of a full model its checkpoint, where there is a base to take away from it.

    Raises:
        InputError: as of `read` and `open_model`.
    """
    from lorascope.weights.tuned import adapter_or_model as at

    if isinstance(source, str | Path):
        return at(source, base, adapter_name)
    if base is not None and is_full_model(source):
        return open_model(source)  # type: ignore[arg-type]  # as was asked
    return read(source, base=base, adapter_name=adapter_name)  # type: ignore[arg-type]


def open_tuned(
    source: AdapterLike | ModelLike, base: "Checkpoint", adapter_name: str | None = None
) -> "Adapter | Checkpoint":
    """A tuned model; of a path also the adapter's folder of a full fine-tuning run, in memory also an adapter.

    Raises:
        InputError: as of `read` and `open_model`.
    """
    from lorascope.models import assets
    from lorascope.weights.tuned import open_tuned as at

    if isinstance(source, str | Path):
        return at(assets.resolve(str(source)), base, adapter_name)
    return adapter_or_model(source, base, adapter_name)


def is_full_model(source: Any) -> bool:
    """Whether this is a checkpoint, or an `nn.Module` that carries no adapter."""
    from lorascope.weights import memory
    from lorascope.weights.checkpoint import Checkpoint

    if isinstance(source, Checkpoint):
        return True
    return memory.is_model(source) and not memory.is_peft(source) and injected_into(source) is None


def name_of_each(names: str | Sequence[str] | None, adapters: int) -> list[str | None]:
    """The name by which each adapter is chosen from its file: one for all, or one each; "" is none.

    Raises:
        InputError: another number of names.
    """
    names = [names] if isinstance(names, str) else names
    if not names:
        return [None] * adapters
    if len(names) not in (1, adapters):
        raise InputError(
            "--adapter-name is given once for all adapters, or once for each",
            found=f"{len(names)} names, {adapters} adapters",
        )
    return [name or None for name in names] if len(names) == adapters else [names[0]] * adapters
