"""Generation: the same texts at any batch size, greedy whatever the model's settings say, nothing left changed."""

import logging
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from neuroada import NeuroAdaConfig, held
from neuroada.errors import ConfigError
from neuroada.tasks import generation
from neuroada.tasks.generation import Sampling, context_length, fit_prompts, generate

PROMPTS = ["a", "the quick brown fox", "To be, or not to be:", "x" * 40, "question", "?", "b b b", "0123456789" * 6]


@pytest.fixture
def llama(tiny_llama):
    """In float64, with sharp logits, so that rounding decides no tie."""
    return tiny_llama.double().eval()


def alone(model, tokenizer, prompt: str, count: int) -> str:
    """Greedy decoding by hand: no cache, no padding, no `generate`."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) - start < count:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                return tokenizer.decode(ids[start:-1])
    return tokenizer.decode(ids[start:])


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_texts_are_those_of_decoding_by_hand_at_any_batch_size(llama, byte_tokenizer, batch_size):
    expected = [alone(llama, byte_tokenizer, prompt, 12) for prompt in PROMPTS]
    assert len(set(expected)) > 4
    found = generate(llama, byte_tokenizer, PROMPTS, batch_size=batch_size, max_new_tokens=12)
    assert found == expected


def padded_on_the_right(rows, pad):
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def unmasked(rows, pad):
    ids, mask = ORIGINAL(rows, pad)
    return ids, torch.ones_like(mask)


ORIGINAL = generation._padded


@pytest.mark.parametrize("fault", [padded_on_the_right, unmasked])
def test_padding_on_the_right_or_unmasked_would_be_noticed(llama, byte_tokenizer, monkeypatch, fault):
    right = generate(llama, byte_tokenizer, PROMPTS, batch_size=8, max_new_tokens=12)
    monkeypatch.setattr(generation, "_padded", fault)
    assert generate(llama, byte_tokenizer, PROMPTS, batch_size=8, max_new_tokens=12) != right


def test_a_text_ends_before_the_end_token_and_has_no_padding(llama, byte_tokenizer):
    """One prompt of the batch ends at once, because its first token is made the end; the other goes on."""
    first = byte_tokenizer(alone(llama, byte_tokenizer, PROMPTS[0], 1))["input_ids"][0]
    others = [p for p in PROMPTS[1:] if first not in byte_tokenizer(alone(llama, byte_tokenizer, p, 6))["input_ids"]]
    llama.generation_config.eos_token_id = [first]
    found = generate(llama, byte_tokenizer, [PROMPTS[0], *others], batch_size=8, max_new_tokens=6)
    assert others
    assert found[0] == ""
    assert found[1:] == [alone(llama, byte_tokenizer, prompt, 6) for prompt in others]


WILD = {"do_sample": True, "temperature": 5.0, "top_p": 0.5, "top_k": 3, "repetition_penalty": 9.0, "num_beams": 2,
        "max_length": 3, "no_repeat_ngram_size": 1, "suppress_tokens": [1, 2, 3], "min_new_tokens": 2}  # fmt: skip


def test_greedy_is_greedy_whatever_the_models_own_settings(llama, byte_tokenizer, caplog):
    expected = generate(llama, byte_tokenizer, PROMPTS, batch_size=4, max_new_tokens=8)
    own = GenerationConfig(**WILD, eos_token_id=byte_tokenizer.eos_token_id)
    llama.generation_config = own
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = generate(llama, byte_tokenizer, PROMPTS, batch_size=4, max_new_tokens=8)
    finally:
        transformers_logger.removeHandler(caplog.handler)
    assert found == expected
    assert llama.generation_config is own
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_model_and_tokenizer_are_left_as_they_were(llama, byte_tokenizer):
    llama.train()
    llama.model.layers[0].eval()
    modes = [module.training for module in llama.modules()]
    byte_tokenizer.padding_side = "right"
    byte_tokenizer.pad_token = None
    settings = llama.generation_config.to_dict()
    weights = [parameter.clone() for parameter in llama.parameters()]
    generate(llama, byte_tokenizer, PROMPTS, batch_size=3, max_new_tokens=3)
    assert [module.training for module in llama.modules()] == modes
    assert (byte_tokenizer.padding_side, byte_tokenizer.pad_token) == ("right", None)
    assert llama.generation_config.to_dict() == settings
    assert all(torch.equal(one, other) for one, other in zip(weights, llama.parameters(), strict=True))


def test_dropout_is_off_even_in_a_model_that_is_training(make_tiny_llama, byte_tokenizer):
    model = make_tiny_llama(attention_dropout=0.9)
    expected = generate(model.eval(), byte_tokenizer, PROMPTS, batch_size=8, max_new_tokens=6)
    assert generate(model.train(), byte_tokenizer, PROMPTS, batch_size=8, max_new_tokens=6) == expected


def test_prompts_of_like_length_share_a_batch_longest_first(llama, byte_tokenizer, monkeypatch):
    batches = []
    monkeypatch.setattr(generation, "_padded", lambda rows, pad: batches.append(rows) or ORIGINAL(rows, pad))
    generate(llama, byte_tokenizer, PROMPTS, batch_size=3, max_new_tokens=1)
    lengths = [len(row) for rows in batches for row in rows]
    assert lengths == sorted(map(len, PROMPTS), reverse=True)


def test_all_is_restored_after_a_failure(llama, byte_tokenizer, monkeypatch):
    own = llama.generation_config
    llama.train()
    monkeypatch.setattr(generation, "_padded", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(llama, byte_tokenizer, PROMPTS, batch_size=3, max_new_tokens=3)
    assert llama.training
    assert llama.generation_config is own


def test_progress_counts_prompts(llama, byte_tokenizer):
    done = []
    generate(llama, byte_tokenizer, PROMPTS, batch_size=3, max_new_tokens=1, advance=done.append)
    assert done == [3, 3, 2]


def test_no_prompt_is_no_text(llama, byte_tokenizer):
    assert generate(llama, byte_tokenizer, [], batch_size=3, max_new_tokens=1) == []


def test_sampling_is_seeded_and_leaves_the_generator_alone(llama, byte_tokenizer):
    before = torch.random.get_rng_state()
    draw = {
        seed: [
            generate(
                llama, byte_tokenizer, PROMPTS[:2], batch_size=2, max_new_tokens=6, sampling=Sampling(2.0, seed=seed)
            )
            for _ in range(2)
        ]
        for seed in (0, 1)
    }
    assert draw[0][0] == draw[0][1]
    assert draw[0][0] != draw[1][0]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_published_sampling_with_beams_runs_without_warnings(llama, byte_tokenizer):
    from neuroada.tasks.arithmetic import PUBLISHED_SAMPLING

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = generate(llama, byte_tokenizer, PROMPTS, batch_size=4, max_new_tokens=5, sampling=PUBLISHED_SAMPLING)
    assert len(found) == len(PROMPTS)


def test_a_prompt_too_long_for_the_context_is_cut_from_the_left_and_counted(llama, byte_tokenizer):
    long = "".join(chr(97 + n % 26) for n in range(300))
    assert context_length(llama, byte_tokenizer) == 256
    with pytest.warns(UserWarning, match="1 of 2 prompts are longer than the context"):
        found = generate(llama, byte_tokenizer, [long, "a"], batch_size=2, max_new_tokens=6)
    assert found[0] == generate(llama, byte_tokenizer, [long[-250:]], batch_size=1, max_new_tokens=6)[0]
    encoded, cut = fit_prompts(llama, byte_tokenizer, [long, long[:250]], 6)
    assert ([len(tokens) for tokens in encoded], cut) == ([250, 250], 1)


def test_a_context_without_room_for_a_prompt(llama, byte_tokenizer):
    with pytest.raises(ConfigError, match="256 new tokens after a prompt: the model's context is 256 tokens"):
        generate(llama, byte_tokenizer, ["a"], batch_size=1, max_new_tokens=256)


def test_an_empty_batch_size(llama, byte_tokenizer):
    with pytest.raises(ConfigError, match="batch size 0"):
        generate(llama, byte_tokenizer, ["a"], batch_size=0, max_new_tokens=2)


@pytest.mark.parametrize("mode", ["inplace", "transient"])
def test_an_adapter_writes_what_its_merged_model_writes_held_or_not(make_tiny_llama, byte_tokenizer, mode):
    model = get_peft_model(make_tiny_llama(), NeuroAdaConfig(k=2, mode=mode, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    settings = {"batch_size": 3, "max_new_tokens": 8}
    base = generate(make_tiny_llama(), byte_tokenizer, PROMPTS, **settings)
    adapted = generate(model, byte_tokenizer, PROMPTS, **settings)
    with held(model):
        inside = generate(model, byte_tokenizer, PROMPTS, **settings)
    assert adapted != base
    assert inside == adapted
    assert generate(model.merge_and_unload(), byte_tokenizer, PROMPTS, **settings) == adapted


def test_other_adapters_generate_too_and_keep_their_models_settings(make_tiny_llama, byte_tokenizer):
    model = get_peft_model(make_tiny_llama(), LoraConfig(r=2, task_type="CAUSAL_LM"))
    own = model.get_base_model().generation_config
    expected = generate(make_tiny_llama(), byte_tokenizer, PROMPTS, batch_size=3, max_new_tokens=4)
    assert generate(model, byte_tokenizer, PROMPTS, batch_size=3, max_new_tokens=4) == expected
    assert model.get_base_model().generation_config is own


QUESTIONS = [
    "The capital of France is",
    "Please answer the following question with true or false, question: is water wet?\n\nAnswer format: true/false\n",
    "1 + 1 =",
    "Once upon a time there was a small model that",
]


@pytest.mark.long
def test_smollm2_writes_the_same_at_any_batch_size(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    texts = [generate(model, tokenizer, QUESTIONS, batch_size=size, max_new_tokens=6) for size in (1, 3, 8)]
    assert texts[0] == texts[1] == texts[2]
    assert "Paris" in texts[0][0]
