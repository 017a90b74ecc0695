"""Many weights swapped in one launch: the same bits as one by one, every byte back, and what may happen in between."""

from itertools import combinations

import numpy as np
import pytest
import torch

from neuroada.errors import ConfigError, WeightError
from neuroada.ops.sparse_delta import FrozenWeight, Support, combine
from neuroada.ops.sparse_delta.torch import shifted

from .cases import CASES, DTYPES, PRIMES, Case, Problem, build, same_bits
from .test_combine import supports_of
from .triton_kernels import DEVICE, here, storage_bytes, triton_plan

SwapPlan = triton_plan.SwapPlan
SOME = [case for case in CASES if case.name in ("primes", "one-neuron", "columns", "slice", "covered", "conv1d-slice")]
LARGE = Case("large", 67, 31, 9)


def problems_of(*cases: Case, dtype: torch.dtype = torch.bfloat16, **options) -> list[Problem]:
    return [here(build(case, dtype, seed, **options)) for seed, case in enumerate(cases)]


def plan_of(problems: list[Problem]) -> triton_plan.SwapPlan:
    return SwapPlan([(problem.frozen, problem.support) for problem in problems])


def bytes_of(problems: list[Problem]) -> list[torch.Tensor]:
    return [storage_bytes(problem.weight) for problem in problems]


def read(problem: Problem) -> torch.Tensor:
    rows = torch.arange(len(problem.dense), device=DEVICE) if problem.neurons is None else problem.neurons.long()
    return problem.dense[rows[:, None], problem.indices.long()]


def all_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def require_exact(problems: list[Problem], plan: triton_plan.SwapPlan | None = None) -> None:
    """Written: the specified bits at the supports, other bytes as before. Restored: every byte as before."""
    plan = plan or plan_of(problems)
    before, originals = bytes_of(problems), [read(problem) for problem in problems]
    plan.write()
    for problem, kept in zip(problems, originals, strict=True):
        assert same_bits(read(problem), shifted(kept, problem.deltas)), "written"
    plan.restore()
    assert all_equal(bytes_of(problems), before), "restored"


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """The task of each launch."""
    tasks, launch = [], triton_plan.launch

    def remember(*arguments, **constants):
        tasks.append(constants["task"])
        launch(*arguments, **constants)

    monkeypatch.setattr(triton_plan, "launch", remember)
    return tasks


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_of_all_shapes(dtype):
    require_exact(problems_of(*CASES, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("delta_dtype", [torch.bfloat16, torch.float64], ids=str)
def test_deltas_of_any_type(dtype, delta_dtype):
    require_exact(problems_of(PRIMES, SOME[-1], dtype=dtype, delta_dtype=delta_dtype))


def test_one_launch_for_all_weights_of_a_dtype(launched):
    problems = [*problems_of(*SOME), *problems_of(LARGE, PRIMES, dtype=torch.float32)]
    plan = plan_of(problems)
    require_exact(problems, plan)
    assert launched == ["read", "read", "write", "write", "restore", "restore"]
    plan.write()
    launched.clear()
    plan.refresh()
    assert launched == ["write", "write"]


def test_more_entries_than_one_program_takes():
    assert LARGE.outputs * LARGE.per_neuron > triton_plan.BLOCK
    require_exact(problems_of(LARGE, PRIMES, LARGE))


def test_no_weights_and_no_entries():
    require_exact([])
    problem = here(build(PRIMES, torch.float32))
    nothing = problem.with_(indices=problem.indices[:, :0], deltas=problem.deltas[:, :0].contiguous())
    require_exact([nothing])


def test_refreshing_writes_the_originals_plus_the_present_deltas():
    problems = problems_of(*SOME)
    before, originals = bytes_of(problems), [read(problem) for problem in problems]
    plan = plan_of(problems)
    plan.write()
    for step in range(3):
        for problem in problems:
            problem.deltas.mul_(-1.5).add_(0.01 * step)
        plan.write() if step == 1 else plan.refresh()
        for problem, kept in zip(problems, originals, strict=True):
            assert same_bits(read(problem), shifted(kept, problem.deltas))
    plan.restore()
    assert all_equal(bytes_of(problems), before)
    problems[0].deltas.fill_(1.0)
    require_exact(problems, plan)


def test_nothing_is_refreshed_or_restored_that_was_not_written(launched):
    problems = problems_of(*SOME)
    before, plan = bytes_of(problems), plan_of(problems)
    plan.refresh()
    plan.restore()
    plan.write()
    plan.restore()
    launched.clear()
    plan.restore()
    assert not launched
    assert all_equal(bytes_of(problems), before)


def test_combined_supports():
    support = combine(supports_of((torch.float32,) * 4), 17)
    support = Support(*(part.detach().to(DEVICE) for part in (support.indices, support.deltas, support.neurons)))
    problem = here(build(PRIMES, torch.bfloat16))
    combined = problem.with_(indices=support.indices, deltas=support.deltas, neurons=support.neurons)
    require_exact([combined, *problems_of(LARGE)])


@pytest.mark.parametrize("integer", [torch.uint8, torch.int16, torch.int64], ids=str)
def test_indices_of_any_integer_type(integer):
    problem = here(build(PRIMES, torch.float32))
    neurons = torch.arange(13, device=DEVICE)
    require_exact([problem.with_(indices=problem.indices.to(integer), neurons=neurons)])


def test_parameters_and_version_counters():
    weight, deltas = (torch.nn.Parameter(torch.randn(5, size, device=DEVICE)) for size in (7, 2))
    weight.requires_grad_(False)
    indices = torch.tensor([[1, 4]], device=DEVICE).expand(5, 2)
    plan, version = SwapPlan([(FrozenWeight(weight), Support(indices, deltas))]), weight._version
    before = weight.clone()
    plan.write()
    assert same_bits(weight[:, [1, 4]], shifted(before[:, [1, 4]], deltas))
    plan.restore()
    assert same_bits(weight, before)
    assert weight._version == version


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a file stands for memory that a GPU need not have")
def test_entries_more_than_two_to_the_31_apart(tmp_path):
    rows, columns = 3, 2**30
    sparse = np.memmap(tmp_path / "weight", dtype=np.int16, mode="w+", shape=(rows, columns))
    weight = torch.from_numpy(sparse).view(torch.bfloat16)
    indices, deltas = torch.tensor([[0, columns - 1]] * rows, dtype=torch.int32), torch.arange(1.0, 7).view(rows, 2)
    plan = SwapPlan([(FrozenWeight(weight), Support(indices, deltas))])
    plan.write()
    assert torch.equal(weight[:, [0, columns - 1]].float(), deltas)
    plan.restore()
    assert not weight[:, [0, columns - 1]].any()


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
