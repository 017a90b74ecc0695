"""How long the machines play: a little in `make test`, as long as asked in `make fuzz`."""

import os

from hypothesis import HealthCheck, settings

QUIET = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
SHORT = settings(max_examples=30, stateful_step_count=20, derandomize=True, suppress_health_check=QUIET, deadline=None)


def profile() -> settings:
    """The short one, or one of NEUROADA_FUZZ games of a hundred rules each, other ones each time."""
    games = int(os.environ.get("NEUROADA_FUZZ", "0"))
    if not games:
        return SHORT
    return settings(max_examples=games, stateful_step_count=100, suppress_health_check=QUIET, deadline=None)
