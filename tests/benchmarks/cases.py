"""What train_step.py compares: each method's settings here and in PEFT, and which of our roles is which of PEFT's.

A case without a PEFT counterpart (`peft` None) is measured against the floor alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.method import methods

RANK, ALPHA, DROPOUT = 16, 32.0, 0.05


@dataclass(frozen=True)
class Goal:
    """Ratios to PEFT in float32 and on a bfloat16 base: a step's time, and what is saved for backward."""

    time: tuple[float, float] | None = None
    saved: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Case:
    """One method at one setting.

    Attributes:
        method, settings: ours.
        peft: PEFT's config, given the options every config takes.
        roles: PEFT's attribute for each of our trained roles.
        random: whether the two differ by chance, so that gradients cannot be compared.
        targets: by model; all-linear where nothing is said.
        nf4: on a base that bitsandbytes quantised to 4 bits.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    peft: Callable[..., Any] | None = None
    roles: dict[str, str] = field(default_factory=dict)
    goal: Goal = Goal()
    random: bool = False
    targets: dict[str, Any] = field(default_factory=dict)
    nf4: bool = False


def _peft(name: str, **settings) -> Callable[..., Any]:
    def make(**options):
        import peft

        return getattr(peft, name)(**{"target_modules": "all-linear", **settings, **options})

    return make


LORA = {"A": "lora_A", "B": "lora_B"}
ATTENTION = {"llama": ["q_proj", "k_proj", "v_proj", "o_proj"], "bert": ["query", "key", "value"]}
SCALED = {"llama": ["k_proj", "v_proj", "down_proj"], "bert": ["key", "value", "output.dense"]}
INPUTS = {"llama": ["down_proj"], "bert": ["output.dense"]}
CASES = {
    "lora": Case(
        "lora",
        {"rank": RANK, "alpha": ALPHA},
        _peft("LoraConfig", r=RANK, lora_alpha=ALPHA),
        LORA,
        Goal((0.92, 0.70), (1.0, 0.65)),
    ),
    "rslora": Case(
        "rslora",
        {"rank": RANK, "alpha": ALPHA},
        _peft("LoraConfig", r=RANK, lora_alpha=ALPHA, use_rslora=True),
        LORA,
        Goal((0.92, 0.70), (1.0, 0.65)),
    ),
    "lora-dropout": Case(
        "lora",
        {"rank": RANK, "alpha": ALPHA, "dropout": DROPOUT},
        _peft("LoraConfig", r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT),
        LORA,
        Goal(None, (0.65, 0.65)),
        random=True,
    ),
    "nf4": Case(
        "lora",
        {"rank": RANK, "alpha": ALPHA},
        _peft("LoraConfig", r=RANK, lora_alpha=ALPHA),
        LORA,
        random=True,  # no float64 copy of codes to compare with
        nf4=True,
    ),
    "lora_fa": Case(
        "lora_fa",
        {"rank": RANK, "alpha": ALPHA},
        _peft("LoraConfig", r=RANK, lora_alpha=ALPHA),
        {"B": "lora_B"},
        random=True,  # A, which does not train, is drawn by each in its own way
    ),
    "dora": Case(
        "dora",
        {"rank": RANK, "alpha": ALPHA},
        _peft("LoraConfig", r=RANK, lora_alpha=ALPHA, use_dora=True),
        {**LORA, "m": "lora_magnitude_vector"},
        Goal((0.80, 0.80), (0.65, 0.65)),
    ),
    "vera-256": Case(
        "vera",
        {"rank": 256},
        _peft("VeraConfig", r=256),
        {"d": "vera_lambda_d", "b": "vera_lambda_b"},
        Goal(None, (0.65, 0.65)),
    ),
    "vera-1024": Case(
        "vera",
        {"rank": 1024},
        _peft("VeraConfig", r=1024),
        {"d": "vera_lambda_d", "b": "vera_lambda_b"},
        Goal((0.78, 0.78), (0.65, 0.65)),
    ),
    "adalora": Case(
        "adalora",
        {"init_r": RANK, "target_r": RANK // 2, "alpha": ALPHA, "orth_reg": "mean-norm", "orth_reg_weight": 0.5},
        _peft("AdaLoraConfig", init_r=RANK, target_r=RANK // 2, lora_alpha=ALPHA, total_step=10_000, tinit=9_000),
        {"A": "lora_A", "B": "lora_B", "E": "lora_E"},
    ),
    "ia3": Case(
        "ia3",
        {},
        _peft("IA3Config"),
        {"l": "ia3_l"},
        targets=SCALED,
    ),
    "lora_xs": Case("lora_xs", {"rank": RANK}),
    "vera_unshared": Case("vera_unshared", {"rank": 256}),
    "magnitude": Case("magnitude"),
    "layernorm": Case("layernorm"),
    "full": Case("full"),
    "random_subspace": Case("random_subspace"),
    "bitfit": Case("bitfit"),
    "houlsby": Case("houlsby"),
    "prompt": Case("prompt"),
    "prefix": Case("prefix"),
    "p_tuning_v2": Case("p_tuning_v2"),
}


def ours(case: Case, base: nn.Module, model: str) -> Injected:
    """The method in the base, which is changed."""
    method = methods.get(case.method)
    made = method(method.Config(**case.settings))
    return inject(base, made, targets=case.targets.get(model, "all-linear"))


def theirs(case: Case, base: nn.Module, model: str) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """PEFT's model around the base, which is changed, and its trained parameters by our names."""
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer

    options = {"task_type": "CAUSAL_LM"}  # without one PEFT leaves AdaLoRA's penalty out
    if hasattr(base, "classifier"):
        options = {"task_type": "SEQ_CLS", "modules_to_save": []}
    if case.targets:
        options["target_modules"] = case.targets[model]
    if case.method == "ia3":
        options["feedforward_modules"] = INPUTS[model]
    wrapped = peft.get_peft_model(base, case.peft(**options))
    wrapped.requires_grad_(False)
    trained = {}
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            for role, attribute in case.roles.items():
                value = getattr(module, attribute)["default"]
                trained[f"{name}.{role}"] = value if isinstance(value, nn.Parameter) else value.weight
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return wrapped, trained
