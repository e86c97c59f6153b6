"""The GPT against transformers' Llama, against itself without a cache, and against its own promises."""

import math
import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf import load_model, save_model
from lora_alpha import GPT, GPTConfig, inject_lora, rope_tables, rotate

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
SHAPES = {
    "plain": {},
    "grouped": dict(num_key_value_heads=2),
    "one key head": dict(num_key_value_heads=1),
    "tied": dict(tie_word_embeddings=True),
    "llama3 rope": dict(num_key_value_heads=2, rope_scaling=LLAMA3),
    "wide heads": dict(head_dim=16, num_key_value_heads=2),
    "narrow heads": dict(head_dim=4, tie_word_embeddings=True, rope_scaling=LLAMA3, rope_theta=500.0),
}


def tiny(seed=0, **options):
    """A random GPT whose attention is peaked: scores of a standard deviation of several."""
    torch.manual_seed(seed)
    config = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                  max_position_embeddings=64)
    model = GPT(GPTConfig(**{**config, **options}))
    shake(model)
    return model.eval()


@torch.no_grad()
def shake(model):
    for name, p in model.named_parameters():
        if p.dim() == 1:
            p.uniform_(0.5, 1.5)
        else:
            p.normal_(std=0.4 if "q_proj" in name or "k_proj" in name else 0.2)


def llama_of(model):
    """transformers' model with the same weights, put there tensor by tensor and not by the code under test."""
    c = model.config
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.rope_scaling:
        rope = {"rope_type": "llama3", "rope_theta": c.rope_theta, **c.rope_scaling}
    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers, num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads, head_dim=c.head_dim, rms_norm_eps=c.rms_norm_eps,
        max_position_embeddings=c.max_position_embeddings, rope_parameters=rope, attn_implementation="eager",
        tie_word_embeddings=c.tie_word_embeddings)).eval()
    missing = llama.load_state_dict(model.state_dict(), strict=True)
    assert not missing.missing_keys and not missing.unexpected_keys
    return llama


def tokens(model, B=2, T=40, seed=1):
    return torch.randint(model.config.vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def far(a, b):
    """Largest difference over the largest logit."""
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_logits_are_those_of_transformers(shape, seed):
    """Logits equal LlamaForCausalLM's to a relative 1e-5 of the largest, with attention far from uniform."""
    model = tiny(seed, **SHAPES[shape])
    idx = tokens(model, T=64)
    with torch.no_grad():
        out = llama_of(model)(idx, output_attentions=True)
        assert max(a[:, :, 8:].amax(-1).mean() for a in out.attentions) > 0.4  # peaked: uniform would be below 0.12
        assert far(model(idx)[0], out.logits) <= 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_reads_a_saved_folder(shape, tmp_path):
    """save_model's folder opens in AutoModelForCausalLM with the same logits and end tokens."""
    model = tiny(3, **SHAPES[shape], bos_token_id=1, eos_token_id=(2, 5))
    save_model(model, tmp_path)
    llama, loading = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    idx = tokens(model)
    with torch.no_grad():
        assert far(model(idx)[0], llama.eval()(idx).logits) <= 1e-5
    assert llama.generation_config.eos_token_id == [2, 5]
    assert llama.generation_config.bos_token_id == 1


def test_a_folder_comes_back_bit_for_bit(tmp_path):
    """save_model and load_model lose nothing of weights and config."""
    model = tiny(5, **SHAPES["narrow heads"], bos_token_id=7, eos_token_id=(0, 9))
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert again.lm_head.weight is again.model.embed_tokens.weight


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 3000), st.integers(0, 99), st.booleans())
def test_rope_is_relative(p, q, shift, seed, scaled):
    """rotate(q, p)·rotate(k, p') depends on p - p' alone, but for float32's rounding of the angles."""
    config = GPTConfig(hidden_size=32, num_attention_heads=4, rope_scaling=LLAMA3 if scaled else None)
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(1, 1, 1, 8, generator=generator, dtype=torch.float64) for _ in range(2))

    def score(i, j):
        turned = [rotate(x, *(t.double() for t in rope_tables(config, torch.tensor([n])))) for x, n in ((a, i), (b, j))]
        return (turned[0] * turned[1]).sum().item()

    # An angle n·f is off by at most u·|n·f| for the product and as much again, shared by both sides, for f itself; f's
    # error is a true function of the difference and cancels. cos and sin add u each. u = 2^-24, four angles a side.
    bound = 4 * 2**-24 * (max(p, q) + shift + 4) * (a.norm() * b.norm()).item()
    assert abs(score(p, q) - score(p + shift, q + shift)) <= bound


@given(st.integers(0, 999), st.integers(1, 20), st.data())
@settings(max_examples=25)
def test_attention_is_causal(seed, T, data):
    """Another token at position t changes no logit before t by a single bit, and some logit from t on."""
    model = tiny(0, num_key_value_heads=2)
    idx = tokens(model, B=1, T=T, seed=seed)
    t = data.draw(st.integers(0, T - 1))
    other = idx.clone()
    other[0, t] = (idx[0, t] + data.draw(st.integers(1, 60))) % 61
    with torch.no_grad():
        left, right = model(idx)[0], model(other)[0]
    assert torch.equal(left[:, :t], right[:, :t])
    assert not torch.equal(left[:, t], right[:, t])


@torch.no_grad()
def alone(model, prompt, max_new_tokens, stop=()):
    """Greedy decoding the slow way: the whole sequence through the model for every token."""
    ids = list(prompt)
    while len(ids) - len(prompt) < max_new_tokens and len(ids) < model.config.max_position_embeddings:
        ids.append(int(model(torch.tensor([ids]))[0][0, -1].float().argmax()))
        if ids[-1] in stop:
            break
    return ids[len(prompt):]


PROMPTS = st.lists(st.lists(st.sampled_from([0, 0, 1, 2, 3, 7, 30, 60]), min_size=1, max_size=24), max_size=6)


@given(PROMPTS, st.integers(0, 12), st.sets(st.integers(0, 60), max_size=20), st.integers(0, 3))
@settings(max_examples=60)
def test_a_batch_answers_as_its_rows_alone(prompts, new, stop, seed):
    """A batch with prompts of all lengths, ids 0 and full contexts gives each row's own greedy answer."""
    model = tiny(seed, num_key_value_heads=2, max_position_embeddings=24).double()
    assert model.generate(prompts, new, stop) == [alone(model, prompt, new, stop) for prompt in prompts]


def test_several_stop_tokens_end_their_rows():
    """Each row ends with the first stop token it meets, whichever it is, and keeps it."""
    model = tiny(1).double()
    prompts = [[5], [6, 7], [8, 9, 10]]
    free = model.generate(prompts, 12)
    stop = {free[0][3], free[1][6]}
    for row, whole in zip(model.generate(prompts, 12, stop), free):
        cut = next((i + 1 for i, token in enumerate(whole) if token in stop), 12)
        assert row == whole[:cut]


def test_a_row_at_the_end_of_the_context_leaves_the_others_alone():
    """A row that fills the context stops there, and its neighbours go on as without it."""
    model = tiny(2, max_position_embeddings=16).double()
    full, nearly, short = list(range(16)), list(range(13)), [3, 1]
    rows = model.generate([full, nearly, short], 14)
    assert [len(row) for row in rows] == [0, 3, 14]
    assert rows[2] == model.generate([short], 14)[0] == alone(model, short, 14)
    assert rows[1] == alone(model, nearly, 14)


def test_the_padding_id_in_a_prompt_is_a_token():
    """Zeros at a prompt's start, middle and end are read like any other id."""
    model = tiny(6).double()
    prompts = [[0], [0, 0, 0, 0], [5, 0, 7, 0], [5, 7], [0, 5, 7], [9, 0, 0, 0, 0, 0, 0]]
    rows = model.generate(prompts, 8)
    assert rows == [alone(model, prompt, 8) for prompt in prompts]
    assert len({tuple(row) for row in rows}) > 1


def test_sampling_with_a_seed_repeats():
    """One seed gives one answer; other seeds give others."""
    model = tiny(7)

    def draw(seed):
        return model.generate([[1, 2], [3]], 20, temperature=1.5, top_p=0.95,
                              generator=torch.Generator().manual_seed(seed))

    assert draw(0) == draw(0)
    assert len({str(draw(seed)) for seed in range(4)}) == 4


def test_a_tiny_nucleus_is_greedy():
    """A top_p so small that it holds one token, or a temperature near 0, gives the greedy answer."""
    model = tiny(8)
    prompts = [[1, 2, 3], [4]]
    greedy = model.generate(prompts, 15)
    assert model.generate(prompts, 15, temperature=1.0, top_p=1e-6) == greedy
    assert model.generate(prompts, 15, temperature=1e-4) == greedy


def test_sampled_tokens_follow_the_softmax_of_the_nucleus():
    """Frequencies of the first sampled token agree with softmax(logits / T) cut to the smallest set holding top_p."""
    model = tiny(9)
    n, temperature, top_p = 4000, 2.0, 0.7
    with torch.no_grad():
        p = (model(torch.tensor([[1, 2]]))[0][0, -1].double() / temperature).softmax(0)
    kept, mass = {}, 0.0
    for i in sorted(range(61), key=lambda i: -p[i]):
        if mass >= top_p:
            break
        kept[i], mass = p[i].item(), mass + p[i].item()
    rows = model.generate([[1, 2]] * n, 1, temperature=temperature, top_p=top_p,
                          generator=torch.Generator().manual_seed(0))
    drawn = [row[0] for row in rows]
    assert set(drawn) <= kept.keys()
    for i, share in kept.items():  # 5 standard deviations
        share /= mass
        assert abs(drawn.count(i) - n * share) <= 5 * math.sqrt(n * share * (1 - share)) + 1


@pytest.mark.parametrize("prompts", [[[]], [[1], []], [list(range(17))], [[1], [2] * 30]])
def test_empty_and_too_long_prompts_are_refused(prompts):
    """A prompt without tokens or beyond the context is a ValueError, and the mode stays as it was."""
    model = tiny(max_position_embeddings=16).train()
    with pytest.raises(ValueError):
        model.generate(prompts, 4)
    assert model.training


@pytest.mark.parametrize("options", [dict(temperature=-1.0), dict(temperature=1.0, top_p=0.0), dict(top_p=1.5),
                                     dict(temperature=math.nan), dict(temperature=1.0, top_p=math.nan)])
def test_bad_sampling_options_are_refused(options):
    """A temperature below 0 or not a number, or a top_p outside (0, 1], is a ValueError."""
    with pytest.raises(ValueError):
        tiny().generate([[1]], 4, **options)


def test_the_loss_is_the_mean_over_targets():
    """The loss is the mean of -log softmax at the targets; positions of -100 count for nothing."""
    model = tiny(10)
    idx = tokens(model, B=3, T=9)
    targets = tokens(model, B=3, T=9, seed=2)
    targets[0, :4], targets[1], targets[2, 8] = -100, -100, -100
    with torch.no_grad():
        logits, loss = model(idx, targets)
    total, count = 0.0, 0
    for b in range(3):
        for t in range(9):
            if targets[b, t] != -100:
                row = [math.exp(v) for v in logits[b, t].tolist()]
                total, count = total - math.log(row[targets[b, t]] / sum(row)), count + 1
    assert count == 13
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_no_targets_means_no_loss():
    """Without targets the loss is None."""
    model = tiny()
    assert model(tokens(model))[1] is None


def test_too_long_an_input_is_refused():
    """One token beyond the context is a ValueError; the full context is not."""
    model = tiny(max_position_embeddings=16)
    model(torch.zeros(1, 16, dtype=torch.long))
    with pytest.raises(ValueError):
        model(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("training", [True, False])
def test_generate_leaves_the_mode(training):
    """generate leaves train or eval mode as it was, in every module."""
    model = tiny().train(training)
    model.generate([[1, 2], [3]], 3)
    assert all(module.training is training for module in model.modules())


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                  "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"])
@pytest.mark.parametrize("value", [-1, 2.5, "8"])
def test_bad_sizes_are_refused(name, value):
    """A size below 1 or not a whole number is a ValueError that names it."""
    with pytest.raises(ValueError, match=name):
        GPTConfig(**{name: value})


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                  "num_attention_heads", "max_position_embeddings"])
def test_a_size_of_zero_is_refused(name):
    """A size of 0 is a ValueError, not a division by zero."""
    with pytest.raises(ValueError):
        GPTConfig(**{name: 0})


@pytest.mark.parametrize("sizes", [dict(num_attention_heads=6, num_key_value_heads=4), dict(head_dim=7),
                                   dict(num_attention_heads=2, num_key_value_heads=4),
                                   dict(hidden_size=24, num_attention_heads=8), dict(hidden_size=4)])
def test_sizes_that_do_not_fit_are_refused(sizes):
    """Key heads that do not divide the heads, and odd or empty heads, are a ValueError."""
    with pytest.raises(ValueError):
        GPTConfig(**sizes)


@given(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.booleans())
@settings(max_examples=6)
def test_a_saved_model_keeps_its_dtype(dtype, tied):
    """A folder written in one dtype is read back in it, bit for bit."""
    model = tiny(11, tie_word_embeddings=tied).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder)
        again = load_model(folder)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(model.parameters(), again.parameters()))


def test_an_adapted_output_head_answers():
    """LoRA on an untied lm_head, asked for by name, leaves generate at work; at B = 0 with the same tokens."""
    model = tiny()
    before = model.generate([[1, 2, 3]], 5)
    inject_lora(model, 2, targets=["lm_head", "q_proj"])
    assert model.generate([[1, 2, 3]], 5) == before
