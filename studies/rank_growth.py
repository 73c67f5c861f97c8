"""When and where does the rank of full fine-tuning's ΔW grow? By the number of steps, and in attention and MLPs.

python studies/rank_growth.py --scale small --jobs 2
"""

from lorascope.blocks import Column, Lines, Series, Table
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.measures.rank import spectral
from lorascope.study.tasks import FULL, full_arm, scales

PARTS = ("attention", "MLP")


def arms(scale):
    usual, texts = (scale.config["training"][key] for key in ("max_steps", "per_device_train_batch_size"))
    yield full_arm({"steps": usual})
    for steps in scale.params["steps"]:
        changes = {"training.max_steps": steps, "data.max_train_samples": min(8000, steps * texts)}
        yield Arm({"steps": steps}, {**FULL, **changes}, rate_of={"steps": usual})


def each_run(results):
    return [MeasurementSpec((key,)) for key in results.runs["key"]]


def columns_of(results, *names):
    table = results.tables["spectral"]
    return (table[name].to_numpy() for name in names)


def mlp_over_attention(column, over=None):
    """Of the runs of the usual length: the mean over the MLPs' matrices over that over attention's.

    Args:
        over: a column by which each matrix's number is divided first.
    """

    def statistic(results):
        steps, part, values = columns_of(results, "steps", "part", column)
        values = values if over is None else values / results.tables["spectral"][over].to_numpy()
        usual = steps == results.scale.config["training"]["max_steps"]
        chosen = {name: values[usual & (part == name)] for name in PARTS}
        if not all(len(each) for each in chosen.values()):
            raise ValueError("no matrix of a part was measured")
        return float(chosen["MLP"].mean() / chosen["attention"].mean())

    return statistic


def growth(column):
    """Most steps over fewest: means over matrices and runs."""

    def statistic(results):
        steps, values = columns_of(results, "steps", column)
        if len(set(steps)) < 1 + len(results.scale.params["steps"]):
            raise ValueError("runs of one length are missing")
        return float(values[steps == steps.max()].mean() / values[steps == steps.min()].mean())

    return statistic


def by_steps(results):
    """How far each length has come, which its rank may follow."""
    table, runs = results.tables["spectral"], results.runs.groupby("steps")[["learning_rate", "loss"]].mean()
    ratios = {c: table[c] / table["r90_noise"] for c in ("r90", "r90_flipped")}
    means = {c: ratio.groupby([table["steps"], table["part"]]).mean() for c, ratio in ratios.items()}
    rows = [
        (steps, *map(float, runs.loc[steps]), *(float(m[steps, part]) for m in means.values() for part in PARTS))
        for steps in sorted(runs.index)
    ]
    columns = (
        Column("steps", "Steps", "int"),
        Column("rate", "Learning rate", "float"),
        Column("loss", "Loss (nats)", "float", 4),
        *(Column(part, f"r90 over noise's, {part}", "percent") for part in PARTS),
        *(Column(f"flipped_{part}", f"{part}, random signs", "percent") for part in PARTS),
    )
    caption = (
        "r90: the rank for 90 % of ΔW's energy, over that of iid noise of the shape. Means over matrices and runs."
    )
    return Table(columns, tuple(rows), "Rank and loss by number of steps", caption)


def figures(results):
    return [by_steps(results), *drawn(results)]


def drawn(results):
    table, series = results.tables["spectral"], []
    for column, title in (("r90", "rank for 90 % of the energy"), ("stable_rank", "stable rank")):
        for part in PARTS:
            by_replicate = table[table["part"] == part].groupby(["steps", "replicate"])[column].mean().groupby("steps")
            x = tuple(map(float, by_replicate.mean().index))
            series.append(
                Series(
                    part,
                    x,
                    tuple(by_replicate.mean()),
                    title,
                    low=tuple(by_replicate.min()),
                    high=tuple(by_replicate.max()),
                )
            )
            noise = float(table.loc[table["part"] == part, f"{column}_noise"].mean())
            series.append(Series(f"iid noise, {part}", (x[0], x[-1]), (noise, noise), title, "reference"))
    caption = (
        "Full fine-tuning at one learning rate, each length a schedule of its own. Means over matrices and replicates, "
        "the band from the lowest to the highest replicate. The upper line of noise is the MLPs'."
    )
    return [Lines("Rank by number of steps", tuple(series), "steps", "rank", True, caption=caption)]


BIDERMAN = "Biderman et al. 2024, arXiv 2405.09673 (LoRA Learns Less and Forgets Less, TMLR)"
SETTING = "Llama-2-7B, continued pre-training on code: checkpoints of one run from 0.25 to 20 billion tokens"


def reading(answers):
    if None in (answers.criterion(name).estimate for name in ("growth", "types")):
        return ""
    grows = {
        "reproduced": "grows",
        "weaker": "grows a little",
        "absent or opposite": "does not grow",
        "not specific": "grows, and so does that of a ΔW with random signs,",
    }.get(answers["growth"].verdict, "was not shown to grow")
    return (
        f"{answers.opening}, the MLPs' ΔW has {answers.found('types-raw')} times the rank of attention's, and "
        f"{answers.found('types')} times once each is divided by the rank of noise of its shape. The rank of full "
        f"fine-tuning's ΔW {grows} with the number of steps: at the most it is {answers.found('growth')} times that at "
        "the fewest."
    )


study = Study(
    name="rank_growth",
    title="When and where does the rank of full fine-tuning grow?",
    question="Does the rank of full fine-tuning's ΔW grow with training, and is it higher in MLPs than in attention?",
    varied="the number of steps, each length a run of its own whose rate falls to zero",
    tuned="the learning rate, at the usual number of steps; the other lengths take it",
    fixed="full fine-tuning of everything but the embeddings; the head's rate; AdamW without weight decay, float32",
    scales=scales({"smoke": {"steps": [16]}, "small": {"steps": [25, 50, 400]}, "full": {"steps": [156, 312, 1250]}}),
    arms=arms,
    measures=(Measure("spectral", spectral, each_run),),
    claims=(
        Claim(
            "growth",
            "The rank of full fine-tuning's ΔW grows with training: by a tenth or more, most steps over fewest",
            f"{BIDERMAN}, Figure 6",
            (Criterion("rank for 90 % of the energy, most steps over fewest", growth("r90"), at_least=1.1,
                       no_effect=1.0, origin="ours: a tenth; the paper shows a figure"),),
            (Control("the same of ΔW with random signs", growth("r90_flipped"), at_least=1.1, no_effect=1.0),),
            "The paper follows checkpoints of one run of continued pre-training. Here each length is a run of its own, "
            "and all have one learning rate. More steps see more texts, and once they have seen 8,000 they see them "
            "again.",
            SETTING,
            amended="A second criterion, Spearman's ρ over the runs, is gone: it is biased low under resampling.",
        ),
        Claim(
            "types",
            "The ΔW of MLPs has a rank that is 5 % higher than attention's, or more, each over noise of its shape",
            f"{BIDERMAN}, Figure 6",
            (Criterion("rank for 90 % of the energy over that of noise of the shape: MLP over attention",
                       mlp_over_attention("r90", "r90_noise"), at_least=1.05, no_effect=1.0, origin="ours: 5 %"),),
            (Control("the same of ΔW with random signs", mlp_over_attention("r90_flipped", "r90_noise"), at_least=1.05,
                     no_effect=1.0),),
            "Over noise of the same shape, because a matrix that is not square has a higher rank in any case; the "
            "paper has no such reference.",
            SETTING,
            amended="Its text now says how much higher; the criterion is unchanged.",
        ),
        Claim(
            "types-raw",
            "The ΔW of MLPs has a higher rank than attention's, as counted in the paper",
            f"{BIDERMAN}, Figure 6",
            (Criterion("rank for 90 % of the energy: MLP over attention", mlp_over_attention("r90"), at_least=1.1,
                       no_effect=1.0, origin="ours: a tenth; the paper shows a figure"),),
            (Control("the same of ΔW with random signs, which has the shape alone", mlp_over_attention("r90_flipped"),
                     at_least=1.1, no_effect=1.0),),
            "Matrices of MLPs are 384 × 1536 here, those of attention 384 × 384.",
            SETTING,
            kind="random baseline",
            amended="New: the paper's own count.",
        ),
    ),
    figures=figures,
    reading=reading,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
