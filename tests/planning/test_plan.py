"""Plans: what they count, the largest batch, and what they refuse."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from rich.console import Console
from safetensors.torch import save_file
from transformers import AutoConfig, LlamaConfig, T5Config

from neuroada import NeuroAdaConfig
from neuroada.errors import ConfigError, MissingInputError
from neuroada.ops import processor
from neuroada.planning.devices import DEVICES, find_device
from neuroada.planning.plan import Request, Simulator, count, largest_fitting, plan, safetensors_size
from neuroada.planning.skeleton import load_config
from neuroada.planning.table import plan_as_dict, print_plan

CPU = find_device("cpu")
ONE_BLOCK = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4
)


def request_in(folder: Path, **fields) -> Request:
    return Request(load_config(str(folder)), CPU, **({"dtype": "float32", "batch": 2, "sequence": 16} | fields))


@pytest.mark.parametrize(
    ("method", "config"),
    [("neuroada", NeuroAdaConfig(k=3, task_type="CAUSAL_LM")), ("lora", LoraConfig(r=4, target_modules="all-linear"))],
)
def test_file_and_trained_values_are_those_of_a_real_adapter(method, config, tiny_llama, tiny_model_dir, tmp_path):
    model = get_peft_model(tiny_llama, config)
    model.save_pretrained(tmp_path)
    trainable, _, file = count(request_in(tiny_model_dir, k=3, rank=4), method)
    assert file == pytest.approx((tmp_path / "adapter_model.safetensors").stat().st_size, rel=0.02)
    assert trainable == model.get_nb_trainable_parameters()[0]


def test_k_by_pattern_is_counted_as_an_adapter_has_it(tiny_llama, tiny_model_dir, tmp_path):
    pattern = {"q_proj": 5, r"layers\.1\.mlp\.\w+": 9}
    model = get_peft_model(tiny_llama, NeuroAdaConfig(k=3, k_pattern=pattern, task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    request = request_in(tiny_model_dir, k=3, k_pattern=pattern)
    trainable, _, file = count(request, "neuroada")
    assert trainable == model.get_nb_trainable_parameters()[0] == count(request, "mask")[0]
    assert file == pytest.approx((tmp_path / "adapter_model.safetensors").stat().st_size, rel=0.02)


@pytest.mark.parametrize(("pattern", "alike"), [({"q_proj": 40}, True), ({r"layers\.3\.mlp\.up_proj": 40}, False)])
def test_blocks_of_different_k_are_all_simulated(pattern, alike):
    config = LlamaConfig(**{**ONE_BLOCK.to_dict(), "num_hidden_layers": 5})
    request = Request(config, CPU, sequence=16, k_pattern=pattern)
    simulator = Simulator(request, "neuroada", False)
    assert request.uniform is alike
    assert plan_as_dict(request, "tiny", [])["k_pattern"] == pattern
    found = simulator.memory(1).most()
    assert found == simulator._simulated(None, 1).most()
    plain = Simulator(Request(config, CPU, sequence=16), "neuroada", False).memory(1).most()
    entries = count(request, "neuroada")[0] - count(Request(config, CPU, sequence=16), "neuroada")[0]
    deltas_indices_and_originals = 4 + 4 + 2
    assert found["adapter"] - plain["adapter"] == pytest.approx(entries * deltas_indices_and_originals, rel=0.02)


def test_smollm2_has_a_delta_for_each_neuron(smollm2):
    trainable, total, file = count(Request(load_config(str(smollm2)), CPU), "neuroada")
    assert (trainable, total) == (155_520, 134_515_008)
    assert trainable * (4 + 2) < file < 1_000_000


def test_files_of_whole_weights(tiny_llama, tiny_model_dir, tmp_path):
    masked, _, mask_file = count(request_in(tiny_model_dir), "mask")
    trained, total, full_file = count(request_in(tiny_model_dir), "full")
    assert full_file == pytest.approx((tiny_model_dir / "model.safetensors").stat().st_size, rel=0.02)
    adapted = {name: weight for name, weight in tiny_llama.state_dict().items() if "proj" in name}
    save_file(adapted, tmp_path / "adapted.safetensors")
    assert mask_file == pytest.approx((tmp_path / "adapted.safetensors").stat().st_size, rel=0.02)
    assert trained == total == sum(parameter.numel() for parameter in tiny_llama.parameters())
    assert masked == sum(len(weight) for weight in adapted.values())


def test_the_size_of_a_file_is_exact(tiny_llama, tmp_path):
    state = {name: tensor.contiguous() for name, tensor in tiny_llama.state_dict().items()}
    save_file(state, tmp_path / "file.safetensors", metadata={"format": "pt"})
    assert safetensors_size(state) == (tmp_path / "file.safetensors").stat().st_size


lines = st.tuples(st.integers(0, 50), st.integers(0, 9)).map(lambda pair: (pair[0] * 10, pair[1]))


@given(st.lists(lines, min_size=1, max_size=4), st.integers(0, 3000), st.integers(1, 40))
def test_the_largest_batch_fits_and_the_next_does_not(affine, room, known):
    affine = [*affine, (0, 1)]
    asked = []

    def peak(batch: int) -> int:
        asked.append(batch)
        return max(start + slope * batch for start, slope in affine)

    found = largest_fitting(peak, room, known)
    assert found == max((batch for batch in range(1, room + 2) if peak(batch) <= room), default=0)


def test_the_largest_batch_takes_three_steps_where_memory_is_affine():
    asked = []

    def peak(batch: int) -> int:
        asked.append(batch)
        return 1000 + 37 * batch

    assert largest_fitting(peak, 100_000, 8) == 2675
    assert set(asked) == {1, 8, 2675}


def test_the_largest_batch_of_a_model_fits_and_the_next_does_not():
    request = Request(ONE_BLOCK, find_device("1.02GB"), batch=8, sequence=16)
    (found,) = plan(request, ["full"])
    peak = Simulator(request, "full", False).peak
    room = request.device.memory - request.device.runtime
    assert found.largest_batch > 8
    assert peak(found.largest_batch) <= room < peak(found.largest_batch + 1)


@pytest.mark.parametrize(("device", "differs"), [("h200", False), ("cpu", True)])
def test_a_plan_for_a_gpu_does_not_depend_on_this_processor(device, differs, monkeypatch):
    request = Request(ONE_BLOCK, find_device(device), "bfloat16", k=3, batch=64, sequence=64)
    found = []
    for emulated in (False, True):
        monkeypatch.setattr(processor, "_are_missing", lambda dtype, emulated=emulated: emulated)
        found.append(Simulator(request, "neuroada", checkpointing=True).memory(64).largest)
    assert (found[0] != found[1]) is differs


def test_nothing_fits_a_tiny_device():
    (found,) = plan(Request(ONE_BLOCK, find_device("1MiB"), sequence=16), ["full"])
    assert found.largest_batch == 0


def test_each_method_stands_in_the_table_with_what_it_needs():
    request = Request(ONE_BLOCK, find_device("2GB"), k=2, sequence=16)
    plans = plan(request, ["neuroada", "mask"])
    printed = io.StringIO()
    print_plan(Console(width=100, file=printed), request, "tiny", plans)
    for phrase in ("NeuroAda k=2", "mask-based k=2", "- checkpointed", "largest batch"):
        assert phrase in printed.getvalue()
    assert "*" not in printed.getvalue()
    assert f"{2 * (4 * 64 + 2 * 128 + 64):,}" in printed.getvalue()
    as_dict = json.loads(json.dumps(plan_as_dict(request, "tiny", plans)))
    assert [method["method"] for method in as_dict["methods"]] == ["neuroada", "mask"]
    for method in as_dict["methods"]:
        assert 0 < method["peak"] <= sum(method["parts"].values())
        assert method["parts"]["activations_checkpointed"] < method["parts"]["activations"]


@pytest.mark.parametrize("model_type", ["roberta", "vit", "gpt2", "mixtral"])
def test_other_kinds_of_models(model_type):
    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "vocab_size": 256} if model_type == "mixtral" else {}
    request = Request(AutoConfig.for_model(model_type, **small, **experts), CPU, sequence=16)
    trainable, total, _ = count(request, "neuroada")
    assert 0 < trainable < total
    assert Simulator(request, "neuroada", False).memory(2).most()["activations"] > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 0}, "--k 0: less than 1"),
        ({"rank": 0}, "--rank 0: less than 1"),
        ({"batch": 0}, "--batch 0: less than 1"),
        ({"sequence": -1}, "--seq -1: less than 1"),
        ({"dtype": "bfloat"}, "--dtype bfloat: not a known one. Did you mean 'bfloat16'?"),
        ({"sequence": 257}, "--seq 257: the model has 256 positions. Give at most 256."),
    ],
)
def test_refusals(fields, message, tiny_model_dir):
    with pytest.raises(ConfigError) as caught:
        plan(request_in(tiny_model_dir, **fields), ["full"])
    assert message in str(caught.value)


def test_unknown_method_lists_the_known(tiny_model_dir):
    with pytest.raises(ConfigError, match=r"--method lara: .* Did you mean 'lora'\? Known: neuroada, lora, mask, full"):
        plan(request_in(tiny_model_dir), ["lara"])


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="type 't5': it is neither a causal language model nor an encoder"):
        plan(Request(T5Config(), CPU), ["full"])


def test_roberta_has_fewer_positions_than_embeddings():
    config = AutoConfig.for_model("roberta", max_position_embeddings=514)
    assert Request(config, CPU, sequence=512).skeleton
    with pytest.raises(ConfigError, match="the model has 512 positions"):
        _ = Request(config, CPU, sequence=513).skeleton


def test_a_missing_model_says_how_to_give_one():
    with pytest.raises(MissingInputError, match=r"model no/such: no usable config.json .* give a directory"):
        load_config("no/such")


def test_k_above_the_inputs_warns_and_counts_all_of_them():
    small = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 48}
    config = LlamaConfig(num_hidden_layers=1, vocab_size=64, **small)
    with pytest.warns(UserWarning, match="k=40 is more than these weights have inputs"):
        (found, *_), (masked, *_) = (count(Request(config, CPU, k=40), method) for method in ("neuroada", "mask"))
    assert found == masked == 32 * (4 * 32 + 2 * 48) + 32 * 40


@pytest.mark.parametrize(
    ("name", "memory"),
    [("24GiB", 24 << 30), ("24gb", 24_000_000_000), ("1.5TB", 1_500_000_000_000), ("H200", DEVICES["h200"])],
)
def test_devices_by_name_and_by_memory(name, memory):
    assert find_device(name).memory == memory
    assert find_device(name).cuda


@pytest.mark.parametrize("name", ["h300", "", "24", "GiB", "0GB", "12ib"])
def test_unknown_devices_list_the_known(name):
    if name == "24":
        assert find_device("24").memory == 24  # bytes
        return
    with pytest.raises(ConfigError, match=r"Known: h200, h100, .*, cpu, or bytes such as 24GiB"):
        find_device(name)


def test_this_machine_is_a_device():
    assert CPU.memory > CPU.runtime > 0
    assert not CPU.cuda
