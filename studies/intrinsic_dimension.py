"""In how many dimensions can a pretrained model be fine-tuned? Random subspaces, LoRA, VeRA and a truncated ΔW.

python studies/intrinsic_dimension.py --scale small --jobs 2
"""

import math

import numpy as np

from lorascope.blocks import Column, Lines, Marker, Series, Table
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE
from lorascope.study.tasks import LORA_RATES, full_arm, head_arm, lora, scales

STEP = 0.63  # how far a step moves θ: full fine-tuning at 3e-4 moves it by 3e-4·√D, and a subspace by its rate·√d,
TENSORS = 49  # times the root of how many tensors have a projection of their own
DID, SAID = "DID", "SAID, a λ for each layer"
EXACT, RELEASED = "a projection for each tensor", "the same, released gradient"
LORA, VERA, TRUNCATED = "LoRA", "VeRA", "full fine-tuning, truncated"
PRETRAINED, RANDOM = "pretrained", "random weights"
VERA_RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
PUBLISHED = {"method.projection": "fastfood-whole", "method.scope": "per-tensor"}


def arms(scale):
    params = scale.params
    for base, changes in ((PRETRAINED, {}), (RANDOM, {"model.random_init": True})):
        yield head_arm({"method": HEAD_ALONE, "base": base, "size": 0}, changes)
        yield full_arm({"method": FULL_TUNING, "base": base, "size": None}, changes)
        yield from subspaces(DID, base, changes, params["d"], params)
    yield from subspaces(SAID, PRETRAINED, {"method.said": "layer"}, params["d"], params)
    yield from subspaces(EXACT, PRETRAINED, PUBLISHED, params["d_released"], params)
    released = {**PUBLISHED, "method.adjoint": "as-published"}
    yield from subspaces(RELEASED, PRETRAINED, released, params["d_released"], params)
    for rank in params["ranks"]:
        yield Arm({"method": LORA, "base": PRETRAINED, "size": rank}, lora(rank), LORA_RATES)
    for rank in params["vera"]:
        key = "method.projection_prng_key"
        yield Arm({"method": VERA, "base": PRETRAINED, "size": rank}, vera(rank), VERA_RATES, seeded=(key,))


def subspaces(method, base, changes, grid, params):
    """One arm for each d. The rate is tuned at some, and the others take the nearest one's times √(its d / d)."""
    step = STEP / math.sqrt(TENSORS if "method.scope" in changes else 1)
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


def truncated(folders, replicate, texts, split):
    """The gain of full fine-tuning that is left when every ΔW is truncated to rank k, and Σ k(m + n − k)."""
    from lorascope.analyses.dimension import functional
    from lorascope.study.measures.finished import opened
    from lorascope.study.measures.truncation import truncations

    full, head = (opened(folder, texts, split) for folder in folders)
    cut = truncations(full)
    base = functional.Baseline(head.score().loss, cut.whole().loss)
    for k in functional.powers(cut.largest):
        ranks = cut.same(k)
        point = cut.point(k, ranks, cut.keep(f"k = {k}", ranks), base)
        yield {"k": k, "freedom": point.freedom, "loss": point.loss, "gain": point.recovered}


def each_truncation(results):
    runs = results.runs[results.runs["base"] == PRETRAINED]
    full, head = (runs[runs["method"] == method].set_index("replicate")["key"] for method in (FULL_TUNING, HEAD_ALONE))
    settings = {"texts": results.scale.params["texts"], "split": results.scale.test_split}
    return [MeasurementSpec((full[i], head[i]), {"replicate": i, **settings}) for i in full.index if i in head]


# Statistics.


def mean(results, method, base=PRETRAINED, column="loss"):
    runs = results.runs
    chosen = ((runs["method"] == method) & (runs["base"] == base)).to_numpy()
    if not chosen.any():
        raise ValueError(f"no run of {method} on {base}")
    return runs[column].to_numpy()[chosen].mean()


def curve(results, method, base=PRETRAINED, column="loss", over="mean"):
    """Trained numbers without the head's, ascending, and the share of full fine-tuning's gain; of the column
    "accuracy", the share of its accuracy.

    A truncated ΔW has no accuracy here. `over` is what is taken of the replicates: their mean, min or max.
    """
    if method == TRUNCATED:
        means = results.tables["truncated"].groupby("freedom")["gain"].agg(over)
        return means.index.to_numpy(float), means.to_numpy()
    runs = results.runs
    chosen = ((runs["method"] == method) & (runs["base"] == base)).to_numpy()
    if not chosen.any():
        raise ValueError(f"no run of {method} on {base}")
    sizes, trained, scores = (runs[name].to_numpy(float)[chosen] for name in ("size", "trained", column))
    grid = np.unique(sizes)
    trained_sizes = np.array([trained[sizes == grid_size][0] for grid_size in grid]) - mean(
        results, HEAD_ALONE, base, "trained"
    )
    grid_scores = np.array([getattr(np, over)(scores[sizes == grid_size]) for grid_size in grid])
    full = mean(results, FULL_TUNING, base, column)
    if column == "accuracy":
        return trained_sizes, grid_scores / full
    head = mean(results, HEAD_ALONE, base)
    if full >= head:
        raise ValueError("full fine-tuning gained nothing")
    return trained_sizes, (head - grid_scores) / (head - full)


def crossing(sizes, values, level, beyond=False, on_grid=False):
    """The first size at the level: of the grid, or between two of it, log-linear on the curve's running maximum.

    Args:
        beyond: where no size reaches it, take the next that the grid would have had, which is a lower bound.

    Raises:
        ValueError: no size reaches it.
    """
    top = np.maximum.accumulate(values)
    if top[-1] < level:
        if not beyond:
            raise ValueError("no size of the grid reaches it")
        return float(sizes[-1] ** 2 / sizes[-2]) if len(sizes) > 1 else float(sizes[-1])
    at = int(np.argmax(top >= level))
    if at == 0 or on_grid:
        return float(sizes[at])
    part = (level - top[at - 1]) / (top[at] - top[at - 1])
    return float(sizes[at - 1] * (sizes[at] / sizes[at - 1]) ** part)


def d90(results, method, base=PRETRAINED, share=0.9, column="loss", **how):
    return crossing(*curve(results, method, base, column), share, **how)


def size(results):
    """D: how many numbers full fine-tuning trains, without the head."""
    return mean(results, FULL_TUNING, PRETRAINED, "trained") - mean(results, HEAD_ALONE, PRETRAINED, "trained")


def over_random(on_grid, share=0.9):
    how = {"share": share, "on_grid": on_grid}
    return lambda results: d90(results, DID, **how) / d90(results, DID, RANDOM, beyond=True, **how)


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


def raised(method, reference):
    """How many times the d of `reference` a method needs for its gain at the largest d that is released."""

    def statistic(results):
        (released_sizes, gains), (sizes, values) = curve(results, method), curve(results, reference)
        at = int(np.searchsorted(released_sizes, max(results.scale.params["d_released"]), side="right")) - 1
        if gains[at] <= 0:
            raise ValueError("it gained nothing")
        return released_sizes[at] / crossing(sizes, values, gains[at], beyond=True)

    return statistic


def lead_of(method):
    """Its gain at its largest size, less that of DID with as many numbers, log-linear between the d of the grid."""

    def statistic(results):
        (sizes, gains), (method_sizes, method_gains) = curve(results, DID), curve(results, method)
        return method_gains[-1] - np.interp(math.log(method_sizes[-1]), np.log(sizes), gains)

    return statistic


# Figures.


def figures(results):
    base = [DID, SAID, EXACT, RELEASED]
    one_axis = [*drawn(results, [LORA, VERA, TRUNCATED]), *drawn(results, base)]
    caption = (
        "Trained numbers, without the head's; of the truncated ΔW, k(m + n − k) of each. 0: the head trained alone "
        "on the frozen base. 1: full fine-tuning, whose D numbers are marked. Means over replicates, the band "
        "from the lowest to the highest of them; test texts."
    )
    marks = (Marker("y", 0.9, "90 %"), Marker("x", float(size(results)), "D"))
    both = [*drawn(results, [DID], label=PRETRAINED), *drawn(results, [DID], RANDOM, label=RANDOM)]
    start_caption = (
        "Each as a share of the gain of full fine-tuning from the same weights, over the head alone on them. DID."
    )
    scores = "As the papers count: the head alone, which has no d, is drawn as a line."
    line = mean(results, HEAD_ALONE, column="accuracy") / mean(results, FULL_TUNING, column="accuracy")
    levels = (Marker("y", 0.9, "90 %"), Marker("y", float(line), "head alone"))
    metric = drawn(results, [DID, SAID, LORA, VERA], column="accuracy")
    return [
        Lines("One axis of parameters", tuple(one_axis), "parameters", "share of the gain", True, markers=marks,
              caption=caption),
        Lines("Pretrained and random weights", tuple(both), "d", "share of the own gain", True, markers=marks,
              caption=start_caption),
        Lines("Share of full fine-tuning's accuracy", tuple(metric), "parameters", "share of the accuracy", True,
              markers=levels, caption=scores),
        readings(results),
    ]  # fmt: skip


def drawn(results, methods, base=PRETRAINED, column="loss", label=None):
    series = []
    for method in methods:
        try:
            sizes, values = curve(results, method, base, column)
            ends = [curve(results, method, base, column, over)[1] for over in ("min", "max")]
        except ValueError:
            continue
        x, y, low, high = (
            tuple(map(float, values_of_series))
            for values_of_series in (sizes, values, np.minimum(*ends), np.maximum(*ends))
        )
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
    families = [(method, PRETRAINED) for method in (DID, SAID, EXACT, RELEASED, LORA, VERA, TRUNCATED)]
    for method, base in [*families, (DID, RANDOM)]:
        metric = None if method == TRUNCATED else known(method, base, column="accuracy", on_grid=True)
        frame = tuple(float(mean(results, method_of_frame, base)) for method_of_frame in (HEAD_ALONE, FULL_TUNING))
        rows.append((method, base, known(method, base, on_grid=True), known(method, base), metric, *frame))
    columns = (
        Column("method", "Method"),
        Column("base", "Start"),
        Column("grid", "90 % of the gain, first on the grid", "int"),
        Column("between", "the same, between two", "int"),
        Column("metric", "90 % of the accuracy, first on the grid", "int"),
        Column("head", "Loss, head alone", "float"),
        Column("full", "Loss, full fine-tuning", "float"),
    )
    caption = "Trained numbers without the head's, of means over replicates. Empty: no size of the grid reaches it."
    return Table(columns, tuple(rows), "d90", caption)


LEVEL = (
    "Random subspaces stop at about 90 % of the gain here, however large: from a million on more d gains nothing, "
    "though the rates are tuned. So d90 hangs on noise, and 80 % is a level that they pass. Adam's steps depend on "
    "the basis, and a random one is not that of full fine-tuning."
)

study = Study(
    name="intrinsic_dimension",
    title="What is the intrinsic dimension of fine-tuning?",
    question="How many numbers must train for 90 % of what full fine-tuning gains: in a random subspace of a "
    "pretrained model or of random weights, with LoRA, with VeRA, or of a truncated ΔW?",
    varied="d of the subspace θ = θ₀ + Pθ_d; pretrained or random weights θ₀; one projection for all parameters (DID, "
    "and SAID with its λs) or one for each tensor, with the exact or the released gradient; LoRA's and VeRA's r",
    tuned="the learning rate: for every r, for full fine-tuning from either start, and for every kind of subspace at "
    "one to three d, from which it goes as 1/√d, because a step of Adam then moves θ equally far",
    fixed="the head trains outside the subspace, as it does beside LoRA, and is not counted: so all lie on one axis, "
    "and d90 is not that of learning a head. The papers have it inside. Embeddings frozen; the head's rate",
    scales=scales(
        {
            "smoke": {
                "d": [1_000, 100_000],
                "tuned_at": [1_000],
                "d_released": [1_000],
                "factors": [1],
                "ranks": [1, 4],
                "vera": [16],
                "texts": 100,
            },
            "small": {
                "d": [1_000, 10_000, 100_000, 300_000, 1_000_000, 3_000_000],
                "tuned_at": [100_000, 1_000_000, 3_000_000],
                "d_released": [1_000, 10_000, 100_000],
                "factors": [1 / 9, 1 / 3, 1, 3, 9],
                "ranks": [1, 2, 4, 8, 16, 32, 64],
                "vera": [16, 192],
                "texts": 1000,
            },
            "full": {
                "d": [300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000],
                "d_released": [1_000, 10_000, 100_000, 1_000_000],
                "tuned_at": [10_000, 1_000_000],
                "factors": [1 / 9, 1 / 3, 1, 3, 9],
                "ranks": [1, 2, 4, 8, 16, 32, 64],
                "vera": [16, 192],
                "texts": 1000,
            },
        }
    ),
    arms=arms,
    measures=(Measure("truncated", truncated, each_truncation),),
    claims=(
        Claim(
            "pretraining",
            "Pretraining lowers the intrinsic dimension",
            "Aghajanyan et al. 2020, arXiv 2012.13255 (d90 falls while a model is pretrained)",
            (
                Criterion("d90 of the pretrained model over that of random weights", over_random(False), at_most=1 / 3),
                Criterion("the same of the first d on the grid", over_random(True), at_most=1 / 3),
            ),
            (
                Control(
                    "d90 of SAID over that of DID, both of the pretrained model",
                    over_did(SAID),
                    at_most=1 / 3,
                ),
            ),
            "Each d90 is of the gain of full fine-tuning from the same weights, in as many steps, over the head alone "
            "on them. Where random weights do not reach it on the grid, the next d beyond stands for theirs.",
        ),
        Claim(
            "pretraining-80",
            "Pretraining lowers the intrinsic dimension, counted at 80 % of the gain",
            "Aghajanyan et al. 2020, read at another level",
            (
                Criterion(
                    "d80 of the pretrained model over that of random weights", over_random(False, 0.8), at_most=1 / 3
                ),
            ),
            (Control("d80 of SAID over that of DID, both pretrained", over_did(SAID, 0.8), at_most=1 / 3),),
            LEVEL,
        ),
        Claim(
            "said",
            "Factors for the layers lower it: SAID needs no more than DID",
            "Aghajanyan et al. 2020, Table 1 (SAID below DID in 7 of 8 cells)",
            (Criterion("d90 of SAID over that of DID", over_did(SAID), at_most=1.1),),
            (Control("d for 99 % of the gain over d90, DID", over_did(DID, share=0.99, beyond=True), at_most=1.1),),
            "Its λs are counted in d.",
        ),
        Claim(
            "said-80",
            "SAID needs no more than DID, counted at 80 % of the gain",
            "Aghajanyan et al. 2020, Table 1, read at another level",
            (Criterion("d80 of SAID over that of DID", over_did(SAID, 0.8), at_most=1.1),),
            (Control("d90 over d80, DID", over_did(DID, 0.8, share=0.9, beyond=True), at_most=1.1),),
            LEVEL,
        ),
        Claim(
            "small",
            "It is far below the number of parameters: a tenth of D is enough",
            "Li et al. 2018, arXiv 1804.08838 (0.4 % of D on MNIST); Aghajanyan et al. 2020, Table 1",
            (
                Criterion(
                    "gain of DID at the largest d up to D/10, over full fine-tuning's",
                    gain_within(0.1),
                    at_least=0.9,
                    unit="percent",
                ),
            ),
            (Control("with d up to D/1000", gain_within(1e-3), at_least=0.9, unit="percent"),),
            "After as many steps as full fine-tuning has. Li et al. train for 100 epochs.",
        ),
        Claim(
            "metric",
            "Counted as the papers do, as 90 % of the score instead of the gain, it is at most half as large",
            "Aghajanyan et al. 2020, whose threshold is 90 % of the score; the larger class alone is about three "
            "quarters of MRPC's",
            (
                Criterion(
                    "d for 90 % of the accuracy over d for 90 % of the gain, DID",
                    over_did(DID, column="accuracy"),
                    at_most=0.5,
                ),
            ),
            (Control("d for 99 % of the gain over d90, DID", over_did(DID, share=0.99, beyond=True), at_most=0.5),),
        ),
        Claim(
            "released",
            "The gradient of the released code asks for more dimensions",
            "The code in circulation scales each tensor's gradient by one over its padded size; no paper read here "
            "measures what that does",
            (
                Criterion(
                    "largest d with the released gradient, over the d with the exact one that gains as much",
                    raised(RELEASED, EXACT),
                    at_least=1.5,
                ),
            ),
            (Control("the same of SAID and DID", raised(SAID, DID), at_least=1.5),),
            "Same projection, both rates tuned. Compared at the largest d of a shorter grid, because a projection for "
            "each tensor is slow. Adam undoes a factor on the whole gradient, but not that small tensors outweigh "
            "large ones.",
            cannot_tell="No d of the grid gains as much with the exact gradient, so that the next d which the grid "
            "would have had stands in its place: 0.1 [0.1, 0.1] is one step of the grid and no measurement.",
        ),
        Claim(
            "lora",
            "LoRA's numbers are better placed: it needs fewer than a random subspace",
            "Hu et al. 2021, arXiv 2106.09685, §4.1 (after Aghajanyan et al. 2020); no paper read here compares them",
            (Criterion("numbers LoRA needs for 90 % of the gain, over d90 of DID", over_did(LORA), at_most=1),),
            (
                Control(
                    "numbers of full fine-tuning over d90 of DID",
                    lambda results: size(results) / d90(results, DID, beyond=True),
                    at_most=1,
                ),
            ),
            "Where DID does not reach it on the grid, the next d beyond stands for its.",
        ),
        Claim(
            "lora-80",
            "LoRA needs fewer numbers than a random subspace, counted at 80 % of the gain",
            "Asked here",
            (Criterion("numbers LoRA needs for 80 % of the gain, over d80 of DID", over_did(LORA, 0.8), at_most=1),),
            (Control("those of the truncated ΔW in their place", over_did(TRUNCATED, 0.8), at_most=1),),
            LEVEL,
        ),
        Claim(
            "truncated",
            "Training a B·A needs fewer numbers than truncating what full fine-tuning found",
            "Biderman et al. 2024, arXiv 2405.09673, §6: a high rank is found, which need not be needed",
            (
                Criterion(
                    "numbers LoRA needs for 90 % of the gain, over degrees of freedom of the truncated ΔW",
                    lambda results: d90(results, LORA) / d90(results, TRUNCATED),
                    at_most=1,
                ),
            ),
            (
                Control(
                    "numbers of full fine-tuning over the same",
                    lambda results: size(results) / d90(results, TRUNCATED),
                    at_most=1,
                ),
            ),
        ),
        Claim(
            "vera",
            "VeRA's vectors gain more than as many numbers in a random subspace",
            "Kopiczko et al. 2024, arXiv 2310.11454 (VeRA); no paper read here sets both on one axis",
            (
                Criterion(
                    "gain of VeRA, largest r, less that of DID with as many numbers",
                    lead_of(VERA),
                    at_least=0,
                    unit="percent",
                ),
            ),
            (Control("a projection for each tensor in its place", lead_of(EXACT), at_least=0, unit="percent"),),
        ),
    ),
    figures=figures,
)

if __name__ == "__main__":
    study.main()
