"""The sampled product on Triton: errors against float64 at most twice plain torch's in the same dtype, and twins."""

import pytest
import torch

from neuroada.errors import ConfigError
from neuroada.ops.sparse_delta import combine
from neuroada.ops.sparse_delta.backends import torch as pieces

from ...cases import build, same_bits
from ..test_combine import supports_of
from .kernels import DEVICE, INTERPRETED, here, triton, triton_product

COMPUTED = (torch.float32, torch.bfloat16, torch.float16)
right_product, right_split = triton_product.sampled_product, triton_product.split


@pytest.fixture(params=COMPUTED, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request) -> torch.dtype:
    return request.param


def factors(tokens: int, outputs: int, inputs: int, entries: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x [B, I], dy [B, O] and indices [O, K] on the device."""
    x, dy = torch.randn(tokens, inputs).to(dtype), torch.randn(tokens, outputs).to(dtype)
    indices = torch.rand(outputs, inputs).argsort(1)[:, :entries].sort(1).values.int()
    return x.to(DEVICE), dy.to(DEVICE), indices.to(DEVICE)


def exact_product(x, dy, indices, neurons=None) -> torch.Tensor:
    rows = dy.double().T if neurons is None else dy.double().T[neurons.long()]
    return torch.einsum("nb,bnj->nj", rows, x.double()[:, indices.long()])


def require_good(x, dy, indices, neurons=None, product=right_product) -> torch.Tensor:
    """The floor under plain torch's error on a CPU is half a rounding step of the float32 result."""
    found = product(x, dy, indices, neurons)
    assert (found.device.type, found.dtype, found.shape) == (DEVICE.type, torch.float32, indices.shape)
    arguments = [tensor if tensor is None else tensor.detach().cpu() for tensor in (x, dy, indices, neurons)]
    right, plain = exact_product(*arguments), pieces.sampled_product(*arguments)
    scale = max(float(right.norm()), torch.finfo(torch.float64).tiny)
    error, theirs = (float((each.cpu().double() - right).norm()) / scale for each in (found, plain))
    allowed = 2 * max(theirs, torch.finfo(torch.float32).eps / 2)
    assert error <= allowed, f"error {error:.2e}, allowed {allowed:.2e}"
    return found


def test_product_of_all_shapes(case, dtype):
    problem = here(build(case, dtype))
    x = problem.x.reshape(-1, case.inputs)
    require_good(x, torch.randn(len(x), case.outputs).to(DEVICE, dtype), problem.indices, problem.neurons)


@pytest.mark.parametrize("tokens", [0, 1, 31, 32, 33, 63, 64, 65, 255, 257])
def test_product_of_any_number_of_tokens(tokens, dtype):
    require_good(*factors(tokens, 3, 5, 2, dtype))


@pytest.mark.parametrize(("tokens", "entries", "above"), [(515, 1, triton.SPLIT_ABOVE), (150, 1, 1), (150, 3, 1)])
def test_product_split_over_tokens(tokens, entries, above, dtype, monkeypatch):
    """Of enough neurons that the error is not one of chance."""
    monkeypatch.setattr(triton, "SPLIT_ABOVE", above)
    arguments = factors(tokens, 61, 11, entries, dtype)
    parts, _ = triton.split(tokens, 61, entries, dtype.itemsize)
    assert parts > 1
    assert same_bits(require_good(*arguments), right_product(*arguments))


@pytest.mark.parametrize(("entries", "inputs"), [(5, 9), (8, 8), (20, 67), (512, 515)])
def test_product_of_many_entries(entries, inputs):
    require_good(*factors(33, 2, inputs, entries, torch.float32))


@pytest.mark.parametrize("outputs", [63, 64, 65, 130])
def test_product_of_several_blocks_of_neurons(outputs, dtype):
    require_good(*factors(5, outputs, 7, 1, dtype))


@pytest.mark.parametrize("chosen", [torch.tensor([4]), torch.tensor([6, 0, 3]), torch.tensor([2, 2, 2, 5, 0, 0, 6, 6])])
@pytest.mark.parametrize("integer", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_product_for_chosen_neurons_of_any_integer_type(chosen, integer):
    x, dy, _ = factors(33, 7, 11, 3, torch.bfloat16)
    indices = torch.rand(len(chosen), 11).argsort(1)[:, :3].to(DEVICE, integer)
    require_good(x, dy, indices, chosen.to(DEVICE, integer))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_product_for_combined_supports(count):
    """Neurons come once for each of their entries, K is 1."""
    support = combine(supports_of((torch.float32,) * 4)[:count], 17)
    x, dy, _ = factors(37, 13, 17, 1, torch.bfloat16)
    assert len(support.neurons) > 13
    require_good(x, dy, support.indices.to(DEVICE), support.neurons.to(DEVICE))


LAYOUTS = {
    "rows": lambda values: values,
    "columns": lambda values: values.T.clone(memory_format=torch.contiguous_format).T,
    "strided": lambda values: torch.full((2 * len(values), 2 * values.shape[1]), torch.nan).to(values)[::2, ::2],
    "offset": lambda values: torch.full((values.numel() + 3,), torch.nan).to(values)[3:].view_as(values),
    "reversed": lambda values: torch.full_like(values, torch.nan).T.contiguous().T,
}


@pytest.mark.parametrize(("x_layout", "dy_layout"), zip(LAYOUTS, reversed(LAYOUTS), strict=True))
def test_product_of_tensors_of_any_layout(x_layout, dy_layout):
    x, dy, indices = factors(67, 5, 9, 2, torch.bfloat16)
    found = right_product(LAYOUTS[x_layout](x).copy_(x), LAYOUTS[dy_layout](dy).copy_(dy), indices.T.contiguous().T)
    assert same_bits(found, right_product(x, dy, indices))


def test_product_of_an_expanded_gradient():
    x, _, indices = factors(67, 5, 9, 2, torch.float32)
    require_good(x, torch.tensor(0.5, device=DEVICE).expand(67, 5), indices)


def test_product_of_inputs_that_require_gradients():
    x, dy, indices = factors(5, 5, 9, 2, torch.float32)
    assert same_bits(right_product(x.clone().requires_grad_(), dy, indices), right_product(x, dy, indices))


@pytest.mark.parametrize("tokens", [1, 64, 67])
def test_panels_hold_the_columns_and_zeros(tokens, dtype):
    x, *_ = factors(tokens, 1, 131, 1, dtype)
    panels = triton_product.token_panels(x)
    per_panel = 128 // dtype.itemsize
    assert panels.shape == (-(-tokens // per_panel), 131, per_panel)
    rows = panels.transpose(1, 2).reshape(-1, 131)
    assert same_bits(rows[:tokens], x)
    assert not rows[tokens:].any()


def test_panels_of_some_columns_give_the_same_product(dtype):
    x, dy, indices = factors(67, 5, 90, 3, dtype)
    columns, places = indices.unique(return_inverse=True)
    panels = triton_product.token_panels(x, columns)
    assert panels.shape[1] == len(columns) < 90
    assert same_bits(triton_product.panel_product(panels, dy, places), right_product(x, dy, indices))


def test_panels_may_have_another_dtype_than_the_gradient():
    x, dy, indices = factors(67, 5, 9, 3, torch.float32)
    require_good(x.bfloat16(), dy, indices)
    require_good(x, dy.half(), indices)


def test_infinite_and_missing_inputs_stay_where_they_are():
    x, dy, indices = factors(67, 5, 9, 1, torch.bfloat16)
    indices[:, 0] = torch.arange(5)
    x[3, 1], dy[5, 2] = torch.inf, torch.nan
    assert right_product(x, dy, indices)[:, 0].isfinite().tolist() == [True, False, False, True, True]


@pytest.mark.parametrize("which", [0, 1])
def test_float64_is_refused(which):
    arguments = list(factors(5, 5, 9, 2, torch.float32))
    arguments[which] = arguments[which].double()
    with pytest.raises(ConfigError) as caught:
        right_product(*arguments)
    assert str(caught.value) == (
        "A sampled product as a Triton kernel: an input is torch.float64, and sums are float32. Give torch.bfloat16, "
        "torch.float16, torch.float32, or use the plain torch path."
    )


def test_shapes_that_do_not_fit_are_refused():
    x, dy, indices = factors(67, 5, 9, 2, torch.float32)
    panels = triton_product.token_panels(x)
    for wrong in ((panels[:1], dy, indices), (panels, dy, indices[:4]), (panels.bfloat16(), dy, indices)):
        with pytest.raises(ConfigError, match="Make the panels from the x that belongs to this dy"):
            triton_product.panel_product(*wrong)
    with pytest.raises(ConfigError, match="for 2 neurons"):
        right_product(x, dy, indices, torch.tensor([0, 1], device=DEVICE))


def test_a_device_that_triton_cannot_reach_is_refused():
    x, dy, indices = (tensor.to("meta") for tensor in factors(5, 5, 9, 2, torch.float32))
    with pytest.raises(ConfigError) as caught:
        right_product(x, dy, indices)
    assert caught.value.asked == "Launching a Triton kernel on meta"
    assert ("interprets" in caught.value.found) == INTERPRETED


def in_bfloat16(x, dy, indices, neurons=None):
    total = torch.zeros(indices.shape, dtype=torch.bfloat16, device=x.device)
    for token, row in zip(x.bfloat16(), dy.bfloat16(), strict=True):
        total += row[:, None] * token[indices.long()]
    return total.float()


FAULTS = {
    "next-input": lambda x, dy, indices, *rest: right_product(x, dy, (indices + 1) % x.shape[1], *rest),
    "dropped-token": lambda x, dy, *rest: right_product(x[:-1], dy[:-1], *rest),
    "swapped-neurons": lambda *arguments: right_product(*arguments)[[1, 0, *range(2, 13)]],
    "bfloat16-sum": in_bfloat16,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_twin_with_a_wrong_product_fails(fault, dtype):
    arguments = factors(397, 13, 17, 3, dtype)
    require_good(*arguments)
    with pytest.raises(AssertionError, match="allowed"):
        require_good(*arguments, product=FAULTS[fault])


LAUNCH_FAULTS = {
    "forgotten-panel": ("split", lambda *shape: (right_split(*shape)[0], right_split(*shape)[1] - 1)),
    "forgotten-entries": ("entry_block", lambda entries: (16, 2)),
    "no-launch": ("launch", lambda *arguments, **constants: None),
}


@pytest.mark.parametrize("fault", LAUNCH_FAULTS)
def test_twin_with_a_wrong_launch_fails(fault, monkeypatch):
    """On a grid of one program, whatever its blocks are; memory that nothing was written to is NaN."""
    arguments = factors(67, 13, 17, 3, torch.bfloat16)
    panels = triton_product.token_panels(arguments[0])
    monkeypatch.setattr(triton_product.triton, "cdiv", lambda size, block: 2 if size == 67 else 1)

    def product(x, *rest):
        return triton_product.panel_product(panels, *rest)

    require_good(*arguments, product=product)
    monkeypatch.setattr(triton_product, *LAUNCH_FAULTS[fault])
    with pytest.raises(AssertionError, match="allowed"):
        require_good(*arguments, product=product)
