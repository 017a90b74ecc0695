"""What NeuroAda is compared with where PEFT does not have it: the published scatter form and mask-based tuning, as the
paper describes it and in its best form."""

from neuroada.baselines.compact import MaskedLinear
from neuroada.baselines.compact import unwrap as unwrap_compact_mask
from neuroada.baselines.compact import wrap as wrap_compact_mask
from neuroada.baselines.mask import wrap as wrap_mask
from neuroada.baselines.scatter import ScatterLinear
from neuroada.baselines.scatter import wrap as wrap_scatter

__all__ = [
    "MaskedLinear",
    "ScatterLinear",
    "unwrap_compact_mask",
    "wrap_compact_mask",
    "wrap_mask",
    "wrap_scatter",
]
