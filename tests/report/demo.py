"""A page the size of an 8B adapter's, from blocks and invented numbers alone.

224 modules (7 types, 32 depths), rank 16: what `lorascope analyze --html` draws for the adapter most people have.
Run as a script to write it: `python tests/report/demo.py demo.html`.
"""

import sys

import numpy as np

from lorascope.blocks import (
    Cell,
    Code,
    Column,
    Definition,
    Definitions,
    Facts,
    Finding,
    Findings,
    Heading,
    Heatmap,
    Lines,
    Marker,
    Measure,
    Page,
    Series,
    Table,
    Text,
)

DEPTHS, RANK = 32, 16
SHAPES = {
    "q_proj": (4096, 4096),
    "k_proj": (1024, 4096),
    "v_proj": (1024, 4096),
    "o_proj": (4096, 4096),
    "gate_proj": (14336, 4096),
    "up_proj": (14336, 4096),
    "down_proj": (4096, 14336),
}


def name_of(kind: str, depth: int) -> str:
    part = "self_attn" if kind in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
    return f"model.layers.{depth}.{part}.{kind}"


def spectra(seed: int = 0) -> dict[tuple[str, int], np.ndarray]:
    """Descending singular values of every module: a power law whose exponent drifts with depth, and noise."""
    rng = np.random.default_rng(seed)
    found = {}
    for j, kind in enumerate(SHAPES):
        for depth in range(DEPTHS):
            decay = 0.5 + 0.15 * j + 0.8 * abs(depth - 12) / DEPTHS
            level = 0.8 * (1 + 0.5 * np.sin(depth / 5 + j))
            values = level * np.arange(1, RANK + 1) ** -decay * np.exp(0.12 * rng.standard_normal(RANK))
            found[kind, depth] = np.sort(values)[::-1]
    found["k_proj", 0][3:] *= 1e-4  # one module that is nearly of rank three
    return found


def measures_of(s: np.ndarray) -> dict[str, float]:
    energy = np.cumsum(s**2) / np.sum(s**2)
    share, p = s**2 / np.sum(s**2), s / np.sum(s)
    return {
        "frobenius": float(np.sqrt(np.sum(s**2))),
        "spectral": float(s[0]),
        "nuclear": float(np.sum(s)),
        "stable_rank": float(np.sum(s**2) / s[0] ** 2),
        "effective_rank": float(np.exp(-np.sum(p * np.log(p)))),
        "effective_rank_energy": float(np.exp(-np.sum(share * np.log(share)))),
        "participation": float(1 / np.sum(share**2)),
        "rank_90": int(np.searchsorted(energy, 0.90) + 1),
        "rank_95": int(np.searchsorted(energy, 0.95) + 1),
        "rank_99": int(np.searchsorted(energy, 0.99) + 1),
        "utilisation": float(np.exp(-np.sum(p * np.log(p))) / RANK),
    }


MEASURES = (
    Column("frobenius", "‖ΔW‖_F", "float"),
    Column("spectral", "‖ΔW‖₂", "float"),
    Column("nuclear", "‖ΔW‖_*", "float"),
    Column("stable_rank", "Stable rank", "float"),
    Column("effective_rank", "Effective rank (σ)", "float"),
    Column("effective_rank_energy", "Effective rank (σ²)", "float"),
    Column("participation", "Participation ratio", "float"),
    Column("rank_90", "Rank at 90 %", "int"),
    Column("rank_95", "Rank at 95 %", "int"),
    Column("rank_99", "Rank at 99 %", "int"),
    Column("utilisation", "Utilisation of r", "percent"),
)


def page(hostile: str = "") -> Page:
    """The demo page; `hostile` is put wherever a file's own strings go."""
    found = spectra()
    measured = {key: measures_of(s) for key, s in found.items()}
    return Page(
        title=f"llama-3-8b-lora-r16{hostile}",
        kicker="lorascope analyze",
        summary="A rank-16 LoRA adapter on 224 modules. It uses 61 % of the rank it was given, most of it in the "
        "attention outputs of the middle layers; one module is numerically of rank 3.",
        blocks=(
            *_opening(hostile),
            *_by_type(measured),
            *_figures(found, measured, hostile),
            _all_modules(measured, hostile),
            *_closing(hostile),
        ),
        made_by=(
            ("Command", f"lorascope analyze llama-3-8b-lora-r16{hostile} --html page.html"),
            ("lorascope", "0.1.0"),
            ("numpy", "2.4.6"),
            ("Computed in", "float64, through the factors"),
        ),
    )


def _opening(hostile: str) -> tuple:
    return (
        Facts(
            (
                ("File", f"adapter_model.safetensors{hostile}"),
                ("Format", "PEFT LoRA"),
                ("Method", "LoRA, r = 16, α = 32, scale α/r = 2"),
                ("Base model", "meta-llama/Meta-Llama-3-8B"),
                ("Modules", "224 of 224 analysed"),
                ("Tensors", "448, bfloat16, 83.9 MB"),
                ("SHA-256", "9f2c1f0c5ad3e7b8462a90cde1b3f4577a6d8c9e0b1f2a3d4c5e6f708192a3b4"),
            ),
            title="Inputs and settings",
        ),
        Findings(
            (
                Finding(
                    "error", "3 of 65,536 entries of A are not finite; nothing was computed from it", hostile or None
                ),
                Finding(
                    "warning",
                    "numerically of rank 3: the singular values from σ₄ on are below 10⁻⁴ of the first. A rank of 4 "
                    "would have done",
                    name_of("k_proj", 0),
                ),
                Finding(
                    "warning", "carries 2.1 % of the adapter's energy, 4.7 times the average", name_of("o_proj", 13)
                ),
                Finding(
                    "note",
                    "95 % of ‖ΔW‖² fits in rank 11 in every module; 14 modules need more than 9",
                ),
            )
        ),
    )


def _by_type(measured: dict) -> tuple:
    rows: list[tuple[Cell, ...]] = []
    total = sum(m["frobenius"] ** 2 for m in measured.values())
    for kind, shape in SHAPES.items():
        mine = [measured[kind, d] for d in range(DEPTHS)]
        rows.append(
            (
                kind,
                DEPTHS,
                f"{shape[0]} × {shape[1]}",
                sum(m["frobenius"] ** 2 for m in mine) / total,
                float(np.median([m["stable_rank"] for m in mine])),
                float(np.median([m["effective_rank"] for m in mine])),
                max(m["rank_95"] for m in mine),
                float(np.median([m["utilisation"] for m in mine])),
                0.87,
            )
        )
    columns = (
        Column("kind", "Module type", "code"),
        Column("n", "Modules", "int"),
        Column("shape", "Shape"),
        Column("energy", "Energy share", "percent"),
        Column("stable", "Stable rank", "float"),
        Column("effective", "Effective rank", "float"),
        Column("r95", "Rank at 95 %, worst", "int"),
        Column("use", "Utilisation", "percent"),
        Column("chance", "Chance", "percent", help="Gaussian B·A of the same shape"),
    )
    caption = "Medians over depth; the worst module where it says so."
    return (Heading("By module type"), Table(columns, tuple(rows), "Module types", caption))


def _series(found: dict, hostile: str) -> tuple[list[Series], list[Series]]:
    """The spectra, module by module with their medians and baselines; and the energy they keep."""
    x = tuple(float(i) for i in range(1, RANK + 1))
    each, energy = [], []
    for kind in SHAPES:
        stack = np.array([found[kind, d] for d in range(DEPTHS)])
        for d in range(DEPTHS):
            each.append(Series(name_of(kind, d) + hostile, x, tuple(stack[d].tolist()), kind + hostile, "thin"))
        each.append(Series("median over depth", x, tuple(np.median(stack, 0).tolist()), kind + hostile))
        null = np.linspace(0.9, 0.62, RANK) * stack.mean()
        each.append(Series("random baseline", x, tuple(null.tolist()), kind + hostile, "reference"))
        kept = np.cumsum(stack**2, 1) / np.sum(stack**2, 1, keepdims=True)
        energy.append(Series(kind, x, tuple(np.median(kept, 0).tolist()), "median module"))
        energy.append(Series(kind, x, tuple(kept.min(0).tolist()), "worst module"))
    return each, energy


def _figures(found: dict, measured: dict, hostile: str) -> tuple:
    each, energy = _series(found, hostile)
    layers = []
    for column in MEASURES:
        grid = [[measured[k, d][column.key] for d in range(DEPTHS)] for k in SHAPES]
        grid[4][5] = grid[6][31] = None
        unit = column.unit if column.unit in ("int", "percent") else "float"
        log = column.key in ("frobenius", "spectral", "nuclear")
        layers.append(Measure(column.key, column.title, tuple(map(tuple, grid)), unit, log=log))
    return (
        Heading("Spectra"),
        Text("Each thin line is one module; the coloured line is the median over depth."),
        Lines(
            "Singular values by module type",
            tuple(each),
            "index i",
            "singular value σᵢ",
            log_y=True,
            shade="depth, first to last",
            caption="The dashed line is what a product BA without structure, of the same shape and norm, would have.",
        ),
        Heading("Depth and module type"),
        Heatmap(
            "Update by layer and module type",
            tuple(SHAPES),
            tuple(str(d) for d in range(DEPTHS)),
            tuple(layers),
            row_label="module type",
            column_label="depth",
            caption="Empty cells are modules the adapter does not have.",
        ),
        Heading("Energy against rank"),
        Lines(
            "Share of the energy kept by the best approximation of rank k",
            tuple(energy),
            "rank k",
            "energy kept",
            markers=(Marker("y", 0.95, "95 %"), Marker("x", 11, "r = 11")),
            caption="Dotted vertical line: the smallest rank at which every module retains 95 % of its energy.",
        ),
    )


def _all_modules(measured: dict, hostile: str) -> Table:
    columns = (
        Column("name", "Module", "code"),
        Column("depth", "Depth", "int"),
        Column("shape", "Shape"),
        Column("rank", "r", "int"),
        Column("scale", "Scale", "float"),
        *MEASURES,
    )
    rows = []
    for (kind, depth), m in measured.items():
        shape = f"{SHAPES[kind][0]} × {SHAPES[kind][1]}"
        tail = tuple(m[c.key] for c in MEASURES)
        rows.append((name_of(kind, depth) + hostile, depth, shape, RANK, 2.0, *tail))
    rows[17] = (*rows[17][:5], *(None,) * len(MEASURES))
    return Table(columns, tuple(rows), "All modules", interactive=True, where="page")


def _closing(hostile: str) -> tuple:
    missing = (
        (
            "base_model.model.lm_head.weight" + hostile,
            "saved in full (modules_to_save); not an update without the base",
        ),
        ("model.layers.3.self_attn.q_proj.lora_magnitude_vector", "DoRA's magnitude needs the base: pass --base"),
    )
    return (
        Heading("What was not analysed"),
        Table((Column("key", "Key", "code"), Column("why", "Reason")), missing, "Not analysed", where="page"),
        Definitions(
            (
                Definition("Stable rank", "‖ΔW‖_F² / ‖ΔW‖₂²", "Rudelson and Vershynin 2007, §1"),
                Definition("Effective rank (σ)", "exp H(p), pᵢ = σᵢ / Σⱼ σⱼ", "Roy and Vetterli 2007, eq. 3"),
                Definition("Effective rank (σ²)", "exp H(p), pᵢ = σᵢ² / Σⱼ σⱼ²", "as above, on energies"),
                Definition("Participation ratio", "(Σᵢ σᵢ²)² / Σᵢ σᵢ⁴", "Gao and Ganguli 2015"),
                Definition("Rank at 95 %", "min k: Σ_{i≤k} σᵢ² ≥ 0.95 Σᵢ σᵢ²", "Eckart and Young 1936"),
            ),
            where="page",
        ),
        Code('import json\nmodules = json.load(open("out.json"))["modules"]\n', "Read it in Python", where="page"),
    )


if __name__ == "__main__":
    from lorascope.report import html

    html.write(page(), sys.argv[1])
