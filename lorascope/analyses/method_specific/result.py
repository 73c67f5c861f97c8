"""The run over all kinds that a file holds, and its frozen result."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

import lorascope
from lorascope.analyses.method_specific.base import Part, Row, Subject, particulars
from lorascope.architectures import module_types
from lorascope.blocks import Block, Definition, Definitions, Finding, Findings, Heading, Text
from lorascope.linalg.blas import one_thread
from lorascope.patterns import Pattern
from lorascope.weights.adapter import Adapter, Source

if TYPE_CHECKING:
    import pandas as pd

    from lorascope.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class ParticularsResult:
    """What each kind in one adapter has to say.

    Attributes:
        parts: by the name under which the kind's file is registered; empty for a plain LoRA.
        kinds: how many modules there are of each kind.
    """

    parts: dict[str, Part]
    kinds: dict[str, int]
    source: Source

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for part in self.parts.values() for finding in part.findings)

    @cached_property
    def definitions(self) -> tuple[Definition, ...]:
        return tuple(definition for part in self.parts.values() for definition in part.definitions)

    def table(self) -> "pd.DataFrame":
        """One row for each module of a part, nested records flattened; for a plain LoRA, one for each kind."""
        import pandas as pd

        rows = [_flat({"part": name, **row}) for name, part in self.parts.items() for row in part.rows]
        return pd.DataFrame(rows or [{"kind": kind, "modules": count} for kind, count in self.kinds.items()])

    def summary(self) -> Row:
        return {name: part.summary for name, part in self.parts.items()}

    def record(self) -> Row:
        """By part: its summary, its modules and its findings. The key `particulars` of `analyze --json`."""
        return {
            name: {
                "summary": part.summary,
                "modules": list(part.rows),
                "findings": [{"severity": f.severity, "module": f.module, "text": f.text} for f in part.findings],
            }
            for name, part in self.parts.items()
        }

    def to_json(self) -> Row:
        version = {"schema": 1, "lorascope": lorascope.__version__}
        return {**version, "source": dict(vars(self.source)), "kinds": self.kinds, "particulars": self.record()}

    def sections(self) -> tuple[Block, ...]:
        """A section for each part, without the definitions; nothing for a plain LoRA."""
        made: list[Block] = []
        for part in self.parts.values():
            made += [Heading(f"Particular to {part.title}"), Findings(part.findings, title=""), *part.blocks]
        return tuple(made)

    def blocks(self) -> tuple[Block, ...]:
        if not self.parts:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
            return (Text(f"Nothing is particular to these updates ({kinds}): the spectrum says it all."),)
        return (*self.sections(), Definitions(self.definitions, where="page"))


def run(adapter: Adapter, *, base: "Checkpoint | None" = None, modules: str | None = None) -> ParticularsResult:
    """Ask every kind in `adapter`, and every setting that has a member, what is particular to it.

    Args:
        adapter: as `weights.io.read` gives it.
        base: the model it belongs to; DoRA's changes cannot be told without it.
        modules: a regular expression; only modules whose name it finds are asked.

    Raises:
        InputError: `modules` is not a regular expression.
    """
    wanted = Pattern(modules or "", "--modules")
    updates = tuple(update for update in adapter.updates.values() if wanted.search(update.name))
    types = module_types(update.name for update in updates)
    kinds: dict[str, int] = {}
    for update in updates:
        kinds[update.kind] = kinds.get(update.kind, 0) + 1
    parts = {}
    held = [update for update in updates if update.excess() is None]  # what is too large, the spectrum says
    with one_thread(), np.errstate(over="ignore", invalid="ignore"):
        for name in particulars.names():
            asked = tuple(u for u in held if u.kind == name or name in adapter.settings)
            if asked:
                parts[name] = particulars.get(name)(Subject(adapter, asked, types, base))
    return ParticularsResult(parts, kinds, adapter.source)


def _flat(row: dict[str, Any], prefix: str = "") -> Row:
    """Nested records with dotted keys; lists left out."""
    flat: Row = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif not isinstance(value, list):
            flat[prefix + key] = value
    return flat
