"""Folders as the hub ships them: model types, shards, tokenizer.json: python -m pytest tests/test_hub.py"""

import json
import random
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedTokenizerFast, Qwen2Config,
                          Qwen3Config)

from hf import load_config, load_model, save_model
from lora_alpha import GPTConfig
from problems import encode_example
from tokens import begin_token, decode, encode_continuation, load_tokenizer

REAL = Path(__file__).parents[2] / "shared/real"
SIZES = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64)
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
IDX = torch.randint(61, (2, 60), generator=torch.Generator().manual_seed(1))
TYPES = {
    "llama": lambda: LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=None, head_dim=12),
    "mistral, window of the context": lambda: MistralConfig(**SIZES, sliding_window=64),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=12),
    "qwen3, tied": lambda: Qwen3Config(**SIZES, tie_word_embeddings=True),
    "qwen2, tied": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True, use_sliding_window=False, sliding_window=8),
}


@torch.no_grad()
def peer(kind):
    """A random model of transformers whose attention is peaked, so that positions and biases show in the logits."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TYPES[kind]()).eval()
    for name, p in model.named_parameters():
        p.copy_(torch.rand_like(p) + 0.5 if p.dim() == 1 and "bias" not in name else torch.randn_like(p) * 0.4)
    return model


def far(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("kind", TYPES)
@torch.no_grad()
def test_a_folder_of_each_type_gives_the_logits_of_transformers(kind, tmp_path):
    """Both ways, to a relative 2e-5, with positions beyond the old context of a scaled RoPE."""
    theirs = peer(kind)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    expected = theirs(IDX).logits
    assert far(ours(IDX)[0], expected) <= 2e-5
    assert far(theirs(IDX, position_ids=torch.zeros_like(IDX)).logits, expected) > 1e-2  # positions matter
    save_model(ours, tmp_path / "ours")
    assert far(AutoModelForCausalLM.from_pretrained(tmp_path / "ours")(IDX).logits, expected) <= 2e-5


@torch.no_grad()
def test_shards_are_one_model(tmp_path):
    """What transformers saves in many shards loads to the same tensors as in one file."""
    theirs = peer("qwen2")
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 3
    whole, shards = load_model(tmp_path / "whole").state_dict(), load_model(tmp_path / "shards").state_dict()
    assert whole.keys() == shards.keys() and all(torch.equal(whole[name], shards[name]) for name in whole)


def shards_of(folder):
    peer("llama").save_pretrained(folder, max_shard_size="10KB")
    return folder / "model.safetensors.index.json"


@pytest.mark.parametrize("spoil, word", [
    (lambda i, m: next(iter(sorted(i.parent.glob("model-*")))).unlink(), "(?i)no such file"),
    (lambda i, m: m.pop("model.norm.weight"), "model.norm.weight"),
    (lambda i, m: m.update({"model.norm.weight": m["model.embed_tokens.weight"]}), "model.norm.weight"),
    (lambda i, m: m.update(strange=m["model.norm.weight"]), "strange"),
    (lambda i, m: m.update({"model.norm.weight": "../" + m["model.norm.weight"]}), "file names in this folder"),
    (lambda i, m: m.update({"model.norm.weight": 3}), "file names in this folder"),
    (lambda i, m: m.clear(), "missing"),
])
def test_spoilt_shards_are_refused_by_name(spoil, word, tmp_path):
    """Missing, stray and traversing shards, and tensors that are not where the index says."""
    index = shards_of(tmp_path)
    raw = json.loads(index.read_text())
    spoil(index, raw["weight_map"])
    index.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=word):
        load_model(tmp_path)


@torch.no_grad()
def test_the_relic_of_old_files_is_passed_over(tmp_path):
    """rotary_emb.inv_freq changes nothing; any other unknown tensor is refused."""
    peer("llama").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, path)
    load_model(tmp_path)
    save_file(tensors | {"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}, path)
    with pytest.raises(ValueError, match="q_norm"):
        load_model(tmp_path)


@pytest.mark.parametrize("change, word", [
    (dict(model_type="qwen2", use_sliding_window=True), "use_sliding_window"), (dict(model_type="gpt2"), "model_type"),
    (dict(model_type="mistral", sliding_window="8"), "sliding_window"),
    (dict(model_type="mistral", sliding_window=0), "sliding_window"),
    (dict(model_type="llama", attention_bias=True), "attention_bias"),
    (dict(model_type="mistral", rope_scaling=dict(rope_type="yarn", factor=2.0)), "rope_scaling"),
])
def test_what_would_be_computed_wrongly_is_refused(change, word, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, **change}))
    with pytest.raises(ValueError, match=word):
        load_config(tmp_path)


def test_a_sliding_window_limits_the_context(tmp_path):
    """Up to the window attention is full; beyond it a text is refused, not computed wrongly."""
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "model_type": "mistral", "sliding_window": 16}))
    assert load_config(tmp_path).max_position_embeddings == 16


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
@pytest.mark.parametrize("path", sorted((REAL / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_real_configs_are_read_or_refused(path, tmp_path):
    """Llama, Mistral, Qwen2 and Qwen3 configs are read; of other architectures none is."""
    (tmp_path / "config.json").write_bytes(path.read_bytes())
    if path.stem.startswith("refuse"):
        with pytest.raises(ValueError, match="not supported"):
            load_config(tmp_path)
    else:
        config, raw = load_config(tmp_path), json.loads(path.read_text())
        assert (config.hidden_size, config.num_hidden_layers) == (raw["hidden_size"], raw["num_hidden_layers"])
        assert config.attention_bias == (raw["model_type"] == "qwen2")
        assert config.qk_norm == (raw["model_type"] == "qwen3")


# tokenizer.json


def library(folder):
    """The tokenizers library's own reading of a folder; special tokens in a text are those tokens."""
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def ids_of(theirs, text):
    """The library's ids of a text in which special tokens are text."""
    theirs.encode_special_tokens = True
    return theirs.encode(text, add_special_tokens=False).ids


DIGITS = [dict(type="Digits", individual_digits=True),
          dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)]
REGEX = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLIT = [dict(type="Split", pattern=dict(Regex=REGEX), behavior="Isolated", invert=False),
         dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)]
GPT2 = [dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)]
PREFIX = [dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True)]
SOURCE = (Path(__file__).parents[1] / "lora_alpha.py").read_text(encoding="utf-8")[:6000]


def train_tokenizer(folder, steps=GPT2, nfc=False, alphabet=None, **changes):
    """A small byte-level BPE made by the tokenizers library, with its special tokens before the rest."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|endoftext|>", "<|im_start|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet() if alphabet is None else alphabet)
    tokenizer.train_from_iterator([SOURCE], trainer)
    raw = json.loads(tokenizer.to_str())
    raw["pre_tokenizer"] = dict(type="Sequence", pretokenizers=steps) if len(steps) > 1 else steps[0]
    raw["normalizer"] = dict(type="NFC") if nfc else None
    raw |= changes
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return json.loads(json.dumps(raw))


def sentencepiece(folder, metaspace=False):
    """A tokenizer.json as Llama 2's and Mistral's: blanks as ▁, one before every text, unknown characters as bytes."""
    model = tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=700, show_progress=False, special_tokens=[
        "<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])
    tokenizer.train_from_iterator([f"▁{word}" for word in SOURCE.split()], trainer)
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = raw["added_tokens"][:3]  # the bytes are vocabulary
    raw["normalizer"] = None if metaspace else dict(type="Sequence", normalizers=[
        dict(type="Prepend", prepend="▁"), dict(type="Replace", pattern=dict(String=" "), content="▁")])
    raw["pre_tokenizer"] = dict(type="Metaspace", replacement="▁", prepend_scheme="first", split=False) \
        if metaspace else None
    raw["decoder"] = dict(type="Sequence", decoders=[
        dict(type="Replace", pattern=dict(String="▁"), content=" "), dict(type="ByteFallback"), dict(type="Fuse"),
        dict(type="Strip", content=" ", start=1, stop=0)])
    raw["post_processor"] = dict(
        type="TemplateProcessing", single=[dict(SpecialToken=dict(id="<s>", type_id=0)),
                                           dict(Sequence=dict(id="A", type_id=0))],
        pair=[dict(Sequence=dict(id="A", type_id=0)), dict(Sequence=dict(id="B", type_id=1))],
        special_tokens={"<s>": dict(id="<s>", ids=[1], tokens=["<s>"])})
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(raw))


ADDED = [dict(id=0, content="<|endoftext|>", special=True, single_word=False, lstrip=False, rstrip=False,
              normalized=False),
         dict(id=500, content="ab!", special=False, single_word=False, lstrip=True, rstrip=False, normalized=False),
         dict(id=501, content="<think>", special=False, single_word=False, lstrip=False, rstrip=True, normalized=False)]
KINDS = {
    "GPT-2": lambda folder: train_tokenizer(folder),
    "split and NFC": lambda folder: train_tokenizer(folder, SPLIT, nfc=True),
    "digits": lambda folder: train_tokenizer(folder, DIGITS),
    "a blank before": lambda folder: train_tokenizer(folder, PREFIX),
    "lower case": lambda folder: train_tokenizer(folder, normalizer=dict(type="Lowercase")),
    "added tokens": lambda folder: train_tokenizer(folder, added_tokens=ADDED),
    "truncated and padded": lambda folder: train_tokenizer(
        folder, truncation=dict(max_length=3, stride=0, strategy="LongestFirst", direction="Right"),
        padding=dict(strategy=dict(Fixed=9), direction="Right", pad_to_multiple_of=None, pad_id=0, pad_type_id=0,
                     pad_token="<|endoftext|>")),
    "SentencePiece": sentencepiece,
    "SentencePiece as Metaspace": lambda folder: sentencepiece(folder, metaspace=True),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{kind: (ours, theirs)} for tokenizers of each kind."""
    pairs = {}
    for kind, make in KINDS.items():
        folder = tmp_path_factory.mktemp("t") / "t"
        make(folder)
        theirs = library(folder)
        theirs.no_truncation()  # a file may hold the settings of its last use: they are none of the vocabulary's
        theirs.no_padding()
        pairs[kind] = load_tokenizer(folder), theirs
    return pairs


@given(st.one_of(st.text(max_size=40),
                 st.text("ab! LORA αé\u0301 \t\n\r'sTll0123½٣.,<>think▁\u00a0\u3000", max_size=40)))
@example("x ab! y <think>  z<|endoftext|>ab!")
@example("<s> a</s>\n ▁b<0x41>")
def test_a_tokenizer_json_gives_the_ids_of_its_own_library(trained, text):
    """Whatever its kind, and its bytes give back what the library decodes, but for the blank before a text."""
    for kind, (ours, theirs) in trained.items():
        ids = ours.encode_ordinary(text)
        assert ids == ids_of(theirs, text), kind
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False), kind
        spelt = b"".join(map(ours.decode_single_token_bytes, ids)).decode(errors="replace")
        assert spelt.removeprefix(" ") == ours.decode(ids).removeprefix(" "), kind


def test_special_tokens_in_a_text_are_text_and_added_ones_that_are_not_special_are_vocabulary(trained):
    """A user's <|endoftext|> ends nothing; <think> is one token, as transformers has it."""
    for kind, (ours, _) in trained.items():
        special = "</s>" if "Sentence" in kind else "<|endoftext|>"
        assert special in ours.special_tokens_set
        end = ours.encode_single_token(special)
        assert end not in ours.encode_ordinary(f"a{special}b") and ours.decode([end]) == special
        assert ours.decode(ours.encode_ordinary(f"a{special}b")).strip() == f"a{special}b"
        with pytest.raises(KeyError):
            ours.encode_single_token("<|no_such_token|>")
    ours, _ = trained["added tokens"]
    assert 501 in ours.encode_ordinary("a<think>b") and "<think>" not in ours.special_tokens_set
    assert ours.eot_token == 0 and ours.max_token_value == 501


def test_a_lone_surrogate_is_no_text(trained):
    """It becomes U+FFFD, as in tiktoken, and ends no run."""
    for ours, theirs in trained.values():
        assert ours.encode_ordinary("a\ud83db") == ids_of(theirs, "a\ufffdb")


def test_the_tokenizer_is_what_transformers_makes_of_the_folder(tmp_path):
    """Llama 2's kind: ids with <s> before, and a continuation without a second blank."""
    sentencepiece(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert [ours.bos, *ours.encode_ordinary("Problem: 1 + 1")] == theirs("Problem: 1 + 1").input_ids
    ids, labels = encode_example(ours, dict(problem="1 + 1", solution="It is 2."), 2, ours.bos)
    assert ids == [*theirs("Problem: 1 + 1\nSolution: It is 2.").input_ids, 2]
    assert decode(ours, ids[labels.count(-100) : -1]) == " It is 2."


def test_a_continuation_loses_nothing_where_blanks_are_collapsed():
    """T5's kind makes every run of white space one blank: a continuation then keeps all its tokens."""
    class Blanks:
        adds_blank = True

        def encode_ordinary(self, text):
            return [ord(c) for c in "▁" + "▁".join(text.split())]

    assert encode_continuation(Blanks(), " 4 5") == [ord(c) for c in "▁4▁5"]


def test_bytes_that_the_vocabulary_lacks_are_dropped(tmp_path):
    """As the tokenizers library drops them, and never a panic."""
    alphabet = [c for c in tokenizers.pre_tokenizers.ByteLevel.alphabet() if c.isascii()]
    train_tokenizer(tmp_path, GPT2, alphabet=alphabet)
    ours, theirs = load_tokenizer(tmp_path), library(tmp_path)
    for text in ("naïve ☃ 中文 \x00\x7f", "é", "a\u200bb", "plain"):
        assert ours.encode_ordinary(text) == ids_of(theirs, text)
    assert ours.encode_ordinary("\x01\x02") == [] and ours.max_token_value < 500


@pytest.mark.parametrize("change", [
    lambda raw: raw["model"].update(type="Strange"), lambda raw: raw.pop("model"),
    lambda raw: raw["model"]["merges"].append(["no", "where"]), lambda raw: raw["model"]["vocab"].update(a="x"),
    lambda raw: raw["model"]["vocab"].update(a=-1), lambda raw: raw["model"].update(vocab={}, merges=[]),
    lambda raw: raw["pre_tokenizer"].update(type="Split", pattern=dict(Regex="("), behavior="Isolated", invert=False)],
    ids=["model", "no model", "merge", "id a string", "id negative", "empty", "pattern"])
def test_a_tokenizer_json_that_the_library_cannot_use_is_refused(change, tmp_path):
    """One ValueError that names the file."""
    raw = train_tokenizer(tmp_path)
    load_tokenizer(tmp_path)
    change(raw)
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="tokenizer.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_tokenizer_json_that_is_none_is_refused(content, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match="tokenizer.json"):
        load_tokenizer(tmp_path)


def test_a_text_begins_as_the_tokenizer_says(tmp_path):
    """The file's own template decides: Llama 3 has a token there, Qwen and SmolLM2 none, whatever config.json says."""
    config = GPTConfig(bos_token_id=7)
    raw = train_tokenizer(tmp_path)
    assert begin_token(load_tokenizer(tmp_path), config) is None
    single = [dict(SpecialToken=dict(id="<|im_start|>", type_id=0)), dict(Sequence=dict(id="A", type_id=0))]
    template = dict(type="TemplateProcessing", single=single, pair=[dict(Sequence=dict(id="A", type_id=0))],
                    special_tokens={"<|im_start|>": dict(id="<|im_start|>", ids=[1], tokens=["<|im_start|>"])})
    for processor in (template, dict(type="Sequence", processors=[
            dict(type="ByteLevel", add_prefix_space=True, trim_offsets=False, use_regex=True), template])):
        raw["post_processor"] = processor
        (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
        assert begin_token(load_tokenizer(tmp_path), config) == 1
    assert begin_token(load_tokenizer(Path(__file__).parents[1] / "data/base"), config) == 7


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
@pytest.mark.parametrize("name, golden", [("qwen3", "qwen2"), ("smollm2", "smollm2_reconstructed")])
def test_real_tokenizers_give_the_ids_of_their_own_library(name, golden):
    """Golden ids, the naughty strings, 23 languages, source code and random strings."""
    folder = REAL / "tokenizers" / name
    ours, theirs = load_tokenizer(folder), library(folder)
    texts = [(REAL / "text" / file).read_text(encoding="utf-8") for file in (
        "blns.txt", "tldr_multilingual.md", "nanogpt_model.py.txt")]
    rng = random.Random(0)
    letters = "abc ABC  \t\n\r'sSlLve0123456789é\u0301🙂中文١٢½ :.,!?_-\u00a0\u200b\u2028"
    texts += ["".join(rng.choices(letters, k=rng.randint(0, 30))) for _ in range(300)]
    for text in texts:
        assert ours.encode_ordinary(text) == ids_of(theirs, text)
    lines = (REAL / "tokenizers/golden" / f"{golden}.jsonl").read_bytes().decode().split("\n")
    for case in (json.loads(line) for line in lines if line):
        if "<|" not in case["text"]:  # there, special tokens are not text
            assert ours.encode_ordinary(case["text"]) == case["ids"], case["text"]
