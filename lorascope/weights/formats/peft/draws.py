"""What a file tells by the seed alone, and PEFT draws again with torch on loading."""

from lorascope.errors import InputError
from lorascope.weights.formats.peft.config import Config


def seed_of(config: Config, field: str, default: int = 0) -> int:
    """A field that is torch's seed. InputError where it is none."""
    seed = config.raw.get(field, default)
    if type(seed) is not int or not 0 <= seed < 1 << 63:
        raise InputError(f"adapter_config.json: {field} is not a seed", found=seed)
    return seed


def drawn_again(what: str, field: str, seed: int) -> str:
    """The note that `what` is not in the file."""
    import torch

    return (
        f"{what} are not in the file; they were drawn again from {field} {seed} with torch {torch.__version__}, which "
        "PEFT does too and does not guarantee across systems"
    )
