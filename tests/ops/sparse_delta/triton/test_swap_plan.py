"""Many weights swapped in one launch: the same bits as one by one, and every byte back."""

import numpy as np
import pytest
import torch

from neuroada.ops.sparse_delta import FrozenWeight, Support, combine
from neuroada.ops.sparse_delta.entries import shifted

from ...cases import CASES, DTYPES, PRIMES, build, same_bits
from ..test_combine import supports_of
from .kernels import DEVICE, here, triton_plan
from .swap_plan_cases import LARGE, SOME, SwapPlan, all_equal, bytes_of, plan_of, problems_of, read, require_exact


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
