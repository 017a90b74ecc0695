"""Many weights for the tests that swap them in one launch, and what a write and a restore must do to them."""

import torch

from neuroada.ops.sparse_delta.entries import shifted

from ...cases import CASES, Case, Problem, build, same_bits
from .kernels import DEVICE, here, storage_bytes, triton_plan

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
