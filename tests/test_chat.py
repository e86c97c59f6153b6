"""Chat templates against transformers and TRL, ids and what is learnt: python -m pytest tests/test_chat.py"""

import json
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_hub import sentencepiece, train_tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from tokens import load_chat, load_tokenizer

REAL = Path(__file__).parents[2] / "shared/real/tokenizers"
CHATML = json.loads((REAL / "smollm2/tokenizer_config.json").read_text())["chat_template"] if REAL.is_dir() else ""
# Minimal ones of our own where the real data has none: Qwen2.5's system turn, Llama 3's turns, Mistral's [INST].
QWEN25 = ("{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
          "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
          "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}")
LLAMA3 = ("{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + "
          "m.content | trim + '<|eot_id|>' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
MISTRAL = ("{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
           "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
           "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}"
           "{% endif %}{% if m.role == 'user' %}{{ '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' "
           "}}{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}")
MARKED = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' -%}\n"
          "  {%- generation -%}  {{- m.content + '<|im_end|>' -}}  {%- endgeneration %}\n"
          "{%- else %}{{ m.content + '<|im_end|>' }}{%- endif %}{{ '\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def model_folder(folder, template, tokens, source=None):
    """A folder with a tokenizer.json (in place already without a source), its template and named special tokens."""
    folder.mkdir(exist_ok=True)
    if source:
        shutil.copy(source / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(tokens, chat_template=template)))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), chat_template=template, **tokens)
    return load_chat(folder, load_tokenizer(folder)), theirs


def conversations(tokenizer, count, seed=0):
    """Seeded: system or none, 1 to 6 turns, empty content, typed special tokens, vocabulary, emoji, leading blanks."""
    rng = random.Random(seed)
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    pieces = ["Hello", " world", "12345", "é", "e\u0301", "🙂👩‍👩‍👧", "  ", "\n", "\n\n", "\t", "中文", "x = {y}", "'s",
              "<think>\nso\n</think>\n\n", "<tool_call>", "</think>", "\x7f", "\ue000", "ﷺ", "<", "|im_end|>", "[INST]"]

    def say():
        pool = pieces + (rng.choices(special, k=8) if rng.random() < 0.3 else [])
        return rng.choice(["", " ", "   ", "\n"]) * (rng.random() < 0.3) + "".join(rng.choices(pool, k=rng.choice(
            [0, 1, 2, 5, 12])))
    for _ in range(count):
        system = [dict(role="system", content=say())] * (rng.random() < 0.5)
        yield system + [dict(role=role, content=say()) for role in ["user", "assistant"] * rng.randint(1, 6)]


def their_tokens(tokenizer, messages, prompt=False):
    """(text, ids, offsets) with transformers alone: a special token in a message is a word while it is rendered, and
    then a text that is tokenized apart from the template's special tokens, as split_special_tokens does."""
    special = sorted((t.content for t in tokenizer.added_tokens_decoder.values() if t.special), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, special)))
    words = {f"zq{i}qz": token for i, token in enumerate(special)}
    hide = {token: word for word, token in words.items()}
    hidden = [dict(m, content=pattern.sub(lambda t: hide[t[0]], m["content"])) for m in messages]
    text = tokenizer.apply_chat_template(hidden, tokenize=False, add_generation_prompt=prompt)
    if hidden == messages:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert found.input_ids == tokenizer.apply_chat_template(messages, add_generation_prompt=prompt).input_ids
        return text, found.input_ids, found.offset_mapping
    shown, ids, offsets = "", [], []
    newline = tokenizer("\n", add_special_tokens=False).input_ids
    for i, piece in enumerate(re.split(f"({pattern.pattern})", text)):
        piece = re.sub(r"zq\d+qz", lambda t: words[t[0]], piece)
        # A Metaspace puts a blank before the first piece of a text alone, Llama 2's normalizer before each.
        lead = "\n" if i and "Metaspace" in repr(tokenizer.backend_tokenizer.pre_tokenizer) else ""
        part = tokenizer(lead + piece, add_special_tokens=False, return_offsets_mapping=True,
                         split_special_tokens=i % 2 == 0)
        skip = len(newline) if lead else 0
        ids += part.input_ids[skip:]
        offsets += [(len(shown) + b - len(lead), len(shown) + e - len(lead)) for b, e in part.offset_mapping[skip:]]
        shown += piece
    return shown, ids, offsets


def their_examples(tokenizer, messages, start=0):
    """What chat.examples gives, as differences of transformers' renderings: the turn less its prompt."""
    whole, spans, alone = their_tokens(tokenizer, messages), [], []
    for i in range(start, len(messages)):
        if messages[i]["role"] == "assistant":
            prompt = their_tokens(tokenizer, messages[:i], True)[0]
            turn = their_tokens(tokenizer, messages[: i + 1])
            assert turn[0].startswith(prompt)
            spans.append((len(prompt), len(turn[0])))
            alone.append(turn)
    found = [(whole, spans)]
    if not all(whole[0].startswith(text) for text, _, _ in alone):
        found = [(turn, [span]) for turn, span in zip(alone, spans)]
    return [(ids, [token if any(b < last and e > first for first, last in spans) else -100
                   for token, (b, e) in zip(ids, offsets)]) for (_, ids, offsets), spans in found]


def compare(chat, theirs, count):
    """Ids and learnt positions, from every turn and from the last on; the number of examples."""
    seen = 0
    for messages in conversations(theirs, count):
        assert chat(messages) == their_tokens(theirs, messages, True)[1], messages
        assert chat(messages[:-1]) == their_tokens(theirs, messages[:-1], True)[1], messages
        assert chat.examples(messages) == their_examples(theirs, messages), messages
        start = max(len(messages) - 2, 0)
        assert chat.examples(messages, start) == their_examples(theirs, messages, start), messages
        seen += len(chat.examples(messages))
    return seen


THINKS = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + ('<think>' if loop.last and m.role == '"
          "assistant' else '') + m.content + '<|endoftext|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")  # shown in the last turn alone
SMALL = {
    "turn by turn": (lambda folder: train_tokenizer(folder), THINKS, {}),
    "GPT-2": (lambda folder: train_tokenizer(folder), CHATML, dict(eos_token="<|endoftext|>")),
    "SentencePiece": (lambda folder: sentencepiece(folder), MISTRAL, dict(bos_token="<s>", eos_token="</s>")),
    "Metaspace": (lambda folder: sentencepiece(folder, True), MISTRAL, dict(bos_token="<s>", eos_token="</s>")),
}


@pytest.mark.parametrize("kind", SMALL)
def test_small_tokenizers_give_transformers_ids_and_learnt_positions(tmp_path, kind):
    """Of byte-level and of SentencePiece kind: 20 conversations; typed special tokens are text."""
    make, template, tokens = SMALL[kind]
    make(tmp_path)
    compare(*model_folder(tmp_path, template or QWEN25, tokens), 20)


def real_folder(name, folder):
    if name == "mistral":
        pytest.importorskip("sentencepiece", reason="transformers reads tokenizer.model with sentencepiece")
        pytest.importorskip("google.protobuf", reason="transformers reads tokenizer.model with protobuf")
        from transformers import LlamaTokenizer
        LlamaTokenizer.from_pretrained(REAL / "mistral_v1_sentencepiece").save_pretrained(folder)
        return model_folder(folder, MISTRAL, dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>"))
    if name == "llama3":
        from transformers.convert_slow_tokenizer import TikTokenConverter
        spec = json.loads((REAL / "llama3/spec.json").read_text())
        special = sorted(spec["special_tokens"], key=spec["special_tokens"].get)
        library = TikTokenConverter(vocab_file=str(REAL / "llama3/tokenizer.model"), pattern=spec["pat_str"],
                                    extra_special_tokens=special).converted()
        theirs = PreTrainedTokenizerFast(tokenizer_object=library, chat_template=LLAMA3, bos_token="<|begin_of_text|>")
        return load_chat(REAL / "llama3", load_tokenizer(REAL / "llama3")), theirs  # by its special tokens
    config = json.loads((REAL / ("smollm2" if name == "smollm2" else "qwen3") / "tokenizer_config.json").read_text())
    template = QWEN25 if name == "qwen2.5" else MARKED if name == "marked" else config["chat_template"]
    return model_folder(folder, template, {key: value for key, value in config.items()
                                           if key in ("bos_token", "eos_token", "unk_token") and value},
                        REAL / ("smollm2" if name == "smollm2" else "qwen3"))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
@pytest.mark.thorough
@pytest.mark.parametrize("name", ["smollm2", "qwen2.5", "qwen3", "llama3", "mistral"])
def test_real_chats_give_transformers_ids_and_learnt_positions(tmp_path, name):
    """200 conversations each. Qwen3 drops earlier thinking: several examples. TRL 1.16.0 learns ChatML's line feed
    after <|im_end|>, too (sft_trainer.py: all after the prompt; qwen3_training.jinja: inside the marks): so it is."""
    chat, theirs = real_folder(name, tmp_path / "m")
    seen = compare(chat, theirs, 200)
    assert seen > 400 if name == "qwen3" else seen == 200


def check_marks(chat, theirs, count):
    for messages in conversations(theirs, count):
        found = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        if their_tokens(theirs, messages)[1] != found.input_ids:
            continue  # a typed special token, which is text here
        labels = [token if learnt else -100 for token, learnt in zip(found.input_ids, found.assistant_masks)]
        assert chat.examples(messages) == [(found.input_ids, labels)], messages
        (_, last), = chat.examples(messages, len(messages) - 1) or [(0, [-100] * len(labels))]
        assert [a for a in last if a != -100] == [a for a in labels if a != -100][-sum(a != -100 for a in last):]
        assert sum(a != -100 for a in last) < sum(a != -100 for a in labels) or len(messages) <= 3


def test_marks_say_what_is_learnt(tmp_path):
    """{% generation %} blocks: transformers' return_assistant_tokens_mask; here the line feed is outside of them."""
    train_tokenizer(tmp_path)
    check_marks(*model_folder(tmp_path, MARKED, dict(eos_token="<|endoftext|>")), 30)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
@pytest.mark.thorough
def test_marks_of_a_real_tokenizer_say_what_is_learnt(tmp_path):
    check_marks(*real_folder("marked", tmp_path / "m"), 200)


# The environment of templates.

VALUE = [dict(role="user", content="<é> & 'q' \"d\" 中 \u2028 🙂", z=1, a=dict(y=[1, 2.5, True], b={"ü": "</x>"}))]
SNIPPETS = [
    "{{ messages | tojson }}", "{{ messages | tojson(indent=2) }}", "{{ messages | tojson(sort_keys=true) }}",
    "{{ messages | tojson(ensure_ascii=true) }}", "{{ messages | tojson(separators=(',', ':')) }}",
    "{% if tools is not none %}tools{% endif %}{{ tools }}", "{{ documents is defined }}{{ documents is none }}",
    "{{ tools is defined }}", "{{ strftime_now is defined }}", "{{ add_generation_prompt }}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}"
    "{% endfor %}", "{% generation %}a{% endgeneration %}b",
    "x\n  {%- generation -%} \n a \n {%- endgeneration %}\n  b",
    "{% for m in messages %}\n  {% generation %}\n  {{ m.role }}\n  {% endgeneration %}\nend\n{% endfor %}",
    "{#- {% generation %} in a comment -#} x", "{{ bos_token }}|{{ eos_token }}", "{{ unk_token is defined }}",
    "{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}{{ dict(a=1) }}", "{{ messages[0].content | upper }}",
    "{{ messages[0].none is defined }}", "{{ messages[0].content | length }}", "{% if true %}\n a\n {% endif %}\n b\n"]


@pytest.mark.parametrize("template", SNIPPETS)
def test_a_template_sees_what_transformers_shows_it(tmp_path, template):
    """Filters, globals, extensions and variables; a message's field of None is as if it were not there."""
    train_tokenizer(tmp_path)
    chat, theirs = model_folder(tmp_path, template, dict(bos_token="<|im_start|>", eos_token="<|endoftext|>"))
    messages = [dict(VALUE[0], none=None)]
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat.render(chat.mark(messages), prompt=True)[0] == expected
    assert chat(messages) == theirs.apply_chat_template(messages, add_generation_prompt=True).input_ids


def test_a_prompt_is_the_same_tomorrow(tmp_path):
    """strftime_now is there, and stands still; a template's refusal is shown."""
    train_tokenizer(tmp_path)
    chat, theirs = model_folder(tmp_path, "{{ strftime_now('%d %b %Y') }}", {})
    assert chat.render(chat.mark(VALUE))[0] == "26 Jul 2024" != theirs.apply_chat_template(VALUE, tokenize=False)
    chat, _ = model_folder(tmp_path, "{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(ValueError, match="chat template cannot be rendered.*roles must alternate"):
        chat(VALUE)


@pytest.mark.parametrize("config", [
    dict(bos_token="<s>"), dict(bos_token=dict(content="<s>")), dict(add_bos_token=True, bos_token=None),
    dict(bos_token="<s>", added_tokens_decoder={})])
def test_special_tokens_map_gives_names_where_transformers_takes_them(tmp_path, config):
    """special_tokens_map.json goes before tokenizer_config.json, but not where that one has added_tokens_decoder."""
    train_tokenizer(tmp_path)
    template = "{{ bos_token }},{{ eos_token }},{{ add_bos_token is defined }}"
    config |= dict(chat_template=template, tokenizer_class="PreTrainedTokenizerFast")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(dict(
        bos_token="<|im_start|>", eos_token=dict(content="<|endoftext|>", lstrip=False, rstrip=False, normalized=False,
                                                 single_word=False))))
    chat = load_chat(tmp_path, load_tokenizer(tmp_path))
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected = render_jinja_template([VALUE], chat_template=template, **theirs.special_tokens_map)[0][0]
    assert chat.render(chat.mark(VALUE))[0] == expected


@pytest.mark.parametrize("files, config", [
    ({}, "c"), ({}, [dict(name="tool_use", template="t"), dict(name="default", template="d")]),
    ({"chat_template.jinja": "file\r\nx\n"}, "c"), ({"chat_template.jinja": "file", "tool_use": "t"}, "c"),
    ({"chat_template.jinja": "file", "default": "more"}, "c"), ({"default": "more"}, None)])
def test_the_template_is_the_one_that_transformers_takes(tmp_path, files, config):
    """Of the configuration, of several by name, of chat_template.jinja and of additional_chat_templates."""
    train_tokenizer(tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    for name, text in files.items():
        path = tmp_path / name if name.endswith("jinja") else tmp_path / f"additional_chat_templates/{name}.jinja"
        path.write_bytes(text.encode())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(
        dict(tokenizer_class="PreTrainedTokenizerFast") | (dict(chat_template=config) if config else {})))
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    chat = load_chat(tmp_path, load_tokenizer(tmp_path))
    assert chat.source == "the folder's template"
    assert chat.render(chat.mark(VALUE))[0] == theirs.apply_chat_template(VALUE, tokenize=False)


def test_typed_special_tokens_stay_text_and_other_added_tokens_are_matched(tmp_path):
    """Through tojson and length as well; a lone surrogate is the character for what is no text."""
    added = [dict(id=i, content=text, special=i < 2, single_word=False, lstrip=False, rstrip=False, normalized=False)
             for i, text in [(0, "<|endoftext|>"), (1, "<|im_start|>"), (500, "<think>")]]
    train_tokenizer(tmp_path, added_tokens=added)
    chat, _ = model_folder(tmp_path, "<|im_start|>{{ messages | tojson }}"
                                     "{{ messages[0].content | length }}{{ messages[0].content }}<|endoftext|>", {})
    text = "a<|im_start|><think><|endoftext|>"
    ids, encoding = chat([dict(role="user", content=text)]), load_tokenizer(tmp_path)
    assert (ids[0], ids[-1]) == (1, 0) and not {0, 1} & set(ids[1:-1]) and ids.count(500) == 2
    assert encoding.decode(ids[1:-1]) == json.dumps([dict(role="user", content=text)]) + str(len(text)) + text
    assert 500 in encoding.encode_ordinary("<think>") and 1 not in encoding.encode_ordinary("<|im_start|>")
    assert "\ufffd" in encoding.decode(chat([dict(role="user", content="\ud83d")]))


def test_unusual_conversations(tmp_path):
    """A greeting by the assistant, two turns of it in a row, none of it, and a prompt that a turn is not shown with."""
    train_tokenizer(tmp_path)
    chat, _ = model_folder(tmp_path, QWEN25, {})
    decode = load_tokenizer(tmp_path).decode

    def learnt(chat, *turns, start=0):
        messages = [dict(role=dict(u="user", a="assistant", s="system")[turn[0]], content=turn[1:]) for turn in turns]
        return [decode([label for label in labels if label != -100]) for _, labels in chat.examples(messages, start)]
    assert learnt(chat, "ahello", "ux", "ay") == ["hello<|im_end|>\ny<|im_end|>\n"]
    assert learnt(chat, "a", "ux") == ["<|im_end|>\n"]
    assert learnt(chat, "ux", "ay", "az", "uw") == ["y<|im_end|>\nz<|im_end|>\n"]
    assert learnt(chat, "ux", "ay", "ux", "az", start=2) == ["z<|im_end|>\n"]
    assert learnt(chat, "sx", "uy") == [] == learnt(chat, "ux", "ay", start=2)
    chat, _ = model_folder(tmp_path, QWEN25.replace("assistant\n'", "assistant\n<think>\n'"), {})
    assert learnt(chat, "ux", "ay") == ["y<|im_end|>\n"]


# TRL's own preparation of a data set.

TEMPLATES = ["qwen2_5", "qwen2_5_training", "qwen3", "qwen3_training", "llama3", "llama3_training"]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
@pytest.mark.thorough
@pytest.mark.parametrize("name", TEMPLATES)
def test_trl_prepares_the_same_examples(tmp_path, name, monkeypatch):
    """trl.SFTTrainer._prepare_dataset with templates as published, in TRL's package: assistant_only_loss on messages
    where there are marks, a prompt and its completion as lists of messages otherwise. Tried with TRL 1.16.0."""
    trl = pytest.importorskip("trl", reason="TRL is not here")
    datasets = pytest.importorskip("datasets", reason="TRL's datasets is not here")
    template = (Path(trl.__file__).parent / f"chat_templates/{name}.jinja").read_text(encoding="utf-8")
    if name.startswith("llama"):
        _, theirs = real_folder("llama3", tmp_path / "m")
        theirs.chat_template = template
        theirs.save_pretrained(tmp_path / "m")
        chat = load_chat(tmp_path / "m", load_tokenizer(tmp_path / "m"))
    else:
        chat, theirs = model_folder(tmp_path / "m", template, dict(eos_token="<|im_end|>"), REAL / "qwen3")
    marked, plain = "generation" in re.sub("add_generation", "", template), []
    for messages in conversations(theirs, 100):
        if their_tokens(theirs, messages)[1] == theirs.apply_chat_template(messages).input_ids:
            plain.append(messages)
    assert len(plain) > 20
    rows = [dict(messages=m) if marked else dict(prompt=m[:-1], completion=m[-1:]) for m in plain]
    trainer = SimpleNamespace(chat_template=None, completion_only_loss=not marked, _tokenizer=theirs)
    numbers = map(str, range(99))  # datasets pickles each step's function for a name, and some classes refuse
    monkeypatch.setattr(datasets.fingerprint.Hasher, "hash", lambda *values: next(numbers))
    args = SimpleNamespace(dataset_num_proc=None, assistant_only_loss=marked, dataset_text_field="text",
                           max_length=None, shuffle_dataset=False)
    prepared = trl.SFTTrainer._prepare_dataset(trainer, datasets.Dataset.from_list(rows), theirs, args, False, None,
                                               "train")
    for messages, row in zip(plain, prepared, strict=True):
        ours = chat.examples(messages, 0 if marked else len(messages) - 1)
        assert ours == [(row["input_ids"], row["labels"])], messages
