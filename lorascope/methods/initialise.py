"""Where a LoRA's A (r, d_in) and B (d_out, r) start: small objects by name, `init` in the config.

    name            A                             B
    kaiming         U(−1/√d_in, 1/√d_in)          0         the codes' own (loralib, PEFT), kaiming_uniform(a=√5)
    gaussian        N(0, 1/r²)                    0         PEFT's; the LoRA paper says Gaussian and gives no width
    a-zero          0                             U(−1/√r, 1/√r)   Hayou et al. 2024, arXiv 2406.08447, "Init[B]"
    zero-both       0                             0         never learns: each gradient is the other factor's multiple
    a-orthonormal   Qᵀ, A·Aᵀ = 1                  0         Zhu et al. 2024, arXiv 2402.16842, of a frozen A
    b-orthonormal   0                             Q, BᵀB = 1    the same of a frozen B
    orthogonal      Q₁ᵀG₁/10                      G₂Q₂/10   PEFT's: rows Q₁, Q₂ of one orthogonal matrix, so B·A = 0
    pissa           √(S_r/s)·V_rᵀ                 U_r·√(S_r/s)     Meng et al. 2024, arXiv 2404.02948, W = U S Vᵀ
    pissa_niter_k   the same by a randomised SVD with k power iterations (Halko et al. 2011, arXiv 0909.4061)
    olora           R_r                           Q_r       Büyükakyüz 2024, arXiv 2406.01775, W = Q R

Of an embedding, kaiming and gaussian are the other way round, as in both codes: A, which tokens select from, is zero,
and B ~ N(0, 1).

**Starts taken from W.** PiSSA and OLoRA start with B₀·A₀ ≠ 0 and let the base give it up: W ← W − s·B₀A₀, stored in the
base's dtype. Here the base is never touched. The start is kept next to A and B, and the update is

    ΔW = s·(B·A − B₀·A₀) = s·[B, B − B₀]·[A − A₀; A₀]              rank 2r

which is the same map with A and B trained by the same gradients. It is measured, merged and exported against the
original W; the exported file is a plain LoRA of rank 2r that loads on the clean base anywhere. Written with the
differences (PEFT's converter writes [B, −B₀]·[A; A₀]) a fresh update is exactly zero in every dtype and a small one
loses nothing to cancellation, neither in bfloat16 products nor in the file. The price is the products of a rank-2r LoRA
in each step (PEFT's r-rank ones save 6 r (d_in + d_out) operations a token) and A₀, B₀ in memory; replacing the base's
weight instead would cost a second copy of it, since `remove` and `unmerge` must give back W bit for bit.
"""

import re
from abc import ABC, abstractmethod
from difflib import get_close_matches
from typing import ClassVar

import torch
from torch import Tensor

from lorascope.adapt.dequantise import dense_weight
from lorascope.adapt.layer import Site
from lorascope.errors import InputError


class Initialisation(ABC):
    """One way to start. Stateless.

    Attributes:
        from_base: B·A ≠ 0 at the start, and the base gives it up: ΔW = s·(B·A − B₀·A₀).
    """

    from_base: ClassVar[bool] = False

    @abstractmethod
    def factors(self, site: Site, rank: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A (rank, d_in) and B (d_out, rank), in float32 or wider. `generator`, a CPU one, is all the chance there is.

        Raises:
            InputError: there is no such start of this rank, scale or layer.
        """


class Kaiming(Initialisation):
    def factors(self, site: Site, rank: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        a, b = _zeros(site, rank)
        if site.kind == "embedding":
            return a, b.normal_(generator=generator)
        bound = site.d_in**-0.5  # what kaiming_uniform(a=√5) comes to
        return a.uniform_(-bound, bound, generator=generator), b


class Gaussian(Initialisation):
    def factors(self, site: Site, rank: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        a, b = _zeros(site, rank)
        if site.kind == "embedding":
            return a, b.normal_(generator=generator)
        return a.normal_(std=1 / rank, generator=generator), b


class AZero(Initialisation):
    def factors(self, site: Site, rank: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        a, b = _zeros(site, rank)
        return a, b.uniform_(-(rank**-0.5), rank**-0.5, generator=generator)


class ZeroBoth(Initialisation):
    def factors(self, site: Site, rank: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return _zeros(site, rank)


class Orthonormal(Initialisation):
    """One factor with r random orthonormal rows (A) or columns (B), the other zero, which then may train alone."""

    def __init__(self, factor: str):
        self.factor = factor

    def factors(self, site: Site, rank: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        a, b = _zeros(site, rank)
        side = site.d_in if self.factor == "A" else site.d_out
        if rank > side:
            raise InputError(f"{side} dimensions have no {rank} orthonormal vectors", found=f"rank {rank}, {site.name}")
        q, r = torch.linalg.qr(torch.randn(side, rank, generator=generator))
        q = q * r.diagonal().sign()  # without it QR's own choice of signs would show
        return (q.t().contiguous(), b) if self.factor == "A" else (a, q)


class Orthogonal(Initialisation):
    """The rows of an orthogonal (r, r) matrix are dealt out to A and B in turn, so that B·A = 0 with neither zero."""

    def factors(self, site: Site, rank: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if rank % 2:
            raise InputError("the orthogonal start needs an even rank", found=rank, hint=f"take rank {rank + 1}")
        q = torch.linalg.qr(torch.randn(rank, rank, generator=generator))[0]
        left = torch.randn(site.d_in, rank // 2, generator=generator)
        right = torch.randn(site.d_out, rank // 2, generator=generator)
        return (left @ q[0::2]).t().contiguous() / 10, right @ q[1::2] / 10


class PiSSA(Initialisation):
    """The r largest singular triplets of W, shared evenly by A and B."""

    from_base = True

    def __init__(self, iterations: int | None = None):
        self.iterations = iterations

    def factors(self, site: Site, rank: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        weight = _weight(site, rank, "pissa")
        if not scale > 0:
            raise InputError("pissa needs a positive scale", found=f"α/r = {scale}")
        if self.iterations is None:
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        else:
            u, s, vh = _randomised_svd(weight, rank, self.iterations, generator)
        root = (s[:rank] / scale).sqrt()
        return root[:, None] * vh[:rank], u[:, :rank] * root


class OLoRA(Initialisation):
    """The first r columns of Q and rows of R, W = Q R, unscaled: W gives up s·Q_r·R_r, as in PEFT and in the paper.

    PEFT decomposes the stored weight, which for a Conv1D is the transpose of the map; here it is always the map.
    """

    from_base = True

    def factors(self, site: Site, rank: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        q, r = torch.linalg.qr(_weight(site, rank, "olora"))
        return r[:rank].clone(), q[:, :rank].clone()


INITIALISATIONS: dict[str, Initialisation] = {
    "kaiming": Kaiming(),
    "gaussian": Gaussian(),
    "a-zero": AZero(),
    "zero-both": ZeroBoth(),
    "a-orthonormal": Orthonormal("A"),
    "b-orthonormal": Orthonormal("B"),
    "orthogonal": Orthogonal(),
    "pissa": PiSSA(),
    "olora": OLoRA(),
}


def initialisation(name: str) -> Initialisation:
    """The start of that name: one of INITIALISATIONS, or `pissa_niter_k`. InputError with near names for any other."""
    if name in INITIALISATIONS:
        return INITIALISATIONS[name]
    if match := re.fullmatch(r"pissa_niter_(\d+)", name):
        return PiSSA(int(match[1]))
    near = get_close_matches(name, [*INITIALISATIONS, "pissa_niter_16"], n=1)
    raise InputError(
        "init is unknown",
        found=repr(name),
        expected=", ".join([*INITIALISATIONS, "pissa_niter_k"]),
        hint=f"did you mean {near[0]!r}?" if near else None,
    )


def _zeros(site: Site, rank: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(rank, site.d_in), torch.zeros(site.d_out, rank)


def _weight(site: Site, rank: int, name: str) -> Tensor:
    """W (d_out, d_in) in float32 or wider. InputError where it has no r directions to give."""
    weight = dense_weight(site.layer)
    if rank > min(site.d_in, site.d_out):
        raise InputError(
            f"{name} cannot take {rank} directions from {site.name}",
            found=f"a weight of {site.d_out} × {site.d_in}",
            expected=f"rank ≤ {min(site.d_in, site.d_out)}",
        )
    weight = weight.flatten(1) if site.kind == "conv" else weight
    return (weight.t() if site.transposed else weight).to(site.master_dtype)


def _randomised_svd(
    weight: Tensor, rank: int, iterations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """U (d_out, r), S (r,), Vh (r, d_in): Halko et al.'s algorithm 5.1 on the range of (W Wᵀ)ᵏ W G.

    As in PEFT's call of torch.svd_lowrank, G has r columns and no more; each product is orthogonalised again.
    """
    start = torch.randn(weight.shape[1], rank, generator=generator, dtype=weight.dtype).to(weight.device)
    q = torch.linalg.qr(weight @ start)[0]
    for _ in range(iterations):
        q = torch.linalg.qr(weight @ torch.linalg.qr(weight.t() @ q)[0])[0]
    u, s, vh = torch.linalg.svd(q.t() @ weight, full_matrices=False)
    return q @ u, s, vh
