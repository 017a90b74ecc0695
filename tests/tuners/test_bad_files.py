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
from specimens import adapted, base_weights, changed, fill, logits, same_bits, tiny

WEIGHTS = "adapter_model.safetensors"
NAME = "model.layers.1.mlp.up_proj"
PREFIX = f"base_model.model.{NAME}.neuroada_"
DELTAS, INDICES, NEURONS = PREFIX + "deltas", PREFIX + "indices", PREFIX + "neurons"
FINGERPRINTS = "neuroada_fingerprints"
INPUTS, OUTPUTS, K, COVERED = 24, 40, 3, 20

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


def both(change: Callable[[Tensor], Tensor]) -> Edit:
    """Change deltas and indices alike."""

    def edit(entries: Entries) -> None:
        for key in (DELTAS, INDICES):
            entries[key] = change(entries[key]).contiguous()

    return edit


def rename(entries: Entries) -> None:
    for kind in ("deltas", "indices", "neurons"):
        entries[f"base_model.model.model.layers.7.mlp.up_proj.neuroada_{kind}"] = entries.pop(PREFIX + kind)


def add_layer(entries: Entries) -> None:
    for kind in ("deltas", "indices", "neurons"):
        entries[f"base_model.model.lm_head.neuroada_{kind}"] = entries[PREFIX + kind].clone()


def remove_layer(entries: Entries) -> None:
    for kind in ("deltas", "indices", "neurons"):
        del entries[PREFIX + kind]


REPEATED = f"{NAME}.*indices are repeated or out of order within a neuron"
NEURONS_WRONG = f"{NAME}.*covered neurons are out of range, repeated or out of order"
EDITS: dict[str, tuple[Edit, str]] = {
    "no deltas": (lambda entries: entries.pop(DELTAS), f"{NAME}.*no neuroada_deltas"),
    "no indices": (lambda entries: entries.pop(INDICES), f"{NAME}.*no neuroada_indices"),
    "no neurons": (lambda entries: entries.pop(NEURONS), f"{NAME}.*20, 3.*40 covered neurons"),
    "no layer": (remove_layer, f"lacks 1 adapted weights, such as {NAME}"),
    "one layer more": (add_layer, "1 weights that the model does not adapt, such as lm_head"),
    "another layer": (rename, f"such as model.layers.7.mlp.up_proj.*such as {NAME}"),
    "no fingerprints": (lambda entries: entries.pop(FINGERPRINTS), "neuroada_fingerprints"),
    "fingerprints of fewer": (replace(FINGERPRINTS, lambda prints: prints[1:]), "fingerprints .* for 14 weights"),
    "fingerprints of a type": (replace(FINGERPRINTS, lambda prints: prints.float()), "fingerprints"),
    "other fingerprints": (replace(FINGERPRINTS, lambda prints: 255 - prints), "the base weights .* are not those"),
    "index too large": (put(INDICES, (4, K - 1), INPUTS), f"{NAME}.*indices reach from 0 to {INPUTS}"),
    "index repeated": (
        replace(INDICES, lambda indices: indices[:, :1].expand(-1, K)),
        REPEATED,
    ),
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
    "neurons repeated": (
        replace(NEURONS, lambda neurons: neurons.clamp(min=7)),
        NEURONS_WRONG,
    ),
    "neurons unsorted": (
        replace(NEURONS, lambda neurons: neurons.flip(0)),
        NEURONS_WRONG,
    ),
    "neurons of other shape": (replace(NEURONS, lambda neurons: neurons[:, None]), f"{NAME}.*neurons"),
    "NaN": (put(DELTAS, (0, 0), torch.nan), f"{NAME}.*not finite"),
    "infinity": (put(DELTAS, (5, 1), -torch.inf), f"{NAME}.*not finite"),
    "deltas whole numbers": (replace(DELTAS, lambda deltas: deltas.to(torch.int32)), f"{NAME}.*deltas"),
}


@pytest.fixture
def base():
    return tiny("llama")


@pytest.fixture
def folder(base, tmp_path) -> Path:
    """The folder of a good adapter with k=3 and half of the neurons covered."""
    adapted(base, k=K, coverage=0.5).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def tamper(folder: Path, edit: Edit) -> None:
    entries = load_file(folder / WEIGHTS)
    edit(entries)
    save_file(entries, folder / WEIGHTS, metadata={"format": "pt"})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


SOME = ["no layer", "index too large", "NaN", "other fingerprints"]


@pytest.mark.parametrize(
    ("name", "low_cpu_mem_usage"), [*((name, False) for name in EDITS), *((name, True) for name in SOME)]
)
def test_tampered_files_are_refused(name, low_cpu_mem_usage, base, folder):
    edit, message = EDITS[name]
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


@pytest.mark.parametrize("name", EDITS)
def test_a_refused_file_leaves_the_adapter_that_was_there(name, base, folder):
    model = adapted(base, k=K, coverage=0.5)
    fill(model, scale=2.0)
    want, state = logits(model), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    tamper(folder, EDITS[name][0])
    with pytest.raises(AdapterFileError):
        model.load_adapter(folder, "default", is_trainable=True)
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(same_bits(after[key], state[key]) for key in state)
    assert same_bits(logits(model), want)


@pytest.mark.parametrize("name", SOME)
def test_a_second_adapter_that_is_refused_leaves_a_model_that_works(name, base, folder):
    model = adapted(base)
    want, backup = logits(model), contents(folder)
    tamper(folder, EDITS[name][0])
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


@pytest.mark.parametrize("how", BROKEN)
def test_damaged_files_are_refused_before_the_model_is_touched(how, base, folder):
    (folder / WEIGHTS).write_bytes(BROKEN[how]((folder / WEIGHTS).read_bytes()))
    bad, modules, before = contents(folder), [type(module) for module in base.modules()], base_weights(base)
    with pytest.raises(AdapterFileError, match=rf"{folder / WEIGHTS}: it is damaged or cut short"):
        PeftModel.from_pretrained(base, folder)
    assert [type(module) for module in base.modules()] == modules
    assert changed(before, base) == []
    assert contents(folder) == bad


def test_damage_is_found_as_well_when_resuming(base, folder):
    model = adapted(base, k=K, coverage=0.5)
    want = logits(model)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(SafetensorError):  # PEFT reads the file, and nothing of ours runs before
        model.load_adapter(folder, "default", is_trainable=True)
    assert same_bits(logits(model), want)


class _Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle was run",)


def test_a_pickle_is_refused_unread(base, folder):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Bomb()))
    modules = [type(module) for module in base.modules()]
    with pytest.raises(AdapterFileError, match=r"adapter_model.bin is a pickle, .* adapter_model.safetensors"):
        PeftModel.from_pretrained(base, folder)
    assert [type(module) for module in base.modules()] == modules


def test_a_pickle_beside_a_sound_file_is_not_looked_at(base, folder):
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Bomb()))
    PeftModel.from_pretrained(base, folder)


def test_a_config_that_cannot_be_meant_is_refused(base, folder):
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"mode": "in-place"}))
    with pytest.raises(NeuroAdaError, match=r"mode='in-place'.*Did you mean 'inplace'"):
        PeftModel.from_pretrained(base, folder)


def test_state_dicts_given_by_hand_are_checked_as_files_are(base):
    model = adapted(base)
    want, state = logits(model), get_peft_model_state_dict(model)
    state[DELTAS] = torch.full_like(state[DELTAS], torch.nan)
    with pytest.raises(AdapterFileError, match=f"{NAME}.*not finite"):
        set_peft_model_state_dict(model, state)
    assert same_bits(logits(model), want)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_hidden_layers": 1}, r"7 weights that the model does not adapt, such as model\.layers\.1"),
        ({"intermediate_size": 44}, r"mlp\.down_proj: the base weights"),
        ({"hidden_size": 16}, r"model\.layers\.0"),
    ],
    ids=["fewer layers", "wider", "narrower"],
)
def test_another_architecture_is_refused(overrides, message, base, folder):
    other = tiny("llama", **overrides)
    source = dict(base.named_parameters())
    for name, parameter in other.named_parameters():
        if parameter.shape == source[name].shape:
            parameter.data.copy_(source[name])
    with pytest.raises(AdapterFileError, match=message):
        PeftModel.from_pretrained(other, folder)


def test_verification_can_be_declined_and_the_rest_is_still_checked(base, folder):
    other = tiny("llama", seed=1)
    PeftModel.from_pretrained(other, folder, verify_base=False)
    tamper(folder, EDITS["index too large"][0])
    with pytest.raises(AdapterFileError, match="indices reach"):
        PeftModel.from_pretrained(tiny("llama", seed=1), folder, verify_base=False)
