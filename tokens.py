"""Text and chats ↔ token ids: tokenizers, and chat templates of strangers, which run in a process of their own."""

import base64
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import time
import weakref
from contextlib import contextmanager
from pathlib import Path

import tiktoken
import tokenizers

from lora_alpha import GPTConfig

# ---- A stranger's files ----------------------------------------------------------------------------------------------


@contextmanager
def naming(where, kinds=ValueError):
    """Makes an error of these kinds, which a stranger's file has caused, a ValueError of one line, where first."""
    try:
        yield
    except kinds as error:
        text = " ".join(str(error)[:1000].split())
        raise ValueError(text if text.startswith(str(where)) else f"{where}: {text}") from None


def read_file(path: str | Path) -> bytes:
    """ValueError for what is no regular file: a pipe would wait for a writer, and a device has no end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path}: no regular file")
    return Path(path).read_bytes()


def read_json(path: str | Path) -> dict:
    """The object in a JSON file. ValueError, naming the file, where it holds anything else."""
    text = read_file(path)
    with naming(f"{path}: no JSON object", (ValueError, TypeError, RecursionError)):
        return {**json.loads(text.decode("utf-8-sig"))}  # a TypeError for a list or a number


# ---- Tokenizers ------------------------------------------------------------------------------------------------------

LONGEST = 2**22  # characters of one text: its tokens take a hundred times the memory of it
# Byte-level BPE (GPT-2) spells printable bytes as themselves, and the others as the characters from 256 on.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = dict(zip(map(chr, [*PRINTABLE, *range(256, 324)]), [*PRINTABLE, *sorted({*range(256)} - {*PRINTABLE})]))


@contextmanager
def calling(text: str):
    """While a library in Rust reads a text: ValueError for a panic, of which it writes to descriptor 2 by itself."""
    if len(text) > LONGEST:
        raise ValueError(f"a text of {len(text):,} characters: {LONGEST:,} are the most, divide it")
    nowhere, shown = os.open(os.devnull, os.O_WRONLY), os.dup(2)
    os.dup2(nowhere, 2)
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the tokenizer cannot read {text[:40]!r} ({str(error).splitlines()[0]})") from None
    finally:
        os.dup2(shown, 2)
        os.close(shown)
        os.close(nowhere)


class RankTokenizer(tiktoken.Encoding):
    def encode(self, text: str, **special) -> list[int]:
        with calling(text):
            return super().encode(text, **special)

    def encode_ordinary(self, text: str) -> list[int]:
        return self.encode(text, disallowed_special=())


class JSONTokenizer:
    """A tokenizer.json, read by its own library, behind tiktoken.Encoding's calls. Special tokens in a text are text.

    bos: the token that the file puts before every text, or None. adds_blank: whether it puts a blank there."""

    def __init__(self, path: Path):
        with naming(f"{path}: the tokenizers library cannot use it"), calling("a"):
            self.library = library = tokenizers.Tokenizer.from_file(str(path))
            library.no_truncation()
            library.no_padding()
            plain, whole = self.encode("a"), library.encode("a")
            self.bos = whole.ids[0] if whole.ids[0] != plain.ids[0] else None
        self.adds_blank, self.byte_level = "".join(plain.tokens) != "a", "ByteLevel(" in repr(library.decoder)
        ids, added = library.get_vocab(), library.get_added_tokens_decoder()
        self.texts, self.added = {i: text for text, i in ids.items()}, added.keys()
        self.special_tokens_set = {token.content for token in added.values() if token.special and token.content}
        self.max_token_value, self.eot_token = max(self.texts), ids.get("<|endoftext|>")
        self.encode_single_token = ids.__getitem__  # a KeyError for what is no token

    def encode(self, text: str, special: bool = False) -> tokenizers.Encoding:
        """special: special tokens in the text are tokens."""
        self.library.encode_special_tokens = not special  # as text
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # a lone surrogate is no text
        with calling(text):
            return self.library.encode(text, add_special_tokens=False)

    def encode_ordinary(self, text: str) -> list[int]:
        return self.encode(text).ids

    def decode(self, tokens: list[int]) -> str:
        return self.library.decode(tokens, skip_special_tokens=False)

    def decode_single_token_bytes(self, token: int) -> bytes:
        """The bytes of a token, a blank before its word among them. KeyError for an unknown id."""
        text = self.texts[token]
        if self.byte_level and token not in self.added and BYTES.keys() >= set(text):
            return bytes(BYTES[character] for character in text)
        if re.fullmatch("<0x[0-9A-F]{2}>", text):  # SentencePiece's bytes
            return bytes.fromhex(text[3:5])
        return text.replace("▁", " ").encode()


def load_tokenizer(folder: str | Path) -> RankTokenizer | JSONTokenizer:
    """A folder's tokenizer: a rank file with spec.json, else tokenizer.json. It has read texts that grow."""
    path, spec = Path(folder, "tokenizer.json"), Path(folder, "spec.json")
    ranked = spec.is_file() or not path.is_file()
    encoding = read_ranks(Path(folder), spec) if ranked else JSONTokenizer(path)
    with naming(spec if ranked else path):
        for size in (*range(4, 64, 4), 256):
            start = time.process_time()
            encoding.encode_ordinary(("aaaa 11..\n" * size)[:size])
            if time.process_time() - start > 0.5:
                raise ValueError(f"its pattern takes seconds for {size} characters")
    return encoding


def read_ranks(folder: Path, spec: Path) -> RankTokenizer:
    """tiktoken's tokenizer of a rank file, a line a token, base64 and rank, with the pattern in spec.json."""
    files = sorted(folder.glob("*.tiktoken")) or sorted(folder.glob("tokenizer.model"))
    if len(files) != 1:
        raise ValueError(f"{folder}: has {len(files)} of *.tiktoken, tokenizer.model and tokenizer.json, not one")
    ranks = {}
    for number, line in enumerate(read_file(files[0]).strip().splitlines(), 1):
        with naming(f"{files[0]}, line {number}: no base64 of a token, rank (SentencePiece?)"):
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    raw = read_json(spec)
    pattern, special = raw.get("pat_str"), raw.get("special_tokens")
    if not isinstance(pattern, str) or not isinstance(special, dict) or "" in special:
        raise ValueError(f"{spec}: needs pat_str, a string, and special_tokens, an object of names")
    ids, missing = [*ranks.values(), *special.values()], {bytes([byte]) for byte in range(256)} - ranks.keys()
    if missing or not all(type(i) is int and 0 <= i < 2**31 for i in ids) or len(set(ids)) < len(ids):
        raise ValueError(f"{files[0]}: want all 256 single bytes, and for each token a whole number from 0 of its own")
    with naming(spec), calling(pattern):
        return RankTokenizer(folder.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


Encoding = RankTokenizer | JSONTokenizer


def end_tokens(encoding: Encoding, config: GPTConfig, chat: bool = False) -> tuple[int, ...]:
    """The tokens that end an answer: the model's, else the tokenizer's <|endoftext|>; training teaches the first.

    In a chat the tokens that end a turn do, too. Raises ValueError where there is none, or where model and tokenizer do
    not belong together.
    """
    ends = config.eos_token_id
    if not ends and "<|endoftext|>" in encoding.special_tokens_set:
        ends = (encoding.eot_token,)
    if chat:
        turn_ends = {"<|im_end|>", "<|eot_id|>"} & encoding.special_tokens_set
        ends = (*(ends or ()), *(encoding.encode_single_token(token) for token in sorted(turn_ends)))
    if not ends:
        raise ValueError("no token ends an answer: set eos_token_id in config.json, or <|endoftext|> in spec.json")
    if max(encoding.max_token_value, *ends) >= config.vocab_size:
        raise ValueError(f"the tokenizer has ids up to {max(encoding.max_token_value, *ends)}, the model only "
                         f"{config.vocab_size} of them: they do not belong together")
    return ends


def begin_token(encoding: Encoding, config: GPTConfig) -> int | None:
    """The token that begins every text: as the tokenizer's file says, where it does; else the model's bos_token_id."""
    return getattr(encoding, "bos", config.bos_token_id)


def encode_continuation(encoding: Encoding, text: str) -> list[int]:
    """Tokens of a text that follows another, before which SentencePiece would put a blank."""
    if not getattr(encoding, "adds_blank", False):
        return encoding.encode_ordinary(text)
    before = "a" if text[:1].isspace() else "\n"  # which no token joins to the text
    first, both = encoding.encode_ordinary(before), encoding.encode_ordinary(before + text)
    return both[len(first) :] if both[: len(first)] == first else encoding.encode_ordinary(text)


def decode(encoding: Encoding, tokens: list[int]) -> str:
    """Text of the tokens. Models have more ids than their tokenizer has tokens: such an id decodes to nothing."""
    pieces = []
    for token in tokens:
        try:
            pieces.append(encoding.decode_single_token_bytes(token))
        except KeyError:
            continue
    return b"".join(pieces).decode("utf-8", errors="replace")


# ---- Chat templates --------------------------------------------------------------------------------------------------

# The turns of a folder that has a rank file alone, told by a special token: Llama 3's and ChatML's.
TURNS = {
    "<|start_header_id|>": "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + "
                           "'<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_gener"
                           "ation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "<|im_start|>": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
                    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
}


PATIENCE = 5  # seconds for one rendering


def renderer(seconds: float) -> None:
    """What the process that renders a template runs: a template on the first line, then what it is shown, as JSON.

    A template is a stranger's program. It runs in a sandbox, with what transformers shows to one, in a process of its
    own that may take a gigabyte (where the system has such limits) and that the parent can stop.
    """
    import sys
    sys.path[:] = sys.argv[1:]  # the parent's
    import faulthandler
    import functools
    import json
    import re
    import signal
    from contextlib import suppress
    from datetime import datetime

    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str):
        raise TemplateError(message)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's
    with suppress(ImportError, ValueError, OSError):
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    # A {% generation %} block comes out between two marks: str.join as a filter puts them there.
    template = re.sub(r"({%[-+]?\s*)(end)?generation\b", lambda tag: tag[1] + (
        "endfilter" if tag[2] else "filter generation(generation_marks)"), json.loads(sys.stdin.readline()))
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                            extensions=["jinja2.ext.loopcontrols"])
    sandbox.filters |= dict(tojson=functools.partial(json.dumps, ensure_ascii=False), generation=str.join)
    sandbox.globals |= dict(raise_exception=raise_exception, strftime_now=datetime(2024, 7, 26).strftime)
    compiled = functools.cache(sandbox.from_string)
    for line in sys.stdin:
        faulthandler.dump_traceback_later(seconds, exit=True)  # ends this process from a thread beside Python's
        try:
            text = compiled(template).render(json.loads(line))
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # a lone surrogate is no text
            reply = [text, None] if len(text) < 2**22 else [None, f"{len(text):,} characters"]
        except MemoryError:
            return
        except Exception as error:  # it may fail in any way
            reply = [None, repr(error)[:300]]
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(reply), flush=True)


class Chat:
    """Messages (role, content) → tokens by a folder's template.

    strftime_now tells 26 July 2024, as Llama 3.2's template does without it: a prompt is the same tomorrow. Special
    tokens in a message are only text. source: where the template is from. ValueError where it cannot be rendered.
    """

    def __init__(self, folder: Path, encoding: Encoding, template: str, source: str, names: dict[str, str]):
        self.folder, self.encoding, self.template, self.source, self.names = folder, encoding, template, source, names
        self.tokens = sorted(encoding.special_tokens_set, key=len, reverse=True)
        self.special = "|".join(map(re.escape, self.tokens)) or "(?!)"
        self.heads, self.process = sorted({token[0] for token in self.tokens}), None

    def mark(self, messages: list[dict]) -> list[dict]:
        """The messages with stand-ins for what begins their special tokens. marks: these and 3 more unused letters."""
        said = json.dumps(messages, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        unused = (chr(i) for i in range(0xE000, 0xF900) if chr(i) not in said)
        self.marks = "".join(itertools.islice(unused, len(self.heads) + 3))
        hide = dict(zip(map(ord, self.heads), self.marks))
        messages = json.loads(re.sub(self.special, lambda token: token[0].translate(hide), said))
        return [{key: value for key, value in message.items() if value is not None} for message in messages]

    def render(self, messages: list[dict], prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """The text, and begin and end of each {% generation %} block in it."""
        text, error = self.ask(self.names | dict(messages=messages, tools=None, documents=None,
                                                 add_generation_prompt=prompt, generation_marks=self.marks[-2:]))
        if error:
            raise ValueError(f"{self.folder}: its chat template cannot be rendered ({error})")
        pieces = re.split(f"[{self.marks[-2:]}]", text)
        cuts = list(itertools.accumulate(map(len, pieces)))
        return "".join(pieces), list(zip(cuts[::2], cuts[1::2]))

    def ask(self, shown: dict) -> list:
        """[text, None] or [None, error] of the process that renders."""
        if self.process is None or self.process.poll() is not None:
            program = inspect.getsource(renderer) + f"renderer({PATIENCE})"
            self.process = subprocess.Popen([sys.executable, "-c", program, *sys.path], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            weakref.finalize(self, self.process.communicate)
            self.process.stdin.write(json.dumps(self.template) + "\n")
        try:
            self.process.stdin.write(json.dumps(shown) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):  # it is gone
            self.process.kill()
            self.process.wait()
            return [None, f"it takes more than {PATIENCE} s or 1 GB"]

    def encode(self, text: str) -> list[tuple[int, int, int]]:
        """token_spans of a rendered text: the template's special tokens are tokens, the messages' are text."""
        show = dict(zip(map(ord, self.marks), self.heads))
        if text == text.translate(show):
            return token_spans(self.encoding, text, special=True)
        first, later = (token_spans(self.encoding, token + "a", special=True) for token in ("", self.tokens[0]))
        lead = "" if first[0][0] == later[1][0] else "\n"  # SentencePiece may put a blank before the first piece alone
        skip, tokens, at = len(token_spans(self.encoding, lead)), [], 0
        for i, piece in enumerate(re.split(f"({self.special})", text)):
            plain = token_spans(self.encoding, lead * (i > 0) + piece.translate(show))[skip * (i > 0) :]
            shift = at - len(lead) * (i > 0)
            tokens += [(self.encoding.encode_single_token(piece), at, at + len(piece))] if i % 2 else [
                (token, begin + shift, end + shift) for token, begin, end in plain]
            at += len(piece)
        return tokens

    def __call__(self, messages: list[dict]) -> list[int]:
        """Tokens up to where the assistant speaks."""
        return [token for token, _, _ in self.encode(self.render(self.mark(messages), prompt=True)[0])]

    def turn(self, messages: list[dict]) -> tuple[str, int]:
        """The text of messages, and where the last, the assistant's, begins in it: after its prompt; where the prompt
        is empty or shown otherwise, with its content."""
        *before, last = messages
        text, prompt = self.render(messages)[0], self.render(before, prompt=True)[0] if before else self.marks[-3]
        if not text.startswith(prompt):
            prompt = os.path.commonprefix([text, self.render([*before, last | {"content": self.marks[-3]}])[0]])
        return text, len(prompt)

    def examples(self, messages: list[dict], start: int = 0) -> list[tuple[list[int], list[int]]]:
        """(ids, labels), labels[t] = ids[t] where it is learnt, else -100: the assistant's turns from messages[start].

        Learnt are {% generation %} blocks; in a template without them what a turn puts after its prompt, as TRL learns
        a completion: with the token that ends it, and ChatML's line feed. Where turns are shown otherwise once others
        follow, each is an example. Empty where nothing is learnt.
        """
        messages = self.mark(messages)
        text, spans = self.render(messages)
        parts = [(text, spans[len(self.render(messages[:start])[1]) if start else 0 :])]
        if not spans:
            turns = [self.turn(messages[: i + 1]) for i in range(start, len(messages))
                     if messages[i]["role"] == "assistant"]
            parts = [(shown, [(begin, len(shown))]) for shown, begin in turns]
            if all(text.startswith(shown) for shown, _ in turns):
                parts = [(text, [span for _, (span,) in parts])]
        examples = []
        for text, spans in parts:
            tokens = self.encode(text)
            labels = [token if any(begin < last and end > first for first, last in spans) else -100
                      for token, begin, end in tokens]
            examples += [([token for token, _, _ in tokens], labels)] * any(label != -100 for label in labels)
        return examples


def token_spans(encoding: Encoding, text: str, special: bool = False) -> list[tuple[int, int, int]]:
    """(id, begin, end) of each token, begin and end in characters; special: special tokens are tokens, else text."""
    if isinstance(encoding, JSONTokenizer):
        found = encoding.encode(text, special)
        return [(token, *span) for token, span in zip(found.ids, found.offsets)]
    ids = encoding.encode(text, allowed_special="all" if special else set(), disallowed_special=())
    owners = [i for i, letter in enumerate(text) for _ in letter.encode()]  # the character of each byte
    ends = list(itertools.accumulate(len(encoding.decode_single_token_bytes(token)) for token in ids))
    return [(token, owners[begin], owners[end - 1] + 1) for token, begin, end in zip(ids, [0, *ends], ends)]


def load_chat(folder: str | Path, encoding: Encoding) -> Chat | None:
    """The chat of a model folder: by its template file, tokenizer_config.json or special tokens; None without."""
    paths = [Path(folder, name) for name in ("additional_chat_templates/default.jinja", "chat_template.jinja")]
    config, named = (read_json(path) if path.is_file() else None for path in (
        Path(folder, "tokenizer_config.json"), Path(folder, "special_tokens_map.json")))
    guess = next((turns for token, turns in TURNS.items() if token in encoding.special_tokens_set), None)
    template = guess if config is None else config.get("chat_template")
    template = next((path.read_text("utf-8", "replace") for path in paths if path.is_file()), template)
    if not template:
        return None
    if isinstance(template, list):  # several, by name
        template = next((entry.get("template") for entry in template if isinstance(entry, dict)
                         and entry.get("name") == "default"), None)
    if not isinstance(template, str):
        raise ValueError(f"{folder}: its chat template is no text, nor a list with one named default")
    names = (config or {}) | ({} if config and "added_tokens_decoder" in config else named or {})
    names = {name: token.get("content") if isinstance(token, dict) else token for name, token in names.items()
             if name.endswith("_token") and isinstance(token, str | dict)}
    words = "guessed from the special tokens" if template is guess else "the folder's template"
    return Chat(folder, encoding, template, words, names)
