"""LoRA-drop: the sample, the scores, the choice, and what is shared."""

import pytest
import torch
from peft import PeftModel
from torch import nn

from lorascope.adapt.calibration import Calibration
from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.targets import find_sites
from lorascope.errors import InputError, LorascopeError
from lorascope.methods.lora_drop import LoRADrop, LoRADropConfig, fewest, importances, output_sizes, stratified
from lorascope.weights import io
from tests.methods import models

TARGETS = ["query", "value", "dense"]
KEPT = ["bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense"]


def injected(make=models.bert, targets=TARGETS, **options) -> Injected:
    return inject(make(), LoRADrop(LoRADropConfig(rank=4, **options)), targets=targets)


def chosen(**options) -> Injected:
    found = injected(**options)
    found.method.apply_calibration({"kept": KEPT})
    return found


def moved(found: Injected) -> Injected:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in found.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return found


def calibration(look) -> Calibration:
    """Of three texts, without training."""
    return Calibration(3, None, 0, lambda *_: None, look or (lambda _: None), lambda tensor: tensor)


def test_a_sample_has_every_class_in_proportion():
    labels = [0] * 500 + [1] * 300 + [2] * 150 + [7] * 50
    sample = stratified(1000, labels, 0.1, seed=0)
    assert len(set(sample)) == len(sample) == 100
    assert [sum(labels[i] == c for i in sample) for c in (0, 1, 2, 7)] == [50, 30, 15, 5]
    assert sample == stratified(1000, labels, 0.1, seed=0) != stratified(1000, labels, 0.1, seed=1)
    odd = stratified(10, [0, 0, 0, 1, 1, 1, 2, 2, 2, 2], 0.5, seed=0)
    assert len(odd) == 5
    assert {min(i // 3, 2) for i in odd} == {0, 1, 2}
    assert len(stratified(1000, None, 0.1, seed=0)) == 100
    assert len(stratified(3, None, 0.01, seed=0)) == 1


def test_the_fewest_layers_that_make_the_threshold():
    scores = {"a": 0.1, "b": 0.5, "c": 0.3, "d": 0.1}
    assert fewest(scores, 0.5) == ["b"]
    assert fewest(scores, 0.51) == ["b", "c"]
    assert fewest(scores, 0.9) == ["a", "b", "c"]  # of equals, the first
    assert fewest(scores, 1.0) == ["a", "b", "c", "d"]
    tenths = {str(i): 0.1 for i in range(10)}  # 0.1 has no exact float: nine of them may sum to just under 0.9
    assert len(fewest(tenths, 0.9)) == 9
    assert importances({"a": 1.0, "b": 3.0}) == {"a": 0.25, "b": 0.75}
    for nothing in (0.0, float("nan"), float("inf")):
        with pytest.raises(LorascopeError, match="no updates that could be compared"):
            importances({"a": nothing, "b": 0.0})


def test_scores_are_their_formula():
    """g_i against ΔW_i multiplied out, on the inputs that the layers see; without gradients, hooks gone afterwards."""
    found = moved(injected())
    model = found.model.eval()
    texts = [models.tokens(1, 5 + i) for i in range(3)]
    inputs: dict[str, list] = {name: [] for name in found.layers}
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, name=name: inputs[name].append(x[0].detach()))
        for name, layer in found.layers.items()
    ]

    @torch.no_grad()
    def look(indices):
        for i in indices:
            model(input_ids=texts[i])

    sizes = output_sizes(found, [0, 2], calibration(look))
    for hook in hooks:
        hook.remove()
    for name, layer in found.layers.items():
        wanted = sum((x.double() @ layer.delta.weight().double().t()).square().sum() for x in inputs[name])
        assert sizes[name] == pytest.approx(float(wanted), rel=1e-5)  # float32 products
        assert not layer._forward_pre_hooks


@pytest.mark.parametrize("rest", ["share", "drop"])
def test_parameters_are_those_of_the_formula(rest):
    """Layers kept have their own; the others one pair for each shape, which is counted once, or none."""
    found = chosen(rest=rest)
    sites = find_sites(models.bert(), TARGETS)
    own = 4 * (32 + 32) + 4 * (48 + 32)
    shared = 4 * (32 + 32) + 4 * (32 + 48) + 4 * (48 + 32)  # 32 → 32, 32 → 48, 48 → 32
    assert found.parameter_count() == own + (shared if rest == "share" else 0)
    assert found.method.total_parameter_count(models.bert(), sites) == found.parameter_count()
    assert injected(rest=rest).parameter_count() == sum(4 * (s.d_in + s.d_out) for s in sites)
    explicit = LoRADrop(LoRADropConfig(rank=4, rest=rest, keep=tuple(KEPT)))
    assert explicit.total_parameter_count(models.bert(), sites) == found.parameter_count()
    (group,) = found.method.parameter_groups(found, 1e-3, 0.0)
    assert len({id(p) for p in group["params"]}) == len(group["params"])


def test_gradients_of_what_is_shared_add_up():
    """Against a LoRA in every layer with equal A and B: the sum of the members' gradients."""
    shared, separate = moved(chosen()), injected()
    state = shared.state_dict()
    separate.load_state_dict(state)
    ids = models.tokens()
    for each in (shared, separate):
        each.model(input_ids=ids).logits.square().sum().backward()
    groups: dict[int, list[str]] = {}
    for name, layer in shared.layers.items():
        groups.setdefault(id(layer.delta.A), []).append(name)
    assert sorted(map(len, groups.values())) == [1, 1, 1, 2, 6]
    for names in groups.values():
        for role in "AB":
            wanted = sum(getattr(separate.layers[name].delta, role).grad for name in names)
            found = getattr(shared.layers[names[0]].delta, role).grad
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)  # float32 sums in another order


@pytest.mark.parametrize("rest", ["share", "drop"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_its_file_is_a_plain_lora_for_peft(rest, tmp_path):
    found = moved(chosen(rest=rest))
    found.method.scores = dict.fromkeys(injected().layers, 1 / 11)
    ids = models.tokens()
    wanted = found.model.eval()(input_ids=ids).logits
    io.write(found.export(), tmp_path)
    loaded = PeftModel.from_pretrained(models.bert(), tmp_path).eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, wanted, rtol=1e-5, atol=1e-6)  # float32
    read = io.read(tmp_path)
    assert read.settings["lora_drop"] == {
        "threshold": 0.9, "rest": rest, "kept": KEPT, "scores": found.method.scores,
    }  # fmt: skip
    assert not any("does not know" in note for note in read.notes)
    again = chosen(rest=rest)
    again.load(read)  # with sharing, every layer gets its own: a file could hold different ones
    torch.testing.assert_close(again.model.eval()(input_ids=ids).logits, wanted, rtol=1e-5, atol=1e-6)
    assert len(again.trainable()) == 2 * len(found.layers)


def test_dropped_layers_are_the_bases_own():
    found, base = chosen(rest="drop"), models.bert()
    assert list(found.layers) == KEPT
    assert type(found.model.bert.encoder.layer[1].attention.self.query) is nn.Linear
    assert [n for n, _ in found.remove().named_parameters()] == [n for n, _ in base.named_parameters()]


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"the layers to keep are not the adapted ones; found .bert\.pooler\.none."):
        injected().method.apply_calibration({"kept": ["bert.pooler.none"]})
    with pytest.raises(InputError, match="cannot share a LoRA that starts from their weights"):
        LoRADropConfig(init="pissa")
    with pytest.raises(InputError, match="threshold is not a valid share"):
        LoRADropConfig(threshold=1.5)
    with pytest.raises(InputError, match="keep: no adapted layer is named 'quary'"):
        injected(keep=("quary",)).method.calibrate(calibration(None))
