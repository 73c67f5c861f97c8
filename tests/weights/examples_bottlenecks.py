"""Bottlenecks of AdapterHub and NeMo: nothing in them is an update of a weight."""

import numpy as np

from tests.weights.example import Example, normal


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    place, nemo = "bert.encoder.layer.0.output.adapters.sst", "model.layers.0.adapter_layer.adapter_1"
    hub = {
        f"{place}.adapter_down.0.weight": normal(rng, 4, 16),
        f"{place}.adapter_down.0.bias": normal(rng, 4),
        f"{place}.adapter_up.weight": normal(rng, 16, 4),
        "bert.invertible_adapters.sst.F.0.weight": normal(rng, 4, 8),
        "bert.prefix_tuning.prefix_tunings.sst.wte.weight": normal(rng, 3, 4),
    }
    of_nemo = {f"{nemo}.linear_in.weight": normal(rng, 4, 8), f"{nemo}.linear_out.weight": normal(rng, 8, 4)}
    return [Example("adapterhub_bottleneck", hub, {}), Example("nemo_bottleneck", of_nemo, {})]
