"""Keys that stand under no fixed role, by module: lists of layers, numbered subspaces, tensors that modules share."""

import re

from lorascope.errors import InputError
from lorascope.weights.formats.base import Ledger
from lorascope.weights.formats.peft.keys import body


def keys_by_module(ledger: Ledger, pattern: re.Pattern[str]) -> dict[str, dict[str, str]]:
    """The open keys whose body `pattern` matches, by its group `module` and then by its group `role`, in file order.

    Raises:
        InputError: two keys mean the same.
    """
    found: dict[str, dict[str, str]] = {}
    for key in ledger.left():
        if (match := pattern.fullmatch(body(key))) is None:
            continue
        roles = found.setdefault((match["module"] or "").replace(".base_layer", ""), {})
        if match["role"] in roles:
            raise InputError(f"two keys mean the same: {roles[match['role']]!r} and {key!r}")
        roles[match["role"]] = key
    return found


def need(module: str, keys: dict[str, str], *roles: str) -> None:
    """InputError where a module lacks one of these."""
    if missing := [role for role in roles if role not in keys]:
        raise InputError(
            f"{module} has {', '.join(keys.values())[:200]} without its partner", expected=", ".join(missing)
        )


def numbered(keys: dict[str, str], name: str) -> list[str]:
    """The keys of roles `name.0`, `name.1`, …, in order. InputError where a number is left out."""
    count = sum(role.startswith(f"{name}.") for role in keys)
    if missing := [f"{name}.{index}" for index in range(count) if f"{name}.{index}" not in keys]:
        raise InputError(f"the file has {count} of {name}, and not {missing[0]}", found=", ".join(keys.values())[:200])
    return [keys[f"{name}.{index}"] for index in range(count)]
