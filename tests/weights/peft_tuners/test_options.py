"""Options of PEFT's tuners that change what a file holds: merging with lorascope gives what PEFT merges."""

import copy

import numpy as np
import peft
import pytest
from safetensors.numpy import load_file, save_file
from torch import nn

from lorascope.adapt.merge import merge
from lorascope.analyses import spectrum
from lorascope.analyses.spectrum.result import COMPARISON
from lorascope.errors import InputError
from lorascope.weights import io
from lorascope.weights.checkpoint import NO_BIAS
from tests.weights.peft_tuners.common import Case, conv2d, linear, saved, truth

LAYERS = ["q", "up", "down"]
BIAS_ALONE = {"config_A_B": "none", "config_C": "vector", "config_D_E": "vector"}
CASES = [
    Case("glora of the bias alone", lambda: peft.GloraConfig(r=3, target_modules=LAYERS, **BIAS_ALONE)),
    # PEFT 0.21.2 builds every layer with r, whatever the pattern says
    Case("hira with a pattern", lambda: peft.HiraConfig(r=3, rank_pattern={"q": 2}, target_modules=LAYERS)),
    Case("ia3 of convolutions", lambda: peft.IA3Config(target_modules=["q"], feedforward_modules=["q"]), conv2d),
    Case("matrices tuned whole", lambda: peft.LNTuningConfig(target_modules=LAYERS), linear),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_merging_gives_what_peft_merges(case, tmp_path):
    written = saved(case, tmp_path)
    expected, before = truth(written.base, written.adapter_folder), written.base.double().state_dict()
    adapter = io.read(written.adapter_folder, written.checkpoint)
    model = copy.deepcopy(written.base).double()
    merge(model, adapter)
    changes = {key: (value - before[key]).numpy() for key, value in model.state_dict().items()}
    assert {key for key, change in changes.items() if change.any()} == set(expected)
    for key, change in expected.items():
        np.testing.assert_allclose(changes[key], change, rtol=0, atol=1e-12)  # sums in float64
    assert spectrum.run(adapter, base=written.checkpoint).rows


def test_factors_of_a_convolution_s_channels_are_written_as_they_were(tmp_path):
    written = saved(CASES[2], tmp_path)
    io.write(io.read(written.adapter_folder, written.checkpoint), tmp_path / "again")
    tensors = (
        load_file(folder / "adapter_model.safetensors") for folder in (written.adapter_folder, tmp_path / "again")
    )
    for old, new in zip(*(sorted(one.items()) for one in tensors), strict=True):
        assert old[0] == new[0]
        np.testing.assert_array_equal(old[1], new[1])


@pytest.mark.parametrize("config", [peft.LoHaConfig(r=3), peft.LoKrConfig(r=3)], ids=["LoHa", "LoKr"])
def test_keys_without_their_prefix_are_peft_s_where_the_config_is(config, tmp_path):
    """LyCORIS has the same names for a module's tensors."""
    config.target_modules = LAYERS
    written = saved(Case("stripped", lambda: config), tmp_path)
    weights = written.adapter_folder / "adapter_model.safetensors"
    expected = io.read(written.adapter_folder)
    save_file({key.removeprefix("base_model.model."): value for key, value in load_file(weights).items()}, weights)
    found = io.read(written.adapter_folder)
    assert found.source.format == "peft"
    for name, update in expected.updates.items():
        np.testing.assert_array_equal(found.updates[name].delta().dense(), update.delta().dense())


COUNTED = [
    lambda: peft.ShiraConfig(r=2, target_modules=LAYERS),
    lambda: peft.SupertuningConfig(sparsity=0.9, target_modules=LAYERS),
    lambda: peft.FourierFTConfig(n_frequency=20, target_modules=LAYERS),
    lambda: peft.WaveFTConfig(n_frequency=20, target_modules=LAYERS),
]


@pytest.mark.parametrize("config", COUNTED, ids=["shira", "supertuning", "fourierft", "waveft"])
def test_the_parameters_are_those_that_were_trained(config, tmp_path):
    """Not the entries of the matrices over which they are spread."""
    written = saved(Case("counted", config), tmp_path)
    result = spectrum.run(io.read(written.adapter_folder, written.checkpoint), base=written.checkpoint)
    assert result.parameters == sum(p.numel() for p in written.model.parameters() if p.requires_grad)


def test_a_rotation_without_its_config_lacks_no_scale(tmp_path):
    written = saved(Case("bare", lambda: peft.OFTConfig(oft_block_size=4, target_modules=LAYERS)), tmp_path)
    (written.adapter_folder / "adapter_config.json").unlink()
    assert not any("scale unknown" in note for note in io.read(written.adapter_folder, written.checkpoint).notes)


def test_a_bias_that_the_base_s_layer_lacks_does_not_make_it_another_base(tmp_path):
    layers = lambda: nn.ModuleDict({"q": nn.Linear(12, 12, bias=False)})  # noqa: E731
    written = saved(Case("beft", lambda: peft.BeftConfig(target_modules=["q"]), layers), tmp_path)
    result = spectrum.run(io.read(written.adapter_folder), base=written.checkpoint)
    assert not result.nothing_compared
    assert {item.reason for item in result.skipped_in(COMPARISON)} == {NO_BIAS}
    with pytest.raises(InputError, match=r"adds biases to layers of the base that have none.*q\.bias"):
        merge(copy.deepcopy(written.base), io.read(written.adapter_folder))
