"""In how many dimensions can a pretrained model be fine-tuned? Random subspaces, LoRA, VeRA and a truncated ΔW.

python studies/intrinsic_dimension.py --scale small --jobs 2
"""

import functools
import math
from dataclasses import replace

import numpy as np

from lorascope.blocks import Column, Lines, Marker, Series, Table
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.claims import reworded
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, alone
from lorascope.study.grid import DECODER
from lorascope.study.measures.truncation import truncated
from lorascope.study.statistics import crossing, once
from lorascope.study.tasks import LM_RANKS, full_arm, lora, rates_of_full, rates_of_lora, reference_arm, scales

STEP = 0.63  # how far a step moves θ: full fine-tuning at 3e-4 moves it by 3e-4·√D, and a subspace by its rate·√d,
TENSORS = 49  # times the root of how many tensors have a projection of their own
LM_STEP = 1.0  # of the decoder: a third of the rate, and 20 times the parameters
DID, SAID = "DID", "SAID, a λ for each layer"
EXACT, RELEASED = "a projection for each tensor", "the same, released gradient"
LORA, VERA, TRUNCATED = "LoRA", "VeRA", "full fine-tuning, truncated"
PRETRAINED, RANDOM = "pretrained", "random weights"
VERA_RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
LM_VERA_RATES = (1e-2, 3.2e-2, 1e-1)
PUBLISHED = {"method.projection": "fastfood-whole", "method.scope": "per-tensor"}


def arms(scale):
    yield from decoder_arms(scale) if scale.testbed == DECODER else encoder_arms(scale)


def encoder_arms(scale):
    params = scale.params
    for base, changes in ((PRETRAINED, {}), (RANDOM, {"model.random_init": True})):
        yield reference_arm(scale, {"method": HEAD_ALONE, "base": base, "size": 0}, changes)
        yield full_arm({"method": FULL_TUNING, "base": base, "size": None}, changes)
        yield from subspaces(DID, base, changes, params["d"], params)
    yield from subspaces(SAID, PRETRAINED, {"method.said": "layer"}, params["d"], params)
    yield from subspaces(EXACT, PRETRAINED, PUBLISHED, params["d_released"], params)
    released = {**PUBLISHED, "method.adjoint": "as-published"}
    yield from subspaces(RELEASED, PRETRAINED, released, params["d_released"], params)
    yield from adapters(scale, VERA_RATES)


def decoder_arms(scale):
    """One start and one kind of subspace, and what other studies have."""
    yield reference_arm(scale, {"method": HEAD_ALONE, "base": PRETRAINED, "size": 0})
    yield full_arm({"method": FULL_TUNING, "base": PRETRAINED, "size": None}, rates=rates_of_full(scale))
    yield from adapters(scale, LM_VERA_RATES)
    yield from subspaces(DID, PRETRAINED, {}, scale.params["d"], scale.params, LM_STEP)


def adapters(scale, vera_rates):
    for rank in scale.params["ranks"]:
        yield Arm({"method": LORA, "base": PRETRAINED, "size": rank}, lora(rank), rates_of_lora(scale))
    for rank in scale.params["vera"]:
        key = "method.projection_prng_key"
        yield Arm({"method": VERA, "base": PRETRAINED, "size": rank}, vera(rank), vera_rates, seeded=(key,))


def subspaces(method, base, changes, grid, params, step=STEP):
    """One arm for each d. The rate is tuned at some, and the others take the nearest one's times √(its d / d)."""
    step /= math.sqrt(TENSORS if "method.scope" in changes else 1)
    for d in grid:
        near = min(params["tuned_at"], key=lambda other: abs(math.log(other / d)))
        labels = {"method": method, "base": base, "size": d}
        settings = {"method.name": "random_subspace", "method.d": d, "method.embeddings": False, **changes}
        if d == near:
            rates = tuple(float(f"{factor * step / math.sqrt(d):.3g}") for factor in params["factors"])
            yield Arm(labels, settings, rates)
        else:
            yield Arm(labels, settings, rate_of={**labels, "size": near}, rate_factor=math.sqrt(near / d))


def vera(rank):
    """As `vera_vs_vectors` has it."""
    settings = {"name": "vera", "rank": rank, "targets": "all-linear", "save_projection": False}
    return {f"method.{key}": value for key, value in settings.items()}


def each_truncation(results):
    runs = results.runs[results.runs["base"] == PRETRAINED]
    full, head = (runs[runs["method"] == method].set_index("replicate")["key"] for method in (FULL_TUNING, HEAD_ALONE))
    settings = {"texts": results.scale.params["texts"], "split": results.scale.test_split}
    return [MeasurementSpec((full[i], head[i]), {"replicate": i, **settings}) for i in full.index if i in head]


# Statistics.


@once
def columns_of(results):
    """Of the runs of each method from each start the columns, as arrays."""
    runs = results.runs
    columns = {name: runs[name].to_numpy(float) for name in ("size", "trained", "loss", "accuracy")}
    rows = {}
    for i, key in enumerate(zip(runs["method"].to_numpy(), runs["base"].to_numpy(), strict=True)):
        rows.setdefault(key, []).append(i)
    return {key: {name: values[at] for name, values in columns.items()} for key, at in rows.items()}


def runs_of(results, method, base):
    if (method, base) not in (columns := columns_of(results)):
        raise ValueError(f"no run of {method} on {base}")
    return columns[method, base]


def mean(results, method, base=PRETRAINED, column="loss"):
    return runs_of(results, method, base)[column].mean()


@once
def curve(results, method, base=PRETRAINED, column="loss", over="mean"):
    """Trainable parameters without the head's, ascending, and the share of full fine-tuning's gain; of the column
    "accuracy", the share of its accuracy.

    A truncated ΔW has no accuracy here. `over` is what is taken of the replicates: their mean, min or max.
    """
    of = getattr(np, over)
    if method == TRUNCATED:
        sizes, gains = (results.tables["truncated"][name].to_numpy(float) for name in ("freedom", "gain"))
        return np.unique(sizes), np.array([of(gains[sizes == each]) for each in np.unique(sizes)])
    runs = runs_of(results, method, base)
    grid, first = np.unique(runs["size"], return_index=True)
    sizes = runs["trained"][first] - mean(results, HEAD_ALONE, base, "trained")
    scores = np.array([of(runs[column][runs["size"] == each]) for each in grid])
    full = mean(results, FULL_TUNING, base, column)
    if column == "accuracy":
        return sizes, scores / full
    head = mean(results, HEAD_ALONE, base)
    if full >= head:
        raise ValueError("full fine-tuning gained nothing")
    return sizes, (head - scores) / (head - full)


def d90(results, method, base=PRETRAINED, share=0.9, column="loss", **how):
    return crossing(*curve(results, method, base, column), share, **how)


def size(results):
    """D: how many parameters full fine-tuning trains, without the head."""
    return mean(results, FULL_TUNING, PRETRAINED, "trained") - mean(results, HEAD_ALONE, PRETRAINED, "trained")


def over_random(share):
    return lambda results: d90(results, DID, share=share) / d90(results, DID, RANDOM, share=share, beyond=True)


def over_did(method, did_share=0.9, **how):
    """`did_share`: the share of the gain that DID's size is of, and the method's unless `how` says another."""
    how = {"share": did_share, **how}
    return lambda results: d90(results, method, **how) / d90(results, DID, share=did_share, beyond=True)


def gain_within(share):
    """DID's gain with the largest d of the grid that is at most this share of D."""

    def statistic(results):
        sizes, gains = curve(results, DID)
        inside = sizes <= share * size(results)
        if not inside.any():
            raise ValueError("no d is so small")
        return gains[inside][-1]

    return statistic


def lead_at(method, reference):
    """The gain of one subspace method less that of another, at the largest d that is released."""

    def statistic(results):
        d = max(results.scale.params["d_released"])
        here, there = (gains[sizes == d] for sizes, gains in (curve(results, each) for each in (method, reference)))
        if not len(here) or not len(there):
            raise ValueError(f"one of the two has no d = {d}")
        return float(here[0] - there[0])

    return statistic


def lead_of(method):
    """Its gain at its largest size, less that of DID with as many parameters, log-linear between the d of the grid."""

    def statistic(results):
        (sizes, gains), (method_sizes, method_gains) = curve(results, DID), curve(results, method)
        return method_gains[-1] - np.interp(math.log(method_sizes[-1]), np.log(sizes), gains)

    return statistic


# Figures.


def figures(results):
    decoder, start = results.scale.testbed == DECODER, alone(results.scale)
    base = [DID, SAID, EXACT, RELEASED]
    one_axis = [*drawn(results, [LORA, VERA, TRUNCATED]), *drawn(results, base)]
    caption = (
        "Trainable parameters (head excluded); of the truncated ΔW, k(m + n − k) of each. 0: "
        f"{'the base alone' if decoder else 'the head trained alone on the frozen base'}. 1: full fine-tuning, whose D "
        "parameters are marked. Means over replicates, the band from the "
        "lowest to the highest of them; test texts."
    )
    marks = (Marker("y", 0.9, "90 %"), Marker("x", float(size(results)), "D"))
    both = [*drawn(results, [DID], label=PRETRAINED), *drawn(results, [DID], RANDOM, label=RANDOM)]
    of_starts = Lines("Pretrained and random weights", tuple(both), "d", "share of the own gain", True, markers=marks,
                      caption="DID. Each as a share of full fine-tuning's gain from the same weights, over the head "
                      "alone.")  # fmt: skip
    return [
        Lines("One axis of parameters", tuple(one_axis), "parameters", "share of the gain", True, markers=marks,
              caption=caption),
        *([] if decoder else [of_starts]),
        *by_accuracy(results, start),
        readings(results),
    ]  # fmt: skip


def by_accuracy(results, start):
    """As the papers count; nothing where full fine-tuning has no accuracy, as after a few steps."""
    head, full = (mean(results, method, column="accuracy") for method in (HEAD_ALONE, FULL_TUNING))
    if not full:
        return []
    metric = drawn(results, [DID, SAID, LORA, VERA], column="accuracy")
    levels = (Marker("y", 0.9, "90 %"), Marker("y", float(head / full), start))
    caption = f"As the papers count: the {start}, which has no d, is drawn as a line."
    return [Lines("Share of full fine-tuning's accuracy", tuple(metric), "parameters", "share of the accuracy", True,
                  markers=levels, caption=caption)]  # fmt: skip


def drawn(results, methods, base=PRETRAINED, column="loss", label=None):
    series = []
    for method in methods:
        try:
            sizes, values = curve(results, method, base, column)
            ends = [curve(results, method, base, column, over)[1] for over in ("min", "max")]
        except (ValueError, KeyError):  # no run, or no measurement, of it
            continue
        drawn_values = (sizes, values, np.minimum(*ends), np.maximum(*ends))
        x, y, low, high = (tuple(map(float, each)) for each in drawn_values)
        series.append(Series(label or method, x, y, low=low, high=high))
    return series


def readings(results):
    """d90 of every family by each reading."""

    def known(*args, **how):
        try:
            return round(d90(results, *args, **how))
        except ValueError:
            return None

    rows = []
    families = [*((m, PRETRAINED) for m in (DID, SAID, EXACT, RELEASED, LORA, VERA, TRUNCATED)), (DID, RANDOM)]
    for method, base in families:
        if method != TRUNCATED and (method, base) not in columns_of(results):
            continue
        metric = None if method == TRUNCATED else known(method, base, column="accuracy", on_grid=True)
        frame = tuple(float(mean(results, method_of_frame, base)) for method_of_frame in (HEAD_ALONE, FULL_TUNING))
        rows.append((method, base, known(method, base, on_grid=True), known(method, base), metric, *frame))
    columns = (
        Column("method", "Method"),
        Column("base", "Start"),
        Column("grid", "90 % of the gain, first on the grid", "int"),
        Column("between", "the same, between two", "int"),
        Column("metric", "90 % of the accuracy, first on the grid", "int"),
        Column("head", f"Loss, {alone(results.scale)}", "float"),
        Column("full", "Loss, full fine-tuning", "float"),
    )
    caption = "Trainable parameters (head excluded), of means over replicates. Empty: no size of the grid reaches it."
    return Table(columns, tuple(rows), "d90", caption)


STOPS = (
    "Random subspaces stop at about 90 % of the gain here, however large: from a million on more d gains nothing, "
    "though the learning rates are tuned. d90 is therefore dominated by noise"
)
LEVEL = (
    f"{STOPS}; we also report d80, which every method reaches. Adam is not rotation-invariant, so a random subspace "
    "trains differently from full fine-tuning even when d is close to D."
)
UNREACHED = {"encoder": f"{STOPS}, and on many resamples no d of the grid reaches it."}
LI, AGHAJANYAN = "Li et al. 2018, arXiv 1804.08838", "Aghajanyan et al. 2020, arXiv 2012.13255"
SETTING = "BERT and RoBERTa, base and large, on MRPC and QQP; 100 subspaces with d from 10 to 10,000"
CHECKPOINTS = "RoBERTa-base pre-trained from scratch, d90 on six tasks at every 10,000 of 200,000 updates"
HU = "Hu et al. 2021, arXiv 2106.09685, §4.1 (after Aghajanyan et al. 2020); no paper read here compares them"


def in_loras_place(share):
    return Control("degrees of freedom of the truncated ΔW in LoRA's place", over_did(TRUNCATED, share), at_most=0.5,
                   no_effect=1.0)  # fmt: skip


def reading(answers, last="d90 of random subspaces is dominated by noise here, and gets no verdict."):
    if None in (answers.criterion(name).estimate for name in ("small", "lora-80", "truncated", "vera")):
        return ""
    return (
        f"{answers.opening}, a random subspace of at most a tenth of all parameters has {answers.found('small')} of "
        f"full fine-tuning's gain. For 80 % of the gain LoRA needs {answers.found('lora-80')} times as many parameters "
        f"as a random subspace; for 90 % it needs {answers.found('truncated')} times those of a truncated ΔW. {last}"
    ).rstrip()


GRID = {
    "smoke": {
        "d": [1_000, 100_000], "tuned_at": [1_000], "d_released": [1_000], "factors": [1], "ranks": [1, 4],
        "vera": [16], "texts": 100,
    },
    "small": {
        "d": [1_000, 10_000, 100_000, 300_000, 1_000_000, 3_000_000], "tuned_at": [100_000, 1_000_000, 3_000_000],
        "d_released": [1_000, 10_000, 100_000], "factors": [1 / 9, 1 / 3, 1, 3, 9],
        "ranks": [1, 2, 4, 8, 16, 32, 64], "vera": [16, 192], "texts": 1000,
    },
    "smoke-lm": {
        "d": [1_000, 100_000], "tuned_at": [1_000], "factors": [1 / 3, 1, 3], "ranks": [8, 1],
        "d_released": [1_000], "vera": [16], "texts": 32,
    },
    "small-lm": {
        "d": [1_000_000, 10_000_000, 100_000], "tuned_at": [1_000_000], "factors": [1 / 3, 1, 3], "ranks": LM_RANKS,
        "d_released": [1_000_000], "vera": [137, 16], "texts": 200,
    },
    "full": {
        "d": [300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000],
        "d_released": [1_000, 10_000, 100_000, 1_000_000], "tuned_at": [10_000, 1_000_000],
        "factors": [1 / 9, 1 / 3, 1, 3, 9], "ranks": [1, 2, 4, 8, 16, 32, 64], "vera": [16, 192], "texts": 1000,
    },
}  # fmt: skip

CLAIMS = (
    Claim(
        "pretraining", "Pretraining lowers the intrinsic dimension",
        f"{AGHAJANYAN} (d90 falls while a model is pretrained)",
        (Criterion("d90 of the pretrained model over that of random weights", over_random(0.9), at_most=1 / 3,
                   no_effect=1.0, origin="ours: a third; the paper shows a figure"),),
        (Control("d90 of SAID over that of DID, both of the pretrained model", over_did(SAID), at_most=1 / 3,
                 no_effect=1.0),),
        "Each d90 is of the gain of full fine-tuning from the same weights, in as many steps, over the head alone "
        "on them. Where random weights do not reach it on the grid, the next d beyond is taken.",
        CHECKPOINTS,
        out_of_reach=UNREACHED,
        amended="A second criterion, the same of the first d of the grid that reaches it, is gone.",
    ),
    Claim(
        "pretraining-80", "Pretraining lowers the intrinsic dimension, counted at 80 % of the gain",
        f"{AGHAJANYAN}, read at another level",
        (Criterion("d80 of the pretrained model over that of random weights", over_random(0.8),
                   at_most=1 / 3, no_effect=1.0, origin="ours: a third"),),
        (Control("d80 of SAID over that of DID, both pretrained", over_did(SAID, 0.8), at_most=1 / 3,
                 no_effect=1.0),),
        LEVEL,
        CHECKPOINTS,
    ),
    Claim(
        "said", "Per-layer scaling lowers the intrinsic dimension (SAID ≤ DID)",
        f"{AGHAJANYAN}, Table 1 (SAID below DID in 7 of 8 cells, median ratio 0.86)",
        (Criterion("d90 of SAID over that of DID", over_did(SAID), at_most=0.93, no_effect=1.0, published=0.86,
                   origin="half of the published 14 %"),),
        note="d includes SAID's per-layer scales λ. No negative control: the number is itself a comparison with "
        "DID.",
        setting=SETTING,
        out_of_reach=UNREACHED,
        amended="The bound was 1.1, which allowed SAID to be worse; the control, a larger share of DID's gain, "
        "needed a larger d by definition.",
    ),
    Claim(
        "said-80", "Per-layer scaling lowers the intrinsic dimension (SAID ≤ DID), counted at 80 % of the gain",
        f"{AGHAJANYAN}, Table 1, read at another level",
        (Criterion("d80 of SAID over that of DID", over_did(SAID, 0.8), at_most=0.93, no_effect=1.0,
                   published=0.86, origin="half of the published 14 %"),),
        note=f"{LEVEL} No negative control: the number is itself a comparison with DID.",
        setting=SETTING,
        amended="The bound was 1.1, which allowed SAID to be worse; the control, a larger share of DID's gain, "
        "needed a larger d by definition.",
    ),
    Claim(
        "small", "It is far below the number of parameters: a tenth of D is enough",
        f"{LI} (0.4 % of D on MNIST); {AGHAJANYAN}, Table 1",
        (Criterion("gain of DID at the largest d up to D/10, over full fine-tuning's", gain_within(0.1),
                   at_least=0.9, expected=0.95, unit="percent", origin="the papers' 90 %, there of the score"),),
        (Control("with d up to D/1000", gain_within(1e-3), at_least=0.9, unit="percent"),),
        f"After as many steps as full fine-tuning has. Li et al. train for 100 epochs. {STOPS}.",
        "networks of 2·10⁵ parameters on MNIST, 100 epochs; BERT and RoBERTa on MRPC and QQP",
    ),
    Claim(
        "metric",
        "Measured at 90 % of the score (as in the papers) instead of 90 % of the gain, the intrinsic dimension is "
        "at most half as large",
        f"{AGHAJANYAN}, whose threshold is 90 % of the score; MRPC's larger class alone has three quarters of it",
        (Criterion("d for 90 % of the accuracy over d for 90 % of the gain, DID",
                   over_did(DID, column="accuracy"), at_most=0.5, no_effect=1.0, origin="ours: half"),),
        note="True of any curve: the head alone has 87 % of full fine-tuning's accuracy, and so 90 % of the "
        "accuracy is a small part of the gain. No negative control: no curve could fail.",
        setting=SETTING,
        kind="identity",
        amended="The wording is new; the control, a larger share of DID's gain, needed a larger d by definition.",
    ),
    Claim(
        "released",
        "With as many dimensions the gradient of the released code gains less than the exact one",
        "The code in circulation scales each tensor's gradient by one over its padded size; no paper read here "
        "measures what that does",
        (Criterion("gain with the released gradient less that with the exact one, at the largest d of both",
                   lead_at(RELEASED, EXACT), at_most=-0.05, no_effect=0.0, unit="percent", origin="ours: 5 %"),),
        (Control("SAID less DID at the same d", lead_at(SAID, DID), at_most=-0.05, no_effect=0.0,
                 unit="percent"),),
        "Same projection, both learning rates tuned, on a grid of a factor of 3 with one run a rate. Adam undoes a "
        "factor on the whole gradient; here it is a different one for each tensor.",
        "not a published claim",
        amended="It compared d at equal gain, which no d of the exact gradient reached.",
    ),
    Claim(
        "lora", "LoRA reaches 90 % of the gain with fewer trainable parameters than a random subspace",
        HU,
        (Criterion("parameters LoRA needs for 90 % of the gain, over d90 of DID", over_did(LORA), at_most=0.5,
                   no_effect=1.0, origin="ours: half"),),
        (in_loras_place(0.9),),
        "Where DID does not reach it on the grid, the next d beyond is taken.",
        "not a published claim",
        out_of_reach=UNREACHED,
        amended="The bound was 1, which is no effect; the control, all D parameters, failed by definition.",
    ),
    Claim(
        "lora-80", "LoRA reaches 80 % of the gain with at most half of the parameters of a random subspace",
        HU,
        (Criterion("parameters LoRA needs for 80 % of the gain, over d80 of DID", over_did(LORA, 0.8),
                   at_most=0.5, no_effect=1.0, origin="ours: half"),),
        (in_loras_place(0.8),),
        LEVEL,
        "not a published claim",
        amended="The bound was 1, which is no effect.",
    ),
    Claim(
        "truncated", "A trained B·A needs at most half of the parameters of a truncated ΔW of full fine-tuning",
        "Biderman et al. 2024, arXiv 2405.09673, discussion: a high rank is found, and need not be necessary",
        (Criterion("parameters LoRA needs for 90 % of the gain, over degrees of freedom of the truncated ΔW",
                   lambda results: d90(results, LORA) / d90(results, TRUNCATED), at_most=0.5, no_effect=1.0,
                   origin="ours: half"),),
        note="No negative control: the number is itself a comparison of two ways to a low rank.",
        setting="not a published claim",
        amended="The bound was 1, which is no effect; the control, all D parameters, failed by definition.",
    ),
    Claim(
        "vera", "VeRA's vectors gain more than as many parameters in a random subspace",
        "Kopiczko et al. 2024, arXiv 2310.11454 (VeRA); no paper read here sets both on one axis",
        (Criterion("gain of VeRA, largest r, less that of DID with as many parameters", lead_of(VERA),
                   at_least=0.1, no_effect=0.0, unit="percent", origin="ours: a tenth of the gain"),),
        (Control("a projection for each tensor in its place", lead_of(EXACT), at_least=0.1, no_effect=0.0,
                 unit="percent"),),
        setting="not a published claim",
        amended="The bound was 0, which is no effect.",
    ),
)  # fmt: skip

NOT_RUN = {
    "pretraining": "Random weights are not trained on the decoder: in 150 steps they learn which tokens occur at most.",
    "said": "A step in a subspace of the decoder costs several of LoRA's, and of subspaces DID's alone are run there.",
}
NOT_RUN |= {"pretraining-80": NOT_RUN["pretraining"], "said-80": NOT_RUN["said"], "released": NOT_RUN["said"]}


def decoder_claims():
    """What is not run there is out of reach; notes without the encoder's findings."""
    found = reworded(CLAIMS, {
        f" {STOPS}.": "",
        f"{LEVEL}": "Counted at 80 % of the gain, which takes fewer steps of the grid than 90 %.",
        "True of any curve: the head alone has 87 % of full fine-tuning's accuracy, and so 90 % of the accuracy is a "
        "small part of the gain.": "True wherever the base alone has a part of the accuracy already.",
    })  # fmt: skip
    by_name = {claim.name: replace(claim, out_of_reach=NOT_RUN.get(claim.name)) for claim in found}
    none = "No negative control: a projection for each tensor, which is the encoder's, is not run on the decoder."
    by_name["vera"] = replace(by_name["vera"], controls=(), note=none)
    return tuple(by_name.values())


study = Study(
    name="intrinsic_dimension",
    title="What is the intrinsic dimension of fine-tuning?",
    question="How many parameters must train for 90 % of what full fine-tuning gains: in a random subspace of a "
    "pretrained model or of random weights, with LoRA, with VeRA, or of a truncated ΔW?",
    varied="d of the subspace θ = θ₀ + Pθ_d; pretrained or random weights θ₀; one projection for all parameters (DID, "
    "and SAID with its λs) or one for each tensor, with the exact or the released gradient; LoRA's and VeRA's r",
    tuned="the learning rate: for every r, for full fine-tuning from either start, and for every kind of subspace at "
    "one to three d, from which it goes as 1/√d, because a step of Adam then moves θ equally far",
    fixed="the head trains outside the subspace, as it does with LoRA, and is not counted: so all lie on one axis, "
    "and d90 is not that of learning a head. The papers have it inside. Embeddings frozen; the head's rate",
    scales=scales(GRID),
    arms=arms,
    measures=(Measure("truncated", truncated, each_truncation),),
    claims=CLAIMS,
    figures=figures,
    reading=reading,
    elsewhere={
        DECODER: {
            "question": "How many parameters must train for 90 % of what full fine-tuning gains: in a random subspace, "
            "with LoRA, with VeRA, or of a truncated ΔW?",
            "varied": "d of the subspace θ = θ₀ + Pθ_d, one projection for all parameters (DID); LoRA's and VeRA's r",
            "tuned": "the learning rate: for every r, for full fine-tuning, and for subspaces at one d, from which it "
            "goes as 1/√d, because a step of Adam then moves θ equally far",
            "fixed": "embeddings, and with them the output's weights, are frozen",
            "claims": decoder_claims(),
            "reading": functools.partial(reading, last=""),
        }
    },
)  # fmt: skip

if __name__ == "__main__":
    study.main()
