"""Model folders against transformers itself, and against damage. With -m thorough: the memory that a load takes.

python -m pytest tests/test_folders.py"""

import json
import os
import pickle
import re
import resource
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

import eval_pass1
import lora_alpha
import train
from hf import copy_tokenizer, load_config, load_model, save_model
from lora_alpha import GPT, GPTConfig, inject_lora, rope_tables

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
T = 60  # tokens of a text: beyond every original context of a scaled RoPE below
IDX = torch.randint(61, (2, T), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def random_peer(config, seed=0):
    """A model of transformers whose attention is peaked, so that positions and biases show in the logits."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, p in model.named_parameters():
        p.copy_(torch.rand_like(p) + 0.5 if p.dim() == 1 and "bias" not in name else torch.randn_like(p) * 0.4)
    return model


def small(kind, **options):
    """A config of transformers with grouped heads."""
    sizes = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=64)
    window = dict(sliding_window=None) if kind == "mistral" else {}
    return KINDS[kind](**{**sizes, **window, **options})


def far(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def rewrite(folder, change):
    """Applies change to the object in the folder's config.json, in place."""
    path = Path(folder, "config.json")
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def crop(value):
    return str(value)[:40]


def same_tensors(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- Logits ----------------------------------------------------------------------------------------------------------

SPELLINGS = {
    "old, type": lambda theta, rope: dict(rope_theta=theta, rope_scaling=rope and {
        "type": rope["rope_type"], **{key: value for key, value in rope.items() if key != "rope_type"}}),
    "old, rope_type": lambda theta, rope: dict(rope_theta=theta, rope_scaling=rope),
    "new": lambda theta, rope: dict(rope_parameters={"rope_type": "default", "rope_theta": theta, **(rope or {})}),
    "new, theta outside": lambda theta, rope: dict(rope_theta=theta, rope_parameters=rope or {"rope_type": "default"}),
    "both, an old theta that is stale": lambda theta, rope: dict(
        rope_theta=3 * theta, rope_scaling=None, **SPELLINGS["new"](theta, rope)),
    "both, the same": lambda theta, rope: {
        **SPELLINGS["old, type"](theta, rope), **SPELLINGS["new"](theta, rope)},
}


@st.composite
def folders_to_make(draw, kind):
    """(config of transformers, the rope's keys in one of their spellings, seed, dtype, largest shard)."""
    groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = groups * per_group
    options = dict(
        num_key_value_heads=groups, num_attention_heads=heads, hidden_size=heads * draw(st.sampled_from([4, 6, 10])),
        head_dim=draw(st.sampled_from([6, 8, 10, 12, None])), intermediate_size=draw(st.sampled_from([20, 48])),
        num_hidden_layers=draw(st.integers(1, 2)), tie_word_embeddings=draw(st.booleans()),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5])))
    if kind == "mistral":
        options["sliding_window"] = draw(st.sampled_from([None, T, T + 1, 4096]))
    theta = draw(st.sampled_from([10.0, 500.0, 10000.0, 5e5, 1e8]))
    rope = dict(LLAMA3, factor=draw(st.sampled_from([1.5, 8.0, 32.0])),
                low_freq_factor=draw(st.sampled_from([0.5, 1.0])), high_freq_factor=draw(st.sampled_from([2.0, 4.0])),
                original_max_position_embeddings=draw(st.sampled_from([8, 16, 32])))
    rope = draw(st.sampled_from([rope, rope, None]))
    keys = SPELLINGS[draw(st.sampled_from([*SPELLINGS]))](theta, rope)
    if options["head_dim"] is None:  # hidden_size / num_attention_heads, 128 in Qwen3
        del options["head_dim"]
    config = small(kind, rope_parameters={"rope_type": "default", **(rope or {}), "rope_theta": theta}, **options)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    return config, keys, draw(st.integers(0, 99)), dtype, draw(st.sampled_from(["1GB", "5KB"]))


@pytest.mark.parametrize("kind", KINDS)
def test_any_folder_gives_the_logits_of_transformers_and_a_saved_one_gives_them_back(kind, fuzz):
    """To a relative 1e-4, whatever sizes, RoPE and its spelling, ties, shards and stored dtype the folder has.

    Either side rounds frequencies and angles: 4·T·2^-24 = 1.4e-5 radians at the last position, which scores of
    standard deviations of several multiply. A position that is wrong shows at 1e-2.
    """
    @given(folders_to_make(kind))
    @fuzz(40)
    @torch.no_grad()
    def holds(drawn):
        config, keys, seed, dtype, shard = drawn
        with tempfile.TemporaryDirectory() as folder:
            random_peer(config, seed).to(dtype).save_pretrained(folder, max_shard_size=shard)
            rewrite(folder, lambda raw: (raw.pop("rope_parameters"), raw.update(keys)))
            theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            assert theirs.config.rope_parameters.items() >= config.rope_parameters.items()  # so it was spelt right
            ours, expected = load_model(folder, torch.float32), theirs(IDX).logits
            assert far(ours(IDX)[0], expected) <= 1e-4
            assert far(theirs(IDX, position_ids=0 * IDX).logits, expected) > 1e-2  # positions matter
            assert {p.dtype for p in load_model(folder).parameters()} == {dtype}
            save_model(ours, folder + "/ours")
            assert far(AutoModelForCausalLM.from_pretrained(folder + "/ours")(IDX).logits, expected) <= 1e-4
            save_model(load_model(folder), folder + "/kept")
            assert {t.dtype for t in load_file(folder + "/kept/model.safetensors").values()} == {dtype}

    holds()


# ---- What config.json means ------------------------------------------------------------------------------------------

HUGE = 2**31 - 1  # the largest size that GPTConfig takes
ROPE = dict(LLAMA3, rope_theta=500.0)
POSITIONS = torch.arange(T)
KEYS = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
        "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
        "attention_bias", "mlp_bias", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types",
        "bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout", "torch_dtype", "quantization_config"]


def full_config(kind):
    """Every key written out, none with the value that transformers has where it is absent; 8 and 32 heads fit."""
    raw = dict(model_type=kind, vocab_size=61, hidden_size=64, intermediate_size=48, num_hidden_layers=2,
               num_attention_heads=32, num_key_value_heads=16, head_dim=6, hidden_act="silu",
               max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True, rope_theta=500.0,
               rope_scaling=LLAMA3, attention_bias=False, mlp_bias=False, bos_token_id=3, eos_token_id=5,
               sliding_window=5000, torch_dtype="float32", attention_dropout=0.0)
    if kind.startswith("qwen"):
        raw |= dict(layer_types=["full_attention"] * 2, use_sliding_window=False, max_window_layers=1)
    return raw


def shapes_of(model):
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def their_meaning(folder):
    """What transformers makes of config.json: the model's shapes and constants, and the tables of its RoPE."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    windows = config.model_type == "mistral" or "sliding_attention" in (getattr(config, "layer_types", None) or ())
    context = min(config.max_position_embeddings, windows and config.sliding_window or HUGE)  # of full attention
    ends = config.eos_token_id
    meaning = dict(shapes=shapes_of(model), tied=config.tie_word_embeddings, eps=model.model.norm.variance_epsilon,
                   act=config.hidden_act, context=context, bos=config.bos_token_id,
                   eos=[] if ends is None else ends if isinstance(ends, list) else [ends])
    cos, sin = type(model.model.rotary_emb)(config)(torch.zeros(1), POSITIONS[None])
    return meaning, torch.cat([cos, sin])


def our_meaning(folder):
    """The same of load_config's answer."""
    config = load_config(folder)
    with torch.device("meta"):
        model = GPT(config)
    meaning = dict(shapes=shapes_of(model), tied=config.tie_word_embeddings, eps=model.model.norm.eps, act="silu",
                   context=config.max_position_embeddings, bos=config.bos_token_id, eos=[*config.eos_token_id])
    return meaning, torch.stack(rope_tables(config, POSITIONS))


def agrees_or_is_refused(folder, raw, named, where_refused=None):
    """Fails where load_config means anything but what transformers means, or refuses without a word of named.

    where_refused: the config whose meaning is also right where transformers itself refuses raw.
    """
    Path(folder, "config.json").write_text(json.dumps(raw))
    try:
        ours, our_rope = our_meaning(folder)
    except ValueError as error:
        assert re.search(named, str(error)), error
        return
    try:
        theirs, their_rope = their_meaning(folder)
    except Exception as error:  # transformers has one for each key
        assert where_refused, f"transformers refuses it ({error}), load_config reads {load_config(folder)}"
        Path(folder, "config.json").write_text(json.dumps(where_refused))
        theirs, their_rope = their_meaning(folder)
    assert ours == theirs
    assert our_rope.shape == their_rope.shape and (our_rope - their_rope).abs().max() < 1e-5


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_key_means_what_it_means_to_transformers(kind, key, tmp_path):
    """Without any one key load_config takes what transformers' config class takes, or refuses by the key's name."""
    raw = full_config(kind)
    raw.pop(key, None)
    agrees_or_is_refused(tmp_path, raw, key)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_null_key_means_what_it_means_to_transformers(kind, key, tmp_path):
    """Or, where transformers refuses null, what the absent key means to it, or load_config refuses by its name."""
    raw = full_config(kind)
    absent = {name: value for name, value in raw.items() if name != key}
    if (kind, key) == ("mistral", "num_key_value_heads"):  # its __post_init__ says so; its type check stands before
        absent["num_key_value_heads"] = raw["num_attention_heads"]
    agrees_or_is_refused(tmp_path, {**raw, key: None}, key, absent)


@pytest.mark.parametrize("key", ROPE)
@pytest.mark.parametrize("field", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("how", ["absent", "null"])
def test_an_absent_or_null_key_of_the_rope_means_what_it_means_to_transformers(how, field, key, tmp_path):
    """As above, inside the RoPE's object, with a theta outside that is another."""
    raw = {**full_config("llama"), "rope_theta": 77.0, "rope_scaling": None}
    rope = {name: value for name, value in ROPE.items() if name != key}
    absent = {**raw, field: rope}
    agrees_or_is_refused(tmp_path, {**raw, field: {**rope, key: None}} if how == "null" else absent, key, absent)


CONTRADICTIONS = {
    "a sliding layer": (dict(layer_types=["full_attention", "sliding_attention"]), "layer_types"),
    "sliding layers, use_sliding_window false": (
        dict(layer_types=["sliding_attention"] * 2, use_sliding_window=False), "layer_types"),
    "full layers, use_sliding_window true": (
        dict(layer_types=["full_attention"] * 2, use_sliding_window=True, sliding_window=8), "use_sliding_window"),
    "use_sliding_window true": (
        dict(layer_types=None, use_sliding_window=True, sliding_window=8, max_window_layers=1), "use_sliding_window"),
    "layer_types a string": (dict(layer_types="sliding_attention"), "layer_types"),
    "layer_types an object": (dict(layer_types={"0": "sliding_attention"}), "layer_types"),
    "layer_types too short": (dict(layer_types=["full_attention"]), "layer_types"),
    "rope_type llama3, type linear": (dict(rope_scaling={**LLAMA3, "type": "linear"}), "rope"),
    "rope_type default, type llama3": (
        dict(rope_scaling={**LLAMA3, "rope_type": "default", "type": "llama3"}), "rope"),
    "rope_type linear, type llama3": (dict(rope_scaling={**LLAMA3, "rope_type": "linear", "type": "llama3"}), "rope"),
    "partial_rotary_factor": (dict(partial_rotary_factor=0.5), "partial_rotary_factor"),
    "is_causal": (dict(is_causal=False), "is_causal"),
    "partial_rotary_factor, plain rope": (
        dict(partial_rotary_factor=0.5, rope_scaling=None), "partial_rotary_factor"),
    "partial_rotary_factor in rope_parameters": (
        dict(rope_scaling=None, rope_parameters=dict(rope_type="default", rope_theta=5.0, partial_rotary_factor=0.5)),
        "partial_rotary_factor"),
    "partial_rotary_factor in llama3's": (
        dict(rope_scaling=None, rope_parameters={**ROPE, "partial_rotary_factor": 0.5}), "partial_rotary_factor"),
    "partial_rotary_factor in rope_scaling": (
        dict(rope_scaling={**LLAMA3, "partial_rotary_factor": 0.5}), "partial_rotary_factor"),
    "two original contexts": (dict(original_max_position_embeddings=8), "original_max_position_embeddings"),
    "low above high": (dict(rope_scaling={**LLAMA3, "low_freq_factor": 4.0, "high_freq_factor": 1.0}), "freq_factor"),
    "low as high": (dict(rope_scaling={**LLAMA3, "low_freq_factor": 4.0}), "freq_factor"),
    "a rope for each type of layer": (
        dict(layer_types=["full_attention"] * 2, rope_scaling=None, rope_parameters={"full_attention": ROPE}), "rope"),
    "attention_bias": (dict(attention_bias=True), "attention_bias"),
    "mlp_bias": (dict(mlp_bias=True), "mlp_bias"),
    "another activation": (dict(hidden_act="gelu"), "hidden_act"),
    "no activation": (dict(hidden_act=""), "hidden_act"),
    "heads that groups do not divide": (dict(num_key_value_heads=5), "num_key_value_heads"),
    "an odd head": (dict(head_dim=7), "head_dim"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_contradiction_means_what_it_means_to_transformers_or_is_refused(kind, case, tmp_path):
    """Keys that contradict each other or this GPT are read as transformers reads them, or refused by name."""
    change, named = CONTRADICTIONS[case]
    agrees_or_is_refused(tmp_path, {**full_config(kind), **change}, named)


@pytest.mark.parametrize("old, new", [
    ({**LLAMA3, "factor": 2.0}, {**ROPE, "rope_theta": 77.0}), (LLAMA3, dict(rope_type="default", rope_theta=77.0)),
    (dict(rope_type="default"), {**ROPE, "rope_theta": 77.0}), (LLAMA3, dict(rope_theta=77.0))],
    ids=["factors", "llama3 and default", "default and llama3", "llama3 and a theta alone"])
def test_rope_parameters_win_over_a_rope_scaling_that_contradicts_them(old, new, tmp_path):
    """Where both stand, the newer spelling counts as if it stood alone: what transformers 5 writes, it reads."""
    for name, config in (("both", {"rope_scaling": old, "rope_parameters": new}), ("new", {"rope_parameters": new})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**full_config("llama"), **config}))
    assert load_config(tmp_path / "both") == load_config(tmp_path / "new")
    assert load_config(tmp_path / "both").rope_theta == 77.0


# ---- Damaged tensors -------------------------------------------------------------------------------------------------

INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """{(kind, tied, shards or not): folder} of whole folders to copy from."""
    made = {}
    for kind, tied in (("llama", False), ("llama", True), ("qwen2", False), ("qwen3", True)):
        for shard in ("1GB", "5KB"):
            made[kind, tied, shard] = tmp_path_factory.mktemp("good")
            random_peer(small(kind, tie_word_embeddings=tied, head_dim=10)).save_pretrained(made[kind, tied, shard],
                                                                               max_shard_size=shard)
    load_model(made["llama", False, "1GB"])  # torch's first model on meta takes a second
    return made


def places_of(folder):
    """{tensor: file} of a folder."""
    index = Path(folder, "model.safetensors.index.json")
    if index.is_file():
        return json.loads(index.read_text())["weight_map"]
    return dict.fromkeys(load_file(Path(folder, "model.safetensors")), "model.safetensors")


def damaged(data, tensors, name, kind, tied):
    """(the tensors of name's file with some damage to it, the names of which one must be in the error)."""
    t, others = tensors[name], {other: value for other, value in tensors.items() if other != name}
    what = data.draw(st.sampled_from(["missing", "renamed", "transposed", "truncated", "integers", "extra"]))
    if what == "missing":
        return others, [name]
    if what == "renamed":
        new = data.draw(st.sampled_from([f"{name}s", f"x{name}", name.upper(), name.removeprefix("model."),
                                         name.replace("layers.1", "layers.2"), name.replace("proj.", "proj.base.")]))
        assume(new != name)
        return {**others, new: t.clone()}, [name, new]
    if what == "transposed":
        assume(t.dim() == 2 and t.shape[0] != t.shape[1])
        return {**others, name: t.T.contiguous()}, [name]
    if what == "truncated":
        side = data.draw(st.integers(0, t.dim() - 1))
        return {**others, name: t.narrow(side, 0, t.shape[side] - 1).contiguous()}, [name]
    if what == "integers":
        return {**others, name: t.to(data.draw(st.sampled_from(INTEGERS)))}, [name]
    strangers = [f"{name}.x", f"{name}_scale", "lm_head.bias", "model.layers.2.mlp.up_proj.weight", "x",
                 "model.layers.0.self_attn.o_proj.bias", "model.layers.0.self_attn.rotary_emb.inv_freq.x"]
    strangers += [] if kind == "qwen3" else ["model.layers.0.self_attn.q_norm.weight"]
    strangers += [] if kind == "qwen2" else ["model.layers.0.self_attn.q_proj.bias"]
    new = data.draw(st.sampled_from(strangers))
    return {**tensors, new: t.clone()}, [new]


def test_a_folder_with_one_wrong_tensor_is_refused_by_its_name(good, fuzz):
    """Missing, renamed, transposed, a row short, whole numbers, or one too many: a ValueError that names the tensor."""
    @given(st.data())
    @fuzz(200)
    def holds(data):
        kind, tied, shard = data.draw(st.sampled_from([*good]))
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(good[kind, tied, shard], folder, dirs_exist_ok=True)
            places = places_of(folder)
            name = data.draw(st.sampled_from(sorted(places)))
            path = Path(folder, places[name])
            tensors, named = damaged(data, load_file(path), name, kind, tied)
            save_file(tensors, path)
            if shard == "5KB" and data.draw(st.booleans()):  # the index knows of it
                places = {key: file for key, file in places.items() if file != path.name} | dict.fromkeys(
                    tensors, path.name)
                Path(folder, "model.safetensors.index.json").write_text(json.dumps(dict(weight_map=places)))
            with pytest.raises(ValueError) as refused:
                load_model(folder, data.draw(st.sampled_from([None, torch.float32, torch.bfloat16])))
            assert any(word in str(refused.value) for word in named), (named, refused.value)

    holds()


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_folder_with_a_head_of_its_own_is_refused(same, good, tmp_path):
    """transformers 4 would take the embedding and 5 the head; a head that is the embedding is no matter."""
    shutil.copytree(good["llama", True, "1GB"], tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone() + (0 if same else 1e-3)
    save_file({**tensors, "lm_head.weight": head}, tmp_path / "model.safetensors")
    if same:
        model = load_model(tmp_path)
        assert model.lm_head.weight is model.model.embed_tokens.weight
    else:
        with pytest.raises(ValueError, match="lm_head.weight is not the embedding"):
            load_model(tmp_path)


def test_a_loaded_model_is_in_eval_mode(good):
    """As from_pretrained returns it: an adapter's dropout does not act unless training turns it on."""
    assert not any(module.training for module in load_model(good["llama", True, "1GB"]).modules())


def test_the_names_of_wrappers_in_shards_are_read(good, tmp_path):
    """Shards and index of a compiled model load as its single file does."""
    shutil.copytree(good["llama", True, "5KB"], tmp_path, dirs_exist_ok=True)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"] = {f"_orig_mod.{name}": file for name, file in index["weight_map"].items()}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for shard in tmp_path.glob("model-*.safetensors"):
        save_file({f"_orig_mod.{name}": tensor for name, tensor in load_file(shard).items()}, shard)
    whole, read = load_model(good["llama", True, "1GB"]).state_dict(), load_model(tmp_path).state_dict()
    assert whole.keys() == read.keys() and all(torch.equal(whole[name], read[name]) for name in whole)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_a_tensor_that_stands_twice_is_refused(wrapper, good, tmp_path):
    """Plain and under a wrapper's name: neither silently takes the other's place."""
    shutil.copytree(good["llama", False, "1GB"], tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, f"{wrapper}model.norm.weight": torch.zeros(32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="model.norm.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize("known", [False, True])
def test_a_tensor_that_stands_in_two_shards_is_refused(known, good, tmp_path):
    """A stray copy with other values, whichever of the two shards the index names."""
    shutil.copytree(good["llama", False, "5KB"], tmp_path, dirs_exist_ok=True)
    places, name = places_of(tmp_path), "model.norm.weight"
    other = next(file for file in places.values() if file != places[name])
    tensors = load_file(tmp_path / other)
    save_file({**tensors, name: torch.zeros(32)}, tmp_path / other)
    if known:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map={**places, name: other})))
    with pytest.raises(ValueError, match=name):
        load_model(tmp_path)


# ---- Corrupt and hostile files ---------------------------------------------------------------------------------------


def refused_at_once(folder, match):
    """load_model is a ValueError or OSError that says match, within a second of one core and 100 MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises((ValueError, OSError), match=match):
        load_model(folder)
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    assert seconds < 1 and grown < 100e6, (seconds, grown)


def with_header(raw, change, length=None):
    """A safetensors file's bytes, its header changed and its length as it is or a lie."""
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    names = sorted(header.keys() - {"__metadata__"})
    text = change(header, *names[:2]) or json.dumps(header)
    return struct.pack("<Q", len(text) if length is None else length) + text.encode() + raw[8 + size :]


def put(header, name, **values):
    header[name].update(values)


CORRUPT = {
    "empty": lambda raw: b"",
    "seven bytes": lambda raw: raw[:7],
    "eight bytes": lambda raw: raw[:8],
    "header cut": lambda raw: raw[: 8 + struct.unpack("<Q", raw[:8])[0] // 2],
    "data cut": lambda raw: raw[:-4],
    "bytes behind": lambda raw: raw + b"more",
    "length 2**63": lambda raw: struct.pack("<Q", 2**63) + raw[8:],
    "length a GB": lambda raw: struct.pack("<Q", 2**30) + raw[8:],
    "length 0": lambda raw: bytes(8) + raw[8:],
    "length one less": lambda raw: struct.pack("<Q", struct.unpack("<Q", raw[:8])[0] - 1) + raw[8:],
    "length one more": lambda raw: struct.pack("<Q", struct.unpack("<Q", raw[:8])[0] + 1) + raw[8:],
    "offsets overlap": lambda raw: with_header(raw, lambda h, a, b: put(h, b, data_offsets=h[a]["data_offsets"])),
    "offsets beyond": lambda raw: with_header(raw, lambda h, a, b: put(h, a, data_offsets=[2**40, 2**41])),
    "offsets reversed": lambda raw: with_header(raw, lambda h, a, b: h[a]["data_offsets"].reverse()),
    "offsets negative": lambda raw: with_header(raw, lambda h, a, b: put(h, a, data_offsets=[-4, 4])),
    "shape of 2**80": lambda raw: with_header(raw, lambda h, a, b: put(h, a, shape=[2**40, 2**40])),
    "shape of 2**40": lambda raw: with_header(raw, lambda h, a, b: put(h, a, shape=[2**20, 2**20])),
    "shape of text": lambda raw: with_header(raw, lambda h, a, b: put(h, a, shape="big")),
    "dtype of its own": lambda raw: with_header(raw, lambda h, a, b: put(h, a, dtype="F99")),
    "header a list": lambda raw: with_header(raw, lambda h, a, b: "[]"),
    "header deep": lambda raw: with_header(raw, lambda h, a, b: '{"a":' * 100_000),
    "header without tensors": lambda raw: with_header(raw, lambda h, a, b: "{}"),
    "a pickle": lambda raw: pickle.dumps({"model.norm.weight": [1.0] * 1000}),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_a_corrupt_safetensors_file_is_refused_at_once(case, good, tmp_path):
    """Cut, lying or overlapping headers, and what is no safetensors file at all, in one file and in a shard."""
    shutil.copytree(good["llama", False, "1GB"], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    names = [*load_file(path)]
    path.write_bytes(CORRUPT[case](path.read_bytes()))
    refused_at_once(tmp_path, "model.safetensors")
    path.rename(tmp_path / "only.safetensors")
    index = json.dumps(dict(weight_map=dict.fromkeys(names, "only.safetensors")))
    (tmp_path / "model.safetensors.index.json").write_text(index)
    refused_at_once(tmp_path, "only.safetensors")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_a_pickle_is_never_unpickled(good, tmp_path, monkeypatch):
    """What torch.save or pickle wrote under the name of weights, of a shard or as pytorch_model.bin runs no code."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(good["llama", False, "1GB"], "x")
    places = places_of("x")
    for write in (lambda path: torch.save(Trap(), path), lambda path: path.write_bytes(pickle.dumps(Trap()))):
        for name in ("model.safetensors", "pytorch_model.bin"):
            write(Path("x", name))
            refused_at_once("x", "no safetensors file" if name == "model.safetensors" else "model.safetensors")
        Path("x/model.safetensors").unlink()
        refused_at_once("x", "model.safetensors")
        Path("x/model.safetensors.index.json").write_text(json.dumps(dict(weight_map=dict.fromkeys(
            places, "pytorch_model.bin"))))
        refused_at_once("x", "pytorch_model.bin: no safetensors file")
        Path("x/model.safetensors.index.json").unlink()
    assert not Path("sprung").exists()


@pytest.mark.parametrize("file", ["../outside.safetensors", "{}/outside.safetensors", "./inside.safetensors",
                                  "sub/inside.safetensors", "..", ".", "", "no.safetensors", "config.json", "a\0b",
                                  "x" * 5000, None, 3, ["inside.safetensors"]], ids=lambda file: repr(file)[:30])
def test_an_index_that_names_no_file_of_the_folder_is_refused_at_once(file, good, tmp_path):
    """Nothing outside the folder is read, even where a whole shard lies there, and no missing shard is passed over."""
    folder = tmp_path / "folder"
    shutil.copytree(good["llama", False, "1GB"], folder)
    (folder / "sub").mkdir()
    tensors = load_file(folder / "model.safetensors")
    norm = {"model.norm.weight": tensors.pop("model.norm.weight")}
    for path in (tmp_path / "outside.safetensors", folder / "inside.safetensors", folder / "sub/inside.safetensors"):
        save_file(norm, path)
    save_file(tensors, folder / "rest.safetensors")
    (folder / "model.safetensors").unlink()
    places = dict.fromkeys(tensors, "rest.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps(dict(weight_map={**places, "model.norm.weight": "inside.safetensors"})))
    load_model(folder)  # so far all is well
    file = file.format(tmp_path) if isinstance(file, str) else file
    index.write_text(json.dumps(dict(weight_map={**places, "model.norm.weight": file})))
    named = isinstance(file, str) and "/" not in file
    missing = "|there is no such file" if file != "config.json" else ""
    refused_at_once(folder, f"no safetensors file that can be read{missing}" if named else "file names in this folder")


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"weight_map": null}', '{"weight_map": {}}',
                                  '{"weight_map": [["model.norm.weight", "x"]]}', "[" * 100_000, '{"a":' * 100_000],
                         ids=lambda text: repr(text)[:30])
def test_an_index_that_is_none_is_refused_at_once(text, good, tmp_path):
    """No object, no weight_map, an empty one, or deep nesting."""
    shutil.copytree(good["llama", False, "5KB"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    refused_at_once(tmp_path, "model.safetensors.index.json|embed_tokens.weight is missing")


def hostile(folder, good, says, **change):
    """Refused at once, by what it says, with this change to a config.json in the old spelling of RoPE."""
    shutil.copytree(good["llama", False, "1GB"], folder, dirs_exist_ok=True)
    (folder / "generation_config.json").unlink()  # its end tokens would stand before config.json's
    rewrite(folder, lambda raw: (raw.pop("rope_parameters"), raw.update(change)))
    refused_at_once(folder, says)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [-1, 0, 32.0, NAN, INF, "32", [32], {}, True, 10**12, 2**60, 10**400], ids=crop)
@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim",
                                 "num_attention_heads", "num_key_value_heads", "max_position_embeddings"])
def test_a_size_that_no_model_has_is_refused_at_once(key, value, good, tmp_path):
    """Negative or vast sizes, and what is no whole number: an error, and nothing of that size is made."""
    hostile(tmp_path, good, key, **{key: value})


@pytest.mark.parametrize("change", [
    dict(num_hidden_layers=1000), dict(vocab_size=HUGE), dict(hidden_size=HUGE), dict(intermediate_size=HUGE),
    dict(head_dim=HUGE - 1), dict(vocab_size=HUGE, hidden_size=HUGE), dict(intermediate_size=HUGE, hidden_size=HUGE),
    dict(num_attention_heads=HUGE, num_key_value_heads=1, head_dim=HUGE - 1)], ids=crop)
def test_the_largest_sizes_that_are_taken_are_refused_at_once_by_a_small_file(change, good, tmp_path):
    """Sizes within their bounds whose products are beyond every memory, and more layers than the file has."""
    hostile(tmp_path, good, "|".join(change) + "|tensor", **change)


@pytest.mark.parametrize("value", [NAN, INF, -INF, 0, -1.0, "8", [8.0], {}, True, 10**400], ids=crop)
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", *(key for key in LLAMA3 if key != "rope_type")])
def test_a_constant_that_no_model_has_is_refused_at_once(key, value, good, tmp_path):
    """NaN, infinity, what is not above 0 and what is no number, wherever the key may stand."""
    if key in ("rms_norm_eps", "rope_theta"):
        hostile(tmp_path / "top", good, key, **{key: value})
    if key != "rms_norm_eps":
        hostile(tmp_path / "old", good, key, rope_scaling={**LLAMA3, key: value})
        hostile(tmp_path / "new", good, key, rope_parameters={**ROPE, key: value})


@pytest.mark.parametrize("key, value", [
    *(("rope_scaling", value) for value in ("llama3", [LLAMA3], True, 3, {"rope_type": ["llama3"]})),
    *(("rope_parameters", value) for value in ("llama3", [LLAMA3], True, 3, {"rope_type": "x" * 100})),
    *(("tie_word_embeddings", value) for value in ("false", "true", [1], {"a": 1}, 2, 0.5)),
    *(("hidden_act", value) for value in ("gelu", ["silu"], 3, {"a": 1}, 0, [])),
    *((key, value) for key in ("attention_bias", "mlp_bias", "use_sliding_window") for value in ("false", [0], 2)),
    *(("eos_token_id", value) for value in (-1, 1.5, "end", [1, "end"], [[1]], {}, True, NAN)),
    *(("bos_token_id", value) for value in (-1, 1.5, "begin", [1], {}, True)),
    *(("model_type", value) for value in (None, "gpt2", "mixtral", ["llama"], {}, 3, "Llama", "llama\n")),
    ("quantization_config", dict(quant_method="gptq", bits=4))], ids=crop)
def test_a_value_of_another_type_is_refused_at_once(key, value, good, tmp_path):
    """Strings for switches, lists for numbers, objects for names: transformers takes none of these either."""
    hostile(tmp_path, good, key, **{key: value})


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def astray(path):
    path.rename(path.parent / "a.safetensors")
    Path(f"{path}.index.json").write_text('{"weight_map": {"model.norm.weight": "../a.safetensors"}}')


BY_COMMAND = {
    "sizes beyond torch": lambda folder: rewrite(folder, lambda raw: raw.update(vocab_size=HUGE, hidden_size=HUGE)),
    "a header cut": lambda folder: cut(folder / "model.safetensors"),
    "an index that leads out": lambda folder: astray(folder / "model.safetensors"),
    "deep JSON": lambda folder: (folder / "config.json").write_text("[" * 100_000),
}


@pytest.mark.parametrize("case", BY_COMMAND)
@pytest.mark.parametrize("script, flags", [(eval_pass1, ["--adapter", "none"]), (train, [])], ids=["eval", "train"])
def test_a_damaged_folder_is_one_line_and_status_2_to_a_command(script, flags, case, toy, tmp_path, command):
    """No traceback, nothing on stdout, and nothing is written."""
    folder = shutil.copytree(toy.base, tmp_path / "folder")
    BY_COMMAND[case](folder)
    before = sorted(tmp_path.rglob("*"))
    done = command(script, "--base", "folder", "--data", toy.data, *flags, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stderr[-500:]
    assert done.stderr.startswith(f"{script.__name__}.py: ") and "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


# ---- save_model ------------------------------------------------------------------------------------------------------


def gpt(dtype=torch.float32, **options):
    """A small random GPT of ours."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=64)
    return GPT(GPTConfig(**{**sizes, **options})).to(dtype).eval()


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_saved_files_have_the_mode_that_the_umask_gives(umask, mode, tmp_path):
    """New ones and overwritten ones, and no temporary file stays."""
    old = os.umask(umask)
    try:
        for _ in range(2):
            save_model(gpt(), tmp_path)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
            assert modes == dict.fromkeys(["config.json", "generation_config.json", "model.safetensors"], mode)
    finally:
        os.umask(old)


def test_a_saved_config_has_the_keys_that_older_readers_know(tmp_path):
    """rope_theta and rope_scaling with rope_type stand at the top level, and transformers 5 reads the same."""
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_type"}
    for options in (dict(), dict(rope_scaling=scaling), dict(qk_norm=True), dict(attention_bias=True)):
        save_model(gpt(rope_theta=123.0, **options), tmp_path)
        raw = json.loads((tmp_path / "config.json").read_text())
        assert raw["rope_theta"] == 123.0 and raw["rope_scaling"] == (LLAMA3 if "rope_scaling" in options else None)
        theirs = AutoConfig.from_pretrained(tmp_path)
        assert theirs.rope_parameters["rope_theta"] == 123.0
        assert theirs.rope_parameters["rope_type"] == ("llama3" if "rope_scaling" in options else "default")
        assert (theirs.model_type, theirs.architectures[0]) == {
            "qk_norm": ("qwen3", "Qwen3ForCausalLM"), "attention_bias": ("qwen2", "Qwen2ForCausalLM")}.get(
                next(iter(options), ""), ("llama", "LlamaForCausalLM"))


WRAPS = {"compiled": torch.compile, "in place": lambda model: (model.compile(), model)[1],
         "parallel": torch.nn.DataParallel,
         "compiled, parallel": lambda model: torch.nn.DataParallel(torch.compile(model)),
         "parallel, compiled": lambda model: torch.compile(torch.nn.DataParallel(model))}


@pytest.mark.parametrize("wrap", WRAPS)
def test_an_adapted_model_is_refused_with_the_word_merge_and_writes_nothing(wrap, tmp_path):
    """Wrapped or not, into a new folder or over an old one, whose files stay as they were."""
    save_model(gpt(), tmp_path / "old")
    before = {path: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    adapted = inject_lora(gpt(), 2)
    for model in (adapted, WRAPS[wrap](adapted)):
        for folder in ("new", "old"):
            with pytest.raises(ValueError, match="merge"):
                save_model(model, tmp_path / folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_wrapped_model_saves_a_plain_folder(wrap, tied, tmp_path):
    """The same files, byte for byte, as the model itself."""
    model = gpt(tie_word_embeddings=tied)
    save_model(model, tmp_path / "plain")
    save_model(WRAPS[wrap](model), tmp_path / "wrapped")
    for path in (tmp_path / "plain").iterdir():
        assert (tmp_path / "wrapped" / path.name).read_bytes() == path.read_bytes()


@torch.no_grad()
def test_a_tied_model_saves_one_matrix_and_reads_in_transformers(tmp_path):
    """No lm_head in the file; transformers finds it in the embedding, and so does load_model."""
    model = gpt(tie_word_embeddings=True)
    model.model.embed_tokens.weight.normal_(std=0.4)
    save_model(model, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    theirs, again = AutoModelForCausalLM.from_pretrained(tmp_path), load_model(tmp_path)
    assert far(theirs(IDX).logits, model(IDX)[0]) <= 2e-5 and torch.equal(again(IDX)[0], model(IDX)[0])
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_copy_tokenizer_carries_every_file_of_tokenizer_and_generation(tmp_path):
    """Byte for byte, over what was there, and nothing else: no weights, config, code or adapter."""
    carried = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
               "added_tokens.json", "chat_template.json", "chat_template.jinja", "generation_config.json", "spec.json",
               "o200k.tiktoken", "tokenizer.model"]
    left = ["config.json", "model.safetensors", "model.safetensors.index.json", "adapter_config.json", "README.md",
            "modeling.py", "pytorch_model.bin", "mytokenizer.json", "tokenizer.json.bak"]
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    for i, name in enumerate([*carried, *left]):
        (source / name).write_bytes(bytes([i, 13, 10, 0, 255, 10]) * 3)
    (folder / "tokenizer.json").write_text("old")
    copy_tokenizer(source, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(carried)
    assert all((folder / name).read_bytes() == (source / name).read_bytes() for name in carried)


@pytest.mark.parametrize("case", [("llama", False, "1GB"), ("llama", True, "1GB"), ("llama", False, "5KB"),
                                  ("qwen3", True, "5KB")], ids=str)
@torch.no_grad()
def test_a_folder_is_overwritten_by_the_model_that_is_mapped_from_it(case, good, tmp_path):
    """Load, save into the same folder, load: equal, for transformers too, changed or not, one file or shards."""
    shutil.copytree(good[case], tmp_path, dirs_exist_ok=True)
    model = load_model(tmp_path)
    kept = {name: t.clone() for name, t in model.state_dict().items()}
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert same_tensors(again.state_dict(), kept) and same_tensors(model.state_dict(), kept)
    for p in model.parameters():
        p.mul_(1.5)
    assert same_tensors(load_model(tmp_path).state_dict(), kept)  # the mapping is private
    save_model(model, tmp_path)
    changed = {name: 1.5 * t for name, t in kept.items()}
    assert same_tensors(load_model(tmp_path).state_dict(), changed)
    assert same_tensors(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict(), changed)
    assert same_tensors(again.state_dict(), kept)  # still the file that it was loaded from


# ---- RoPE ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_rope_tables_are_float32_whatever_the_model_is(dtype, monkeypatch):
    """In a forward pass, while generating, and where dtype is torch's default or autocast's."""
    made = []

    def recorded(*args):
        made.append(rope_tables(*args))
        return made[-1]

    monkeypatch.setattr(lora_alpha, "rope_tables", recorded)
    model = gpt(dtype, rope_scaling=LLAMA3)
    model(IDX)
    model.generate([[1, 2, 3]], 4)
    torch.set_default_dtype(dtype)
    try:
        model(IDX)
        with torch.autocast("cpu", torch.bfloat16):
            model.float()(IDX)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(made) >= 6 and {table.dtype for pair in made for table in pair} == {torch.float32}


@torch.no_grad()
def test_a_bfloat16_model_turns_alike_in_prefill_and_in_decode(tmp_path):
    """Token by token through the cache, the tables are those of one pass, and right to bfloat16's last bit."""
    save_model(gpt(max_position_embeddings=700, head_dim=12, rope_theta=500.0), tmp_path)
    model, tables = load_model(tmp_path, torch.bfloat16).eval(), []
    model.model.layers[0].register_forward_pre_hook(lambda block, args: tables.append(torch.stack(args[1])))
    prompt = torch.randint(61, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    new = model.generate([prompt], 150)[0]
    decoded = torch.cat([table.flatten(1, -2) for table in tables], dim=1)  # (2, T, D)
    assert [table.shape[-2] for table in tables] == [500] + [1] * 149 and decoded.shape == (2, 649, 12)
    tables.clear()
    model(torch.tensor([prompt + new[:-1]]))
    assert tables[0].dtype == decoded.dtype == torch.bfloat16
    assert torch.equal(tables[0].reshape(2, 649, 12), decoded)
    angles = torch.arange(649).double()[:, None] * 500.0 ** (-torch.arange(0, 12, 2).double() / 12).repeat(2)
    exact = torch.stack([angles.cos(), angles.sin()])
    assert (decoded.double() - exact).abs().max() <= 2**-9 + 1e-4  # half a last bit at 1, and float32's angles


def test_a_model_has_no_buffer_that_a_cast_could_spoil(tmp_path):
    """model.to(bfloat16) casts weights alone: logits equal those of the folder loaded in bfloat16."""
    save_model(gpt(rope_scaling=LLAMA3), tmp_path)
    cast = load_model(tmp_path).to(torch.bfloat16)
    assert not [*cast.buffers()] and not [*load_model(tmp_path).buffers()]
    assert torch.equal(cast(IDX)[0], load_model(tmp_path, torch.bfloat16)(IDX)[0])


# ---- Memory ----------------------------------------------------------------------------------------------------------

MEASURE = """
import re, sys, torch
from hf import load_model
from lora_alpha import GPT, GPTConfig

def status(key):  # VmHWM is ru_maxrss, but does not begin at the parent's
    return 1024 * int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

with torch.device("meta"):
    GPT(GPTConfig())  # torch imports 100 MB of its own for the first model on meta
before = status("VmRSS")
model = load_model(sys.argv[1], getattr(torch, sys.argv[2], None))
loaded = status("VmHWM") - before
for p in model.parameters():
    p.detach().sum()
print(sum(p.nbytes for p in model.parameters()), loaded, status("VmHWM") - before, model.lm_head.weight.dtype)
"""


def write_zeros(folder, stored):
    """A folder of half a thousand million weights, all zero, whose file takes no room on a disk that knows holes."""
    sizes = dict(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=8,
                 num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=2048)
    (folder / "config.json").write_text(json.dumps(dict(sizes, model_type="llama", head_dim=64)))
    with torch.device("meta"):
        shapes = shapes_of(GPT(GPTConfig(**sizes)))
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + torch.Size(shape).numel() * (4 if stored == "F32" else 2)
        header[name] = dict(dtype=stored, shape=shape, data_offsets=[start, end])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("stored, dtype", [("F32", "None"), ("F32", "bfloat16"), ("BF16", "float32"), ("BF16", "None")])
def test_a_load_takes_no_more_memory_than_the_weights(stored, dtype, tmp_path):
    """At its peak 1.15 of the loaded model's bytes, cast or not, and no more once every weight was read."""
    write_zeros(tmp_path, stored)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path), dtype], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    weights, loaded, touched, kind = done.stdout.split()
    share = [int(figure) / int(weights) for figure in (loaded, touched)]
    print(f"{stored} as {kind}: {int(weights):,} bytes of weights; peak {share[0]:.3f} of them at the load, "
          f"{share[1]:.3f} after every weight was read")
    assert int(weights) > 0.8e9 and share[1] > 0.9 and max(share) <= 1.15
