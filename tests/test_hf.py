"""Folders, adapters and tokenizers against transformers, PEFT and published ids, and what is refused."""

import json
import shutil
import tempfile
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import hf
from hf import copy_tokenizer, load_adapter, load_config, load_model, save_adapter, save_model
from lora_alpha import GPT, GPTConfig, inject_lora, lora_layers
from problems import encode_example
from tokens import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "data" / "base"
REAL = ROOT.parent / "shared" / "real"
GOLDEN = {"qwen": "qwen2", "llama3": "llama-bpe"}
CONFIG = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=64)
IDX = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(1))
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
JSON_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 5), st.floats(), st.text(max_size=5), st.just(10**400), st.just(2.5),
    st.lists(st.integers(-1, 3), max_size=2), st.dictionaries(st.text(max_size=5), st.integers(-1, 3), max_size=2),
    st.lists(st.text(max_size=3), max_size=2))


@torch.no_grad()
def shake(model, seed=0, lora_std=0.02):
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.copy_(torch.randn(p.shape, generator=generator) * lora_std)
        elif p.dim() == 1:
            p.copy_(torch.rand(p.shape, generator=generator) + 0.5)
        else:
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return model


def tiny(**options):
    return shake(GPT(GPTConfig(**{**CONFIG, **options}))).eval()


def llama_with(model):
    c = model.config
    llama = LlamaForCausalLM(LlamaConfig(**CONFIG, head_dim=c.head_dim, rms_norm_eps=c.rms_norm_eps,
                                         tie_word_embeddings=c.tie_word_embeddings,
                                         rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta}))
    llama.load_state_dict(model.state_dict())
    return llama.eval()


@torch.no_grad()
def far(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def untouched(model, before):
    now = dict(model.named_parameters())
    return (now.keys() == before.keys() and all(torch.equal(now[n], before[n]) for n in now)
            and all(p.requires_grad for p in now.values()) and not lora_layers(model))


# ---- Adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    dict(rank=16, alpha=1024.0), dict(rank=8), dict(rank=3, alpha=6, targets=["q_proj", "v_proj"]), dict(rank=1, c=4.0),
    dict(rank=2, alpha=20.0, targets=["layers.1.self_attn.q_proj", "layers.0.mlp.up_proj"]),
    dict(rank=2, alpha=20.0, targets=r".*\.0\..*(gate|down)_proj"), dict(rank=2, alpha=20.0, targets=["lm_head"])],
    ids=str)
def test_peft_reads_a_saved_adapter(options, tmp_path):
    """PeftModel.from_pretrained on save_adapter's folder gives this model's logits to a relative 1e-5."""
    model = tiny()
    llama = llama_with(model)
    plain = model(IDX)[0].detach()
    shake_lora(inject_lora(model, **options))
    save_adapter(model, tmp_path, base="somewhere/base")
    read = peft.PeftModel.from_pretrained(llama, tmp_path).eval()
    with torch.no_grad():
        ours = model(IDX)[0]
        assert far(read(IDX).logits, ours) <= 1e-5
        assert far(plain, ours) > 1e-2  # the adapter does something
    config = peft.PeftConfig.from_pretrained(tmp_path)
    assert config.base_model_name_or_path == "somewhere/base" and config.r == options["rank"]
    layers = sum("lora_A" in name for name, _ in read.named_parameters())
    assert layers == len(lora_layers(model))  # PEFT adapts no layer more


@torch.no_grad()
def shake_lora(model):
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(model).values():
        std = 0.3 / layer.rank**0.5 / layer.scaling**0.5 / 3
        for p in (layer.lora_A, layer.lora_B):
            p.copy_(torch.randn(p.shape, generator=generator) * std)
    return model


def test_an_adapter_comes_back_bit_for_bit(tmp_path):
    """save_adapter and load_adapter lose nothing: A, B, rank, alpha, dropout, layers."""
    model = shake_lora(inject_lora(tiny(), 4, alpha=12.5, targets=["o_proj", "layers.0.mlp.up_proj"], dropout=0.25))
    save_adapter(model, tmp_path)
    again = lora_layers(load_adapter(tiny(), tmp_path))
    assert again.keys() == lora_layers(model).keys()
    for name, layer in lora_layers(model).items():
        assert torch.equal(layer.lora_A, again[name].lora_A) and torch.equal(layer.lora_B, again[name].lora_B)
        assert (layer.rank, layer.alpha, layer.dropout) == (again[name].rank, again[name].alpha, again[name].dropout)


def test_a_bfloat16_adapter_is_trained_on_in_float32(tmp_path):
    """Whatever dtype the file has, A and B are float32 and of the same values."""
    save_adapter(shake_lora(inject_lora(tiny(), 4)), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    halves = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(halves, path)
    for name, layer in lora_layers(load_adapter(tiny(), tmp_path)).items():
        for half, tensor in (("A", layer.lora_A), ("B", layer.lora_B)):
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, halves[f"base_model.model.{name}.lora_{half}.weight"].float())


def adapter_folder(folder, **config):
    save_adapter(shake_lora(inject_lora(tiny(), 4, targets=["q_proj", "up_proj"])), folder)
    path = Path(folder, "adapter_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return Path(folder)


def edit(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_model_without_adapters_saves_none(tmp_path):
    """save_adapter of a plain model is a ValueError that writes nothing."""
    with pytest.raises(ValueError):
        save_adapter(tiny(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---- Damage ----------------------------------------------------------------------------------------------------------


def spoil_bytes(path, data):
    """Cuts, overwrites or replaces the bytes of a file as hypothesis likes."""
    raw = path.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "junk", "flip"]))
    if kind == "cut":
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    elif kind == "junk":
        raw = data.draw(st.binary(max_size=40))
    else:
        at = data.draw(st.integers(0, min(len(raw), 3000) - 1))
        raw = raw[:at] + bytes([raw[at] ^ data.draw(st.integers(1, 255))]) + raw[at + 1 :]
    path.write_bytes(raw)


def loads_or_refuses(load):
    """Runs load; anything but success, ValueError or OSError fails the test."""
    try:
        load()
    except (ValueError, OSError):
        pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model folder and an adapter folder to copy from."""
    root = tmp_path_factory.mktemp("good")
    save_model(tiny(num_hidden_layers=1, rope_scaling={"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                                       "original_max_position_embeddings": 32}), root / "model")
    adapter_folder(root / "adapter")
    return root


def open_folder(folder, kind):
    if kind == "model":
        model = load_model(folder)
        model(IDX[:, :1] * 0)
    else:
        load_adapter(tiny(), folder)


def test_damaged_files_are_refused(folders, fuzz):
    """Whatever happens to the bytes of a file, reading it works or is a ValueError or OSError, never another error."""
    @given(st.data())
    @fuzz(80)
    def holds(data):
        kind, name = data.draw(st.sampled_from([
            ("model", "config.json"), ("model", "generation_config.json"), ("model", "model.safetensors"),
            ("adapter", "adapter_config.json"), ("adapter", "adapter_model.safetensors")]))
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(folders / kind, folder, dirs_exist_ok=True)
            spoil_bytes(Path(folder, name), data)
            loads_or_refuses(lambda: open_folder(folder, kind))

    holds()


def test_a_config_with_a_wrong_value_is_refused(folders, fuzz):
    """Any JSON value under any key of a config loads or is a ValueError or OSError, never another error."""
    @given(st.data())
    @fuzz(200)
    def holds(data):
        kind, name = data.draw(st.sampled_from([("model", "config.json"), ("adapter", "adapter_config.json")]))
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(folders / kind, folder, dirs_exist_ok=True)
            path = Path(folder, name)
            config = json.loads(path.read_text())
            key = data.draw(st.sampled_from([*config, "rope_parameters"]))
            value = data.draw(JSON_VALUES)
            assume(key != "num_hidden_layers" or value != 10**400)  # so many layers take for ever to build
            path.write_text(json.dumps({**config, key: value}))
            loads_or_refuses(lambda: open_folder(folder, kind))

    holds()


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"a":' * 100_000, "\x00", "1" * 5000],
                         ids=["empty", "list", "null", "cut", "deep list", "deep object", "zero byte", "number"])
@pytest.mark.parametrize("kind, name", [("model", "config.json"), ("adapter", "adapter_config.json")])
def test_what_is_no_json_object_is_refused(kind, name, text, folders, tmp_path):
    """A config that is empty, cut off, deeply nested or no object is a ValueError."""
    shutil.copytree(folders / kind, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError):
        open_folder(tmp_path, kind)


@pytest.mark.parametrize("kind, name", [("model", "config.json"), ("model", "model.safetensors"),
                                        ("adapter", "adapter_config.json"), ("adapter", "adapter_model.safetensors")])
def test_a_missing_file_is_refused(kind, name, folders, tmp_path):
    """A folder without one of its files, or no folder at all, is a ValueError or OSError that names it."""
    shutil.copytree(folders / kind, tmp_path / "x")
    (tmp_path / "x" / name).unlink()
    with pytest.raises((ValueError, OSError), match=name):
        open_folder(tmp_path / "x", kind)
    with pytest.raises((ValueError, OSError), match="nowhere"):
        open_folder(tmp_path / "nowhere", kind)


@pytest.mark.parametrize("tied", [False, True])
def test_each_missing_strange_or_misshapen_tensor_is_refused(tied, tmp_path):
    """Without any one tensor, with one too many or one of another shape, load_model is a ValueError that names it."""
    save_model(tiny(num_hidden_layers=1, tie_word_embeddings=tied), tmp_path)
    path = tmp_path / "model.safetensors"
    good = load_file(path)
    for name in good:
        for spoilt in ({k: v for k, v in good.items() if k != name},
                       {**good, name: torch.zeros(*good[name].shape, 1)}, {**good, f"{name}.x": torch.zeros(1)}):
            save_file(spoilt, path)
            with pytest.raises(ValueError, match=name):
                load_model(tmp_path)


class Broken(Exception):
    pass


@pytest.mark.parametrize("where", ["replace", "save_file"])
def test_a_failed_write_leaves_the_old_files(where, tmp_path, monkeypatch):
    """When a write breaks off, every file that was there before is still whole, byte for byte."""
    model = tiny()
    save_model(model, tmp_path / "model")
    adapter_folder(tmp_path / "adapter")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}

    def fail(*args, **kwargs):
        if where == "save_file":
            Path(args[1]).write_bytes(b"half a fi")
        raise Broken

    if where == "replace":
        monkeypatch.setattr(hf.os, "replace", fail)
    else:
        monkeypatch.setattr(hf, "save_file", fail)
    other = shake(tiny(), seed=5)
    with pytest.raises(Broken):
        save_model(other, tmp_path / "model")
    with pytest.raises(Broken):
        save_adapter(inject_lora(other, 2), tmp_path / "adapter")
    assert {path: path.read_bytes() for path in before} == before


# ---- Configs and dtypes ----------------------------------------------------------------------------------------------


def write_config(folder, **extra):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **CONFIG, **extra}))


def test_a_bfloat16_folder_stays_bfloat16_unless_told(tmp_path):
    """load_model keeps the file's dtype, and casts to another when asked for it."""
    save_model(tiny().bfloat16(), tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}
    assert {p.dtype for p in load_model(tmp_path).parameters()} == {torch.bfloat16}
    kept, wide = load_model(tmp_path), load_model(tmp_path, torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert all(torch.equal(a.float(), b) for a, b in zip(kept.parameters(), wide.parameters()))
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "longrope"])
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_other_ropes_are_refused(kind, field, tmp_path):
    """A rope type that this GPT lacks is a ValueError under either of its names and either of its fields."""
    for name in ("type", "rope_type"):
        write_config(tmp_path, **{field: {name: kind, "factor": 2.0}})
        with pytest.raises(ValueError, match=field):
            load_config(tmp_path)


def test_end_tokens_come_from_either_file(tmp_path):
    """generation_config.json's end tokens win, one or several, and config.json's serve where it has none."""
    write_config(tmp_path, eos_token_id=3)
    assert load_config(tmp_path).eos_token_id == (3,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 5]}')
    assert load_config(tmp_path).eos_token_id == (0, 5)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 0}')
    assert load_config(tmp_path).eos_token_id == (0,)
    (tmp_path / "generation_config.json").write_text("{}")
    assert load_config(tmp_path).eos_token_id == (3,)


@pytest.mark.skipif(not (REAL / "configs").is_dir(), reason="the real configs are not here")
@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3.1-8b-instruct", "llama-3.2-1b-instruct",
                                  "smollm2-135m-instruct", "smollm2-135m.transformers5", "tinyllama-1.1b-chat-v1.0"])
def test_real_configs_of_llamas_are_read(name, tmp_path):
    """config.json of published Llamas gives the sizes and the rope that transformers reads from it."""
    shutil.copyfile(REAL / "configs" / f"{name}.json", tmp_path / "config.json")
    ours, theirs = load_config(tmp_path), LlamaConfig.from_pretrained(tmp_path)
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings",
                "bos_token_id"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert (ours.rope_scaling is None) == (theirs.rope_parameters["rope_type"] == "default")
    if ours.rope_scaling:
        assert ours.rope_scaling.items() <= theirs.rope_parameters.items()


# ---- Tokenizers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base_tokenizer():
    return load_tokenizer(BASE)


@given(text=st.text())
def test_any_text_comes_back(base_tokenizer, text):
    """Encoding and decoding gives back any text."""
    ids = base_tokenizer.encode_ordinary(text)
    assert base_tokenizer.decode(ids) == text
    assert base_tokenizer.decode_bytes(ids) == text.encode()
    assert all(0 <= i < 511 for i in ids)


@given(raw=st.binary())
def test_any_bytes_have_tokens(base_tokenizer, raw):
    """Every byte is a token of its own, so any bytes can be written and come back."""
    ids = [base_tokenizer.encode_single_token(bytes([byte])) for byte in raw]
    assert base_tokenizer.decode_bytes(ids) == raw


@given(before=st.text(max_size=8), after=st.text(max_size=8))
def test_special_text_of_a_user_is_text(base_tokenizer, before, after):
    """<|endoftext|> in a user's problem or solution becomes ordinary tokens; the end token stands at the end alone."""
    text = f"{before}<|endoftext|>{after}"
    ids, labels = encode_example(base_tokenizer, dict(problem=text, solution=text), 511)
    prompt, answer = ids[: labels.count(-100)], ids[labels.count(-100) :]
    assert 511 not in prompt and answer.index(511) == len(answer) - 1
    assert text in base_tokenizer.decode(prompt) and base_tokenizer.decode(answer[:-1]) == f" {text}"
    assert base_tokenizer.encode("<|endoftext|>", allowed_special="all") == [511]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_texts_have_their_published_ids(name):
    """Rank files of Qwen and Llama 3 give the ids that their own tokenizers gave."""
    if not (REAL / "tokenizers" / name).is_dir():
        pytest.skip("the real tokenizers are not here")
    encoding = load_tokenizer(REAL / "tokenizers" / name)
    lines = (REAL / "tokenizers" / "golden" / f"{GOLDEN[name]}.jsonl").read_bytes().decode().strip("\n").split("\n")
    assert len(lines) >= 40
    for line in lines:
        case = json.loads(line)
        assert encoding.encode_ordinary(case["text"]) == case["ids"], case["text"]
        assert encoding.decode(case["ids"]) == case["text"]


def copied(folder):
    copy_tokenizer(BASE, folder)
    return folder / "base.tiktoken"


def test_a_rewritten_rank_file_is_seen(tmp_path):
    """A rank file changed under the same path is read anew."""
    path = copied(tmp_path)
    first = load_tokenizer(tmp_path).encode_ordinary("ab")
    lines = path.read_bytes().splitlines()
    ranks = {line.split()[0]: line.split()[1] for line in lines}
    ranks[b"YQ=="], ranks[b"Yg=="] = ranks[b"Yg=="], ranks[b"YQ=="]  # a and b change places
    path.write_bytes(b"\n".join(b" ".join(line) for line in ranks.items() if int(line[1]) < 256))  # no merges
    wanted = [int(ranks[b"YQ=="]), int(ranks[b"Yg=="])]
    assert load_tokenizer(tmp_path).encode_ordinary("ab") == wanted != first


@pytest.mark.parametrize("spoil", [
    lambda p: p.write_bytes(p.read_bytes()[:-3] + b"x"), lambda p: p.write_bytes(b"!!!! 3\n"),
    lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"\n".join(p.read_bytes().split(b"\n")[1:])),
    lambda p: p.unlink(), lambda p: (p.parent / "two.tiktoken").write_bytes(p.read_bytes()),
    lambda p: (p.parent / "spec.json").unlink(), lambda p: (p.parent / "spec.json").write_text("{}"),
    lambda p: (p.parent / "spec.json").write_text('{"pat_str": "(", "special_tokens": {}}'),
    lambda p: (p.parent / "spec.json").write_text('{"pat_str": ".", "special_tokens": {"x": "y"}}'),
    lambda p: (p.parent / "spec.json").write_text('{"pat_str": ".", "special_tokens": {"x": -1}}'),
    lambda p: p.write_bytes(p.read_bytes() + b"\nenp6eno= -1"),
    lambda p: p.write_bytes(p.read_bytes() + b"\nenp6eno= 3"),
    lambda p: p.write_bytes(p.read_bytes() + b"\nenp6eno= 99999999999")],
    ids=["cut", "no base64", "empty", "byte missing", "no file", "two files", "no spec", "empty spec", "bad pattern",
         "special id text", "special id negative", "rank negative", "rank twice", "rank too big"])
def test_a_spoilt_tokenizer_is_refused(spoil, tmp_path):
    """A rank file or spec that does not make a tokenizer is a ValueError or OSError."""
    spoil(copied(tmp_path))
    with pytest.raises((ValueError, OSError)):
        load_tokenizer(tmp_path)
