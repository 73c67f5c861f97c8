"""Attention masks of which the host knows whether they hide anything.

transformers (`masking_utils.py`) asks each mask whether it hides any token, since a faster kernel serves where it hides
none. The mask lies on the device, so that on a GPU the host would wait there, in each pass, for all that it has
launched. Whoever made the batch knows the answer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

ASK = ("_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa")  # each is given the mask first, or None for none


@contextmanager
def known(padded: bool, device: torch.device) -> Iterator[None]:
    """Inside, transformers is told whether the mask of this batch hides anything. On a CPU it looks for itself.

    That it does is always a right answer, only a slower one. A version of transformers that asks elsewhere still looks.
    """
    from transformers import masking_utils

    utils: Any = masking_utils
    asked = {name: getattr(utils, name) for name in ASK if hasattr(utils, name)} if device.type != "cpu" else {}
    for name, look in asked.items():
        setattr(utils, name, _yes_it_does if padded else partial(_without_mask, look))
    try:
        yield
    finally:
        for name, look in asked.items():
            setattr(utils, name, look)


def _yes_it_does(*_: Any, **__: Any) -> bool:
    return False  # the mask cannot be ignored


def _without_mask(look: Callable[..., bool], mask: Any = None, *others: Any, **named: Any) -> bool:
    return look(None, *others, **{key: value for key, value in named.items() if key != "padding_mask"})
