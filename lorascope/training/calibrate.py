"""The preparatory phase that some methods ask for; see `Method.calibrate`.

What came of it is in the run's folder, in `calibration.json`, and a resumed run reads it there.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch

from lorascope.adapt.calibration import Calibration
from lorascope.adapt.inject import Injected
from lorascope.adapt.method import Method
from lorascope.errors import InputError
from lorascope.inputs import read_json
from lorascope.models.bf16_products import fast_on_cpu
from lorascope.outputs import write_json
from lorascope.training.batches import Encoded
from lorascope.training.config import RunConfig
from lorascope.training.loop import Loop
from lorascope.training.parallel import World
from lorascope.training.run_folder import Record

FILE = "calibration.json"
EARLIER = "rehearsal.json"  # its name in runs of lorascope before schema 2


def calibrate(
    injected: Injected,
    data: Encoded,
    config: RunConfig,
    here: World,
    record: Record | None,
    folder: Path,
    resume: bool = False,
) -> None:
    """Let the method look at the task, where it wants to, and put into effect what it learned.

    Args:
        data: the training texts.
        record: of the first process, which writes the file.
        resume: take what the folder's file says, where there is one.
    """
    method = injected.method
    if not method.calibrates:
        return
    path = calibration_file(folder)
    if record:
        record.claim()
    if resume and os.path.lexists(path):
        _apply(method, path)
        return
    fresh = {name: tensor.detach().clone() for name, tensor in injected.state_dict().items()}
    learned = method.calibrate(_offer(injected, data, config, here))
    injected.load_state_dict(fresh)
    here.wait()  # until nobody looks for the file any more
    if record:
        write_json(path, learned)
    method.apply_calibration(learned)


def _offer(injected: Injected, data: Encoded, config: RunConfig, here: World) -> Calibration:
    model, size = injected.model, config.training.per_device_eval_batch_size

    def train(indices: Sequence[int], epochs: float) -> None:
        settings = replace(
            config.training,
            max_steps=None,
            num_train_epochs=epochs,
            eval_steps=None,
            save_steps=None,
            snapshot_steps=None,
            compile=False,
            early_stopping_patience=None,
            load_best_model_at_end=False,
        )
        brief = replace(config, training=settings)
        # The loop ends with a score; one text of the sample is enough for that, and no held-out one is touched.
        Loop(injected, _some(data, indices), _some(data, indices[:1]), brief, here).run()

    @torch.no_grad()
    def look(indices: Sequence[int]) -> None:
        training = model.training
        model.eval()
        for _, same in groupby(sorted(indices, key=lambda i: len(data.tokens[i])), lambda i: len(data.tokens[i])):
            texts = list(same)
            for start in range(0, len(texts), size):
                batch = data.batch(texts[start : start + size]).to(here.device)
                with fast_on_cpu(model):
                    model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        model.train(training)

    def agree(tensor: torch.Tensor) -> torch.Tensor:
        return here.sum(tensor.clone()) / here.size

    return Calibration(len(data), data.labels, config.training.seed, train, look, agree)


def _some(data: Encoded, indices: Sequence[int]) -> Encoded:
    labels = None if data.labels is None else [data.labels[i] for i in indices]
    return replace(data, tokens=[data.tokens[i] for i in indices], labels=labels)


def calibration_file(folder: Path) -> Path:
    """Where the run in this folder keeps what its method learned, or will."""
    return folder / (EARLIER if os.path.lexists(folder / EARLIER) else FILE)


def _apply(method: Method, path: Path) -> None:
    """Put into effect what the file says. InputError where it is damaged."""
    hint = "delete it and resume again"
    try:
        method.apply_calibration(read_json(path, hint=hint))
    except (KeyError, TypeError, ValueError) as error:  # each method knows what it wrote
        raise InputError(f"{path} is damaged", found=f"{type(error).__name__}: {error}", hint=hint) from error
