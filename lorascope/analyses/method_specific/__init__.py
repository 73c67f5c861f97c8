"""What do the parameters that are specific to this adapter's method say?

The spectrum measures every update alike; this analysis has metrics of each kind. VeRA: how d and b are distributed, and
how much of ΔW's subspace is the shared random one. AdaLoRA: which ranks were kept, by depth and type. DoRA: change of
magnitude against change of direction. IA³: the scales. LoRA-XS: the core R. LoRA-drop: the scores of the layers. One
kind, one file in this folder; its docstring has the definitions, the random baselines, and when it misleads. A plain
LoRA has no method-specific metrics, and nothing is computed for it.

When it misleads: what is measured is where the parameters moved, not whether that was of use; and every number here is
of one run, so that two methods are compared by several seeds each, not by two files.
"""

from lorascope.analyses.base import Analysis, analyses
from lorascope.analyses.method_specific.engine import (
    KindMetrics,
    MethodSpecificResult,
    Section,
    Subject,
    blocks,
    findings,
    heading,
    kind_metrics,
    run,
)

analyses.register("method_specific")(Analysis(__doc__, "adapter", run, findings, blocks, heading, "analyze"))

__all__ = ["KindMetrics", "MethodSpecificResult", "Section", "Subject", "kind_metrics", "run"]
