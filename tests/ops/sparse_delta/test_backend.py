"""The mode of a layer and the backend of its gradient: every branch and the reason that is printed for it."""

from itertools import product

import pytest
import torch

from neuroada.errors import ConfigError
from neuroada.ops.sparse_delta.backends import choice as backend
from neuroada.ops.sparse_delta.backends.choice import backend_for, resolve_backend, set_backend
from neuroada.ops.sparse_delta.mode import resolve_mode

QUANTISED = "the base weight is quantised, so a dense one is made for each use"
LOCKED = "the base weight cannot be written in place"
SHARED = "several threads run this layer at once"
PLAIN = "no copy of the weight is needed"


@pytest.mark.parametrize(
    ("requested", "quantized", "writable", "contended", "decision"),
    [
        ("auto", False, True, False, ("inplace", PLAIN)),
        ("auto", False, True, True, ("transient", SHARED)),
        ("auto", False, False, False, ("transient", LOCKED)),
        ("auto", False, False, True, ("transient", LOCKED)),
        ("auto", True, True, False, ("transient", QUANTISED)),
        ("auto", True, False, True, ("transient", QUANTISED)),
        ("inplace", False, True, False, ("inplace", "as asked")),
        ("inplace", False, True, True, ("inplace", "as asked")),
        ("transient", False, True, False, ("transient", "as asked")),
        ("transient", False, True, True, ("transient", "as asked")),
        ("transient", False, False, False, ("transient", LOCKED)),
        ("transient", True, True, False, ("transient", QUANTISED)),
    ],
)
def test_decision_and_reason(requested, quantized, writable, contended, decision):
    assert resolve_mode(requested, quantized=quantized, writable=writable, contended=contended) == decision


@pytest.mark.parametrize(
    ("quantized", "writable", "found"), [(True, True, QUANTISED), (True, False, QUANTISED), (False, False, LOCKED)]
)
@pytest.mark.parametrize("contended", [False, True])
def test_in_place_is_refused_where_it_cannot_work(quantized, writable, contended, found):
    with pytest.raises(ConfigError) as caught:
        resolve_mode("inplace", quantized=quantized, writable=writable, contended=contended)
    assert str(caught.value) == f"mode='inplace': {found}. Use mode='auto' or mode='transient'."


@pytest.mark.parametrize("requested", ["auto", "inplace", "transient"])
@pytest.mark.parametrize("situation", list(product([False, True], repeat=3)))
def test_an_explicit_choice_is_kept_or_refused(requested, situation):
    quantized, writable, contended = situation
    try:
        mode, reason = resolve_mode(requested, quantized=quantized, writable=writable, contended=contended)
    except ConfigError:
        assert requested == "inplace"
    else:
        assert requested in ("auto", mode)
        assert reason


@pytest.mark.parametrize(
    ("requested", "mode"), [("auto", "transient"), ("inplace", "inplace"), ("transient", "transient")]
)
def test_a_weight_that_other_modules_read_is_left_alone_unless_asked(requested, mode):
    found, reason = resolve_mode(requested, quantized=False, writable=True, contended=False, shared=True)
    assert found == mode
    assert reason == ("another module uses the same weight" if requested == "auto" else "as asked")


INSTALLED = {"triton": None, "numba": None}
NO_NUMBA = "numba is not installed"
TRITON_TOO_OLD = "triton is 2.3.1, and 3.0 or newer is needed"
OLD_TRITON = {"triton": TRITON_TOO_OLD, "numba": None}


@pytest.mark.parametrize(
    ("device", "dtype", "missing", "decision"),
    [
        ("cpu", torch.float32, INSTALLED, ("numba", "compiled for cpu")),
        ("cpu", torch.bfloat16, INSTALLED, ("numba", "compiled for cpu")),
        ("cpu", torch.float64, INSTALLED, ("torch", "numba does not compute in float64")),
        ("cpu", torch.float16, INSTALLED, ("torch", "numba does not compute in float16")),
        ("cpu", torch.float32, {"triton": None, "numba": NO_NUMBA}, ("torch", NO_NUMBA)),
        ("cuda", torch.bfloat16, INSTALLED, ("triton", "compiled for cuda")),
        ("cuda", torch.float64, INSTALLED, ("torch", "triton does not compute in float64")),
        (
            "cuda",
            torch.float16,
            OLD_TRITON,
            ("torch", TRITON_TOO_OLD),
        ),
        ("mps", torch.float32, INSTALLED, ("torch", "nothing faster exists for mps")),
        ("meta", torch.float32, INSTALLED, ("torch", "nothing faster exists for meta")),
    ],
)
def test_backend_and_reason(device, dtype, missing, decision):
    assert resolve_backend("auto", device=device, dtype=dtype, missing=missing) == decision
    assert resolve_backend(decision[0], device=device, dtype=dtype, missing=missing) == (decision[0], "as asked")
    assert resolve_backend("torch", device=device, dtype=dtype, missing=missing) == ("torch", "as asked")


@pytest.mark.parametrize(
    ("requested", "device", "dtype", "missing", "message"),
    [
        (
            "triton",
            "cpu",
            torch.float32,
            INSTALLED,
            "backend='triton': triton runs on cuda, and the tensors are on cpu. "
            "Backends that can run here: numba, torch, or 'auto'.",
        ),
        (
            "triton",
            "cuda",
            torch.float32,
            OLD_TRITON,
            "backend='triton': triton is 2.3.1, and 3.0 or newer is needed. "
            "Backends that can run here: torch, or 'auto'.",
        ),
        (
            "numba",
            "cpu",
            torch.float64,
            INSTALLED,
            "backend='numba': numba does not compute in float64. Backends that can run here: torch, or 'auto'.",
        ),
        (
            "cuda",
            "cpu",
            torch.float32,
            INSTALLED,
            "backend='cuda': not a known backend. Known: auto, triton, numba, torch.",
        ),
    ],
)
def test_a_pinned_backend_that_cannot_run_says_why_and_names_those_that_can(requested, device, dtype, missing, message):
    with pytest.raises(ConfigError) as caught:
        resolve_backend(requested, device=device, dtype=dtype, missing=missing)
    assert str(caught.value) == message


def test_pinning_for_the_process(monkeypatch):
    monkeypatch.setattr(backend, "_pinned", "auto")
    assert backend_for("cpu", torch.float32) == ("numba", "compiled for cpu")
    set_backend("torch")
    assert backend_for("cpu", torch.float32) == ("torch", "as asked")
    set_backend("triton")
    with pytest.raises(ConfigError, match="Backends that can run here: numba, torch"):
        backend_for("cpu", torch.float32)
    with pytest.raises(ConfigError, match="Known: auto, triton, numba, torch"):
        set_backend("nunba")


def test_a_single_delta_a_neuron_needs_no_numba_unless_pinned(monkeypatch):
    monkeypatch.setattr(backend, "_pinned", "auto")
    assert backend_for("cpu", torch.float32, 1)[0] == "torch"
    assert backend_for("cpu", torch.float32, 2)[0] == "numba"
    monkeypatch.setattr(backend, "_pinned", "numba")
    assert backend_for("cpu", torch.float32, 1) == ("numba", "as asked")


def test_a_numba_that_cannot_be_used_is_told_and_left_aside(monkeypatch):
    def broken(name):
        raise ImportError("Numba needs NumPy 2.3 or less")

    assert backend._numba_missing() is None
    monkeypatch.setattr(backend, "import_module", broken)
    assert backend._numba_missing() == "numba cannot be used (ImportError: Numba needs NumPy 2.3 or less)"
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert backend._numba_missing() == 'numba is not installed (it comes with neuroada\'s extra "cpu")'
