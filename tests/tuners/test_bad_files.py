"""Adapter files that must be refused: the message names the thing; model, base weights and files stay as they were."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from neuroada.errors import AdapterFileError, NeuroAdaError
from specimens import METHODS, base_weights, changed, fill, logits, same_bits, tiny

WEIGHTS = "adapter_model.safetensors"
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
    }


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
        "whole numbers": (replace(IN, lambda first: first.to(torch.int32)), f"{NAME}.*some entries of neat_in"),
    },
}
"""By method: what is done to a sound file, and what loading it says."""
SOME = ["no layer", "NaN", "other fingerprints"]


@pytest.fixture
def base():
    return tiny("llama")


@pytest.fixture
def folder(base, kind, tmp_path) -> Path:
    """The folder of a good adapter that has all parts that an adapter can have."""
    kind.adapted(base, **WHOLE[kind.prefix]).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def tamper(folder: Path, edit: Edit) -> None:
    entries = load_file(folder / WEIGHTS)
    edit(entries)
    save_file(entries, folder / WEIGHTS, metadata={"format": "pt"})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


every_method = pytest.mark.parametrize("kind", METHODS, ids=str)
every_edit = pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in METHODS for name in EDITS[kind.prefix]]
)


@pytest.mark.parametrize(
    ("kind", "name", "low_cpu_mem_usage"),
    [
        (kind, name, low)
        for kind in METHODS
        for name in EDITS[kind.prefix]
        for low in ((False, True) if name in SOME else (False,))
    ],
)
def test_tampered_files_are_refused(kind, name, low_cpu_mem_usage, base, folder):
    edit, message = EDITS[kind.prefix][name]
    want = logits(PeftModel.from_pretrained(copy.deepcopy(base), folder))
    backup = contents(folder)
    tamper(folder, edit)
    bad, before = contents(folder), base_weights(base)
    with pytest.raises(AdapterFileError, match=message):
        PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=low_cpu_mem_usage)
    assert changed(before, base) == []
    assert contents(folder) == bad
    (folder / WEIGHTS).write_bytes(backup[WEIGHTS])
    assert same_bits(logits(PeftModel.from_pretrained(tiny("llama"), folder)), want)


@every_edit
def test_a_refused_file_leaves_the_adapter_that_was_there(kind, name, base, folder):
    model = kind.adapted(base, **WHOLE[kind.prefix])
    fill(model, scale=2.0)
    want, state = logits(model), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    tamper(folder, EDITS[kind.prefix][name][0])
    with pytest.raises(AdapterFileError):
        model.load_adapter(folder, "default", is_trainable=True)
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(same_bits(after[key], state[key]) for key in state)
    assert same_bits(logits(model), want)


@every_method
@pytest.mark.parametrize("name", SOME)
def test_a_second_adapter_that_is_refused_leaves_a_model_that_works(name, base, folder, kind):
    model = kind.adapted(base)
    want, backup = logits(model), contents(folder)
    tamper(folder, EDITS[kind.prefix][name][0])
    with pytest.raises(AdapterFileError):
        model.load_adapter(folder, "second")
    assert same_bits(logits(model), want)
    assert changed(base_weights(base), model) == []
    (folder / WEIGHTS).write_bytes(backup[WEIGHTS])
    model.load_adapter(folder, "second")
    model.set_adapter("second")
    assert same_bits(logits(model), logits(PeftModel.from_pretrained(base, folder)))


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "cut in the header": lambda raw: raw[:40],
    "cut in the data": lambda raw: raw[:-1],
    "one byte more": lambda raw: raw + b"\0",
    "noise": lambda raw: bytes(255 - byte for byte in raw),
    "a pickle by another name": lambda raw: pickle.dumps({"weight": 1}),
}


@every_method
@pytest.mark.parametrize("how", BROKEN)
def test_damaged_files_are_refused_before_the_model_is_touched(how, base, folder, kind):
    (folder / WEIGHTS).write_bytes(BROKEN[how]((folder / WEIGHTS).read_bytes()))
    bad, modules, before = contents(folder), [type(module) for module in base.modules()], base_weights(base)
    with pytest.raises(AdapterFileError, match=rf"{folder / WEIGHTS}: it is damaged or cut short"):
        PeftModel.from_pretrained(base, folder)
    assert [type(module) for module in base.modules()] == modules
    assert changed(before, base) == []
    assert contents(folder) == bad


@every_method
def test_damage_is_found_as_well_when_resuming(base, folder, kind):
    model = kind.adapted(base, **WHOLE[kind.prefix])
    want = logits(model)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(SafetensorError):  # PEFT reads the file, and nothing of ours runs before
        model.load_adapter(folder, "default", is_trainable=True)
    assert same_bits(logits(model), want)


class _Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle was run",)


@every_method
def test_a_pickle_is_refused_unread(base, folder, kind):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Bomb()))
    modules = [type(module) for module in base.modules()]
    with pytest.raises(AdapterFileError, match=r"adapter_model.bin is a pickle, .* adapter_model.safetensors"):
        PeftModel.from_pretrained(base, folder)
    assert [type(module) for module in base.modules()] == modules


@every_method
def test_a_pickle_beside_a_sound_file_is_not_looked_at(base, folder, kind):
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Bomb()))
    PeftModel.from_pretrained(base, folder)


@pytest.mark.parametrize(
    ("kind", "field", "value", "near"),
    [(METHODS[0], "mode", "in-place", "inplace"), (METHODS[1], "side", "inputs", "input")],
)
def test_a_config_that_cannot_be_meant_is_refused(base, folder, kind, field, value, near):
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {field: value}))
    with pytest.raises(NeuroAdaError, match=rf"{field}='{value}'.*Did you mean '{near}'"):
        PeftModel.from_pretrained(base, folder)


@every_method
def test_state_dicts_given_by_hand_are_checked_as_files_are(base, kind):
    model = kind.adapted(base)
    want, state = logits(model), get_peft_model_state_dict(model)
    key = {"neuroada_": DELTAS, "neat_": OUT}[kind.prefix]
    state[key] = torch.full_like(state[key], torch.nan)
    with pytest.raises(AdapterFileError, match=f"{NAME}.*not finite"):
        set_peft_model_state_dict(model, state)
    assert same_bits(logits(model), want)


@every_method
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_hidden_layers": 1}, r"7 weights that the model does not adapt, such as model\.layers\.1"),
        ({"intermediate_size": 44}, r"mlp\.(down|gate|up)_proj: the base weights|mlp.down_proj.* shape"),
        ({"hidden_size": 16}, r"model\.layers\.0"),
    ],
    ids=["fewer layers", "wider", "narrower"],
)
def test_another_architecture_is_refused(overrides, message, base, folder, kind):
    other = tiny("llama", **overrides)
    source = dict(base.named_parameters())
    for name, parameter in other.named_parameters():
        if parameter.shape == source[name].shape:
            parameter.data.copy_(source[name])
    with pytest.raises(AdapterFileError, match=message):
        PeftModel.from_pretrained(other, folder)


@every_method
def test_verification_can_be_declined_and_the_rest_is_still_checked(base, folder, kind):
    other = tiny("llama", seed=1)
    PeftModel.from_pretrained(other, folder, verify_base=False)
    edit, message = EDITS[kind.prefix]["NaN"]
    tamper(folder, edit)
    with pytest.raises(AdapterFileError, match=message):
        PeftModel.from_pretrained(tiny("llama", seed=1), folder, verify_base=False)
