"""What NeuroAda is compared with where PEFT does not have it: the published scatter form and mask-based tuning."""

from neuroada.baselines.mask import wrap as wrap_mask
from neuroada.baselines.scatter import ScatterLinear
from neuroada.baselines.scatter import wrap as wrap_scatter

__all__ = ["ScatterLinear", "wrap_mask", "wrap_scatter"]
