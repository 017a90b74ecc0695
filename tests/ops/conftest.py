"""What every op test runs on: all shapes, types and modes, with uninitialised memory full of NaN."""

from collections.abc import Iterator

import pytest
import torch

from neuroada.ops.sparse_delta.backends import choice as backend

from .cases import CASES, DTYPES, MODES, PRODUCTS, Case, Problem, build


@pytest.fixture(autouse=True, scope="module")
def _uninitialised_memory_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def _same_random_numbers_each_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[*PRODUCTS, "sparse-torch"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The dense product, and the sampled one by the backend that is chosen here and in plain torch."""
    if request.param == "sparse-torch":
        monkeypatch.setattr(backend, "_pinned", "torch")
    return request.param.removesuffix("-torch")


@pytest.fixture
def problem(case: Case, dtype: torch.dtype) -> Problem:
    return build(case, dtype)
