"""Hits and misses of the checks, on adapters trained here: healthy ones, and ones that were broken on purpose.

    python -m tests.calibration.findings            # some minutes of one core; writes .github/FINDINGS.md

Every adapter is a short run of lorascope's own trainer on the packaged MiniLM, or such a run broken afterwards in the
way that users break theirs. Each is analysed as a user would, without the base and with it. A hit is the error or
warning that the case should get; any error or warning of a healthy adapter is a false alarm.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

import lorascope
from lorascope.analyses import analyze, rules
from lorascope.models import assets
from lorascope.weights import io
from lorascope.weights.checkpoint import open_checkpoint

PAGE = Path(__file__).parents[2] / ".github" / "FINDINGS.md"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
QV, ALL = ["query", "value"], ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
STEPS = 60


@dataclass(frozen=True)
class Case:
    """One adapter: what it is trained with, what is broken afterwards, and the rule that should say so."""

    name: str
    method: dict[str, Any]
    rate: float = 2e-3
    steps: int = STEPS
    broken: Callable[[Path], None] | None = None
    expected: rules.Rule | None = None


def lora(targets: list[str], rank: int = 8, alpha: float = 16, name: str = "lora", **more: Any) -> dict[str, Any]:
    return {"name": name, "targets": targets, "rank": rank, "alpha": alpha, **more}


# --- how adapters are broken ------------------------------------------------------------------------------------------


def edit(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return apply


def set_config(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | values))

    return apply


def scaled(key: str, factor: float) -> Callable[[Path], None]:
    return edit(lambda tensors: {name: a * (factor if key in name else 1) for name, a in tensors.items()})


def one_direction(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All columns of B along the first, as a run that collapsed has them, with a trace of the rest."""
    return {
        name: a[:, :1] + 0.01 * a if "lora_B" in name and a.shape[1] > 1 else a.mean(0) + 0.01 * a if "lora_A" in name
        else a for name, a in tensors.items()
    }  # fmt: skip


def overflown(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stored in fp16 after a loss scale was left in: what exceeds 65,504 is infinite."""
    with np.errstate(over="ignore"):
        return {name: (a * (1e8 if "lora_B" in name else 1)).astype(np.float16) for name, a in tensors.items()}


def renamed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.replace(".query.", ".q_proj.").replace(".value.", ".v_proj."): a for name, a in tensors.items()}


def as_kohya(folder: Path) -> None:
    """The same factors under sd-scripts' names, whose dots are underscores, each with its α."""
    config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    made = {}
    for name, a in tensors.items():
        path, found, role = name.removeprefix("base_model.model.bert.").partition(".lora_")
        if found:
            module = f"lora_te_{path.replace('.', '_')}"
            made[f"{module}.lora_{'down' if role[0] == 'A' else 'up'}.weight"] = a
            made[f"{module}.alpha"] = np.array(config["lora_alpha"], np.float32)
    save_file(made, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).unlink()


def without_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


CASES = (
    Case("LoRA, q and v, r = 8", lora(QV)),
    Case("LoRA, q and v, r = 8, 5e-4", lora(QV), rate=5e-4),
    Case("LoRA, all linear, r = 16", lora(ALL, 16, 32), rate=1e-3),
    Case("LoRA, all linear, r = 4, α = r", lora(ALL, 4, 4), rate=1e-3),
    Case("rsLoRA, q and v, r = 16", lora(QV, 16, 16, "rslora"), rate=1e-3),
    Case("LoRA+, q and v", lora(QV, loraplus_lr_ratio=8), rate=5e-4),
    Case("DoRA, q and v", lora(QV, name="dora"), rate=1e-3),
    Case("LoRA-FA, q and v", lora(QV, name="lora_fa")),
    Case("LoRA, q and v, under kohya's names", lora(QV), broken=as_kohya),
    Case("LoRA, q and v, without its config", lora(QV), broken=without_config, expected=rules.SCALE_UNKNOWN),
    Case("α = 512 in the config, trained with 16", lora(QV), broken=set_config(lora_alpha=512), expected=rules.SCALE),
    Case("trained with α = 512 at r = 8", lora(QV, alpha=512), expected=rules.SCALE),
    Case("learning rate 100 times too high", lora(QV), rate=0.2, expected=rules.TOO_LARGE),
    Case("diverged: B times 1,000", lora(QV), broken=scaled("lora_B", 1000), expected=rules.TOO_LARGE),
    Case("stopped at step 3, 2e-4", lora(QV), rate=2e-4, steps=3, expected=rules.VERY_SMALL),
    Case("stopped at step 3, 2e-3", lora(QV), steps=3, expected=rules.VERY_SMALL),
    Case("fp16 overflow of B", lora(QV), broken=edit(overflown), expected=rules.NON_FINITE),
    Case("B frozen everywhere", lora(QV), broken=scaled("lora_B", 0), expected=rules.NO_CHANGE),
    Case("B frozen in layers 3 to 5", lora(QV), broken=edit(lambda t: {
        k: a * (0 if "lora_B" in k and any(f"layer.{i}." in k for i in (3, 4, 5)) else 1) for k, a in t.items()
    }), expected=rules.UNCHANGED_MODULES),
    Case("modules under another model's names", lora(QV), broken=edit(renamed), expected=rules.ANOTHER_BASE),
    Case("targets in the config that the file lacks", lora(QV),
         broken=set_config(target_modules=["query", "value", "q_proj"]), expected=rules.MISSING_TARGETS),
    Case("one layer's v times 10", lora(QV), broken=scaled("layer.2.attention.self.value.lora_B", 10),
         expected=rules.ONE_MODULE),
    Case("one direction of r = 16", lora(QV, 16, 32), broken=edit(one_direction), expected=rules.COLLAPSE),
)  # fmt: skip


# --- the run ----------------------------------------------------------------------------------------------------------


def config_of(case: Case) -> dict[str, Any]:
    return {
        "model": {"name": "minilm", "task_type": "SEQ_CLS", "head": "mean-pool", "dropout": 0.0},
        "data": {"path": "wordnet-classes", "max_train_samples": 16 * STEPS, "max_eval_samples": 16, "max_length": 32},
        "method": case.method,
        "optim": {"learning_rate": case.rate},
        "training": {"max_steps": case.steps, "per_device_train_batch_size": 16, "group_by_length": True,
                     "measure_cost": False, "device": "cpu", "num_threads": 1, "eval_steps": 1000},
    }  # fmt: skip


def trained(case: Case, folder: Path, known: dict[str, Path]) -> Path:
    """The adapter's folder, broken where it should be; the same training is done once."""
    from lorascope.training import run
    from lorascope.training.config import parse

    config = config_of(case)
    key = json.dumps(config, sort_keys=True)
    if key not in known:
        known[key] = run.train(parse(config), folder / f"run-{len(known)}", command=[]).adapter
    target = folder / f"case-{CASES.index(case)}"
    shutil.copytree(known[key], target)
    if case.broken is not None:
        case.broken(target)
    return target


@dataclass(frozen=True)
class Seen:
    """What was found, as "LS106, LS104"; the sizes that the bounds are about."""

    codes: tuple[str, ...]
    relative: float | None
    entries: float
    used: float | None


def analysed(folder: Path, base: Any) -> Seen:
    result = analyze.run(io.read(folder, base), base=base)
    rows = [m for m in result.rows if m.frobenius_norm]
    against = [m.against_base.relative_norm for m in rows if m.against_base]
    used = [m.rank_utilisation_of_null for m in rows if m.rank_utilisation_of_null]
    entries = [m.frobenius_norm / (m.shape[0] * m.shape[1]) ** 0.5 for m in rows]
    codes = tuple(dict.fromkeys(f.rule for f in result.findings if f.severity != "note"))
    known = [each for each in against if each is not None]
    return Seen(codes, float(np.median(known)) if known else None, float(np.median(entries or [0.0])),
                float(np.median(used)) if used else None)  # fmt: skip


def verdict(case: Case, codes: tuple[str, ...]) -> str:
    if case.expected is None:
        return "false alarm" if codes else "silent"
    return "hit" if case.expected.code in codes else "other" if codes else "miss"


def main() -> None:
    base = open_checkpoint(assets.resolve("minilm"))
    lines, counts = [], {"healthy": [0, 0], "broken, without --base": [0, 0], "broken, with --base": [0, 0]}
    with tempfile.TemporaryDirectory() as place:
        known: dict[str, Path] = {}
        for case in CASES:
            folder = trained(case, Path(place), known)
            alone, against = analysed(folder, None), analysed(folder, base)
            words = [verdict(case, each.codes) for each in (alone, against)]
            if case.expected is None:
                counts["healthy"][0] += all(word == "silent" for word in words)
                counts["healthy"][1] += 1
            else:
                for key, word in zip(list(counts)[1:], words, strict=True):
                    counts[key][0] += word == "hit"
                    counts[key][1] += 1
            lines.append(row(case, alone, against, words))
            print(lines[-1], file=sys.stderr, flush=True)
    PAGE.write_text(page(lines, counts), encoding="utf-8")


def row(case: Case, alone: Seen, against: Seen, words: list[str]) -> str:
    expected = f"{case.expected.code} {case.expected.name}" if case.expected else "nothing"
    sizes = (
        "–" if against.relative is None else f"{100 * against.relative:.3g} %", f"{alone.entries:.2g}",
        "–" if alone.used is None else f"{100 * alone.used:.0f} %",
    )  # fmt: skip
    found = [f"{', '.join(each.codes) or 'none'}: {word}" for each, word in zip((alone, against), words, strict=True)]
    return f"| {case.name} | {' | '.join(sizes)} | {expected} | {' | '.join(found)} |"


def page(lines: list[str], counts: dict[str, list[int]]) -> str:
    share = "; ".join(f"{name}: {hit} of {of}" for name, (hit, of) in counts.items())
    rule_lines = [f"| {rule.code} | {rule.name} | {rule.severity} | {rule.about} |" for rule in rules.RULES.values()]
    return "\n".join([
        "# Checks, and how often they are right", "",
        "Adapters trained by lorascope on the packaged MiniLM for 60 steps of 16 examples, healthy and broken on",
        "purpose. *Silent* (no error and no warning) is right for a healthy one; a *hit* is the expected rule; *other*",
        "is another error or warning; a *miss* is none. ‖ΔW‖/‖W‖, root mean square entry, stable rank (of the random",
        "baseline's) are medians over modules. Made by `python -m tests.calibration.findings` with lorascope"
        f" {lorascope.__version__}.",
        "", f"Silent or hit: {share}.", "",
        "| adapter | ‖ΔW‖/‖W‖ | entry | stable rank | expected | without `--base` | with `--base` |",
        "|---|---|---|---|---|---|---|", *lines, "",
        "No adapter that others trained is in this table: it was made without access to a model hub. Files that",
        "other tools wrote are in the formats' tests; their weights are drawn, and say nothing of bounds.", "",
        "What a miss means: 60 steps on a 22 M encoder say little of large language models; bounds are in the",
        "docstrings of `lorascope/analyses/spectrum/checks.py`, each with its reason.", "",
        "## All rules", "", "| code | name | severity | what it looks for |", "|---|---|---|---|", *rule_lines, "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
