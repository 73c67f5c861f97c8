"""Do adapters, prefixes and prompts compare with LoRA at as many stored parameters? Quality, latency, context.

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
    """A LoRA of rank r on all linear layers stores 6912 r parameters in each layer of MiniLM, 18 virtual tokens as keys
    and values 13,824, as many as a LoRA of r = 2; two bottlenecks of m = 8 store 13,072."""

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
        Column("kept", "Parameters to store", "int"),
        Column("context", "Context tokens", "int"),
        Column("one", "Extra latency, 1 text", "percent"),
        Column("many", f"Extra latency, {MANY} texts", "percent"),
        Column("merged", "Extra latency, 1 text, merged", "percent"),
        Column("operations", "Extra operations, 1 text", "percent"),
        Column("share", "Share of full fine-tuning's gain", "percent"),
    )
    base, tokens = (mean(results, LORA, column) for column in ("base_milliseconds", "tokens"))
    caption = (
        f"Extra: over the base alone, which takes {base:.1f} ms for one text of {tokens:.0f} tokens. Means over "
        "replicates. Parameters to store exclude the base and the head; the network that makes a prefix is not stored."
    )
    return Table(columns, tuple(rows), "What each costs at inference", caption)


def against(results, x, title, label, **drawn):
    series = []
    for family, methods in FAMILIES.items():
        at = tuple(x(results, method) for method in methods)
        series.append(Series(family, at, tuple(share(results, method) for method in methods), points=methods))
    caption = "Means over replicates; hover over a point for its label."
    marks = (Marker("y", 1.0, "full fine-tuning"),)
    return Lines(
        title, tuple(series), label, "share of full fine-tuning's gain", markers=marks, caption=caption, **drawn
    )


def best_latency(results, method):
    """In percent, merged where it can be."""
    return 100 * mean(results, method, "merged_latency" if method in FAMILIES["LoRA"] else "latency")


def figures(results):
    return [
        by_method(results),
        costs(results),
        against(results, lambda r, m: mean(r, m, "kept"), "Gain by size", "parameters to store", log_x=True),
        against(results, best_latency, "Gain by latency", "extra latency of one text, %; LoRA merged"),
    ]


HU = "Hu et al. 2021, arXiv 2106.09685"
LAYERS = f"{HU}, Table 4 (prefix-layer tuning, with more parameters than the smaller LoRA)"
GPT3 = "GPT-3 175B on WikiSQL, MNLI and SAMSum"
OURS = "ours: 5 % of full fine-tuning's gain is half a point of accuracy here"
AMENDED = "The bound was 0, which is no effect."
NOISE = "ours: timing noise on a shared machine"
UNCHANGED = "The bound is unchanged; the value for no effect and the origin of the bound were added."


def more(first, second, words):
    """The criterion that the first one gains more; `words`: of both."""
    return Criterion("(gain of {} − gain of {}) / gain of full fine-tuning".format(*words), lead(first, second),
                     at_least=0.05, no_effect=0.0, unit="percent", origin=OURS)  # fmt: skip


def fewer_tokens(name, method):
    """The smallest method of all, in another one's place."""
    return Control(f"{PROMPT_20}, instead of {name}, against {method}", lead(PROMPT_20, method), at_least=0.05,
                   unit="percent")  # fmt: skip


def quality(name, method, source, setting, note="", control_method=None):
    """`control_method`: what the control is set against, where that is not the method."""
    return Claim(
        name,
        f"At as many stored parameters LoRA gains more than {NAMES[method]}",
        source,
        (
            more(LORA, method, (LORA, method)),
            Criterion(f"stored parameters of {method} over those of LoRA, r = 2", kept(method), at_least=0.9,
                      at_most=1.1, expected=1.0, origin="ours: equal within a tenth"),
        ),
        (fewer_tokens("LoRA", method if control_method is None else control_method),),
        f"{note} LoRA is on all linear layers here, on some of attention in the paper.".strip(),
        setting,
        amended=AMENDED,
    )  # fmt: skip


def latency(method, column, **landmarks):
    return Criterion("extra latency of one text", of(method, column), unit="percent", **landmarks)


def few_operations(method):
    return Criterion("extra operations", of(method, "operations"), at_most=0.05, unit="percent",
                     origin="ours: so few operations do not explain the latency")  # fmt: skip


def reading(answers):
    if answers.criterion("houlsby").estimate is None:
        return ""
    parts = [
        f"{NAMES[method]} {answers.found(name)} ({answers.verdict(name)})"
        for name, method in (("houlsby", HOULSBY), ("prefix", PREFIX), ("p-tuning-v2", DEEP), ("prompt", PROMPT))
    ]
    return (
        f"{answers.opening} and at as many stored parameters, LoRA's gain less that of another method, over full "
        f"fine-tuning's: {', '.join(parts)}. A merged LoRA's extra latency is {answers.found('merged')}, that of "
        f"Houlsby adapters {answers.found('adapters-cost')}."
    )


study = Study(
    name="alternatives",
    title="How do adapters, prefixes and prompts compare with LoRA?",
    question="At as many stored parameters, how do Houlsby adapters, prefix tuning, P-tuning v2 and prompt tuning "
    "compare with LoRA: in quality, in latency, and in what they take from the context?",
    varied="the method, at two sizes where possible",
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
        quality(
            "houlsby", HOULSBY,
            f"{HU}, Table 4 (MNLI: LoRA of 4.7M 91.7, adapters of 7.1M 89.8 and of 40.1M 91.5)", GPT3,
        ),
        quality(
            "prefix", PREFIX, LAYERS, GPT3,
            "Prefix tuning also trains a network, of many times as many parameters, and discards it: see the table.",
        ),
        quality("p-tuning-v2", DEEP, LAYERS, GPT3),
        quality(
            "prompt", PROMPT, f"{HU}, Table 4 (prefix-embedding tuning)", GPT3,
            "The prompt has 36 virtual tokens for each layer of the model.", LORA_8,
        ),
        Claim(
            "deep",
            "P-tuning v2 gains more than prompt tuning at as many stored parameters",
            "Liu et al. 2021, arXiv 2110.07602, abstract: prompt tuning does poorly at models of normal size",
            (more(DEEP, PROMPT, ("P-tuning v2", "prompt tuning")),),
            (fewer_tokens("P-tuning v2", PREFIX),),
            setting="models of 300 million to 10 billion parameters, tasks of language understanding",
            amended=AMENDED,
        ),
        Claim(
            "network",
            "A prefix that is trained through a network gains more than one trained directly",
            "Li and Liang 2021, arXiv 2101.00190, §4.3",
            (more(PREFIX, DEEP, ("prefix tuning", "P-tuning v2")),),
            (fewer_tokens("prefix tuning", DEEP),),
            "P-tuning v2 starts at the frozen model's keys and values here. The paper also starts from activations of "
            "real words, which helps where data are few.",
            "GPT-2 on tables to text, BART on summaries",
            amended=AMENDED,
        ),
        Claim(
            "merged",
            "A merged LoRA costs no latency",
            f"{HU}, §4.1",
            (latency(LORA, "merged_latency", at_least=-0.05, at_most=0.05, expected=0.0, origin=NOISE),),
            (Control("extra latency of Houlsby adapters, which cannot be merged", of(HOULSBY, "latency"),
                     at_least=-0.05, at_most=0.05, unit="percent"),),
            "An equivalence test: merged, the weights have the shape of the base's.",
            "any",
            "identity",
            amended=UNCHANGED,
        ),
        Claim(
            "adapters-cost",
            "Houlsby adapters cost at least 15 % of latency, for at most 5 % of operations",
            f"{HU}, Table 1 (one text of 128 tokens: 19.8 ms, with adapters of Houlsby et al. 25.8 ms, 30 % more)",
            (
                latency(HOULSBY, "latency", at_least=0.15, no_effect=0.0, published=0.303,
                        origin="half of the published 30.3 % (Table 1)"),
                few_operations(HOULSBY),
            ),
            (Control("extra latency of merged LoRA", of(LORA, "merged_latency"), at_least=0.15, unit="percent"),),
            setting="GPT-2 medium on one GPU, one text of 128 tokens at a time",
            amended="The bound was 10 %, half of what the table has for another kind of adapters.",
        ),
        Claim(
            "unmerged",
            "A LoRA that is not merged costs at least 10 % of latency, for at most 5 % of operations",
            f"{HU}, §4.2 (not merging is for where latency is not critical); no figures there",
            (
                latency(LORA, "latency", at_least=0.1, no_effect=0.0,
                        origin="ours: twice the timing noise that a merged LoRA may have"),
                few_operations(LORA),
            ),
            (Control("extra latency of merged LoRA", of(LORA, "merged_latency"), at_least=0.1, unit="percent"),),
            setting="no measurement published",
            amended=UNCHANGED,
        ),
        Claim(
            "context",
            "A prompt of LoRA's size takes a fifth of the context, and more operations than the text itself",
            f"{HU}, §3 (optimising a prompt reduces the usable sequence length)",
            (
                Criterion("share of the model's positions", of(PROMPT, "context_share"), at_least=0.2, no_effect=0.0,
                          unit="percent", origin="ours: arithmetic, 108 of 512 positions at scale small"),
                Criterion("extra operations of one text", of(PROMPT, "operations"), at_least=1.0, no_effect=0.0,
                          unit="percent", origin="ours: as many as the text itself"),
            ),
            (
                Control(f"positions that {DEEP} takes", of(DEEP, "context_share"), at_least=0.2, unit="percent"),
                Control(f"extra operations of {DEEP}", of(DEEP, "operations"), at_least=1.0, unit="percent"),
            ),
            "Arithmetic, for prompts of this size and texts as short as they are here: relative to a longer text a "
            "prompt costs less. P-tuning v2 stores as many parameters.",
            "no measurement published",
            "identity",
            amended=UNCHANGED,
        ),
    ),
    figures=figures,
    reading=reading,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
