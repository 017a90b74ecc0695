"""Two processes with FSDP2 train what one process trains, and save all of it."""

import pytest
from peft import PeftModel
from safetensors.torch import load_file

from neuroada.errors import AdapterFileError
from specimens import same_bits

from .checks import TINY, adapter_is_whole, adapter_loads_and_merges, report, same_deltas, same_run
from .courses import WEIGHTS, pretrained


def test_deltas_are_those_of_one_process(name, given, two_fsdp, one_process):
    same_deltas(two_fsdp / name, given[name], *one_process(name))


def test_deltas_and_blocks_were_sharded(sparse, given, two_fsdp):
    found, blocks = report(two_fsdp / sparse), given[sparse].blocks
    assert found["sharded_deltas"] == found["deltas"] == blocks * (4 if sparse in TINY else 7)
    assert found["units"] > blocks


def test_saved_adapter_is_whole(name, two_fsdp, one_process):
    adapter_is_whole(two_fsdp / name, one_process(name)[0])


def test_saved_adapter_loads_and_merges(name, given, two_fsdp):
    adapter_loads_and_merges(two_fsdp / name, given[name])


def test_base_weights_are_the_pretrained_ones_after_it(name, two_fsdp):
    assert report(two_fsdp / name)["changed"] == []


def test_a_base_that_differs_is_refused(given, two_fsdp):
    base = pretrained(given["tiny"])
    base.model.layers[1].self_attn.v_proj.weight.data.mul_(1.5)
    with pytest.raises(AdapterFileError, match=r"layers\.1\.self_attn\.v_proj: the base weights .* are not those"):
        PeftModel.from_pretrained(base, two_fsdp / "tiny" / "adapter")


def test_weights_that_one_process_alone_has_loaded(given, two_fsdp, one_process):
    folder = two_fsdp / "loaded-by-one"
    same_deltas(folder, given["tiny"], *one_process("tiny"))
    adapter_is_whole(folder, one_process("tiny")[0])
    adapter_loads_and_merges(folder, given["tiny"])


def test_an_adapter_read_where_one_process_alone_has_the_weights(two_fsdp):
    folder = two_fsdp / "loaded-by-one"
    before, after = (load_file(each / "adapter" / WEIGHTS) for each in (folder, folder / "again"))
    assert before.keys() == after.keys()
    assert [name for name in before if not same_bits(before[name], after[name])] == []


def test_a_resumed_training_ends_with_the_same_bits(two_fsdp):
    folder = two_fsdp / "resumed"
    whole, resumed = (load_file(each / "adapter" / WEIGHTS) for each in (folder / "whole", folder))
    assert [name for name in whole if not same_bits(whole[name], resumed[name])] == []


def test_a_sharded_model_is_not_saved_in_part(two_fsdp):
    """`save_pretrained` needs the gathered state dict, which Trainer gives it; PEFT says nothing better of LoRA."""
    assert report(two_fsdp / "ungathered")["message"] != ""
    assert not (two_fsdp / "ungathered" / "adapter" / WEIGHTS).exists()


def test_a_recipe_is_trained_once_and_its_adapter_gathered(given, two_fsdp, one_run):
    folder = two_fsdp / "recipe" / "run"
    assert same_run(folder, one_run)["merge"] is None
    adapter_is_whole(folder, one_run)
    adapter_loads_and_merges(folder, given["tiny"])


def test_the_function_of_torch_itself(given, two_fsdp, one_loop):
    found = report(two_fsdp / "bare")
    assert found["sharded_deltas"] == found["deltas"] == 8
    same_deltas(two_fsdp / "bare", given["tiny"], *one_loop)
    adapter_is_whole(two_fsdp / "bare", one_loop[0])
