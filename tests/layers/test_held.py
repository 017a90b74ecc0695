"""held(model): supports stay in the weights from one end of the context to the other, and nothing else changes."""

import copy

import pytest
import torch

from neuroada import NeuroAdaConfig, NeuroAdaLinear, held
from neuroada.errors import MergeError, NeuroAdaError, WeightError
from neuroada.ops.sparse_delta import is_held
from specimens import MODES, adapted, base_weights, changed, fill, logits, same_bits, tiny, token_ids

DTYPES = (torch.float32, torch.bfloat16)


def adapted_layers(model: torch.nn.Module) -> list[NeuroAdaLinear]:
    return [module for module in model.modules() if isinstance(module, NeuroAdaLinear)]


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    model = adapted(tiny(request.param), "a")
    model.add_adapter("b", NeuroAdaConfig(k=3))
    fill(model, "b")
    return model


@pytest.mark.parametrize("mode", [*MODES, "auto"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_inside_equals_outside_and_the_base_comes_back(family, dtype, mode):
    model = adapted(tiny(family).to(dtype), mode=mode)
    before, outside = base_weights(model), logits(model)
    with held(model):
        assert same_bits(logits(model), outside)
        assert all(is_held(layer.get_base_layer().weight) == (mode != "transient") for layer in adapted_layers(model))
        assert bool(changed(before, model)) == (mode != "transient")
    assert changed(before, model) == []
    assert same_bits(logits(model), outside)


def test_disabling_and_switching_inside(model):
    before, first = base_weights(model), logits(model)
    with model.disable_adapter():
        base = logits(model)
    model.set_adapter("b")
    second = logits(model)
    model.set_adapter("a")
    with held(model):
        with model.disable_adapter():
            assert same_bits(logits(model), base)
        model.set_adapter("b")
        assert same_bits(logits(model), second)
        model.set_adapter("a")
        assert same_bits(logits(model), first)
        model.delete_adapter("b")
        assert same_bits(logits(model), first)
    assert changed(before, model) == []


def test_held_while_disabled_holds_nothing(model):
    first = logits(model)
    with model.disable_adapter(), held(model):
        assert not any(is_held(layer.get_base_layer().weight) for layer in adapted_layers(model))
    assert same_bits(logits(model), first)


def test_several_active_adapters(model):
    before = base_weights(model)
    model.base_model.set_adapter(["a", "b"])
    outside = logits(model)
    with held(model):
        assert same_bits(logits(model), outside)
    assert changed(before, model) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_inside_swaps_out(model, error):
    before = base_weights(model)

    def interrupted() -> None:
        with held(model):
            logits(model)
            raise error

    with pytest.raises(error):
        interrupted()
    assert changed(before, model) == []


def test_nested_contexts_end_with_the_outermost(model):
    before, outside = base_weights(model), logits(model)
    with held(model):
        with held(model):
            assert same_bits(logits(model), outside)
        assert changed(before, model)
        assert same_bits(logits(model), outside)
    assert changed(before, model) == []


def test_one_block_may_be_held_alone(model):
    before, outside = base_weights(model), logits(model)
    block = adapted_layers(model)[0]
    with held(block):
        assert changed(before, model)
        with held(model):
            assert same_bits(logits(model), outside)
        assert [is_held(layer.get_base_layer().weight) for layer in adapted_layers(model)].count(True) == 1
    assert changed(before, model) == []


def test_generation(model):
    ids = token_ids()
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    outside = model.generate(ids, **settings)
    with held(model):
        inside = model.generate(ids, **settings)
    assert torch.equal(inside.sequences, outside.sequences)
    assert all(same_bits(*pair) for pair in zip(inside.logits, outside.logits, strict=True))


@pytest.mark.parametrize("active", [["a"], ["a", "b"]], ids="".join)
def test_accumulated_gradients(model, active):
    model.base_model.set_adapter(active)
    model.train()
    before = base_weights(model)

    def accumulate() -> list[torch.Tensor]:
        model.zero_grad()
        for micro_batch in token_ids(rows=4).split(2):
            model(micro_batch, labels=micro_batch).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    outside = accumulate()
    with held(model):
        inside = accumulate()
    assert outside
    assert all(same_bits(*pair) for pair in zip(inside, outside, strict=True))
    assert changed(before, model) == []


def test_policy_and_reference_inside(model):
    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])

    want = gradients(model(token_ids(), labels=token_ids()).loss)
    with held(model):
        policy = model(token_ids(), labels=token_ids()).loss
        with model.disable_adapter():
            reference = model(token_ids(), labels=token_ids()).loss
        got = gradients(policy - reference.detach())
    assert all(same_bits(*pair) for pair in zip(got, want, strict=True))


def test_an_optimiser_step_inside_is_seen_at_once(model):
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    before = base_weights(model)
    with held(model):
        stale = logits(model)
        model(token_ids(), labels=token_ids()).loss.backward()
        optimiser.step()
        inside = logits(model)
    assert not torch.equal(inside, stale)
    assert same_bits(logits(model), inside)
    assert changed(before, model) == []


def test_backward_after_leaving_and_after_entering(model):
    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])

    def loss() -> torch.Tensor:
        return model(token_ids(), labels=token_ids()).loss

    want = gradients(loss())
    with held(model):
        begun_inside = loss()
    begun_outside = loss()
    with held(model):
        ended_inside = gradients(begun_outside)
    for got in (gradients(begun_inside), ended_inside):
        assert all(same_bits(*pair) for pair in zip(got, want, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_a_head_tied_to_the_embedding(mode):
    base = tiny("llama", tie_word_embeddings=True)
    want = logits(base)
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        model = adapted(base, target_modules=["lm_head", "q_proj"], mode=mode)
    assert model.base_model.model.lm_head.get_base_layer().weight is model.get_input_embeddings().weight
    before, outside = base_weights(model), logits(model)
    embedded = model.get_input_embeddings()(token_ids())
    with held(model):
        assert same_bits(logits(model), outside)
        assert same_bits(model.get_input_embeddings()(token_ids()), embedded)
        with model.disable_adapter():
            assert same_bits(logits(model), want)
    assert changed(before, model) == []


def test_merging_inside_is_refused(model):
    before, outside = base_weights(model), logits(model)
    with held(model):
        for merge in (model.merge_adapter, model.merge_and_unload):
            with pytest.raises(MergeError, match=r"swapped in by neuroada.held.*Merge after leaving that context"):
                merge()
        assert same_bits(logits(model), outside)
    assert changed(before, model) == []
    assert same_bits(logits(model.merge_and_unload()), outside)


def test_a_merged_model_is_left_as_it_is(model):
    outside = logits(model)
    model.merge_adapter()
    merged = base_weights(model)
    with held(model):
        assert changed(merged, model) == []
        assert same_bits(logits(model), outside)
    assert changed(merged, model) == []


def test_unloading_inside_gives_the_base_back(model):
    before = base_weights(model)
    with held(model):
        base = model.unload()
    assert changed(before, base) == []


def test_weights_loaded_inside_are_kept_and_reported(model):
    """New base weights must not be mixed with originals that were put aside before."""
    new = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in base_weights(model).items()}

    def load_inside() -> None:
        with held(model):
            for name, parameter in model.get_base_model().named_parameters():
                if "neuroada_" not in name:
                    parameter.detach().copy_(new[name.replace(".base_layer.", ".")])

    with pytest.raises(WeightError, match=r"written to while the support was held"):
        load_inside()
    assert changed(new, model) == []


def test_copying_inside_is_right_or_refused(model):
    outside = logits(model)
    with held(model):
        try:
            twin = copy.deepcopy(model)
        except NeuroAdaError:
            return
    assert same_bits(logits(twin), outside)


def test_steps_of_other_optimisers_change_nothing(model):
    other = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.SGD([other], lr=0.1)
    with held(model):
        loss = model(input_ids=token_ids(), labels=token_ids()).loss
        other.sum().backward()
        optimiser.step()
        loss.backward()


def test_replicating_a_held_layer_is_refused(model):
    layer = adapted_layers(model)[0]
    with held(model), pytest.raises(WeightError, match=r"DataParallel: its adapter is swapped in"):
        layer._replicate_for_data_parallel()
    layer._replicate_for_data_parallel()
