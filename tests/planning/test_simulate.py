"""The simulated step against real ones, counted by another tool; a few blocks against all of them."""

import gc
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

import neuroada  # noqa: F401
from allocations import Allocations
from neuroada.baselines import wrap_mask
from neuroada.measure.benchmarks.methods import adapted_names
from neuroada.planning.devices import find_device
from neuroada.planning.plan import LABELS, Request, Simulator, _applied
from neuroada.planning.simulate import Memory, Tracker, extrapolated, train_step

TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def request_for(blocks: int = 3, device: str = "cpu", **fields) -> Request:
    config = LlamaConfig(num_hidden_layers=blocks, **TINY)
    return Request(config, find_device(device), **({"dtype": "float32", "batch": 2, "sequence": 32} | fields))


def real_peak(request: Request, method: str, make_tiny_llama) -> int:
    """Most bytes alive in a second step of real training, without a simulation."""
    model = make_tiny_llama(num_hidden_layers=request.skeleton.blocks, **TINY).to(getattr(torch, request.dtype))
    model.requires_grad_(method == "full").train()
    if request.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if method == "mask":
        wrap_mask(model, adapted_names(model), 1)
    wrapped = _applied(request, method, model)
    for layer in wrapped.modules():
        layer.saved_input = "whole"  # as the simulation, which cannot know the columns
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, fused=True)
    inputs = request.skeleton.inputs(request.batch, request.sequence)

    def step() -> None:
        loss = wrapped(**inputs).loss
        loss.backward()
        del loss
        optimiser.step()
        optimiser.zero_grad()

    step()
    gc.collect()
    with Allocations() as made:
        step()
    return made.peak


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", LABELS)
def test_a_simulated_step_makes_what_a_real_one_makes(method, checkpointing, make_tiny_llama):
    request = request_for(blocks=2, checkpointing=checkpointing)
    memory = Simulator(request, method, checkpointing).memory(request.batch)
    _, at_peak = memory.peak()
    simulated = at_peak.total() - at_peak["weights"] - at_peak["adapter"] - at_peak["optimiser"]
    assert simulated == pytest.approx(real_peak(request, method, make_tiny_llama), rel=0.001)


@pytest.mark.parametrize(("method", "checkpointing"), [("neuroada", False), ("lora", True), ("full", False)])
def test_a_few_blocks_tell_what_all_need(method, checkpointing):
    simulator = Simulator(request_for(blocks=6), method, checkpointing)
    few = simulator.memory(2)
    whole = simulator._simulated(None, 2)
    assert few.peak()[1] == whole.peak()[1]
    assert few.most() == whole.most()


def test_blocks_that_differ_are_simulated_one_and_all(monkeypatch):
    request = request_for(blocks=5)
    build = type(request.skeleton).build

    def uneven(self, blocks=None):
        model = build(self, blocks)
        if blocks is None:
            model.model.layers[3].mlp.up_proj = torch.nn.Linear(64, 176, bias=True, device="meta")
        return model

    monkeypatch.setattr(type(request.skeleton), "build", uneven)
    simulator = Simulator(request, "full", False)
    sizes = []
    simulated = simulator._simulated
    monkeypatch.setattr(simulator, "_simulated", lambda blocks, batch: sizes.append(blocks) or simulated(blocks, batch))
    simulator.memory(1)
    assert sizes == [None]


@pytest.mark.parametrize("method", LABELS)
def test_each_phase_is_affine_in_the_batch(method):
    simulator = Simulator(request_for(blocks=1), method, False)
    peaks = [simulator.memory(batch).peaks for batch in (4, 5, 6)]
    for phase in ("head", "step"):
        totals = [found[phase].total() for found in peaks]
        assert totals[2] - totals[1] == totals[1] - totals[0], phase


def test_a_block_that_keeps_more_is_noticed(monkeypatch):
    request = request_for()
    plain = Simulator(request, "full", False).memory(2)
    build = type(request.skeleton).build
    kept = []

    def hoarding(self, blocks=None):
        model = build(self, blocks)
        model.model.layers[1].register_forward_hook(lambda module, args, output: kept.append(output.clone()))
        return model

    monkeypatch.setattr(type(request.skeleton), "build", hoarding)
    hoarded = Simulator(request, "full", False).memory(2)
    extra = 2 * 32 * 64 * 4
    assert hoarded.most()["activations"] - plain.most()["activations"] == extra
    assert hoarded.peak()[1].total() - plain.peak()[1].total() == extra


def test_parts_are_what_they_are_called():
    request = request_for()
    parameters = sum(parameter.numel() for parameter in request.skeleton.build().parameters())
    most = Simulator(request, "full", False).memory(2).most()
    assert most["weights"] == pytest.approx(4 * parameters, rel=0.001)  # and the frequencies of the positions
    assert most["gradients"] == 4 * parameters
    assert most["optimiser"] == pytest.approx(8 * parameters, rel=0.001)
    assert most["logits"] >= 2 * 2 * 32 * 512 * 4
    adapted = sum(layer.numel() for name, layer in request.skeleton.build().named_parameters() if "proj" in name)
    masked = Simulator(request, "mask", False).memory(2).most()
    assert masked["adapter"] == adapted  # a byte an entry
    assert masked["gradients"] == 4 * adapted


def test_checkpointing_keeps_less_and_computes_blocks_again():
    request = request_for(blocks=4, sequence=64)
    without, with_it = (Simulator(request, "lora", on).memory(2).most() for on in (False, True))
    assert with_it["activations"] < without["activations"] / 3
    assert with_it["working"] > without["working"]


@pytest.mark.parametrize("device", ["cpu", "h100"])
def test_attention_makes_no_square_matrix(device):
    most = []
    for sequence in (128, 256):
        request = request_for(blocks=2, device=device, dtype="bfloat16", sequence=sequence)
        most.append(Simulator(request, "full", False).memory(1).most()["activations"])
    assert most[1] == pytest.approx(2 * most[0], rel=0.01)


def test_attention_on_cuda_is_plain_where_no_kernel_is():
    plain = request_for(blocks=2, device="h100", dtype="float32", sequence=256)  # grouped queries, not 16 bits
    most = Simulator(plain, "full", False).memory(1).most()["activations"]
    assert most > 2 * 4 * 256 * 256 * 4


def test_older_devices_have_the_efficient_kernel_alone():
    config = LlamaConfig(num_hidden_layers=2, **(TINY | {"num_key_value_heads": 4}))
    most = {}
    for device in ("t4", "h100"):
        for dtype in ("bfloat16", "float16"):
            request = Request(config, find_device(device), dtype=dtype, sequence=256)
            most[device, dtype] = Simulator(request, "full", False).memory(1).most()["activations"]
    square = 2 * 4 * 256 * 256 * 2
    assert most["t4", "bfloat16"] > most["t4", "float16"] + square / 2
    assert most["t4", "float16"] == pytest.approx(most["h100", "float16"], rel=0.05)


def test_what_is_held_beside_the_weights_counts():
    request = request_for(dtype="bfloat16", k=2)
    entries = 3 * 2 * (2 * 64 + 2 * 32 + 2 * 176 + 64)
    adapter = Simulator(request, "neuroada", False).memory(1).most()["adapter"]
    assert adapter == entries * (4 + 4 + 2)  # deltas, indices, originals


def test_cuda_hands_out_whole_blocks():
    tracker = Tracker(granularity=512)
    tensors = [torch.empty(1), torch.empty(129)]
    for tensor in tensors:
        tracker.know(tensor, "weights", None)
    assert tracker.live["weights"] == 512 + 1024


def test_shared_storage_counts_once_and_dies_once():
    tracker = Tracker()
    model = torch.nn.Linear(4, 4)
    with tracker:
        kept = model.weight * 2
        view = kept[1:]
        del kept
        alive = tracker.live["activations"]
        del view
    assert alive == 64
    assert tracker.live["activations"] == 0


def test_a_peak_at_either_end_is_found():
    def memory(blocks: int, slope: int) -> Memory:
        from collections import Counter

        phases = {f"backward {block}": Counter(activations=100 + slope * block) for block in range(blocks)}
        return Memory(dict(phases), dict(phases))

    for slope in (-7, 7):
        found = extrapolated(memory(3, slope), memory(4, slope), 3, 40)
        assert found.peak()[1].total() == memory(40, slope).peak()[1].total()


def test_the_optimiser_has_its_states_from_the_beginning():
    model = torch.nn.Linear(8, 8, bias=False)
    tracker = Tracker()
    tracker.know(model.weight, "weights", 0)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = model

        def forward(self, x):
            return SimpleNamespace(loss=self.linear(x).sum())

    memory = train_step(Model(), {"x": torch.ones(2, 8)}, [model.weight], tracker)
    assert memory.peaks["forward 0"]["optimiser"] == pytest.approx(2 * 256, abs=8)
