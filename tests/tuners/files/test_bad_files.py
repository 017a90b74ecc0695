"""Adapter files that must be refused: the message names the thing; model, base weights and files stay as they were."""

import copy
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from neuroada.errors import AdapterFileError, NeuroAdaError
from specimens import METHODS, base_weights, changed, every_method, fill, logits, same_bits, tiny

from .tampering import DELTAS, EDITS, NAME, OUT, SOME, WHOLE, Edit

WEIGHTS = "adapter_model.safetensors"
HEAD = "base_model.model.lm_head.weight"


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


@every_method
def test_a_flipped_bit_of_a_value_never_loads(base, folder, kind):
    raw = (folder / WEIGHTS).read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    places = random.Random(0).sample(range(8 * begin, 8 * len(raw)), 100)
    for place in places:
        damaged = bytearray(raw)
        damaged[place // 8] ^= 1 << place % 8
        (folder / WEIGHTS).write_bytes(damaged)
        with pytest.raises(AdapterFileError):
            PeftModel.from_pretrained(base, folder)
        base = tiny("llama")


@every_method
def test_values_changed_on_purpose_load_without_the_digest(base, folder, kind):
    key = {"neuroada_": DELTAS, "neat_": OUT}[kind.prefix]

    def edit(entries):
        entries[key][0, 0] += 1
        del entries[f"{kind.prefix}digest"]

    tamper(folder, edit)
    PeftModel.from_pretrained(base, folder)


@every_method
def test_appended_rows_of_an_embedding_load_with_a_warning(kind, tmp_path):
    def resized(seed: int):
        model = tiny("llama")
        torch.manual_seed(seed)
        model.resize_token_embeddings(model.config.vocab_size + 2, mean_resizing=False)
        return model

    first, second = resized(1), resized(2)
    kind.adapted(first).save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.warns(UserWarning, match="brings 2 rows at the end of base_model.model.model.embed_tokens.weight"):
        loaded = PeftModel.from_pretrained(second, tmp_path)
    assert same_bits(logits(loaded), logits(PeftModel.from_pretrained(resized(1), tmp_path)))


@every_method
def test_embeddings_that_the_base_has_are_left_out(base, kind, tmp_path, recwarn):
    kind.adapted(base).save_pretrained(tmp_path, save_embedding_layers=True)
    PeftModel.from_pretrained(tiny("llama"), tmp_path)
    assert not [str(each.message) for each in recwarn if "rows at the end" in str(each.message)]


HEAD_EDITS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "NaN": (lambda head: head * torch.nan, "not finite"),
    "shape": (lambda head: head[:1].clone(), "has shape"),
    "type": (lambda head: head.int(), "is torch.int32"),
    "value": (lambda head: head + 1, "not those that were saved"),
}


@every_method
@pytest.mark.parametrize("name", HEAD_EDITS)
def test_a_module_saved_whole_is_checked_too(name, kind, tmp_path):
    change, message = HEAD_EDITS[name]
    model = kind.adapted(tiny("llama"), target_modules=["q_proj"], modules_to_save=["lm_head"])
    model.save_pretrained(tmp_path)
    tamper(tmp_path, lambda entries: entries.update({HEAD: change(entries[HEAD])}))
    with pytest.raises(AdapterFileError, match=message):
        PeftModel.from_pretrained(tiny("llama"), tmp_path)
