"""Many weights swapped in one launch: what moves or is lost in between, what is refused, and twins."""

from itertools import combinations

import pytest
import torch

from neuroada.errors import ConfigError, WeightError
from neuroada.ops.sparse_delta import FrozenWeight, Support

from ...cases import PRIMES, Case, build, same_bits
from .kernels import DEVICE, here, storage_bytes, triton_plan
from .swap_plan_cases import LARGE, SOME, SwapPlan, all_equal, bytes_of, plan_of, problems_of, require_exact


def replaced(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.preserve_format)


MOVES = {
    "weight": (replaced, None),
    "weight-cast": (torch.Tensor.double, None),
    "deltas": (None, replaced),
    "deltas-cast": (None, torch.Tensor.bfloat16),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("written", [False, True])
def test_weights_and_deltas_that_moved_are_not_written(move, written):
    problems = problems_of(LARGE, PRIMES)
    plan, originals = plan_of(problems), bytes_of(problems)
    if written:
        plan.write()
    for tensor, change in zip((problems[1].weight, problems[1].deltas), MOVES[move], strict=True):
        if change:
            tensor.data = change(tensor.data)
    before = bytes_of(problems)
    with pytest.raises(WeightError) as caught:
        plan.write()
    weights, deltas = (0 if change is None else 1 for change in MOVES[move])
    assert str(caught.value) == (
        f"Writing deltas into many weights at once: {weights} weights and the deltas of {deltas} were moved or cast "
        "since the plan was made. Restore this plan and make a new one."
    )
    assert all_equal(bytes_of(problems), before)
    plan.restore()
    assert torch.equal(storage_bytes(problems[0].weight), originals[0])


@pytest.mark.parametrize("cast", [None, torch.float64], ids=str)
def test_a_weight_that_moved_gets_its_originals_back(cast):
    problems = problems_of(LARGE, PRIMES, SOME[-1])
    before, plan = [problem.dense.clone() for problem in problems], plan_of(problems)
    plan.write()
    problems[1].weight.data = replaced(problems[1].weight).to(cast or torch.bfloat16)
    plan.restore()
    for problem, original in zip(problems, before, strict=True):
        assert same_bits(problem.dense, original.to(problem.dense.dtype))


LOSSES = {
    "written": lambda weight: weight.fill_(3.0),
    "turned": lambda weight: setattr(weight, "data", weight.data.T),
    "freed": lambda weight: weight.untyped_storage().resize_(0),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_weight_that_its_originals_no_longer_belong_to_is_left_alone(loss):
    problems = problems_of(LARGE, PRIMES, SOME[-1])
    before, plan = bytes_of(problems), plan_of(problems)
    plan.write()
    LOSSES[loss](problems[1].weight)
    left = storage_bytes(problems[1].weight)
    with pytest.raises(WeightError) as caught:
        plan.restore()
    assert str(caught.value) == (
        "Taking supports out of weights: 1 of 3 weights were written to, reshaped or freed while supports "
        "were in them. Load the base weights again while no supports are in."
    )
    plan.restore()
    assert all_equal(bytes_of(problems), [before[0], left, before[2]])


def write_and_restore(plan: triton_plan.SwapPlan) -> None:
    plan.write()
    plan.restore()


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("done", [False, True])
def test_an_interrupt_loses_no_originals(at, done, monkeypatch):
    """Before or after any launch of a write and a restore, in two groups."""
    problems = [*problems_of(LARGE, PRIMES), *problems_of(PRIMES, dtype=torch.float32)]
    before, plan, launch, left = bytes_of(problems), plan_of(problems), triton_plan.launch, [at]

    def interrupted(*arguments, **constants):
        left[0] -= 1
        if left[0] >= 0 or done:
            launch(*arguments, **constants)
        if left[0] == -1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(triton_plan, "launch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_and_restore(plan)
    plan.restore()
    assert all_equal(bytes_of(problems), before)


def one(**changes) -> list[tuple[FrozenWeight, Support]]:
    problem = here(build(PRIMES, torch.float32)).with_(**changes)
    return [(problem.frozen, problem.support)]


REFUSED = {
    "made afresh": (lambda: [(FrozenWeight(lambda: torch.ones(13, 17)), one()[0][1])], "made afresh for each use"),
    "sharing": (lambda: one(weight=torch.ones(17, device=DEVICE).expand(13, 17)), "entries that share memory"),
    "twice": (lambda: (pair := one()) + pair, "two of them lie in one stretch of memory"),
    "tied": (lambda: one(weight=SHARED[:13]) + one(weight=SHARED[5:]), "two of them lie in one stretch of memory"),
    "index above": (lambda: one(indices=torch.full((13, 3), 17, device=DEVICE)), "reaches from 17 to 17 in a weight"),
    "index below": (lambda: one(indices=torch.full((13, 3), -1, device=DEVICE)), "reaches from -1 to -1 in a weight"),
    "neuron above": (lambda: one(neurons=torch.arange(1, 14, device=DEVICE)), "reaches from 1 to 13 in a weight"),
    "shapes": (lambda: one(deltas=torch.ones(13, 2, device=DEVICE)), "shape [13, 2] and strides [2, 1]"),
    "neurons": (lambda: one(neurons=torch.arange(4, device=DEVICE)), "for 4 neurons"),
    "strides": (lambda: one(deltas=torch.ones(3, 13, device=DEVICE).T), "strides [1, 13]"),
    "integers": (lambda: one(deltas=torch.ones(13, 3, device=DEVICE).int()), "deltas torch.int32"),
    "device": (lambda: one(deltas=torch.ones(13, 3, device="meta")), "its support is not"),
    "unreachable": (lambda: one(weight=torch.ones(13, 17, device="meta")), "Triton "),
}
SHARED = torch.ones(18, 17, device=DEVICE)


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_planned_is_refused(reason):
    make, found = REFUSED[reason]
    with pytest.raises((ConfigError, WeightError)) as caught:
        SwapPlan(make())
    assert found in caught.value.found


def test_weights_side_by_side_in_one_storage_are_apart():
    for first, second in combinations((SHARED[:6], SHARED[6:12], SHARED[12:]), 2):
        support = Support(torch.zeros(6, 1, device=DEVICE).int(), torch.ones(6, 1, device=DEVICE))
        assert len(SwapPlan([(FrozenWeight(first), support), (FrozenWeight(second), support)]).originals()) == 2


@pytest.mark.parametrize("task", ["read", "write", "restore"])
def test_twin_that_forgets_a_launch_fails(task, monkeypatch):
    launch = triton_plan.launch

    def forgetful(*arguments, **constants):
        if constants["task"] != task:
            launch(*arguments, **constants)

    monkeypatch.setattr(triton_plan, "launch", forgetful)
    with pytest.raises(AssertionError, match="restored" if task == "restore" else "written"):
        require_exact(problems_of(LARGE, PRIMES))


WRONG = {"indices": None, "deltas": None, "neurons": None, "column_stride": 0, "entries": 10, "count": 14, "first": 0}


@pytest.mark.parametrize("field", WRONG)
def test_twin_with_a_wrong_table_fails(field):
    """A field of the second weight is that of the first, or another number that leads to no place outside."""
    covered = Case("covered", 13, 17, 3, covered=5)
    problems = problems_of(covered, covered)
    plan, column = plan_of(problems), triton_plan.FIELDS.index(field)
    table = plan._groups[0].table
    table[1, column] = table[0, column] if WRONG[field] is None else WRONG[field]
    with pytest.raises(AssertionError, match=r"written|restored"):
        require_exact(problems, plan)
