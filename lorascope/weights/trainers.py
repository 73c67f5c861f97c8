"""Folders in which trainers leave a model in shards: what in them is read, or the command that gathers it.

    PyTorch's distributed checkpoints    .metadata and *.distcp, in the folder or in one below (pytorch_model_fsdp_0)
    DeepSpeed, ZeRO-1 and 2              global_step100/mp_rank_00_model_states.pt, all weights under "module"
    DeepSpeed, ZeRO-3                    global_step100/zero_pp_rank_*_model_states.pt: every rank has a part of each

Sources: torch/distributed/checkpoint; deepspeed/runtime/engine.py and deepspeed/utils/zero_to_fp32.py.
"""

from pathlib import Path

from lorascope.errors import InputError, preview
from lorascope.inputs import read_text
from lorascope.weights.file_names import METADATA
from lorascope.weights.support import Support

STATES = "*model_states.pt"
LATEST = "latest"


def sharded_weights(folder: Path) -> Path | None:
    """The file by which a trainer's folder is opened; None where it is no such folder.

    Raises:
        InputError: the weights have to be gathered first; the sentence names the command.
    """
    if (folder / METADATA).is_file():
        return folder / METADATA
    for place in _places(folder):
        states = sorted(place.glob(STATES))
        if any(path.name.startswith("zero_pp_rank") for path in states):
            raise _not_gathered(folder, "DeepSpeed ZeRO-3, each rank with a part of every weight", states)
        if len(states) > 1:
            raise _not_gathered(folder, "DeepSpeed with model parallelism, each rank with a part", states)
        if states:
            return states[0]
    below = sorted(folder.glob(f"*/{METADATA}"))
    return below[0] if len(below) == 1 else None


def _places(folder: Path) -> list[Path]:
    """Where DeepSpeed's states of a folder are: in the one that `latest` names, or the last step's, or itself."""
    steps = sorted(folder.glob("global_step*"), key=lambda path: (len(path.name), path.name))
    latest = folder / LATEST
    if latest.is_file():
        named = read_text(latest, 4096).strip()
        if named and Path(named).name == named and (folder / named).is_dir():
            return [folder / named]
    return [folder, *steps[-1:]]


def _not_gathered(folder: Path, what: str, states: list[Path]) -> InputError:
    return InputError(
        f"{folder} is a checkpoint of {what}",
        found=preview([path.name for path in states], 3),
        hint=f"`python zero_to_fp32.py {folder} OUTPUT`, a script that DeepSpeed puts there, gathers it; pass OUTPUT",
    )


SUPPORT = (
    Support("PyTorch's distributed checkpoints (FSDP, accelerate)", "the saved factors in float64"),
    Support("DeepSpeed's folders, ZeRO-1 and 2", "the saved factors in float64"),
    Support("DeepSpeed's folders, ZeRO-3", refused="in shards: zero_to_fp32.py, which the error names, gathers them"),
)
