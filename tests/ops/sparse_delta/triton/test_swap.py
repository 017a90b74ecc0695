"""Swaps on Triton: the bits of `entries` in swap.py, and every byte back afterwards."""

import pytest
import torch

from neuroada.errors import ConfigError
from neuroada.ops.sparse_delta import combine, entries
from neuroada.ops.sparse_delta.entries import shifted

from ...cases import BITS, PRIMES, Problem, build, same_bits
from ..test_combine import supports_of
from .kernels import DEVICE, here, moved, storage_bytes, triton_swap

swap_in, restore = triton_swap.swap_in, triton_swap.restore
DELTA_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def require_exact(problem: Problem, swap_in=swap_in, restore=restore) -> None:
    """Swapped in: the specified bits and nothing else changed. Swapped out: every byte as before."""
    problem = here(problem)
    before, expected = storage_bytes(problem.weight), moved(problem.weight)
    dense = expected.T if problem.transposed else expected
    _, originals, values = entries(dense, problem.support)
    rows = torch.arange(len(dense), device=DEVICE) if problem.neurons is None else problem.neurons.long()
    dense[rows[:, None], problem.indices.long()] = values
    at = problem.dense, problem.indices, problem.neurons
    kept = swap_in(*at, problem.deltas)
    assert same_bits(kept, originals), "originals"
    assert torch.equal(storage_bytes(problem.weight), storage_bytes(expected)), "swapped in"
    restore(*at, kept)
    assert torch.equal(storage_bytes(problem.weight), before), "swapped out"


def of_bits(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return values.to(BITS[dtype]).view(dtype)


def in_two_launches(weight, indices, neurons, deltas):
    originals = triton_swap.read(weight, indices, neurons)
    triton_swap.write(weight, indices, neurons, originals, deltas)
    return originals


def test_swaps_of_all_shapes(problem):
    require_exact(problem)


def test_swaps_in_two_launches(case):
    require_exact(build(case, torch.bfloat16), in_two_launches)


def test_writing_starts_from_the_originals_each_time():
    problem = here(build(PRIMES, torch.bfloat16))
    at = problem.dense, problem.indices, None
    originals = triton_swap.read(*at)
    for factor in (1, -3):
        triton_swap.write(*at, originals, factor * problem.deltas)
        assert same_bits(triton_swap.read(*at), shifted(originals, factor * problem.deltas))


@pytest.mark.parametrize("delta_dtype", DELTA_DTYPES, ids=str)
def test_deltas_of_any_type(dtype, delta_dtype):
    require_exact(build(PRIMES, dtype, delta_dtype=delta_dtype))


@pytest.mark.parametrize("integer", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_indices_and_neurons_of_any_integer_type(integer):
    problem = build(PRIMES, torch.bfloat16)
    neurons = torch.randperm(13).to(integer)
    require_exact(problem.with_(indices=problem.indices.to(integer), neurons=neurons))


@pytest.mark.parametrize("entries_each", [17, 512])
def test_many_entries(entries_each):
    indices = torch.rand(5, 515).argsort(1)[:, :entries_each].sort(1).values.int()
    deltas, weight = torch.randn(5, entries_each), torch.randn(5, 515).bfloat16()
    require_exact(build(PRIMES, torch.bfloat16).with_(weight=weight, indices=indices, deltas=deltas))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_combined_supports(count):
    support = combine(supports_of((torch.float32,) * 4)[:count], 17)
    problem = build(PRIMES, torch.bfloat16)
    require_exact(problem.with_(indices=support.indices, deltas=support.deltas.detach(), neurons=support.neurons))


def test_tensors_that_are_not_contiguous():
    problem = here(build(PRIMES, torch.bfloat16))
    indices, deltas = (tensor.T.contiguous().T for tensor in (problem.indices, problem.deltas))
    before, originals = problem.weight.clone(), problem.weight.gather(1, problem.indices.long())
    kept = swap_in(problem.weight, indices, None, deltas)
    assert same_bits(kept, originals)
    assert same_bits(problem.weight.gather(1, problem.indices.long()), shifted(originals, deltas))
    restore(problem.weight, indices, None, kept.T.contiguous().T)
    assert same_bits(problem.weight, before)


def all_pairs(dtype: torch.dtype, delta_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Originals and deltas [32, 512], finite, of all magnitudes, that often sum to ties between neighbours."""
    generator = torch.Generator().manual_seed(3)
    shape, width = (32, 512), 8 * dtype.itemsize
    originals = of_bits(torch.randint(-(2 ** (width - 1)), 2 ** (width - 1) - 1, shape, generator=generator), dtype)
    originals = originals.nan_to_num(1.5, 0.0, -0.0)
    step = torch.nextafter(originals.abs(), torch.tensor(torch.inf).to(dtype)).double() - originals.abs().double()
    fractions = torch.tensor([0.5, -0.5, 1.5, 0.25, 0.5 + 2**-12, 0.5 - 2**-12, 0.75, -1.0])
    deltas = step * fractions[torch.randint(len(fractions), shape, generator=generator)]
    return originals, deltas.to(delta_dtype).nan_to_num(0.0, 1.0, -1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("delta_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_are_rounded_to_the_nearest_and_ties_to_even(dtype, delta_dtype):
    originals, deltas = (tensor.to(DEVICE) for tensor in all_pairs(dtype, delta_dtype))
    expected = shifted(originals, deltas)
    assert (expected != originals).float().mean() > 0.2
    indices = torch.arange(512, dtype=torch.int32, device=DEVICE).expand(32, 512)
    swap_in(originals, indices, None, deltas)
    assert same_bits(originals, expected)


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # NumPy, which the interpreter adds with
def test_a_delta_of_zero_keeps_every_bit(dtype):
    """Minus zero, infinities, quiet and signalling NaN."""
    infinity = torch.tensor([torch.inf]).to(dtype)
    quiet, signalling = of_bits(torch.tensor([-1]), dtype), (infinity.view(BITS[dtype]) + 1).view(dtype)
    weight = torch.stack([quiet, infinity, -infinity, signalling, torch.tensor([-0.0]).to(dtype)], 1).to(DEVICE)
    assert weight.isnan().tolist() == [[True, False, False, True, False]]
    before, indices = weight.clone(), torch.arange(5, device=DEVICE)[None]
    for zero in (0.0, -0.0):
        deltas = torch.full((1, 5), zero, device=DEVICE)
        assert same_bits(swap_in(weight, indices, None, deltas), before)
        assert same_bits(weight, before)


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # NumPy, which the interpreter adds with
def test_what_is_not_finite_stays_so(dtype):
    weight = torch.tensor([[torch.inf, -torch.inf, torch.nan, 1.0, 1.0, torch.finfo(dtype).max]]).to(dtype).to(DEVICE)
    deltas = torch.tensor([[1.0, 1.0, 1.0, torch.inf, torch.nan, torch.finfo(torch.float32).max]], device=DEVICE)
    expected = shifted(weight, deltas)
    swap_in(weight, torch.arange(6, device=DEVICE)[None], None, deltas)
    assert torch.equal(weight.isnan(), expected.isnan())
    assert torch.equal(weight.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_autograd_sees_no_write():
    problem = here(build(PRIMES, torch.float32)).with_gradients()
    version = problem.weight._version
    kept = swap_in(problem.weight, problem.indices, None, problem.deltas)
    restore(problem.weight, problem.indices, None, kept)
    assert problem.weight._version == version
    assert not kept.requires_grad


def test_a_weight_that_inference_mode_made():
    with torch.inference_mode():
        require_exact(build(PRIMES, torch.bfloat16))


@pytest.mark.parametrize("shape", [(0, 3), (13, 0)])
def test_no_entries(shape):
    problem = here(build(PRIMES, torch.float32))
    nothing = torch.empty(shape, device=DEVICE)
    before = problem.weight.clone()
    neurons = torch.arange(shape[0], device=DEVICE)
    assert swap_in(problem.weight, nothing.int(), neurons, nothing).shape == shape
    assert same_bits(problem.weight, before)


def test_what_does_not_fit_is_refused():
    problem = here(build(PRIMES, torch.float32))
    weight, indices, deltas = problem.weight, problem.indices, problem.deltas
    for arguments in (
        (weight, indices, None, deltas[:, :2]),
        (weight, indices[:4], None, deltas[:4]),
        (weight, indices[0], None, deltas[0]),
        (weight, indices, indices[:2, 0], deltas),
        (weight.int(), indices, None, deltas),
        (weight, indices, None, deltas.int()),
    ):
        with pytest.raises(ConfigError, match="Give floats and indices as"):
            swap_in(*arguments)
    for originals in (deltas.bfloat16(), deltas[:, :2]):
        with pytest.raises(ConfigError, match="originals in the weight's dtype"):
            restore(weight, indices, None, originals)
        with pytest.raises(ConfigError, match="originals in the weight's dtype"):
            triton_swap.write(weight, indices, None, originals, deltas)
    with pytest.raises(ConfigError, match="Launching a Triton kernel on meta"):
        triton_swap.read(weight.to("meta"), indices, None)


FAULTS = {
    "next-input": lambda weight, indices, *rest: swap_in(weight, (indices + 1) % 17, *rest),
    "other-deltas": lambda weight, indices, neurons, deltas: swap_in(weight, indices, neurons, 2 * deltas),
    "low-deltas": lambda weight, indices, neurons, deltas: swap_in(weight, indices, neurons, deltas.bfloat16()),
    "last-forgotten": lambda weight, indices, _, deltas: swap_in(
        weight, indices[:-1], torch.arange(12, device=DEVICE), deltas[:-1]
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_twin_that_swaps_in_something_else_fails(fault):
    with pytest.raises(AssertionError, match=r"originals|swapped in"):
        require_exact(build(PRIMES, torch.float32), swap_in=FAULTS[fault])


def test_twin_that_rounds_as_another_type_fails(monkeypatch):
    monkeypatch.setitem(triton_swap.FORMATS, torch.bfloat16, triton_swap.FORMATS[torch.float16])
    with pytest.raises(AssertionError, match="swapped in"):
        require_exact(build(PRIMES, torch.bfloat16))


def test_twin_that_restores_nothing_fails():
    with pytest.raises(AssertionError, match="swapped out"):
        require_exact(build(PRIMES, torch.bfloat16), restore=lambda *arguments: None)
