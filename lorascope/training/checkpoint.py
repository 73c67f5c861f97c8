"""The checkpoint of runs that train together, read back: all of it is compared with what is in training before any of
it is used, since a file may be cut off, of another run, or made to do harm.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorascope.errors import InputError
from lorascope.inputs import ANY, misfit, open_regular
from lorascope.training.run_folder import COUNT, MAYBE_WORD, WORD

if TYPE_CHECKING:
    from lorascope.training.loop import Loop
    from lorascope.training.member import Member

ENDS = frozenset(("finished", "stopped", "diverged"))
ERROR = {"what": WORD, "found": MAYBE_WORD, "expected": MAYBE_WORD, "hint": MAYBE_WORD}


def _tensor(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _score(value: object) -> bool:
    shape = {"loss": _number, "accuracy": _number, "targets": COUNT}
    return misfit(value, shape) is None and isinstance(value, dict) and len(value) == len(shape)


def _patience(value: object) -> bool:
    """The lowest held-out loss, infinite before the first, and how many evaluations since were no better."""
    if not isinstance(value, list | tuple) or len(value) != 2 or type(value[1]) is not int or value[1] < 0:
        return False
    return _number(value[0]) or (type(value[0]) is float and value[0] == math.inf)


def _best(value: object) -> bool:
    return value is None or misfit(value, {"score": _score, "step": COUNT, "adapter": {str: _tensor}}) is None


MEMBER = {
    "total": COUNT,
    "step": COUNT,
    "ended": lambda value: value is None or misfit(value, ENDS) is None,
    "error": lambda value: value is None or (misfit(value, ERROR) is None and len(value) == len(ERROR)),
    "score": lambda value: value is None or _score(value),
    "patience": _patience,
    "adapter": {str: _tensor},
    "optimizer": {"state": {str: {str: _tensor}}, "param_groups": [{"params": [COUNT]}]},
    "method": {str: ANY},
    "best": _best,
}
SHAPE = {"step": COUNT, "world": COUNT, "members": [MEMBER]}


def resume_from(loop: "Loop", path: Path, device: torch.device) -> None:
    """Let the loop go on where the checkpoint was written.

    Raises:
        InputError: the file cannot be read, is no checkpoint, or is of other runs.
    """
    with open_regular(path) as file:
        try:
            state = torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise InputError(f"{path} is not a checkpoint of lorascope", found=type(error).__name__) from error
    wrong = misfit(state, SHAPE) or next(_contradictions(state), None)
    if wrong is None and len(state["members"]) == len(loop.members):  # the loop says it where they are not
        pairs = zip(loop.members, state["members"], strict=True)
        wrong = next(chain.from_iterable(_differences(member, saved) for member, saved in pairs), None)
    if wrong:
        raise InputError(
            f"{path} is damaged, or of another run", found=wrong, hint="delete it, and resume from the start"
        )
    loop.load(state)


def _contradictions(state: Mapping[str, Any]) -> Iterator[str]:
    """What in a state cannot be, whatever the run."""
    for member in state["members"]:
        if state["step"] < 0 or (member["ended"] is None and state["step"] >= member["total"]):
            yield f"step {state['step']} of {member['total']}"
        if (member["ended"] == "diverged") != (member["error"] is not None):
            yield f"{member['ended']} as the end, and {'no' if member['error'] is None else 'an'} error"


def _differences(member: "Member", state: Mapping[str, Any]) -> Iterator[str]:
    """Where a state is not of this member's adapter or optimiser; a missing or unknown key is for the member to say."""
    current = member.injected.state_dict()
    for adapter in (state["adapter"], (state["best"] or {}).get("adapter", {})):
        for key in current.keys() & adapter.keys():
            if not _alike(adapter[key], current[key]):
                yield f"{key} of {_shape_and_dtype(adapter[key])}, not {_shape_and_dtype(current[key])}"
            elif state["ended"] != "diverged" and not adapter[key].isfinite().all():
                yield f"{key} with entries that are not finite"
    if state["best"] is not None and (other := current.keys() ^ state["best"]["adapter"].keys()):
        yield f"another key in the best adapter: {min(map(str, other))}"
    groups = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
    if groups != [len(group["params"]) for group in member.optimizer.param_groups]:
        yield f"optimiser groups of {groups} parameters"
    flat = [parameter for group in member.optimizer.param_groups for parameter in group["params"]]
    for index, averages in state["optimizer"]["state"].items():
        if type(index) is not int or not 0 <= index < len(flat):
            yield f"{index!r} as the number of a parameter"
        elif averages.keys() != {"step", "exp_avg", "exp_avg_sq"} or averages["step"].numel() != 1:
            yield f"{', '.join(map(str, averages))} as the optimiser's state"
        elif not all(_alike(averages[name], flat[index]) for name in ("exp_avg", "exp_avg_sq")):
            yield f"averages of {_shape_and_dtype(averages['exp_avg'])}, not {_shape_and_dtype(flat[index])}"
        elif averages["exp_avg"].isnan().any() or not (averages["exp_avg_sq"] >= 0).all():
            yield f"averages of parameter {index} that no gradients have"


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _shape_and_dtype(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
