"""Which way round the base stores a weight, of which the adapter's tensors tell one side."""

from typing import TYPE_CHECKING

from lorascope.architectures import is_conv1d
from lorascope.weights.formats.peft.config import Config

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint


def is_transposed_by(module: str, size: int, axis: int, config: Config, base: "Checkpoint | None") -> bool:
    """Whether the base stores (d_in, d_out): the only way round that `size` fits, else by the module's class where the
    base says which model it is, else what the config says.

    Args:
        size: d_out where `axis` is 0, d_in where it is 1.
    """
    stored = base.find(module) if base is not None else None
    if base is None or stored is None or len(stored.shape) != 2:
        return config.flag("fan_in_fan_out")
    if stored.shape[0] == stored.shape[1] or size not in stored.shape:
        conv1d = is_conv1d(module, base.config)
        return config.flag("fan_in_fan_out") if conv1d is None else conv1d
    return stored.shape[1 - axis] == size
