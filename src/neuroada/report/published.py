"""The old name of `neuroada.report.paper.published`; goes with the next release."""

import warnings

from neuroada.report.paper.published import *  # noqa: F403

warnings.warn("neuroada.report.published is neuroada.report.paper.published now", DeprecationWarning, stacklevel=2)
