"""What can be wrong with an adapter file, by method: edits of a sound one, and what loading it then says."""

from collections.abc import Callable

import torch
from torch import Tensor

NAME = "model.layers.1.mlp.up_proj"
PREFIX = f"base_model.model.{NAME}."
DELTAS, INDICES, NEURONS = (f"{PREFIX}neuroada_{part}" for part in ("deltas", "indices", "neurons"))
IN, HIDDEN, OUT = (f"{PREFIX}neat_{part}" for part in ("in", "hidden", "out"))
INPUTS, OUTPUTS, K, COVERED = 24, 40, 3, 20
WHOLE = {"neuroada_": {"size": K, "coverage": 0.5}, "neat_": {"size": K, "depth": 4}}
"""Settings with which an adapter has every part that one can have."""

Entries = dict[str, Tensor]
Edit = Callable[[Entries], object]


def put(key: str, position: tuple, value: float) -> Edit:
    """Write one value of an entry."""

    def edit(entries: Entries) -> None:
        entries[key][position] = value

    return edit


def replace(key: str, change: Callable[[Tensor], Tensor]) -> Edit:
    """Put a function of an entry in its place."""

    def edit(entries: Entries) -> None:
        entries[key] = change(entries[key]).contiguous()

    return edit


def remove(key: str) -> Edit:
    return lambda entries: entries.pop(key)


def both(change: Callable[[Tensor], Tensor]) -> Edit:
    """Change deltas and indices alike."""

    def edit(entries: Entries) -> None:
        for key in (DELTAS, INDICES):
            entries[key] = change(entries[key]).contiguous()

    return edit


def of_the_layer(entries: Entries) -> list[str]:
    return [key for key in entries if key.startswith(PREFIX)]


def rename(entries: Entries) -> None:
    for key in of_the_layer(entries):
        entries[key.replace(NAME, "model.layers.7.mlp.up_proj")] = entries.pop(key)


def add_layer(entries: Entries) -> None:
    for key in of_the_layer(entries):
        entries[key.replace(NAME, "lm_head")] = entries[key].clone()


def remove_layer(entries: Entries) -> None:
    for key in of_the_layer(entries):
        del entries[key]


BASE = "base_model.model."
VOCABULARY, WIDTH = 61, 24


def add(key: str, make: Callable[[], Tensor]) -> Edit:
    """One entry more."""

    def edit(entries: Entries) -> None:
        entries[key] = make()

    return edit


def nan(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.full(shape, torch.nan)


def shared_edits(prints: str) -> dict[str, tuple[Edit, str]]:
    """What can be wrong with the file of any method; prints: its name of the fingerprints."""
    return {
        "no layer": (remove_layer, f"lacks 1 adapted weights, such as {NAME}"),
        "one layer more": (add_layer, "1 weights that the model does not adapt, such as lm_head"),
        "another layer": (rename, f"such as model.layers.7.mlp.up_proj.*such as {NAME}"),
        "no fingerprints": (remove(prints), prints),
        "fingerprints of fewer": (replace(prints, lambda found: found[1:]), "fingerprints .* for 14 weights"),
        "fingerprints of a type": (replace(prints, lambda found: found.float()), "fingerprints"),
        "other fingerprints": (replace(prints, lambda found: 255 - found), "the base weights .* are not those"),
        "a base weight": (
            add(f"{BASE}model.layers.0.self_attn.q_proj.base_layer.weight", nan(WIDTH, WIDTH)),
            r"does not own: base_model\.model\.model\.layers\.0\.self_attn\.q_proj\.base_layer\.weight\.",
        ),
        "a norm": (
            add(f"{BASE}model.norm.weight", nan(WIDTH)),
            r"does not own: base_model\.model\.model\.norm\.weight",
        ),
        "an unknown name": (add("something", nan(3)), "does not own: something"),
        "an embedding of NaN": (
            add(f"{BASE}model.embed_tokens.weight", nan(VOCABULARY, WIDTH)),
            r"embed_tokens\.weight has entries that are not finite",
        ),
        "another embedding": (
            add(f"{BASE}model.embed_tokens.weight", lambda: torch.zeros(VOCABULARY, WIDTH)),
            r"embed_tokens\.weight would change \d+ of \d+ rows of a base weight, from row",
        ),
        "a larger embedding": (
            add(f"{BASE}model.embed_tokens.weight", lambda: torch.zeros(VOCABULARY + 3, WIDTH)),
            r"embed_tokens\.weight has shape \[64, 24\], and the model's \[61, 24\]",
        ),
        "another digest": (replace(f"{prints.split('_')[0]}_digest", lambda found: 255 - found), "do not match"),
    }


def moved(indices: Tensor) -> Tensor:
    """One index of a neuron is another one of its inputs, still in order."""
    for row in indices:
        free = sorted(set(range(INPUTS)) - set(row.tolist()))
        if free[-1] > int(row[-1]):
            row[-1] = free[-1]
            break
    return indices


def nothing(entries: Entries) -> None:
    for key in (DELTAS, INDICES, NEURONS):
        entries[key] = entries[key][:0].contiguous()


REPEATED = f"{NAME}.*indices are repeated or out of order within a neuron"
NEURONS_WRONG = f"{NAME}.*covered neurons are out of range, repeated or out of order"
EDITS: dict[str, dict[str, tuple[Edit, str]]] = {
    "neuroada_": shared_edits("neuroada_fingerprints")
    | {
        "no deltas": (remove(DELTAS), f"{NAME}.*no neuroada_deltas"),
        "no indices": (remove(INDICES), f"{NAME}.*no neuroada_indices"),
        "no neurons": (remove(NEURONS), f"{NAME}.*20, 3.*40 covered neurons"),
        "index too large": (put(INDICES, (4, K - 1), INPUTS), f"{NAME}.*indices reach from 0 to {INPUTS}"),
        "index repeated": (replace(INDICES, lambda indices: indices[:, :1].expand(-1, K)), REPEATED),
        "indices unsorted": (replace(INDICES, lambda indices: indices.flip(1)), REPEATED),
        "indices not whole": (replace(INDICES, lambda indices: indices.float()), f"{NAME}.*indices"),
        "indices negative": (
            replace(INDICES, lambda indices: indices.to(torch.int8) - 100),
            f"{NAME}.*indices reach from -",
        ),
        "indices of other shape": (replace(INDICES, lambda indices: indices[:, 1:]), rf"{NAME}.*\[20, 3\].*\[20, 2\]"),
        "flat": (both(lambda entry: entry.flatten()), rf"{NAME}.*\[60\]"),
        "fewer neurons": (both(lambda entry: entry[1:]), rf"{NAME}.*\[19, 3\] for 20 covered"),
        "no entries per neuron": (both(lambda entry: entry[:, :0]), rf"{NAME}.*\[20, 0\]"),
        "no neurons at all": (replace(NEURONS, lambda neurons: neurons[:0]), f"{NAME}.*0 covered neurons"),
        "neuron too large": (put(NEURONS, (COVERED - 1,), OUTPUTS), NEURONS_WRONG),
        "neurons repeated": (replace(NEURONS, lambda neurons: neurons.clamp(min=7)), NEURONS_WRONG),
        "neurons unsorted": (replace(NEURONS, lambda neurons: neurons.flip(0)), NEURONS_WRONG),
        "neurons of other shape": (replace(NEURONS, lambda neurons: neurons[:, None]), f"{NAME}.*neurons"),
        "NaN": (put(DELTAS, (0, 0), torch.nan), f"{NAME}.*not finite"),
        "infinity": (put(DELTAS, (5, 1), -torch.inf), f"{NAME}.*not finite"),
        "a delta changed": (put(DELTAS, (2, 1), 0.5), "its values are not those that were saved"),
        "an index moved": (replace(INDICES, moved), "the base weights it was trained on are not those|were saved"),
        "deltas complex": (
            replace(DELTAS, lambda deltas: deltas.to(torch.complex64)),
            f"{NAME}.*deltas are torch.complex64",
        ),
        "deltas of a byte": (
            replace(DELTAS, lambda deltas: deltas.to(torch.float8_e4m3fn)),
            f"{NAME}.*deltas are torch.float8_e4m3fn",
        ),
        "deltas too large": (replace(DELTAS, lambda deltas: deltas.double() + 1e300), f"{NAME}.*not finite"),
        "indices complex": (
            replace(INDICES, lambda indices: indices.to(torch.complex64)),
            f"{NAME}.*not whole numbers",
        ),
        "no covered neuron": (nothing, rf"{NAME}.*\[0, 3\] for 0 covered"),
        "deltas whole numbers": (replace(DELTAS, lambda deltas: deltas.to(torch.int32)), f"{NAME}.*deltas"),
    },
    "neat_": shared_edits("neat_fingerprints")
    | {
        "no first layer": (remove(IN), f"{NAME}.*no neat_in"),
        "no hidden layers": (remove(HIDDEN), f"{NAME}.*no neat_hidden"),
        "no last layer": (remove(OUT), f"{NAME}.*no neat_out"),
        "narrower": (
            replace(IN, lambda first: first[:, 1:]),
            rf"{NAME}.*neat_in has shape \[3, 23\], and the configuration gives \[3, 24\]",
        ),
        "transposed": (replace(OUT, lambda last: last.T), rf"{NAME}.*neat_out has shape \[3, 24\]"),
        "fewer layers": (replace(HIDDEN, lambda hidden: hidden[1:]), rf"{NAME}.*neat_hidden has shape \[1, 3, 3\]"),
        "NaN": (put(OUT, (0, 0), torch.nan), f"{NAME}.*some entries of neat_out are not finite"),
        "infinity": (put(HIDDEN, (1, 1, 2), -torch.inf), f"{NAME}.*some entries of neat_hidden are not finite"),
        "whole numbers": (replace(IN, lambda first: first.to(torch.int32)), f"{NAME}.*neat_in is torch.int32"),
        "complex": (replace(OUT, lambda last: last.to(torch.complex64)), f"{NAME}.*neat_out is torch.complex64"),
        "too large": (replace(OUT, lambda last: last.double() + 1e300), f"{NAME}.*neat_out are not finite"),
        "a value changed": (put(OUT, (1, 1), 0.5), "its values are not those that were saved"),
    },
}
"""By method: what is done to a sound file, and what loading it says."""
SOME = ["no layer", "NaN", "other fingerprints"]
