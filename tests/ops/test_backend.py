"""The mode of a layer: every branch and the reason that is printed for it."""

from itertools import product

import pytest

from neuroada.errors import ConfigError
from neuroada.ops.backend import resolve_mode

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
