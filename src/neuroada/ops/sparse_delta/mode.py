"""Where weight + deltas stand while a layer computes, and why: a pure decision, printed in run headers."""

from neuroada.errors import ConfigError


def resolve_mode(
    requested: str, *, quantized: bool, writable: bool, contended: bool, shared: bool = False
) -> tuple[str, str]:
    """Where a layer puts weight + deltas while it computes.

    Args:
        requested: "auto", "inplace" or "transient".
        quantized: the stored weight is packed, and a dense one is made for each use.
        writable: the stored weight may be written to in place.
        contended: several threads have been seen running the layer at once.
        shared: other modules read the same memory, perhaps from another thread.

    Returns:
        (mode, reason): "inplace" or "transient", and a phrase that says why.

    Raises:
        ConfigError: "inplace" was asked for where it cannot work.
    """
    if quantized:
        forced = "the base weight is quantised, so a dense one is made for each use"
    elif not writable:
        forced = "the base weight cannot be written in place"
    else:
        forced = None
    if forced is not None:
        if requested == "inplace":
            raise ConfigError("mode='inplace'", forced, "Use mode='auto' or mode='transient'")
        return "transient", forced
    if requested != "auto":
        return requested, "as asked"
    if shared:
        return "transient", "another module uses the same weight"
    if contended:
        return "transient", "several threads run this layer at once"
    return "inplace", "no copy of the weight is needed"
