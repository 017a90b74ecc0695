"""Two processes with DistributedDataParallel train what one process trains."""

import torch

from .checks import (
    adapter_is_whole,
    adapter_loads_and_merges,
    report,
    same_deltas,
    same_run,
    size,
    tolerance,
)
from .courses import adapted, deltas, distance, regrowing, train
from .launch import PROCESSES


def test_deltas_are_those_of_one_process(name, given, two_ddp, one_process):
    assert report(two_ddp / name)["wrapped"]
    same_deltas(two_ddp / name, given[name], *one_process(name))


def test_saved_adapter_is_whole(name, two_ddp, one_process):
    adapter_is_whole(two_ddp / name, one_process(name)[0])


def test_saved_adapter_loads_and_merges(name, given, two_ddp):
    adapter_loads_and_merges(two_ddp / name, given[name])


def test_base_weights_are_the_pretrained_ones_after_it(name, two_ddp):
    assert report(two_ddp / name)["changed"] == []


def test_supports_stay_held_and_current_all_along(sparse, given, two_ddp):
    held_and_never_lifted = [True, 0]
    assert report(two_ddp / sparse)["held"] == [[held_and_never_lifted] * given[sparse].steps] * PROCESSES


def test_layers_that_share_an_input_unite_their_columns_once(sparse, two_ddp):
    once = [1]
    assert report(two_ddp / sparse)["unions"] == [once] * PROCESSES


def test_half_of_the_batch_is_noticed(given, two_ddp, one_process, tmp_path):
    train(given["tiny"], tmp_path, per_device_train_batch_size=2)
    assert distance(deltas(two_ddp / "tiny"), deltas(tmp_path)) > 10 * tolerance(*one_process("tiny"))


def test_a_recipe_is_trained_once(two_ddp, one_run):
    assert same_run(two_ddp / "recipe" / "run", one_run)["merge"]["equal"]


def test_a_loop_of_ones_own_with_plain_replicas(given, two_ddp, one_loop):
    found = report(two_ddp / "bare")
    assert found["sent"] == 0, "indices never change"
    assert found["unions"] == [[1]] * PROCESSES
    same_deltas(two_ddp / "bare", given["tiny"], *one_loop)


def test_processes_regrow_the_inputs_that_one_process_regrows(given, two_ddp, tmp_path):
    found = report(two_ddp / "regrown")
    assert found["indices"] == found["indices"][:1] * PROCESSES
    assert found["changed"] == []
    made = train(given["tiny"], tmp_path, regrowing(given["tiny"]))
    assert found["indices"][0] == [buffer.tolist() for buffer in made.model.buffers() if buffer.dtype == torch.int32]
    assert found["indices"][0] != [
        each.tolist() for each in adapted(given["tiny"]).buffers() if each.dtype == torch.int32
    ]
    assert distance(deltas(two_ddp / "regrown"), deltas(tmp_path)) <= 1e-3 * size(tmp_path)


def test_processes_that_chose_differently_all_say_so(two_ddp):
    messages = report(two_ddp / "other")["messages"]
    assert len(messages) == PROCESSES
    for message in messages:
        assert message.startswith("Training in several processes: they chose other inputs for 8 of 8 weights, such as")
        assert "model.layers.0.self_attn.q_proj" in message
        assert "set the same seed before layers are initialised anew" in message
