"""A callback for transformers' `Trainer` and TRL's trainers: what the adapter does while it trains.

    trainer = SFTTrainer(model, args=args, train_dataset=data, peft_config=config, callbacks=[AdapterCallback()])

It writes singular values, stable rank and ‖ΔW‖/‖W‖ into the trainer's own logs, so that Weights & Biases, TensorBoard
and trackio have them through `report_to`; keeps a few snapshots of the adapter, and ends with the page of `lorascope
trajectory`. On PEFT's layers or on lorascope's; with the latter it also does what their method asks of a loop.
"""

import json
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorascope import api
from lorascope.adapt import hooks
from lorascope.adapt.inject import Injected, injected_in
from lorascope.adapt.layer import AdaptedLayer
from lorascope.errors import InputError
from lorascope.linalg import spectrum
from lorascope.linalg.blas import one_thread
from lorascope.linalg.nulls import random_product
from lorascope.outputs import write_json
from lorascope.weights import io, memory
from lorascope.weights.adapter import Adapter
from lorascope.weights.series import SNAPSHOTS, STATE

BUDGET = 0.01  # of the time that training takes, at the defaults
SIGMAS = 8  # singular values that are logged
PREFIX = "lorascope/"
METHOD_STATE = "lorascope_method.pt"


class AdapterCallback(TrainerCallback):
    """Logs an adapter's spectra while it trains, and draws its trajectory at the end.

    Args:
        every: measure every so many steps; by default with the trainer's own log lines, as often as measuring takes
            less than 1 % of the time.
        snapshots: how many adapters are kept in `output_dir/snapshots`, evenly over the run; 0 keeps none, and there is
            then no page.
        page: write `trajectory.html` and `trajectory.json` into `output_dir` at the end.
        injected: of lorascope's layers, what `inject` gave; found by itself where the model is the one it was given.

    Raises:
        InputError: when training starts: the model has no adapter, or its method needs what this trainer cannot do.
    """

    def __init__(
        self, every: int | None = None, *, snapshots: int = 12, page: bool = True, injected: Injected | None = None
    ):
        if every is not None and every < 1:
            raise InputError("every is a number of steps", found=every, expected="1 or more")
        self.every, self.snapshots, self.page, self.injected = every, snapshots, page, injected
        self.seconds = 0.0  # spent here
        self._cost = 0.0  # of the last measurement
        self._started = 0.0
        self._norms: dict[str, float | None] = {}
        self._model: Any = None
        self._kept: list[int] = []
        self._interval = 1  # of measurements between two that are kept

    # --- the trainer's events ---------------------------------------------------------------------------------------

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Come before the reporters; with lorascope's layers, take over the optimizer's groups and the saving."""
        trainer = _calling_trainer(self)
        if trainer is None:
            return
        self._come_first(trainer)
        if (injected := self._ours(kwargs.get("model") or trainer.model)) is not None:
            _Method(injected).adopt(trainer)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._model = _unwrapped(kwargs["model"])
        if (trainer := _calling_trainer(self)) is not None:
            self._come_first(trainer)
        injected = self._ours(self._model)
        if injected is None and not memory.is_peft(self._model):
            raise InputError(
                f"the {type(self._model).__name__} that is trained has no adapter",
                expected="layers of PEFT or of lorascope",
                hint="give the trainer a PeftModel, a peft_config, or a model that lorascope.inject changed",
            )
        if injected is not None:
            _Method(injected).check(args)
        folder = Path(args.output_dir) / SNAPSHOTS
        if state.is_world_process_zero and self.snapshots and not state.global_step and folder.is_dir():
            for old in folder.glob("step-*"):
                shutil.rmtree(old)
        self._kept = [] if not state.global_step else sorted(int(p.name[5:]) for p in folder.glob("step-*"))
        self._started, self.seconds = time.perf_counter(), 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The gradient of the method's penalty, once for each step: gradients are zero here, and others are added."""
        if self.injected is not None:
            penalty = self.injected.method.penalty()
            if penalty is not None:
                penalty.backward()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.injected is not None:
            self.injected.method.before_step(state.global_step, state.max_steps)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.injected is not None:
            self.injected.method.after_step(state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.every is not None and state.global_step % self.every == 0:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Measure, where the line is one of training, and put the numbers into it."""
        if logs is None or "loss" not in logs or not state.is_world_process_zero or not self._due(state.global_step):
            return
        began = time.perf_counter()
        adapter = self._adapter()
        numbers = self._measured(adapter)
        logs.update(numbers)
        if state.log_history:  # the trainer has kept a copy of the line already
            state.log_history[-1].update(numbers)
        self._snapshot(adapter, Path(args.output_dir), state)
        self._cost = time.perf_counter() - began
        self.seconds += self._cost

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The last snapshot, and the page."""
        if not state.is_world_process_zero or not self.snapshots or self._model is None:
            return
        out = Path(args.output_dir)
        if state.global_step not in self._kept:
            self._write(self._adapter(), out, state)
        if self.page and len(self._kept) > 1:
            result = api.trajectory(*(out / SNAPSHOTS / f"step-{step:07d}" for step in self._kept))
            result.to_html(out / "trajectory.html")
            write_json(out / "trajectory.json", result.to_json())

    # --- what is measured -------------------------------------------------------------------------------------------

    def _due(self, step: int) -> bool:
        if self.every is not None:
            return step % self.every == 0
        elapsed = time.perf_counter() - self._started
        return self._cost == 0.0 or self.seconds + self._cost <= BUDGET * elapsed

    def _ours(self, model: Any) -> Injected | None:
        """What lorascope put into the model; None of PEFT's.

        Raises:
            InputError: its layers are lorascope's, and what `inject` gave is not there.
        """
        if self.injected is None and model is not None:
            inner = _unwrapped(model)
            self.injected = injected_in(inner)
            if self.injected is None and any(isinstance(module, AdaptedLayer) for module in inner.modules()):
                raise InputError(
                    "the model has lorascope's layers, and their method's hooks would not be called",
                    hint="write AdapterCallback(injected=...) with what lorascope.inject gave",
                )
        return self.injected

    def _adapter(self) -> Adapter:
        return self.injected.export() if self.injected is not None else api.read(self._model)

    def _measured(self, adapter: Adapter) -> dict[str, float]:
        """The numbers of one log line, medians over modules."""
        sigmas: list[np.ndarray] = []
        stable, ranks, relative, nulls = [], [], [], []
        with one_thread():
            for name, update in adapter.updates.items():
                if update.needs_base or 1 in update.shape:
                    continue
                delta = update.delta()
                sigma = np.asarray(delta.singular_values())
                sigmas.append(sigma)
                stable.append(spectrum.stable_rank(sigma))
                ranks.append(spectrum.energy_rank(sigma, 0.95))
                if norm := self._norm_of(name):
                    relative.append(spectrum.frobenius_norm(sigma) / norm)
                if update.rank and delta.factors() is not None:
                    nulls.append(random_product(*update.shape, update.rank)["stable_rank"])
        if not sigmas:
            return {}
        known: dict[str, list[Any]] = {
            "stable_rank": [each for each in stable if each is not None],
            "stable_rank_random": nulls,
            "energy_rank_0.95": [each for each in ranks if each is not None],
            "relative_norm": relative,
            **{f"sigma_{k + 1}": [s[k] for s in sigmas if len(s) > k] for k in range(SIGMAS)},
        }
        numbers = {PREFIX + key: float(np.median(values)) for key, values in known.items() if values}
        numbers[PREFIX + "update_norm"] = float(np.sqrt(sum(np.sum(sigma**2) for sigma in sigmas)))
        return numbers

    def _norm_of(self, name: str) -> float | None:
        """‖W‖_F of a module's base weight, computed once; None where it is quantised or not found."""
        if name not in self._norms:
            self._norms[name] = _base_norm(self._model, name)
        return self._norms[name]

    # --- snapshots --------------------------------------------------------------------------------------------------

    def _snapshot(self, adapter: Adapter, out: Path, state: TrainerState) -> None:
        """Keep this adapter; once there are too many, every second one goes and the interval doubles."""
        if not self.snapshots:
            return
        due = not self._kept or state.global_step - self._kept[-1] >= self._interval
        if due:
            self._write(adapter, out, state)
        if len(self._kept) > max(self.snapshots, 2):
            for step in self._kept[1::2]:
                shutil.rmtree(out / SNAPSHOTS / f"step-{step:07d}", ignore_errors=True)
            self._kept = self._kept[::2]
            self._interval = max(2 * self._interval, self._kept[1] - self._kept[0])

    def _write(self, adapter: Adapter, out: Path, state: TrainerState) -> None:
        at = out / SNAPSHOTS / f"step-{state.global_step:07d}"
        io.write(adapter, at, self.injected.method.format if self.injected is not None else "peft")
        log = json.loads(json.dumps(state.log_history, default=str))
        write_json(out / SNAPSHOTS / STATE, {"log_history": log, "global_step": state.global_step})
        self._kept.append(state.global_step)

    def _come_first(self, trainer: Trainer) -> None:
        """Stand before the reporters, which take a log line as they find it, and behind the default flow."""
        callbacks = trainer.callback_handler.callbacks
        if self in callbacks and callbacks.index(self) > 1:
            callbacks.remove(self)
            callbacks.insert(1, self)


class _Method:
    """lorascope's layers in a `Trainer`: groups of the optimizer by the method's rule, checkpoints of the adapter."""

    def __init__(self, injected: Injected):
        self.injected = injected

    def adopt(self, trainer: Any) -> None:
        """Let the trainer build its optimizer by the method, and save, resume and take the best by the adapter."""
        if trainer.optimizer is None:
            trainer.create_optimizer = lambda model=None: self._optimizer(trainer)
        trainer._save = lambda output_dir=None, state_dict=None: self._save(trainer, output_dir)
        trainer._load_from_checkpoint = lambda checkpoint, model=None: self._load(Path(checkpoint))
        trainer._load_best_model = lambda: self._load(Path(trainer.state.best_model_checkpoint))

    def check(self, args: TrainingArguments) -> None:
        """InputError where the trainer would drop what makes the method; called when training starts."""
        needed, called = hooks.needed(self.injected), self.injected.method.called
        name = self.injected.method.name
        if "parameter_groups" in needed and "parameter_groups" not in called:
            raise InputError(
                f"{name} is its parameter groups, and this trainer has built its optimizer without them",
                hint="give the callback to the trainer when it is made, callbacks=[...], and no optimizers=; or build"
                " the optimizer from injected.parameter_groups(lr)",
            )
        if "apply_calibration" in needed and "apply_calibration" not in called:
            raise InputError(
                f"{name} learns of the task before it trains, which a Trainer does not do",
                hint="call method.calibrate and apply_calibration first, or train with `lorascope train`",
            )
        if "penalty" in needed and args.fp16:
            raise InputError(f"{name}'s penalty is not scaled as fp16 needs it", hint="train in bf16 or float32")

    def _optimizer(self, trainer: Any) -> torch.optim.Optimizer:
        if trainer.optimizer is None:
            args = trainer.args
            cls, options = trainer.get_optimizer_cls_and_kwargs(args, trainer.model)
            groups = self.injected.method.parameter_groups(self.injected, args.learning_rate, args.weight_decay)
            there = {id(parameter) for group in groups for parameter in group["params"]}
            others = [p for p in trainer.model.parameters() if p.requires_grad and id(p) not in there]
            groups += [{"params": others, "lr": args.learning_rate, "weight_decay": 0.0}] if others else []
            trainer.optimizer = cls(groups, **options)
        return trainer.optimizer

    def _save(self, trainer: Any, output_dir: str | None) -> None:
        if not trainer.args.should_save:
            return
        folder = Path(output_dir or trainer.args.output_dir)
        base = getattr(trainer.model.config, "_name_or_path", "") if hasattr(trainer.model, "config") else ""
        io.write(self.injected.export(base_model_name_or_path=base), folder, self.injected.method.format)
        if state := self.injected.method.state_dict():  # the file has less than a resume needs: AdaLoRA's cut triplets
            torch.save({"method": state, "adapter": self.injected.state_dict()}, folder / METHOD_STATE)
        if trainer.processing_class is not None:
            trainer.processing_class.save_pretrained(folder)
        torch.save(trainer.args, folder / "training_args.bin")

    def _load(self, folder: Path) -> None:
        if (folder / METHOD_STATE).is_file():
            state = torch.load(folder / METHOD_STATE, weights_only=True)
            self.injected.load_state_dict(state["adapter"])
            self.injected.method.load_state_dict(state["method"])
        else:
            self.injected.load(io.read(folder))


def _calling_trainer(callback: TrainerCallback) -> Any:
    """The `Trainer` that calls this callback. Events are not told which it is, but its frame is on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer) and callback in owner.callback_handler.callbacks:
            return owner
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    warnings.warn("the trainer is not one of transformers': reporters may not get lorascope's numbers", stacklevel=3)
    return None


def _unwrapped(model: Any) -> nn.Module:
    """Without what accelerate, DDP and torch.compile put around it."""
    while hasattr(model, "module") or hasattr(model, "_orig_mod"):
        model = getattr(model, "_orig_mod", None) or model.module
    return model


@torch.no_grad()
def _base_norm(model: nn.Module, name: str) -> float | None:
    inner: Any = model
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    try:
        module: Any = inner.get_submodule(name)
    except AttributeError:
        return None
    module = getattr(module, "base_layer", None) or getattr(module, "base", None) or module
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        return None
    return float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float32))
