"""NEAT in whole models: left alone by held(model), in parallel, and copied."""

import copy

import torch
from peft import PeftModel
from torch import nn

from neuroada import held
from specimens import NEAT_KINDS, base_weights, changed, fill, logits, same_bits, tiny, token_ids


def test_held_leaves_it_alone():
    model = NEAT_KINDS[0].adapted(tiny("llama"))
    before, want = base_weights(model), logits(model)
    with held(model):
        assert changed(before, model) == []
        assert same_bits(logits(model), want)


def test_distributed_data_parallel_trains_it_as_one_process_does(tmp_path):
    plain = NEAT_KINDS[0].adapted(tiny("llama", num_hidden_layers=1))
    twin = copy.deepcopy(plain)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(twin)
        for model in (plain, parallel):
            for _ in range(2):
                model(input_ids=token_ids(), labels=token_ids()).loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    pairs = zip(plain.named_parameters(), twin.named_parameters(), strict=True)
    for (name, ours), (_, theirs) in pairs:
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or same_bits(ours.grad, theirs.grad)


def test_a_copy_keeps_nothing_of_the_original():
    model = NEAT_KINDS[0].adapted(tiny("llama"))
    want = logits(model)
    twin: PeftModel = copy.deepcopy(model)
    fill(twin, scale=1.0)
    assert not torch.equal(logits(twin), want)
    assert same_bits(logits(model), want)
