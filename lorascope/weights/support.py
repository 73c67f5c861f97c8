"""What is read, as data: each module that reads something declares `SUPPORT`, and FORMATS.md is made of it.

`python -m tests.contracts.formats_page` writes the page; a test fails where it is not what the declarations say.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Support:
    """One row of the page: a dialect, a tuner, a scheme, or an option of one that changes what the numbers mean.

    Attributes:
        name: what its users call it.
        verified_against: what the tests compare its numbers with; empty where it is not read.
        base: what the base model is needed for, such as "for ΔW"; empty where the file is enough.
        refused: why it is not read; empty where it is.
        peft: of PEFT's, the `PeftType`, or `LORA.use_qalora` for an option of one.
    """

    name: str
    verified_against: str = ""
    base: str = ""
    refused: str = ""
    peft: str = ""

    def __post_init__(self) -> None:
        if bool(self.verified_against) == bool(self.refused):
            raise ValueError(f"{self.name} is read and verified against something, or refused for a reason")
