"""What is particular to the method that made this adapter?

The spectrum asks every update the same questions; this analysis asks each kind its own. VeRA: how d and b are
distributed, and how much of ΔW's subspace is the shared random one. AdaLoRA: which ranks were kept, by depth and type.
DoRA: change of magnitude against change of direction. IA³: the scales. LoRA-XS: the core R. LoRA-drop: the scores of
the layers. One kind, one file in this folder; its docstring has the definitions, the nulls, and when it misleads. A
plain LoRA has nothing particular, and nothing is computed for it.

When it misleads: what is measured is where the numbers moved, not whether that was of use; and every number here is of
one run, so that two methods are compared by several seeds each, not by two files.
"""

from lorascope.analyses.base import analyses
from lorascope.analyses.method_specific.base import Part, Subject, particulars
from lorascope.analyses.method_specific.result import ParticularsResult, run

analyses.register("method_specific")(run)

__all__ = ["Part", "ParticularsResult", "Subject", "particulars", "run"]
