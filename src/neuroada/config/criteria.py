"""The selection criteria by name: what each needs beside a weight, and whether its scores compare across weights.

`selection.scores` has their functions.
"""

NEEDS: dict[str, frozenset[str]] = {
    "magnitude": frozenset(),
    "random": frozenset(),
    "reverse": frozenset(),
    "gradient": frozenset({"gradient"}),
    "magnitude_gradient": frozenset({"gradient"}),
    "wanda": frozenset({"inputs"}),
    "low_rank": frozenset({"low_rank"}),
    "small_of_large_gradients": frozenset({"gradient"}),
}
"""The statistics that each looks at, as `selection.Statistics` names them. "reverse" takes the smallest magnitudes,
"small_of_large_gradients" the smallest of those whose gradients are among the largest."""

OWN = "own"
"""As the selection of a configuration: a function of one's own, which the configuration cannot hold."""

FROM_DATA = frozenset({"gradient", "inputs"})
"""The statistics that take data; the others are made from the weight alone."""

COMPARABLE = tuple(name for name in NEEDS if name != "small_of_large_gradients")
"""Those whose scores say something beside those of other neurons and weights too, so that a budget can be spread over a
model by them. The other gives the places of entries in their row."""

WITHOUT_DATA = tuple(name for name, needs in NEEDS.items() if not needs & FROM_DATA)


def waits_for_data(selection: str) -> bool:
    """Whether the inputs of a configuration's selection are not chosen by the weights alone."""
    return selection == OWN or bool(NEEDS[selection] & FROM_DATA)
