"""What rank does full fine-tuning have? Three readings of its ΔW, beside the rank that a trained B·A needs.

python studies/full_finetuning_rank.py --scale small --jobs 2
"""

from lorascope.blocks import Column, Lines, Marker, Series, Table
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.measures.rank import curves, shared, spectral
from lorascope.study.measures.truncation import TENTH, functional
from lorascope.study.tasks import LORA_RATES, full_arm, head_arm, lora, scales

SHORT = (
    "100 steps are some 5·10⁴ tokens, where the published runs have 2.5·10⁸ or more, and the rank of ΔW still grows "
    "here (by 12 % from 25 to 400 steps): a run this short cannot come to the published spectrum."
)
BIDERMAN = "Biderman et al. 2024, arXiv 2405.09673 (LoRA Learns Less and Forgets Less, TMLR)"
USUAL = 16  # their smallest LoRA


def arms(scale):
    yield head_arm({"method": "head", "rank": 0})
    yield full_arm({"method": "full", "rank": None})
    for rank in scale.params["ranks"]:
        yield Arm({"method": "lora", "rank": rank}, lora(rank), LORA_RATES)


# What is measured on which runs.


def runs_of(results, method, rank=None):
    runs = results.runs
    chosen = runs[runs["method"] == method]
    chosen = chosen if rank is None else chosen[chosen["rank"] == rank]
    if chosen.empty:
        raise ValueError(f"no run of {method} at rank {rank}")
    return chosen


def widest(results):
    return max(results.scale.params["ranks"])


def each_delta(results):
    return [MeasurementSpec((key,)) for key in results.runs.loc[results.runs["method"] != "head", "key"]]


def by_replicate(results, *kinds):
    """Keys of runs of these kinds, (method, rank), that one replicate has all of."""
    tables = [runs_of(results, *kind).set_index("replicate")["key"] for kind in kinds]
    return [(i, tuple(table[i] for table in tables)) for i in tables[0].index if all(i in table for table in tables)]


def each_truncation(results):
    triples = by_replicate(results, ("full",), ("head",), ("lora", widest(results)))
    settings = {"texts": results.scale.params["texts"], "split": results.scale.test_split}
    return [MeasurementSpec(keys, {"replicate": i, **settings}) for i, keys in triples]


def each_spectrum(results):
    both = by_replicate(results, ("full",), ("lora", widest(results)))
    return [MeasurementSpec(keys, {"replicate": i}) for i, keys in both]


def each_pair(results):
    """Full runs in a ring: each beside the next."""
    keys = runs_of(results, "full").set_index("replicate")["key"]
    after = [*keys.iloc[1:], keys.iloc[0]]
    pairs = zip(keys.items(), after, strict=True)
    return [MeasurementSpec((key, other), {"replicate": i}) for (i, key), other in pairs]


# Statistics.


def spectra_of(results, method="full", rank=None):
    table = results.tables["spectral"]
    chosen = table[table["method"] == method]
    chosen = chosen if rank is None else chosen[chosen["rank"] == rank]
    if chosen.empty:
        raise ValueError(f"no spectra of {method}")
    return chosen


def r90(results, method="full", rank=None):
    return spectra_of(results, method, rank)["r90"].mean()


def column_mean(results, column):
    return spectra_of(results)[column].mean()


def ratio(over, under):
    """Of full fine-tuning: the mean over matrices of one column over another."""

    def statistic(results):
        table = spectra_of(results)
        return (table[over] / table[under]).mean()

    return statistic


def curve_of(results, kind):
    table = results.tables["functional"]
    chosen = table[table["curve"] == kind]
    if chosen.empty:
        raise ValueError(f"no truncation of the kind {kind}")
    return chosen


def smallest(results, kind="top", column="k90"):
    """Mean over replicates of the smallest k that keeps a share of the gain."""
    values = curve_of(results, kind).groupby("replicate")[column].first()
    if values.isna().any():
        raise ValueError("a run has no such k, because it gained nothing")
    return values.mean()


def kept(kind, column, place):
    """Mean over replicates of a column at a k: `place` is a share of full rank, or None for each run's own k90."""

    def statistic(results):
        table = curve_of(results, kind)
        if place is None:
            k90 = curve_of(results, "top").groupby("replicate")["k90"].first()
            table = table[table["k"] == table["replicate"].map(k90)]
        else:
            table = table[table["k"] == round(place * curve_of(results, "top")["k"].max())]
        if table.empty:
            raise ValueError("no truncation at this k")
        return table[column].mean()

    return statistic


def accuracy_share(kind):
    return lambda results: kept(kind, "accuracy", TENTH)(results) / kept("top", "accuracy", 1.0)(results)


def trained_gain(results, rank):
    head, full, lora = (runs_of(results, *kind)["loss"].mean() for kind in (("head",), ("full",), ("lora", rank)))
    if full >= head:
        raise ValueError("full fine-tuning gained nothing")
    return (head - lora) / (head - full)


def smallest_trained(results):
    """The first rank whose trained LoRA gains 90 % of what full fine-tuning gains; twice the last where none does."""
    ranks = sorted(results.scale.params["ranks"])
    return float(next((rank for rank in ranks if trained_gain(results, rank) >= 0.9), 2 * ranks[-1]))


def relative_to_tenth(kind):
    def statistic(results):
        return smallest(results, kind) / max(8, TENTH * curve_of(results, "top")["k"].max())

    return statistic


def stable_rank_ratio(results):
    return (
        spectra_of(results, "lora", widest(results))["stable_rank"].mean() / spectra_of(results)["stable_rank"].mean()
    )


def overstated(name, column, counted, note):
    return Claim(
        name,
        f"The rank of the energy overstates the rank that matters five times and more, {counted}",
        "Biderman et al. 2024 and Gargiulo et al. 2024 together; no paper read here sets one against the other",
        (Criterion("rank for 90 % of the energy over k90",
                   lambda results: r90(results) / smallest(results, "top", column), at_least=5),),
        (Control("of the widest LoRA: over its own k90",
                 lambda results: r90(results, "lora", widest(results)) / smallest(results, "adapter"), at_least=5),),
        note,
    )  # fmt: skip


# Figures.


def figures(results):
    drawn = [gain_by_rank(results), spectrum_figure(results), gain_by_numbers(results), gain_by_part(results)]
    try:
        return [readings(results), *drawn]
    except ValueError:  # full fine-tuning gained nothing, as after a few steps
        return drawn


def readings(results):
    """Every number that is called the rank of an update, for full fine-tuning and for the widest LoRA."""
    shared_rank = results.tables["shared"]["shared_rank"].mean()
    full, lora = spectra_of(results), spectra_of(results, "lora", widest(results))
    rows = [
        ("90 % of the energy", full["r90"].mean(), lora["r90"].mean()),
        ("90 % of the energy, iid noise", full["r90_noise"].mean(), None),
        ("effective rank", full["effective_rank"].mean(), lora["effective_rank"].mean()),
        ("stable rank", full["stable_rank"].mean(), lora["stable_rank"].mean()),
        ("stable rank, iid noise", full["stable_rank_noise"].mean(), None),
        ("above its noise (Gavish–Donoho)", full["gavish_donoho"].mean(), None),
        ("shared with another run", shared_rank, None),
        ("k90: 90 % of the own gain is kept", smallest(results), smallest(results, "adapter")),
        ("k99: 99 % of the gain", smallest(results, column="k99"), None),
        ("k90, gain counted from the matrices at W", smallest(results, column="k90_from_w"), None),
    ]
    columns = (
        Column("reading", "Reading"),
        Column("full", "Full fine-tuning", "float"),
        Column("lora", f"LoRA, r = {widest(results)}", "float"),
    )
    caption = "Means over matrices and replicates. All matrices are truncated to k at once; gain is counted from the "
    caption += "head trained alone unless said. The smallest r that gains 90 % of full fine-tuning's gain when it is "
    caption += f"trained, of {', '.join(map(str, results.scale.params['ranks']))}: {smallest_trained(results):g}."
    rows = [(name, *(None if x is None else float(x) for x in both)) for name, *both in rows]
    return Table(columns, tuple(rows), "The rank, by every reading", caption)


def averaged(table, label, x="k", y="gain", **drawn):
    """The mean of the places that all replicates have, with the band from the lowest to the highest replicate."""
    groups = table[table[x] > 0].groupby("k")
    groups = groups.filter(lambda part: part["replicate"].nunique() == table["replicate"].nunique()).groupby("k")
    low, high = tuple(groups[y].min()), tuple(groups[y].max())
    return Series(label, tuple(map(float, groups[x].mean())), tuple(groups[y].mean()), low=low, high=high, **drawn)


def trained_points(results, x):
    """The gain of each trained rank against `x(rank)`; nothing where full fine-tuning gains nothing."""
    ranks = sorted(set(results.runs.loc[results.runs["method"] == "lora", "rank"]))
    try:
        gains = tuple(float(trained_gain(results, rank)) for rank in ranks)
    except ValueError:
        return []
    head, full = (runs_of(results, method).set_index("replicate")["loss"] for method in ("head", "full"))
    gains_by_replicate = [
        (head - runs_of(results, "lora", r).set_index("replicate")["loss"]) / (head - full).mean() for r in ranks
    ]
    low, high = (tuple(float(end(replicate_gains)) for replicate_gains in gains_by_replicate) for end in (min, max))
    return [Series("LoRA trained at this rank", tuple(float(x(r)) for r in ranks), gains, low=low, high=high)]


def gain_by_rank(results):
    series = [averaged(curve_of(results, "top"), "ΔW of full fine-tuning, its k largest")]
    series += trained_points(results, lambda rank: rank)
    series += [averaged(curve_of(results, "adapter"), f"LoRA of r = {widest(results)}, its k largest")]
    series += [averaged(curve_of(results, "random"), "ΔW of full fine-tuning, k random directions")]
    series += [averaged(curve_of(results, "bottom"), "ΔW of full fine-tuning, its k smallest")]
    k90 = curve_of(results, "top").groupby("replicate")["k90"].first().mean()
    marks = (Marker("y", 0.9, "90 %"), *([Marker("x", float(k90), "mean k90")] if k90 > 0 else []))
    caption = (
        "0: the head trained alone on the frozen base. 1: full fine-tuning. Every matrix is truncated to k at once; "
        "head, biases and norms stay as trained, so that a curve may begin below 0. Means over replicates, the band "
        "from the lowest to the highest of them; test texts."
    )
    return Lines("Gain by rank", tuple(series), "k, or r", "share of the gain", True, markers=marks, caption=caption)


def spectrum_figure(results):
    table = results.tables["curves"]
    labels = {"full": "full fine-tuning", "lora": f"LoRA, r = {widest(results)}", "noise": "iid noise"}
    series = []
    for shape in sorted(set(table["shape"])):
        part = table[table["shape"] == shape].groupby("i")[list(labels)].mean()
        for kind, label in labels.items():
            spectrum = part[kind].dropna()
            weight = "reference" if kind == "noise" else "normal"
            series.append(Series(label, tuple(map(float, spectrum.index)), tuple(spectrum), shape, weight))
    caption = "Means over matrices of one shape and over replicates. Noise of this shape by the Marchenko–Pastur law."
    return Lines("Spectra of ΔW", tuple(series), "i", "σᵢ / ‖ΔW‖", True, True, caption=caption)


def gain_by_numbers(results):
    top = curve_of(results, "top")
    head = runs_of(results, "head")["trained"].iloc[0]
    size = runs_of(results, "full")["trained"].iloc[0] - head
    trained = trained_points(results, lambda rank: runs_of(results, "lora", rank)["trained"].iloc[0] - head)
    series = (
        averaged(top, "ΔW of full fine-tuning, its k largest", x="freedom"),
        *trained,
    )
    marks = (Marker("y", 0.9, "90 %"), Marker("x", float(size), "D"))
    caption = (
        "Of LoRA the numbers it trains, r(m + n) of each matrix; of a truncated ΔW its degrees of freedom, "
        "k(m + n − k). D: what full fine-tuning trains. The head, which all of them train, is not counted."
    )
    title = "Gain by number of parameters"
    return Lines(title, series, "parameters", "share of the gain", True, markers=marks, caption=caption)


def gain_by_part(results):
    kinds = {"all matrices": "top", "attention's alone": "attention alone", "the MLPs' alone": "MLP alone"}
    series = tuple(averaged(curve_of(results, kind), label) for label, kind in kinds.items())
    marks = (Marker("y", 0.9, "90 %"),)
    none = ", ".join(
        f"{part} {curve[curve['k'] == 0]['gain'].mean():.0%}"
        for part in ("attention", "MLP")
        for curve in [curve_of(results, f"{part} alone")]
    )
    caption = "Full fine-tuning's ΔW, its k largest directions in the matrices that are named, all of them in the "
    caption += f"others. With none of them, which the axis cannot show: {none}."
    return Lines("Gain by rank and part", series, "k", "share of the gain", True, markers=marks, caption=caption)


study = Study(
    name="full_finetuning_rank",
    title="What rank does full fine-tuning have?",
    question="By its spectrum, above its noise, and by what is lost without it: what rank has the ΔW of full "
    "fine-tuning? And what rank does a trained B·A need to gain as much?",
    varied="full fine-tuning or LoRA; LoRA's r; the rank k that a trained ΔW is truncated to, and by which of its "
    "directions",
    tuned="the learning rate, for full fine-tuning and for every r",
    fixed="all linear layers, α = 16; the head's rate; AdamW without weight decay, float32; embeddings frozen. Gain is "
    "how much lower the test loss is than that of the head trained alone on the frozen base",
    scales=scales(
        {
            "smoke": {"ranks": [1, 4, 8], "texts": 100},
            "small": {"ranks": [1, 2, 4, 8, 16, 32, 64], "texts": 1000},
            "full": {"ranks": [1, 2, 4, 8, 16, 32, 64], "texts": 1000},
        }
    ),
    arms=arms,
    measures=(
        Measure("spectral", spectral, each_delta),
        Measure("shared", shared, each_pair),
        Measure("functional", functional, each_truncation),
        Measure("curves", curves, each_spectrum),
    ),
    claims=(
        Claim(
            "energy",
            "Full fine-tuning's ΔW has a high rank: 10 to 100 times that of a LoRA of r = 16",
            f"{BIDERMAN}, §4.6; their LoRAs have r = 16, 64 and 256",
            (Criterion("rank for 90 % of ΔW's energy, mean over matrices, over r = 16",
                       lambda results: r90(results) / USUAL, at_least=10, at_most=100),),
            (Control("the same of the widest LoRA",
                     lambda results: r90(results, "lora", widest(results)) / USUAL, at_least=10, at_most=100),),
            "At width 384 no matrix can have more than 24 times r = 16; the paper's have 4096.",
            cannot_tell="At width 384 the claim needs 160 of at most 384 directions, after some 5·10⁴ tokens where the "
            "published runs have 2.5·10⁸ or more: the width and the length of training settle it.",
        ),
        Claim(
            "noise",
            "That rank is what noise of the same shape has, within 30 %",
            f"{BIDERMAN}, §4.6: iid noise added to W gives a similar spectrum; Marchenko and Pastur 1967",
            (Criterion("rank for 90 % of the energy over that of iid noise, mean over matrices of the ratio",
                       ratio("r90", "r90_noise"), at_least=0.7, at_most=1.3),),
            (Control("the same of noise with a quarter of all directions planted in it",
                     ratio("r90_planted", "r90_noise"), at_least=0.7, at_most=1.3),),
            cannot_tell=SHORT,
        ),
        Claim(
            "weights",
            "That rank is also W's, within 30 %",
            f"{BIDERMAN}, §4.6: W, the tuned W and ΔW all need about half of their directions",
            (Criterion("rank for 90 % of ΔW's energy over that of W's, mean over matrices of the ratio",
                       ratio("r90", "r90_of_w"), at_least=0.7, at_most=1.3),),
            (Control("the same of noise with a quarter of all directions planted in it",
                     ratio("r90_planted", "r90_of_w"), at_least=0.7, at_most=1.3),),
            cannot_tell=SHORT,
        ),
        Claim(
            "denoised",
            "Few directions stand out of the noise: half as many as 90 % of the energy needs, at most",
            "Gavish and Donoho 2014, arXiv 1305.5870, applied to ΔW; no paper read here has measured it",
            (Criterion("Gavish–Donoho rank over the rank for 90 % of the energy, mean over matrices of the ratio",
                       ratio("gavish_donoho", "r90"), at_most=0.5),),
            (Control("the same of noise with a quarter of all directions planted in it",
                     ratio("gavish_donoho_planted", "r90_planted"), at_most=0.5),),
            "The threshold supposes noise that is iid, with a flat bulk. Where the claim on noise is not held, ΔW's "
            "is not.",
            cannot_tell=SHORT,
        ),
        Claim(
            "shared",
            "Two independent runs have little of ΔW in common: half of its energy at most",
            "Asked here. What all runs agree in cannot be noise",
            (Criterion("share of its energy that a run has in common with another, mean over matrices",
                       lambda results: results.tables["shared"]["signal_share"].mean(), at_most=0.5,
                       unit="percent"),),
            (Control("share that a run has in common with itself, with noise of a quarter of its energy on both",
                     lambda results: results.tables["shared"]["signal_share_planted"].mean(), at_most=0.5,
                     unit="percent"),),
            "Runs differ in order, texts and the start of the head. What they do not share need not be noise: they may "
            "be different solutions. Every run is compared with the next one, so that each counts twice.",
        ),
        Claim(
            "functional",
            "The rank that matters is low: a tenth of the directions keeps 90 % of the gain",
            "Gargiulo et al. 2024, arXiv 2412.00081 (Task Singular Vectors), of accuracy; here of the gain in loss",
            (Criterion("k90 over a tenth of full rank (at least 8)", relative_to_tenth("top"), at_most=1),),
            (
                Control("the same of random directions of ΔW", relative_to_tenth("random"), at_most=1),
                Control("the same of its smallest singular values", relative_to_tenth("bottom"), at_most=1),
            ),
            "k90 of random and smallest directions is the next power of two above it, or full rank.",
        ),
        Claim(
            "accuracy",
            "A tenth of the directions keeps 99 % of the accuracy",
            "Gargiulo et al. 2024, arXiv 2412.00081, abstract (about 10 % of the size, about 99 % of the accuracy)",
            (Criterion("accuracy with a tenth of the directions over all of them", accuracy_share("top"),
                       at_least=0.99, unit="percent"),),
            (
                Control("as many random directions", accuracy_share("random"), at_least=0.99, unit="percent"),
                Control("the smallest singular values", accuracy_share("bottom"), at_least=0.99, unit="percent"),
            ),
            "A tenth of the directions is more than a tenth of the size: factors of 38 directions have 20 % of the "
            "numbers of a 384 × 384 matrix, 12 % of a 384 × 1536 one.",
        ),
        overstated("overstated", "k90", "counted from the head trained alone", ""),
        overstated("overstated-from-w", "k90_from_w", "counted from the tuned head with all matrices back at W",
                   "A tuned head beside matrices that it was not tuned with does worse than a head trained alone: seen "
                   "from there, what is cut off last weighs less."),
        Claim(
            "leading",
            "What is learned stands at the head of the spectrum",
            "Gargiulo et al. 2024, who keep the largest; bottom and random directions are this study's controls",
            (
                Criterion("gain of the k90 smallest singular values, from the matrices at W",
                          kept("bottom", "gain_from_w", None), at_most=0.2, unit="percent"),
                Criterion("gain of k90 random directions, from the matrices at W",
                          kept("random", "gain_from_w", None), at_most=0.2, unit="percent"),
            ),
            (Control("gain of the k90 largest", kept("top", "gain_from_w", None), at_most=0.2, unit="percent"),),
        ),
        Claim(
            "intrinsic",
            "Adaptation has a low intrinsic rank: a LoRA of r = 4 gains 90 % of what full fine-tuning gains",
            "Hu et al. 2021, arXiv 2106.09685, §7.2, Table 6 (r = 1 suffices for q and v)",
            (Criterion("gain of a trained LoRA of r = 4 over full fine-tuning's",
                       lambda results: trained_gain(results, 4), at_least=0.9, unit="percent"),),
            (Control("r = 1 in its place", lambda results: trained_gain(results, 1), at_least=0.9, unit="percent"),),
        ),
        Claim(
            "trained",
            "A trained B·A needs no more rank than the truncated ΔW of full fine-tuning",
            f"{BIDERMAN}, §6: a solution of high rank is found, which does not exclude one of low rank",
            (
                Criterion("smallest trained r with 90 % of the gain over k90",
                          lambda results: smallest_trained(results) / smallest(results), at_most=1),
                Criterion("the same over k90 counted from the matrices at W",
                          lambda results: smallest_trained(results) / smallest(results, column="k90_from_w"),
                          at_most=1),
            ),
            (Control("k of random directions over k90",
                     lambda results: smallest(results, "random") / smallest(results), at_most=1),),
            "Of the trained ranks the first that reaches it; twice the largest where none does.",
        ),
        Claim(
            "wide",
            "A LoRA of high rank is, by what it does, of lower rank than full fine-tuning",
            f"{BIDERMAN}, §4.6, there of full fine-tuning's energy, against LoRA's r",
            (Criterion("k90 of the widest LoRA, of its own gain, over k90 of full fine-tuning",
                       lambda results: smallest(results, "adapter") / smallest(results), at_most=1),),
            (Control("k90 of random directions of full fine-tuning's ΔW over it",
                     lambda results: smallest(results, "random") / smallest(results), at_most=1),),
        ),
        Claim(
            "stable",
            "LoRA's stable rank stays far below full fine-tuning's, also at a high r",
            "Stable rank of LoRA and full fine-tuning, WiML at NeurIPS 2025 (OpenReview qmBLPS6tRP)",
            (Criterion("stable rank of the widest LoRA over full fine-tuning's, means over matrices",
                       stable_rank_ratio, at_most=0.5),),
            (Control("full fine-tuning's ΔW with random signs over ΔW",
                     lambda results: column_mean(results, "stable_rank_flipped") / column_mean(results, "stable_rank"),
                     at_most=0.5),),
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
