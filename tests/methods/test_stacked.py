"""Stacked layers against each member's own, and what must not pass between members."""

import copy

import pytest
import torch
from torch import nn

from lorascope.adapt.inject import inject
from lorascope.adapt.method import methods
from lorascope.adapt.stacked import Layout, Stream, gather, joinable, skeleton, stack, stacked_low_rank
from lorascope.errors import InputError
from tests.methods import models

N, M, D_IN, D_OUT = 3, 5, 7, 6
RANKS, SCALES = (1, 4, 2), (0.5, 2.0, 1.25)


def problem(dtype=torch.float64, ranks=RANKS):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    a = [nn.Parameter(draw(r, D_IN)) for r in ranks]
    b = [nn.Parameter(draw(D_OUT, r)) for r in ranks]
    return draw(N, M, D_IN).requires_grad_(True), a, b, draw(D_OUT, D_IN), draw(D_OUT)


def plain(x, a, b, weight, bias):
    updates = [s * (x[i] @ a[i].t()) @ b[i].t() for i, s in enumerate(SCALES)]
    return x @ weight.t() + bias + torch.stack(updates)


@pytest.mark.parametrize("ranks", [RANKS, (2, 2, 2)], ids=["unequal ranks", "equal ranks"])
def test_the_node_is_its_formula_forward_and_backward(ranks):
    x, a, b, weight, bias = problem(ranks=ranks)
    if len(set(ranks)) == 1:
        gather(a), gather(b)
    y, wanted = stacked_low_rank(x, a, b, SCALES, weight, bias), plain(x, a, b, weight, bias)
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)  # float64 rounding
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *a, *b], grad)
    for mine, theirs in zip(found, torch.autograd.grad(wanted, [x, *a, *b], grad), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_frozen_factors_get_no_gradient():
    x, a, b, weight, bias = problem()
    for parameter in (*a, b[1]):
        parameter.requires_grad_(False)
    stacked_low_rank(x, a, b, SCALES, weight, bias).sum().backward()
    assert all(parameter.grad is None for parameter in (*a, b[1]))
    expected = problem()
    plain(*expected).sum().backward()
    for i in (0, 2):
        torch.testing.assert_close(b[i].grad, expected[2][i].grad, rtol=1e-12, atol=1e-12)


def test_bfloat16_in_and_out_with_float32_masters():
    x, a, b, weight, bias = problem(torch.float32)
    narrow = x.detach().bfloat16().requires_grad_(True)
    y = stacked_low_rank(narrow, a, b, SCALES, weight.bfloat16(), bias.bfloat16())
    y.float().sum().backward()
    assert y.dtype == narrow.grad.dtype == torch.bfloat16
    assert {p.grad.dtype for p in (*a, *b)} == {torch.float32}
    wanted = plain(x, a, b, weight, bias)
    assert (y - wanted).norm() / wanted.norm() < 1e-2  # bfloat16 has 8 bits


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_member_that_is_no_number_stays_alone(poison):
    """In its activations, in its factors, and in what comes back to it: the others' bits do not change."""
    clean, dirty = problem(), problem()
    with torch.no_grad():
        dirty[0][1], dirty[1][1][0], dirty[2][1][0] = poison, poison, poison
    results = []
    for x, a, b, weight, bias in (clean, dirty):
        y = stacked_low_rank(x, a, b, SCALES, weight, bias)
        y.square().sum().backward()
        results.append([(y[i].detach(), x.grad[i], a[i].grad, b[i].grad) for i in (0, 2)])
    for mine, theirs in zip(*results, strict=True):
        assert all(torch.equal(one, other) and one.isfinite().all() for one, other in zip(mine, theirs, strict=True))


def test_gathered_parameters_keep_their_values_and_lie_together():
    parameters = [nn.Parameter(torch.randn(2, 3)) for _ in range(4)]
    before = [p.detach().clone() for p in parameters]
    gather(parameters)
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    assert len({p.untyped_storage().data_ptr() for p in parameters}) == 1
    with torch.no_grad():
        parameters[1].zero_()
    assert torch.equal(parameters[2], before[2])


def test_a_stream_draws_as_one_run_would_however_often_it_is_left():
    streams = [Stream(torch.device("cpu")) for _ in range(2)]
    for seed, stream in enumerate(streams):
        stream.restart(seed)
    drawn = [[], []]
    for _ in range(3):
        for stream, numbers in zip(streams, drawn, strict=True):
            with stream:
                numbers.append(torch.rand(2))
    for seed, numbers in enumerate(drawn):
        torch.manual_seed(seed)
        assert torch.equal(torch.stack(numbers), torch.stack([torch.rand(2) for _ in range(3)]))


def layout(size=2, lengths=(4, 3, 1)):
    made = Layout([Stream(torch.device("cpu")) for _ in lengths])
    made.set(size, lengths)
    return made


@pytest.mark.parametrize("flat", [False, True], ids=["rows are sequences", "rows are tokens"])
def test_rows_are_cut_to_the_members_own_length_and_filled_again(flat):
    x = torch.randn(6, 4, 5)
    joint = x.flatten(0, 1) if flat else x
    rows = layout()
    assert rows.flat(joint) is flat
    for i, own in enumerate(rows.rows(joint)):
        cut = rows.cut(own, i, flat)
        mine = x[2 * i : 2 * i + 2, : rows.lengths[i]]
        assert torch.equal(cut, mine.flatten(0, 1) if flat else mine)
        back = rows.fill(cut, own, i, flat).reshape(2, 4, 5)
        assert torch.equal(back[:, : rows.lengths[i]], mine)
        assert not back[:, rows.lengths[i] :].any()


def test_pooled_states_and_ids_are_told_apart():
    rows = layout()
    pooled, ids = torch.randn(2, 4), torch.ones(2, 4, dtype=torch.long)  # as wide as the longest sequence is long
    assert rows.cut(pooled, 2, False) is pooled
    assert rows.cut(ids, 2, False).shape == (2, 1)


def test_a_model_that_mixes_sequences_is_refused():
    with pytest.raises(InputError, match=r"mixes the sequences .* found an input of shape \(5, 4\)"):
        layout().rows(torch.zeros(5, 4))


def injected(base, name="lora", targets=("q_proj", "v_proj"), seed=0, **settings):
    method = methods.get(name)
    made = inject(skeleton(base), method(method.Config(**settings)), targets=list(targets), seed=seed)
    for parameter in made.trainable().values():  # away from the start, where every update is zero
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(seed))
    return made


def test_a_joint_model_gives_each_member_its_own_logits():
    base = models.llama().double()
    members = [
        injected(base, rank=2),
        injected(base, rank=3, seed=1, targets=("q_proj", "down_proj", "embed_tokens")),
        injected(base, "dora", rank=2, seed=2),
        injected(base, "vera", rank=4, seed=3),
    ]
    assert all(joinable(members[0], other) for other in members[1:])
    rows = layout(2, (12,) * 4)
    joint = stack(members, rows).eval()
    ids = models.tokens(8)
    with torch.no_grad():
        for own, mine, theirs in zip(members, joint(input_ids=ids).logits.chunk(4), ids.chunk(4), strict=True):
            alone = own.model.eval()(input_ids=theirs).logits
            torch.testing.assert_close(mine, alone, rtol=1e-10, atol=1e-10)  # float64, through two layers
    frozen = {p.data_ptr() for p in joint.parameters() if not p.requires_grad}
    assert {p.data_ptr() for p in base.parameters()} <= frozen  # no second base
    trained = {id(p) for p in joint.parameters() if p.requires_grad}
    assert trained == {id(p) for own in members for p in own.trainable().values()}


def test_a_skeleton_shares_tensors_and_no_modules():
    base = models.gpt2()
    other = skeleton(base)
    assert [id(p) for p in base.parameters()] == [id(p) for p in other.parameters()]
    assert not {id(m) for m in base.modules()} & {id(m) for m in other.modules()}
    assert other.lm_head.weight is other.transformer.wte.weight


def test_models_of_another_base_are_not_joined():
    base = models.llama()
    assert joinable(injected(base, rank=2), injected(base, rank=2))
    hooked = injected(base, rank=2)
    hooked.model.model.norm.register_forward_hook(lambda *_: None)
    assert not joinable(injected(base, rank=2), hooked)
    frozen = injected(base, rank=2)
    frozen.model.model.norm = copy.deepcopy(frozen.model.model.norm)  # a leaf of its own is run for itself
    assert joinable(injected(base, rank=2), frozen)
