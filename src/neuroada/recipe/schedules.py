"""Learning-rate schedules that a recipe can name."""

from typing import Any

from transformers import SchedulerType

from neuroada.errors import near
from neuroada.recipe.plain import shown

SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
"""Of `transformers.SchedulerType`, those that an optimiser, the warm-up and the number of steps make; the others want
settings that a recipe does not have, or a held-out value at each step."""

POLYNOMIAL_END = 1e-7
"""The learning rate at the end of the schedule "polynomial", by `transformers`."""


def require_schedule(name: Any) -> None:
    """Raise ValueError, as pydantic's validators do, unless training can build the schedule of that name."""
    if name in SCHEDULES:
        return
    if isinstance(name, str) and name in {each.value for each in SchedulerType}:
        found = "it needs more than a recipe can say (a least learning rate, steps of decay, or scores at each step)"
        raise ValueError(f"{found}. Choose one of {', '.join(SCHEDULES)}")
    raise ValueError(f"no such schedule. {near(name if isinstance(name, str) else shown(name), SCHEDULES)}")
