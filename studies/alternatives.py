"""Adapters, prefixes and prompts against LoRA, at as many numbers to keep: quality, latency, context.

python studies/alternatives.py --scale small --jobs 2
"""

import numpy as np

from lorascope.blocks import Column, Lines, Marker, Series, Table
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, lead, share
from lorascope.study.tasks import LORA_RATES, full_arm, head_arm, lora, scales

PREFIX_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
PROMPT_RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
LORA, LORA_8 = "LoRA, r = 2", "LoRA, r = 8"
HOULSBY, HOULSBY_35 = "Houlsby, m = 8", "Houlsby, m = 35"
PREFIX, DEEP, DEEP_72 = "prefix, n = 18", "P-tuning v2, n = 18", "P-tuning v2, n = 72"
PROMPT, PROMPT_20 = "prompt, matched n", "prompt, n = 20"
FAMILIES = {
    "LoRA": (LORA, LORA_8),
    "Houlsby": (HOULSBY, HOULSBY_35),
    "prefix": (PREFIX,),
    "P-tuning v2": (DEEP, DEEP_72),
    "prompt": (PROMPT, PROMPT_20),
}
NAMES = {HOULSBY: "Houlsby adapters", PREFIX: "prefix tuning", DEEP: "P-tuning v2", PROMPT: "prompt tuning"}
EVERY = tuple(name for names in FAMILIES.values() for name in names)
ONE, MANY = 1, 32  # texts in a pass that is timed


def arms(scale):
    """A LoRA of rank r on all linear layers keeps 6912 r numbers in each layer of MiniLM, 18 virtual tokens as keys and
    values 13,824, and as many as a LoRA of r = 2; two bottlenecks of m = 8 keep 13,072."""

    def own(label, name, rates, **settings):
        return Arm({"method": label}, {"method.name": name, **{f"method.{k}": v for k, v in settings.items()}}, rates)

    yield head_arm({"method": HEAD_ALONE})
    yield full_arm({"method": FULL_TUNING})
    yield Arm({"method": LORA}, lora(2), LORA_RATES)
    yield Arm({"method": LORA_8}, lora(8), LORA_RATES)
    yield own(HOULSBY, "houlsby", LORA_RATES, bottleneck=8, layer_norms=False)
    yield own(HOULSBY_35, "houlsby", LORA_RATES, bottleneck=35, layer_norms=False)
    yield own(PREFIX, "prefix", PREFIX_RATES, num_virtual_tokens=18, encoder_lr_ratio=0.03)
    yield own(DEEP, "p_tuning_v2", PREFIX_RATES, num_virtual_tokens=18)
    yield own(DEEP_72, "p_tuning_v2", PREFIX_RATES, num_virtual_tokens=72)
    yield own(PROMPT, "prompt", PROMPT_RATES, num_virtual_tokens=scale.params["prompt"])
    yield own(PROMPT_20, "prompt", PROMPT_RATES, num_virtual_tokens=20)


def inference(folders, texts, times):
    """What the run's method costs at inference, on so many texts at once. It does not depend on what was learned.

    It is timed several times and the median taken: one time alone is noise on a shared machine.
    """
    from dataclasses import replace

    from lorascope.adapt import inference_cost
    from lorascope.training.parallel import pick_device
    from lorascope.training.reopen import finished_config
    from lorascope.training.run import prepare

    config = finished_config(folders[0])
    device = pick_device(config.training.device)
    prepared = prepare(replace(config, data=replace(config.data, max_train_samples=None)), device)
    batch = prepared.held_out.batch(prepared.held_out.by_length(texts)[0]).to(device)  # the longest ones
    timings = [inference_cost.measure(prepared.injected, batch) for _ in range(times)]
    merged = [
        timing.merged_seconds / timing.base_seconds - 1 for timing in timings if timing.merged_seconds is not None
    ]
    first, room = timings[0], prepared.model.config.max_position_embeddings
    return [{
        "tokens": first.tokens,
        "latency": float(np.median([timing.unmerged_seconds / timing.base_seconds - 1 for timing in timings])),
        "merged_latency": float(np.median(merged)) if merged else None,
        "base_milliseconds": 1000 * min(timing.base_seconds for timing in timings),
        "operations": first.unmerged_flops / first.base_flops - 1,
        "kept": first.extra_parameters,
        "context": first.context_tokens,
        "context_share": first.context_tokens / room,
    }]  # fmt: skip


def each_method(results):
    runs = results.runs[results.runs["method"].isin(EVERY)]
    times = results.scale.params["times"]
    return [MeasurementSpec((key,), {"texts": texts, "times": times}) for texts in (ONE, MANY) for key in runs["key"]]


def mean(results, method, column, texts=ONE):
    table = results.tables["inference"]
    chosen = (table["method"].to_numpy() == method) & (table["texts"].to_numpy() == texts)
    values = table[column].to_numpy(dtype=float)[chosen]
    if not len(values) or np.isnan(values).any():
        raise ValueError(f"no {column} of {method}")
    return float(values.mean())


def of(method, column, texts=ONE):
    return lambda results: mean(results, method, column, texts)


def kept(method, reference=LORA):
    return lambda results: mean(results, method, "kept") / mean(results, reference, "kept")


def costs(results):
    rows = []
    for method in EVERY:
        merged = mean(results, method, "merged_latency") if method in FAMILIES["LoRA"] else None
        latencies = (mean(results, method, "latency"), mean(results, method, "latency", MANY))
        others = (round(mean(results, method, "kept")), round(mean(results, method, "context")))
        rows.append((method, *others, *latencies, merged, mean(results, method, "operations"), share(results, method)))
    columns = (
        Column("method", "Method"),
        Column("kept", "Numbers to keep", "int"),
        Column("context", "Context tokens", "int"),
        Column("one", "Latency, 1 text", "percent"),
        Column("many", f"{MANY} texts", "percent"),
        Column("merged", "1 text, merged", "percent"),
        Column("operations", "Operations, 1 text", "percent"),
        Column("share", "Gain of full fine-tuning's", "percent"),
    )
    base, tokens = (mean(results, LORA, column) for column in ("base_milliseconds", "tokens"))
    caption = (
        f"Beyond the base's, which takes {base:.1f} ms for one text of {tokens:.0f} tokens. Means over replicates. "
        "Numbers to keep: beside the base, without the head; the network that makes a prefix is not kept."
    )
    return Table(columns, tuple(rows), "What each costs at inference", caption)


def against(results, x, title, label, **drawn):
    series = []
    for family, methods in FAMILIES.items():
        at = tuple(x(results, method) for method in methods)
        series.append(Series(family, at, tuple(share(results, method) for method in methods), points=methods))
    caption = "Means over replicates; a point's name shows under the pointer."
    marks = (Marker("y", 1.0, "full fine-tuning"),)
    return Lines(title, tuple(series), label, "gain over full fine-tuning's", markers=marks, caption=caption, **drawn)


def best_latency(results, method):
    """In percent, merged where it can be."""
    return 100 * mean(results, method, "merged_latency" if method in FAMILIES["LoRA"] else "latency")


def figures(results):
    return [
        by_method(results),
        costs(results),
        against(results, lambda r, m: mean(r, m, "kept"), "Gain by size", "numbers to keep", log_x=True),
        against(results, best_latency, "Gain by latency", "% more than the base for one text; LoRA merged"),
    ]


def fewer_tokens(name, method):
    """The smallest method of all, in another one's place."""
    return Control(f"{PROMPT_20}, in {name}'s place, against {method}", lead(PROMPT_20, method), at_least=0.0,
                   unit="percent")  # fmt: skip


def quality(name, method, source, note="", control_method=None):
    """`control_method`: what the control is set against, where that is not the method."""
    return Claim(
        name,
        f"At as many numbers to keep LoRA gains more than {NAMES[method]}",
        source,
        (
            Criterion(f"gain of LoRA, r = 2, less that of {method}, over full fine-tuning's", lead(LORA, method),
                      at_least=0.0, unit="percent"),
            Criterion(f"numbers to keep: {method} over LoRA, r = 2", kept(method), at_least=0.9, at_most=1.1),
        ),
        (fewer_tokens("LoRA", method if control_method is None else control_method),),
        f"{note} LoRA is on all linear layers here, on some of attention in the paper.".strip(),
    )  # fmt: skip


HU = "Hu et al. 2021, arXiv 2106.09685"

study = Study(
    name="alternatives",
    title="Adapters, prefixes and prompts",
    question="At as many numbers to keep, how do Houlsby adapters, prefix tuning, P-tuning v2 and prompt tuning "
    "compare with LoRA: in quality, in latency, and in what they take from the context?",
    varied="the method, at two sizes where it has a knob",
    tuned="the learning rate, for every method",
    fixed="the head and its rate; LoRA on all linear layers, α = 16; bottlenecks without trained LayerNorms",
    scales=scales({  # 36 virtual tokens for each layer
        "smoke": {"prompt": 36, "times": 1},
        "small": {"prompt": 108, "times": 8},
        "full": {"prompt": 216, "times": 8},
    }),
    arms=arms,
    measures=(Measure("inference", inference, each_method),),
    claims=(
        quality("houlsby", HOULSBY, f"{HU}, Table 2"),
        quality("prefix", PREFIX, f"{HU}, Table 4 (prefix-layer tuning, of more parameters than LoRA)",
                "Prefix tuning trains a network besides, many times as many numbers, and drops it: see the table."),
        quality("p-tuning-v2", DEEP, f"{HU}, Table 4 (prefix-layer tuning, of more parameters than LoRA)"),
        quality("prompt", PROMPT, f"{HU}, Table 4 (prefix-embedding tuning)",
                "36 virtual tokens for each layer of the model.", LORA_8),
        Claim(
            "deep",
            "P-tuning v2 gains more than prompt tuning at as many numbers to keep",
            "Liu et al. 2021, arXiv 2110.07602, abstract: prompt tuning does poorly at models of normal size",
            (Criterion("gain of P-tuning v2 less that of prompt tuning, over full fine-tuning's", lead(DEEP, PROMPT),
                       at_least=0.0, unit="percent"),),
            (fewer_tokens("P-tuning v2", PREFIX),),
        ),
        Claim(
            "network",
            "A prefix that is trained through a network gains more than one trained directly",
            "Li and Liang 2021, arXiv 2101.00190, §4.3",
            (Criterion("gain of prefix tuning less that of P-tuning v2, over full fine-tuning's", lead(PREFIX, DEEP),
                       at_least=0.0, unit="percent"),),
            (fewer_tokens("prefix tuning", DEEP),),
            "P-tuning v2 starts at the frozen model's keys and values here. The paper starts from activations of real "
            "words, too, which helps where data are few.",
        ),
        Claim(
            "merged",
            "A merged LoRA costs no latency: 5 % at most",
            f"{HU}, §4.1",
            (Criterion("latency of one text beyond the base's", of(LORA, "merged_latency"), at_least=-0.05,
                       at_most=0.05, unit="percent"),),
            (Control("of Houlsby adapters, which cannot be merged", of(HOULSBY, "latency"), at_least=-0.05,
                     at_most=0.05, unit="percent"),),
            "Differences within 5 % are noise on a shared machine.",
        ),
        Claim(
            "adapters-cost",
            "Houlsby adapters cost 10 % of latency or more, for 5 % of operations at most",
            f"{HU}, Table 1 (one text of 128 tokens: 20 % and 30 % more)",
            (
                Criterion("latency of one text beyond the base's", of(HOULSBY, "latency"), at_least=0.1,
                          unit="percent"),
                Criterion("operations beyond the base's", of(HOULSBY, "operations"), at_most=0.05, unit="percent"),
            ),
            (Control("latency of merged LoRA", of(LORA, "merged_latency"), at_least=0.1, unit="percent"),),
        ),
        Claim(
            "unmerged",
            "A LoRA that is not merged costs 10 % of latency or more, for 5 % of operations at most",
            f"{HU}, §4.2 (not merging is for where latency is not critical); no figures there",
            (
                Criterion("latency of one text beyond the base's", of(LORA, "latency"), at_least=0.1, unit="percent"),
                Criterion("operations beyond the base's", of(LORA, "operations"), at_most=0.05, unit="percent"),
            ),
            (Control("latency of merged LoRA", of(LORA, "merged_latency"), at_least=0.1, unit="percent"),),
        ),
        Claim(
            "context",
            "A prompt of LoRA's size takes a fifth of the context, and more operations than the text itself",
            f"{HU}, §3 (optimising a prompt reduces the usable sequence length)",
            (
                Criterion("share of the model's positions", of(PROMPT, "context_share"), at_least=0.2,
                          unit="percent"),
                Criterion("operations of one text beyond the base's", of(PROMPT, "operations"), at_least=1.0,
                          unit="percent"),
            ),
            (
                Control(f"positions that {DEEP} takes", of(DEEP, "context_share"), at_least=0.2, unit="percent"),
                Control(f"operations of {DEEP}", of(DEEP, "operations"), at_least=1.0, unit="percent"),
            ),
            "The model reads 512 positions. That is arithmetic, of prompts of this size and of texts as short as they "
            "are here: beside a longer text a prompt is less. P-tuning v2 keeps as many numbers.",
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
