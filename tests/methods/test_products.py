"""Products against float64, in every layout a caller may hand over."""

import pytest
import torch
from torch import Tensor

from lorascope.adapt import products

LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.t().contiguous().t(),
    "sliced": lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
    "every second row": lambda x: torch.stack([x, x], dim=1).flatten(0, 1)[::2],
    "expanded": lambda x: x[:1].expand_as(x),
    "a parameter": torch.nn.Parameter,
}


def made(rows: int, columns: int, layout: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return LAYOUTS[layout](torch.randn(rows, columns, generator=generator))


@pytest.mark.parametrize("of_x", LAYOUTS)
@pytest.mark.parametrize("of_y", LAYOUTS)
@pytest.mark.parametrize("sizes", [(1, 16, 7), (64, 33, 40)])
@torch.no_grad()
def test_float32_products_are_float32s(of_x, of_y, sizes):
    n, k, m = sizes
    x, y = made(n, k, of_x, 0), made(k, m, of_y, 1)
    # relative to |x| |y|, so that cancellation does not count: the bound on a sum of k rounded products
    error = (products.matmul(x, y).double() - x.double() @ y.double()).abs() / (x.double().abs() @ y.double().abs())
    assert float(error.max()) < k * 2**-24


def test_other_types_and_empty_batches_take_torchs_way():
    x, y = torch.ones(0, 3), torch.ones(3, 2)
    assert products.matmul(x, y).shape == (0, 2)
    assert products.matmul(x.new_ones(4, 3).double(), y.double()).equal(torch.full((4, 2), 3.0, dtype=torch.float64))
    assert products.matmul(torch.ones(2, 3, device="meta"), y.to("meta")).shape == (2, 2)


def test_the_same_product_twice_has_the_same_bits():
    x, y = made(300, 65, "contiguous", 0), made(65, 70, "contiguous", 1)
    assert products.matmul(x, y).equal(products.matmul(x, y))
