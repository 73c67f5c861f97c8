"""Errors that torch raises in training and whose cause the user can mend: as sentences, not as tracebacks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lorascope.errors import InputError, LorascopeError
from lorascope.training.config import RunConfig

MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory", "bad_alloc", "Cannot allocate memory")


@contextmanager
def in_words(config: RunConfig, together: int = 1) -> Iterator[None]:
    """Raises what is understood of torch's errors as what they are to the user; all others pass.

    Args:
        together: how many adapters go through the model in one pass.

    Raises:
        LorascopeError: memory is short.
        InputError: the model cannot take the texts, or the method cannot train the model.
    """
    try:
        yield
    except MemoryError as error:
        raise _out_of_memory(config, together, "the machine") from error
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(config, together, "the GPU") from error
    except RuntimeError as error:
        text = str(error)
        if any(words in text for words in MEMORY):
            raise _out_of_memory(config, together, "the machine") from error
        if "modified by an inplace operation" in text or "is being modified inplace" in text:
            raise InputError(
                f"{config.method.name} cannot train this model: a layer's output, which its gradient needs, is changed "
                "in place by the model",
                found=" ".join(text.split())[:120],
                hint="take that layer out of method.targets, or use method: lora",
            ) from error
        raise
    except IndexError as error:
        if "index out of range" not in str(error):
            raise
        raise InputError(
            "a text does not fit the model: a token or a position has no row in an embedding",
            found=f"texts of up to {config.data.max_length} tokens",
            hint="lower data.max_length, or use the tokenizer that belongs to the model",
        ) from error


def _out_of_memory(config: RunConfig, together: int, where: str) -> LorascopeError:
    training, less = config.training, []
    if together > 1:
        less.append("sweep.max_parallel")
    if training.per_device_train_batch_size > 1:
        less.append("training.per_device_train_batch_size (gradient_accumulation_steps makes up for it)")
    less += ["data.max_length", "training.per_device_eval_batch_size"]
    more = [] if training.gradient_checkpointing else ["training.gradient_checkpointing: true"]
    more += [] if training.bf16 else ["training.bf16: true"]
    size = f"{training.per_device_train_batch_size} texts of up to {config.data.max_length} tokens in a pass"
    hint = f"lower {', '.join(less)}" + (f"; or set {', '.join(more)}" if more else "")
    return LorascopeError(f"training needs more memory than {where} has", found=size, hint=hint)
