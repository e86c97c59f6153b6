"""pass@1 of a model folder and adapters: statistics → grader → problems → prompts → the run → tables → command line.

    python eval_pass1.py                           the base and the newest adapter under out/, on data/equations
    python eval_pass1.py --adapter out/NAME --data FOLDER_OR_FILE --prompt PROTOCOL
    python eval_pass1.py --regrade FILE            grades stored answers anew, without a model

MATH, GSM8K and GPQA, by published protocols, graded exactly. Problems are the sampling unit of every interval (Miller
2024, "Adding Error Bars to Evals").
"""

import argparse
import csv
import hashlib
import io
import itertools
import json
import math
import operator
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import tiktoken
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hf import load_adapter, load_model, load_tokenizer, read_json, write_json
from lora_alpha import GPT, GPTConfig, lora_layers

HERE = Path(__file__).resolve().parent
KINDS = ("math", "gsm8k", "choice")  # of problem, and how its answer is graded

# ---- Statistics ------------------------------------------------------------------------------------------------------

Z = 1.959963984540054  # of the normal distribution, 95% lie within ±Z


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k)/C(n, k): the chance that k of n samples, c of them right, hold a right one (Chen et al. 2021)."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"n = {n}, c = {c}, k = {k}: want 0 <= c <= n and 1 <= k <= n")
    if k > n - c:
        return 1.0
    few, many = sorted((c, k))  # C(n-c, k)/C(n, k) is the product over i < c of 1 - k/(n-i), and c and k may be swapped
    return -math.expm1(math.fsum(math.log1p(-many / (n - i)) for i in range(few)))


def wilson(mean: float, n: float) -> tuple[float, float]:
    """Wilson's 95% interval (1927) for the share `mean` of n independent trials."""
    middle = (mean + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(mean * (1 - mean) / n + Z * Z / (4 * n * n))
    return max(0.0, middle - half) if mean else 0.0, min(1.0, middle + half) if mean < 1 else 1.0


def pass1_interval(correct: list[int], samples: int = 1) -> tuple[float, float, float]:
    """pass@1 and its 95% interval: (mean, low, high), as fractions. correct[i] of `samples` answers to problem i right.

    Problems are the unit (Miller 2024). One sample each: Wilson's interval. Several: mean ± Z·SE with
    SE = √(Σ(p_i - mean)²/(N-1)/N); near 0 and 1, where that falls short, Wilson's of the mean(1 - mean)/SE² problems
    that would have this SE. Checked by test_eval.py::test_the_interval_covers_the_truth.
    """
    N = len(correct)
    if N == 0 or samples < 1 or not all(0 <= c <= samples for c in correct):
        raise ValueError(f"{N} problems of {samples} samples: want at least one of each, and 0 to {samples} correct")
    mean = sum(correct) / (N * samples)
    error = math.sqrt(sum((c / samples - mean) ** 2 for c in correct) / max(N - 1, 1) / N)
    if samples == 1 or error == 0:
        return mean, *wilson(mean, N)
    if 0.2 < mean < 0.8:
        return mean, max(0.0, mean - Z * error), min(1.0, mean + Z * error)
    return mean, *wilson(mean, min(mean * (1 - mean) / error**2, N * samples))


def paired_difference(first: list[int], other: list[int], samples: int = 1) -> tuple[float, float, float, float]:
    """other's pass@1 minus first's on the same problems: (difference, low, high, p), the first three as fractions.

    The 95% interval is from the differences problem by problem (Miller 2024); with one sample each as Agresti and Min
    (2005) have it, half a problem more in each of four cells, so that it is honest where the two hardly differ. p is
    McNemar's exact one, two-sided: how often a fair coin would part the problems that one solved more often than the
    other as unevenly.
    """
    N = len(first)
    differences = [(b - a) / samples for a, b in zip(first, other, strict=True)]
    up, down, mean = sum(d > 0 for d in differences), sum(d < 0 for d in differences), sum(differences) / N
    middle, error = mean, math.sqrt(sum((d - mean) ** 2 for d in differences) / max(N - 1, 1) / N)
    if samples == 1:
        middle = (up - down) / (N + 2)
        error = math.sqrt((up + down + 1) / (N + 2) - middle**2) / math.sqrt(N + 2)
    tail = sum(math.comb(up + down, i) for i in range(min(up, down) + 1))
    low, high = max(-1.0, middle - Z * error), min(1.0, middle + Z * error)
    return mean, low, high, min(1.0, 2 * tail / 2 ** (up + down))


# ---- Grader ----------------------------------------------------------------------------------------------------------
#
# An answer is cut into tokens, read into its parts (lists, intervals, matrices ...), and its expressions are compared
# exactly: rationals as rationals, all else by its value at a random point of two prime fields of 283 bits or more, in
# which an accident is out of the question: x^p and x + p are not x, for exponents stay below 10^6 and numbers below p.
# Checked by test_grader.py::test_the_fields_are_what_the_grader_needs.

LONGEST = 10_000  # characters of an answer that are read as mathematics; a longer one is compared as a string
BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s{0,9}")
ANSWER_IS = re.compile(r"answer(?:\s{1,9}is\b|[*_]{0,2}\s{0,9}:)", re.IGNORECASE)
# A minus after a digit or a letter is a subtraction; a comma separates thousands only before three digits.
NUMBER = re.compile(r"(?:(?<![\w)])[-−–—‐‑‒―－﹣]|(?<==\s)[-−–—]\s)?(?:\\?\$)?"
                    r"(?:[0-9]{1,3}(?:(?:,|\{,\})[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+|/[0-9]+)?|\.[0-9]+")


def last_box(text: str) -> str | None:
    """The contents of the last \\boxed or \\fbox, its braces balanced; None where there is none, or it is cut off."""
    end = max((box.end() for box in BOX.finditer(text)), default=None)
    if end is None:
        return None
    rest = text[end : end + 10 * LONGEST]
    if not rest.startswith("{"):  # \boxed 5: what stands before the closing $
        return re.match(r"[^$\n]*", rest)[0].strip()
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", rest, re.DOTALL):  # an escaped brace is no brace
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return rest[1 : brace.start()].strip()
    return None


def stated(text: str) -> str:
    """The answer that follows "the answer is": a displayed formula, or what stands before the end of the sentence."""
    text = text[:LONGEST].lstrip(" \t\r\n:*_`")
    sentence = re.split(r"[.](?=\s|[$*]*$|[$*]+\s)|\n|,? (?:because|since|which|where|as)(?:\s|$)", text, maxsplit=1)[0]
    formula = re.match(r"\$\$(.*?)\$\$|\\\[(.*?)\\\]", text, re.DOTALL)
    formula = formula or re.fullmatch(r"\$([^$]*)\$|\\\((.*)\\\)", sentence.strip(" *_"))
    return ((formula[1] or formula[2] or "") if formula else sentence).strip(" *_`")


def extract_answer(response: str, kind: str = "math") -> str | None:
    """The final answer that a response states, or None. A last box that is empty or cut off is no answer.

    kind "math": the last \\boxed or \\fbox, else what follows the last "answer is" (or "Answer:").
    kind "gsm8k": a number, from the last box, else after the last "####", else after "answer is", else the last number.
    kind "choice": the letter A to D that was stated last, in a box or after "answer is", "Answer:" and the like.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: want one of {', '.join(KINDS)}")
    if kind == "choice":
        return stated_choice(response)
    end = None
    if BOX.search(response):
        answer = rest = last_box(response) or ""
    elif kind == "gsm8k" and "####" in response:
        rest = response.rpartition("####")[2][:LONGEST]
        answer = rest.strip().partition("\n")[0]
    else:
        end = max((mark.end() for mark in ANSWER_IS.finditer(response)), default=None)
        if kind == "gsm8k" and end is None:
            end = max(response.rfind(digit) for digit in "0123456789") + 1
            return (NUMBER.findall(response[max(0, end - LONGEST) : end]) or [None])[-1]
        rest = response[end : end + LONGEST] if end is not None else ""
        answer = stated(rest)
    if kind == "math" or rational(answer) is not None:
        return answer or None
    if not end and re.search(r"[,;]\s|\b(?:or|and)\b|\\frac", answer) and len(NUMBER.findall(answer)) > 1:
        return None  # 18 or 19, in a box or after ####
    number = NUMBER.search(answer.rpartition("=")[2]) or NUMBER.search(answer) or NUMBER.search(rest)
    return number[0] if number else None


# What announces a choice, and what may stand before its letter; words after an A that is no article.
ANNOUNCED = re.compile(r"(?<![a-zA-Z0-9])(?:answer|option|choice)(?![a-zA-Z0-9])[*_]{0,2}\s{0,9}(?:\bis\b|[:=：])|"
                       r"<answer>|\\f?box(?:ed)?\s{0,9}\{", re.IGNORECASE)
BETWEEN = re.compile(r"(?:[\s:*_$(\[{}\"'`“‘（：]|(?-i:<[a-z/]{1,9}>)|<|\\[(\[]|"
                     r"\\(?:text(?:bf)?|mathrm|mathbf|boxed|fbox)(?![a-z])|\b(?:therefore|thus|hence|clearly|"
                     r"definitely|probably|most likely|indeed|letter|option|choice|answer)\b,?){0,30}", re.IGNORECASE)
AFTER_A = set("because since as which for due and or with given that so not but is by while whereas when if then "
              "rather instead from where in here although though according only too on at".split())
# A hedge: another letter is named beside it (B, not "B, and A is wrong"), or before it.
HEDGED = re.compile(
    r"[\s*_$)\]}\"'`.]{0,30}(?:,|;|/|\||\+|\\?&|\(?\bor\b|\b(?:and|as well as|vs)\b|\\text\{\s?(?:or|and)\s?\})"
    r"[\s,*_$(\[{\"'`]{0,30}(?:(?:or|and|possibly|perhaps|maybe|else|even|option|choice|the answer is)\b"
    r"[\s,*_$(\[{\"'`]{0,9}|\\(?:text|boxed|fbox)\{){0,4}"
    r"(?:[A-E](?![A-Za-z0-9'])|[b-e](?![A-Za-z0-9'.])|[b-e](?=\.(?:\s|$))|a(?=[\s)*_$}]{0,9}\.?$))"
    r"(?!(?:[\s),]{1,3}(?:and\s|or\s)?\(?[A-E])*[\s)*_]{0,9}"
    r"(?:\s(?:is|are|was|were|can|does|do|has|have|would|being)\b|=))")
BESIDE = re.compile(
    r"\\f?box(?:ed)?\s?\{[^{}]{0,9}\{?[\s(]?[A-E][\s)}]{0,4}\}[\s$]{0,4}"
    r"(?:,|;|/|or|and|\\text\{\s?(?:or|and)\s?\})[\s$]{0,4}$|"
    r"\b[A-E][\s)*_$}]{0,6}\bor\s(?:[a-z]{1,9}\s){0,3}$")


def stated_choice(response: str) -> str | None:
    """The letter A to D that the response states last; None for none, a hedge ("A or B") or no option (E)."""
    alone = re.fullmatch(r"[\s*_(\[$]{0,9}([A-D])[\s*_)\].:$]{0,9}", response)
    if alone:
        return alone[1]
    response = response.rstrip()[-20 * LONGEST :]
    for mark in list(ANNOUNCED.finditer(response))[:-1000:-1]:  # from the last one on
        rest, boxed = response[mark.end() : mark.end() + 400], mark[0][-1] == "{"
        if boxed and not last_box(response[mark.start() : mark.end() + 400]):
            return None  # empty or cut off
        before = BETWEEN.match(rest)[0]
        letter, after = rest[len(before) : len(before) + 1], rest[len(before) + 1 :]
        if re.match(r"(?:either|both|neither)\b", rest[len(before) :], re.IGNORECASE):
            return None
        if not (letter.isascii() and letter.isalpha()) or re.match(r"[A-Za-z0-9]|'[a-z]|\.[A-Za-z]", after):
            continue
        word = re.match(r"[ \t]+([a-z]+)", after)
        article = letter == "a" or letter == "A" and mark[0][-1] in ":=："
        if article and word and not before.strip(" \t\n:*_") and word[1] not in AFTER_A:
            continue
        closed = re.match(r"[*_$)\]}\"'`]|[.,;:]?(?:\s*$|\n)|[.,;:]\s", after)
        if letter.islower() and letter not in "bcd" and not boxed and not closed:
            continue
        hedged = HEDGED.match(after) or BESIDE.search(response[max(0, mark.start() - 60) : mark.start()])
        return letter.upper() if letter.upper() in "ABCD" and not hedged else None
    return None


def is_correct(response: str, gold: str, kind: str = "math") -> bool:
    """Whether the answer that a response states equals the gold one, exactly; see extract_answer for the kinds.

    math: equal as mathematics, else as normalised strings. gsm8k: as exact numbers; gold may be a solution that ends
    in "#### 18". choice: the letter.
    """
    return matches(extract_answer(response, kind), gold, kind)


def matches(answer: str | None, gold: str, kind: str) -> bool:
    """Whether an extracted answer equals the gold one."""
    if answer is None:
        return False
    if kind == "choice":
        return answer == gold.strip().upper()
    if kind == "gsm8k":
        number = rational(answer)
        return number is not None and number == rational(gold.rpartition("####")[2])
    return equal(answer, gold)


def equal(a: str, b: str) -> bool:
    """Whether two answers are the same mathematics; where that is undecided, the same normalised string."""
    if a.split() == b.split():
        return True
    if max(len(a), len(b)) > LONGEST:
        return False
    for thousands in (False, True):  # 1,234 may be written 1, 234; as mathematics it is one number
        left, right = tokens_of(a, thousands), tokens_of(b, thousands)
        strings = as_string(left), as_string(right)
        if '"' in strings[0] + strings[1]:  # words: without regard to case
            strings = [string.lower().replace('"', "") for string in strings]
        if strings[0] == strings[1]:
            return bool(strings[0])
    return len(left) + len(right) < 4000 and same_value(left, right)


def same_value(left: list[str], right: list[str]) -> bool:
    """Whether two token lists are the same in two fields; a field without a root that is needed is passed over."""
    agreed = work = 0
    for p in FIELDS:
        reader = Reader(p)
        reader.work = work
        try:
            if not reader.same(reader.read(left), reader.read(right)):
                return False
        except Undecided:
            return False
        except NoRoot:
            work = reader.work
            continue
        agreed, work = agreed + 1, reader.work
        if agreed == 2:
            return True
    return False


def rational(text: str) -> Fraction | None:
    """The rational number that a text states, exactly; None where it states none."""
    tokens = tokens_of(text[:LONGEST])
    try:
        value = Reader(FIELDS[0]).read(tokens) if len(tokens) < 500 and len(text) <= LONGEST else ("none",)
    except (Undecided, NoRoot):
        return None
    value = value[2] if value[0] == "named" else value
    return value[1] if value[0] == "number" and isinstance(value[1], Fraction) else None


# Spellings of one thing become one token: characters, commands, units.
SYMBOLS = {**{s[0]: s[1:] + " " for s in (
    r"×\times ·\cdot ⋅\cdot ÷\div √\sqrt π\pi θ\theta ∞\infty °^\circ ≤\le ≥\ge ≠\ne "
    r"±\pm ∓\mp ∪\cup ∈\in ∅\emptyset "
    r"½\frac12 ⅓\frac13 ⅔\frac23 ¼\frac14 ¾\frac34").split()},
           **dict.fromkeys("−–—‐‑‒―－﹣", "-"), "€": "\\text{euro}"}
PLAIN = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉", "0123456789" * 2)
RENAMED = dict(pair.split() for pair in (
    r"\dfrac \frac,\tfrac \frac,\cfrac \frac,\times *,\cdot *,\ast *,\div /,\leq \le,\leqslant \le,\geq \ge,"
    r"\geqslant \ge,\lt <,\gt >,\neq \ne,\varnothing \emptyset,\lbrace \{,\rbrace \},\lvert |,"
    r"\rvert |,\vert |,\lbrack [,\rbrack ],"
    r"\dbinom \binom,\tbinom \binom,\ldots \dots,\cdots \dots,\infinity \infty,\varphi \phi,\bigcup \cup,\colon :,"
    r'\% "percent,% "percent,\$ "dollar,\degree "degree').split(","))
UNITS = dict(pair.split() for pair in (
    "centimeter cm,centimetre cm,millimeter mm,meter m,metre m,kilometer km,kilometre km,foot ft,feet ft,inch in,"
    "inche in,yard yd,mile mi,gram g,kilogram kg,pound lb,ounce oz,hour hr,minute min,second sec,liter l,"
    "litre l,gm g,gallon gal,h hr,year yr,deg degree,usd dollar,milesperhour mph,mile/hour mph,mi/h mph").split(","))
SCALES = dict(hundred="100", thousand="1000", million="1000000", billion="1000000000")
SHORT_UNITS = set("cm mm km ft in yd kg mg lb lbs oz mph hr hrs ml sec min gal am pm deg".split())
NAMES = set("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi "
            "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega infty ell emptyset dots".split())
FUNCTIONS = set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp lcm gcd det max min".split())
ACCENTS = set("overline bar vec hat mathbb mathcal overrightarrow".split())
TOKEN = re.compile(
    r"(?P<skip>\s+|[$~]|\\(?:left|right)\s*\.|\\[,;:!> ()\[\]]|"
    r"\\[hv]?phantom\s*(?:\{[^{}]*\}|[^\\{])|\\[hm]space\*?\s*\{[^{}]*\}|\\\Z|"
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|q?quad|(?:neg)?(?:thin|med|thick)space|enspace|"
    r"space|large|bf|mathbf|boldsymbol|bm|mathit|mathsf)(?![a-zA-Z]))|"
    r"\\(?P<style>text(?:bf|it|rm|sf|normal)?|[mh]box|mathrm|operatorname\*?)\s*\{(?P<words>[^{}]*)\}|"
    r"(?P<environment>\\(?:begin|end)\s*\{[a-zA-Z]*\*?\})|"
    r"(?P<based>[0-9A-F]+_(?:\{[0-9]{1,2}\}|[0-9](?![0-9])))|"
    r"[0-9]*\.[0-9]*\\(?:overline|bar)\s*(?:\{[0-9]+\}|[0-9])|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|"
    r"(?P<letters>[a-zA-Z]+)|\\[a-zA-Z]+|\\.|.", re.DOTALL)


def tokens_of(text: str, thousands: bool = True) -> list[str]:
    """LaTeX or plain mathematics as tokens; a word or unit is a token that begins with a quote."""
    text = "".join(SYMBOLS.get(c, c) for c in text).replace(">=", "\\ge ").replace("<=", "\\le ")
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda run: f"^{{{run[0].translate(PLAIN)}}}", text)  # x¹² is x^{12}
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda run: f"_{{{run[0].translate(PLAIN)}}}", text)
    end = len(text.rstrip(".,;$ \n"))
    text = text[: end + text[:end].endswith("\\")]  # but for \, and \$
    text = re.sub(r"\\\\\s*\[[^\]]{0,9}\]", r"\\\\", text)  # a row break with its height
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text)
    text = re.sub(r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})", r"\\degree ", text)
    text = re.sub(r"(\\(?:text|mathrm)\s*\{[^{}0-9]*)\^\{?([0-9])\}?\}", r"\1}^\2", text)  # \mathrm{cm^2}
    text = re.sub(r"(?:\\(?:text|mathrm)\s*\{|\()([0-9A-F]+)[})](?=\s*_)", r"\1", text)  # \text{A5}_{11}
    text = re.sub(r"(?<=[0-9])((?:\s|\\ |~|\\text\s*\{)*)([ap])\.?m\b\.?", lambda m: f"{m[1]} {m[2].lower()}m", text,
                  flags=re.IGNORECASE)  # 4:30 P.M.
    # 10{,}000, 10,\!000 and 10\,000; outside of brackets, where a comma separates, also 10,000 and 10 000.
    text = re.sub(r"(?<=[0-9])(?:\{,\}(?:\\!)?|,\\!|\\,)\s{0,3}(?=[0-9]{3}(?![0-9]))", "", text)
    name, equals, right = text.rpartition("=")
    if thousands and not re.search(r"[(\[]|\\\{|\\langle|\\begin", right):
        for comma in ", ":
            right = re.sub(rf"(?<![0-9.,^_])(?<![\^_]{{)[1-9][0-9]{{0,2}}(?:{comma}[0-9]{{3}})+(?!,?[0-9])",
                           lambda number: re.sub("[, ]", "", number[0]), right)
        text = name + equals + right
    mixed = r"(?<![0-9./^_}])([0-9]+)(?:\s|\\ )+([0-9]+)\s*/\s*([0-9]+)(?![0-9.])"  # 2 3/4
    text = re.sub(mixed, r"\1\\frac{\2}{\3}", text)
    return [token for match in TOKEN.finditer(text) for token in tokens_in(match)]


def tokens_in(match: re.Match) -> list[str]:
    token, words, letters = match[0], match["words"], match["letters"]
    if match["skip"]:
        return []
    if match["environment"]:
        return ["".join(token.split())]
    if match["based"]:
        digits, base = token.replace("{", "").replace("}", "").split("_")
        if digits.isalpha() and len(digits) == 1:
            return [digits, "_", base]  # the name A_1
        try:
            return [str(int(digits, int(base) or 1))]
        except ValueError:  # 129_2
            return ['"' + token]
    if words is not None:
        words = words.replace("~", " ").strip()
        if words in FUNCTIONS - {"min", "max", "sec"}:
            return ["\\" + words]
        if words and (match["style"][0] == "o" or match["style"] == "mathrm" and len(words) == 1):
            return [words]
        if words.lower() in SCALES:
            return ["*", SCALES[words.lower()]]
        if re.search(r"[0-9,;=]|\w\s+(?:and|or)\b|\b(?:and|or)\s+\w", words):
            return [token for match in TOKEN.finditer(words) for token in tokens_in(match)]
        if words.strip(",").lower() in ("or", "and"):
            return [","]
        return ['"' + "".join(words.split()).rstrip(".")] if words else []
    if letters:
        if letters.lower() in ("or", "and"):
            return [","]
        if letters.lower() in SCALES:
            return ["*", SCALES[letters.lower()]]
        if letters in FUNCTIONS - {"min", "max", "sec"} | {"sqrt", "pi", "theta", "infinity"}:
            return [RENAMED.get("\\" + letters, "\\" + letters)]
        word = len(letters) > 3 or letters in SHORT_UNITS or len(letters) == 3 and re.search("[eiouEIOU]", letters)
        return ['"' + letters] if word else list(letters)  # xy is x times y
    return ["\\" + token] if token.isdigit() and not token.isascii() else [RENAMED.get(token, token)]


def as_string(tokens: list[str]) -> str:
    """The normalised string: no blanks but between two numbers, no full stops, (A) as A."""
    text = "".join(f" {t}" if i and t[0].isdigit() and tokens[i - 1][0].isdigit() else t for i, t in enumerate(tokens))
    text = re.sub(r"\.(?![0-9])", "", text)
    text = re.sub(r"([_^])\{(.)\}", r"\1\2", text)
    return re.sub(r"^(\"?)\((\"?[a-zA-Z])\)$", r"\1\2", text)


class Undecided(Exception):
    """The text is outside the grammar, or too large: it is compared as a string."""


class NoRoot(Exception):
    """This field has no root of a number of which the answer has one."""


# p = 4·k·Π(primes below 200) - 1 with (p - 1)/2 a prime q, too: every product of small primes is a square, and has one
# square as its root of any degree, so that roots multiply as real ones do (√8 = 2√2); exponents count modulo q.
FIELDS = [4 * k * math.prod(n for n in range(2, 200) if all(n % d for d in range(2, n))) - 1
          for k in (351, 764, 835, 906, 1335, 1779, 1841, 2343, 2361, 2506, 2827, 4816)]
NAMED = re.compile(r"[a-zA-Z]{1,3}'?(?:_\{?[\w\\]{1,9}\}?)?(?:\([a-zA-Z0-9](?:,[a-zA-Z0-9])*\))?|"
                   r"\((?:[a-zA-Z],)+[a-zA-Z]\)|\{?[a-zA-Z]\}?|\\[a-zA-Z]+(?:\{?[a-zA-Z]{1,3}\}?)?|\"[^0-9]*")
OPEN, CLOSE = ("(", "[", "{", "\\{", "\\langle", "|("), (")", "]", "}", "\\}", "\\rangle")
ORDERS = {"<": "<", "\\le": "\\le", "\\ne": "\\ne", ">": "<", "\\ge": "\\le"}


class Reader:
    """Reads tokens as mathematics over the field of p elements, and compares what it has read.

    A number is a Fraction, or (value modulo p, value modulo q for use as an exponent, whether it counts as positive).
    Variables are random squares, and count as positive; functions are random functions of their arguments' values.
    """

    def __init__(self, p: int):
        self.p, self.q, self.work, self.depth = p, (p - 1) // 2, 0, 0

    def spend(self, steps: int) -> None:
        self.work += steps
        if self.work > 20_000:
            raise Undecided

    # An answer's parts.

    def split(self, tokens: list[str], separators: set[str]) -> list[list[str]]:
        """The runs of tokens between separators that stand in no bracket."""
        self.spend(len(tokens) // 8 + 1)
        parts, depth = [[]], 0
        for token in tokens:
            depth += (token in OPEN or token.startswith("\\begin")) - (token in CLOSE or token.startswith("\\end"))
            if depth < 0:
                raise Undecided
            if depth == 0 and token in separators:
                parts.append([])
            else:
                parts[-1].append(token)
        if depth:
            raise Undecided
        return parts

    def read(self, tokens: list[str]) -> tuple:
        """(kind, ...): list, set, union, tuple, matrix, order, named, equation, text or number."""
        self.depth += 1
        if self.depth > 30 or not tokens:
            raise Undecided
        value = self.read_list(tokens)
        self.depth -= 1
        return value

    def read_list(self, tokens):
        parts = [part for part in self.split(tokens, {",", ";"}) if part]
        if len(parts) != 1:
            return "list", self.read_items(parts)
        tokens = parts[0]
        parts = self.split(tokens, {"\\cup"})
        if len(parts) > 1:
            return "union", [self.read(part) for part in parts]
        sides = self.split(tokens, {"=", "\\in"})
        if len(sides) > 1:
            return self.read_equation(sides)
        orders = [token for token in tokens if token in ORDERS]
        if orders:
            sides = [self.read(side) for side in self.split(tokens, set(ORDERS))]
            turned = orders[0] in (">", "\\ge")  # 3 > x is x < 3
            return "order", [ORDERS[t] for t in orders][:: -1 if turned else 1], sides[:: -1 if turned else 1]
        first, last, inner = tokens[0], tokens[-1], tokens[1:-1]
        if (first in OPEN or first.startswith("\\begin")) and len(tokens) > 1 and self.encloses(tokens):
            if first.startswith("\\begin"):
                return self.read_matrix(first, inner)
            parts = self.split(inner, {",", ";"})
            if first == "\\{" and not inner:
                return self.read(["\\emptyset"])
            if first == "\\{":
                return "set", self.read_items([part for part in parts if part])
            if len(parts) > 1 and first != "{":
                return "tuple", first + last, [self.read(part) for part in parts]
            return self.read(inner)
        matrix = next((i for i, token in enumerate(tokens) if token.startswith("\\begin")), 0)
        if matrix:  # a number times a matrix
            factor = Fraction(-1) if tokens[:matrix] == ["-"] else self.read(tokens[:matrix])[1]
            kind, rows = self.read(tokens[matrix:])[:2]
            if kind != "matrix" or not all(cell[0] == "number" for row in rows for cell in row):
                raise Undecided
            return "matrix", [[("number", self.times(factor, cell[1]), "") for cell in row] for row in rows]
        if {"\\pm", "\\mp"} & set(tokens):
            return "list", [self.read([{"\\pm": up, "\\mp": down}.get(token, token) for token in tokens])
                            for up, down in ("+-", "-+")]
        if all(token[0] == '"' for token in tokens):
            return "text", "".join(tokens).replace('"', "").lower()
        tokens, unit = without_unit(tokens)
        self.tokens, self.at, self.bars = tokens, 0, False
        value = self.sum()
        if self.at < len(tokens):
            raise Undecided
        return "number", value, unit

    def read_items(self, parts):
        """The items of a list; one with a \\pm is two."""
        return [item for value in map(self.read, parts) for item in (value[1] if value[0] == "list" else [value])]

    def encloses(self, tokens):
        """Whether the first bracket is closed by the last."""
        depth = 0
        for i, token in enumerate(tokens):
            depth += (token in OPEN or token.startswith("\\begin")) - (token in CLOSE or token.startswith("\\end"))
            if depth == 0:
                return i == len(tokens) - 1

    def read_equation(self, sides):
        """x = 5 is 5 with a name, 2 + 3 = 5 is 5, and of any other equation what one side exceeds the other by."""
        named = [bool(NAMED.fullmatch("".join(side))) for side in sides]
        if all(named):
            named[-1] = False
        names = ["".join(side) for side, is_name in zip(sides, named) if is_name]
        values = [self.read(side) for side, is_name in zip(sides, named) if not is_name]
        if all(self.same(value, values[-1]) for value in values):
            return ("named", names[0], values[-1]) if names else values[-1]
        if len(sides) != 2 or any(value[0] != "number" for value in values):
            raise Undecided
        return "equation", self.minus(values[0][1], values[1][1])

    def read_matrix(self, begin, inner):
        if not re.fullmatch(r"\\begin\{(?:[pb]?(?:small)?matrix\*?|array)\}", begin):
            raise Undecided
        if begin == "\\begin{array}" and inner[:1] == ["{"] and "}" in inner:  # the columns' alignment
            inner = inner[inner.index("}") + 1 :]
        rows = [self.split(row, {"&"}) for row in self.split(inner, {"\\\\"}) if row]
        return "matrix", [[self.read(cell) for cell in row] for row in rows]

    def same(self, a: tuple, b: tuple) -> bool:
        self.spend(10)
        if a[0] == b[0] == "named" and (a[1] == b[1] or "(" in a[1] + b[1]):  # f(x) = ... may be called y = ...
            return self.same(a[2], b[2])
        if {a[0], b[0]} in ({"named"}, {"named", "equation"}):
            return self.same(self.as_equation(a), self.as_equation(b))
        for one, other in ((a, b), (b, a)):
            if one[0] == "named":
                return self.same(one[2], other)
        if {a[0], b[0]} == {"list", "set"} or a[0] == b[0] == "set":
            return all(any(self.same(x, y) for y in q) for p, q in ((a[1], b[1]), (b[1], a[1])) for x in p)
        if a[0] != b[0]:
            return False
        if a[0] == "number":
            return (not a[2] or not b[2] or a[2] == b[2]) and self.equals(a[1], b[1])
        if a[0] in ("list", "union"):
            return self.matched(a[1], b[1])
        if a[0] == "equation":
            return self.equals(a[1], b[1]) or self.equals(a[1], self.minus(Fraction(0), b[1]))
        if a[0] == "text":
            return a[1] == b[1]
        if a[0] == "matrix":
            return len(a[1]) == len(b[1]) and all(self.all_same(p, q) for p, q in zip(a[1], b[1]))
        return a[1] == b[1] and self.all_same(a[2], b[2])  # tuple: with its brackets; order: with its signs

    def as_equation(self, value):
        if value[0] == "equation":
            return value
        name = self.read([token for token in re.split(r"(\\[a-zA-Z]+|.)", value[1]) if token])
        if name[0] != "number" or value[2][0] != "number":
            raise Undecided
        return "equation", self.minus(name[1], value[2][1])

    def all_same(self, a, b):
        return len(a) == len(b) and all(self.same(x, y) for x, y in zip(a, b))

    def matched(self, a, b):
        """Whether the one list is the other in some order; x = 3, y = 4 is 3, 4 in this order alone."""
        named = [[x[1] for x in items if x[0] == "named"] for items in (a, b)]
        if not all(named) and max(len(set(names)) for names in named) > 1:
            return self.all_same(a, b)
        left = list(b)
        for x in a:
            i = next((i for i, y in enumerate(left) if self.same(x, y)), None)
            if i is None:
                return False
            del left[i]
        return not left

    # Arithmetic.

    def residues(self, value):
        if isinstance(value, tuple):
            return value
        if bits(value) > 280:
            raise Undecided  # so that no number but 0 vanishes in the field
        n, d = value.numerator, value.denominator
        return n * pow(d, -1, self.p) % self.p, n * pow(d, -1, self.q) % self.q, value > 0

    def equals(self, a, b):
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a == b
        return self.residues(a)[0] == self.residues(b)[0]

    def combine(self, operation, a, b):
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            value = operation(a, b)
            self.spend(1 + (bits(value) // 1800) ** 2)
            return value
        self.spend(2)
        (p, q, up), (r, s, also) = self.residues(a), self.residues(b)
        return operation(p, r) % self.p, operation(q, s) % self.q, up and also and operation is operator.mul

    def minus(self, a, b):
        return self.combine(operator.sub, a, b)

    def times(self, a, b):
        return self.combine(operator.mul, a, b)

    def random(self, *key, positive=False):
        """A number that stands for a name or a function of what the key says; a square if it counts as positive."""
        self.spend(10)
        p, q = (int(hashlib.sha512(repr((n, key)).encode()).hexdigest(), 16) % n for n in (self.p, self.q))
        return (p * p % self.p if positive else p), q, positive

    def power(self, base, exponent):
        self.spend(10)
        if not isinstance(exponent, Fraction):
            p, _, positive = self.residues(base)
            self.spend(90)
            if positive and pow(p, self.q, self.p) == 1:  # a square: its powers repeat after q
                return pow(p, exponent[1], self.p), self.random("^", p, exponent[1])[1], True
            return self.random("^", p, exponent[0])
        n, d = exponent.numerator, exponent.denominator
        if base == 0 and n <= 0 or abs(n) > 10**6 or d > 1000:
            raise Undecided
        if d == 1:
            if isinstance(base, Fraction) and abs(n) * bits(base) < 20_000:
                return base**n
            try:
                p, q, positive = self.residues(base)
                return pow(p, n, self.p), pow(q, n, self.q), positive and n % 2 == 1
            except ValueError:  # a division by zero
                raise Undecided from None
        if isinstance(base, Fraction):
            root = exact_root(base, d)
            if root is not None:
                return self.power(root, Fraction(n))
            if base < 0 and d % 2:
                return self.times(Fraction((-1) ** n), self.power(-base, exponent))
            if base < 0:
                if d > 2:
                    raise Undecided
                i = self.power(self.random("name", "i", positive=True), Fraction(n))
                return self.times(i, self.power(-base, exponent))
        p, q, positive = self.residues(base)
        if not positive:  # of a sum: its sign is not known
            return self.random("root", p, exponent)
        self.spend(100)
        if pow(p, self.q, self.p) != 1:
            raise NoRoot
        return pow(p, n * pow(d, -1, self.q) % self.q, self.p), self.random("root", q, exponent)[1], True

    # Expressions.

    def peek(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted=None):
        token = self.peek()
        if not token or wanted not in (None, token):
            raise Undecided
        self.at += 1
        return token

    def sum(self):
        total = self.product() if self.peek() not in ("+", "-") else Fraction(0)
        while self.peek() in ("+", "-"):
            sign = operator.sub if self.peek() == "-" else operator.add
            self.take()
            total = self.combine(sign, total, self.product())
        return total

    def product(self, functions=True):
        value, number = self.factor()
        while self.peek():
            token, before = self.peek(), number
            if token in ("*", "/"):
                self.take()
                sign = Fraction(-1 if self.peek() == "-" and self.take() else 1)
                factor, number = self.factor()
                value = self.times(value, self.times(sign, self.power(factor, Fraction(-1 if token == "/" else 1))))
            elif self.begins_factor(token, functions):
                factor, number = self.factor()
                if before and token[0].isdigit():
                    raise Undecided  # two numbers without a sign between them
                value = self.times(value, factor)
            else:
                break
        return value

    def begins_factor(self, token, functions):
        return (token[0].isalnum() or token in ("(", "[", "{", "\\frac", "\\sqrt", "\\binom")
                or token[1:] in NAMES or token[1:] in ACCENTS
                or token == "|" and not self.bars or functions and token[1:] in FUNCTIONS)

    def factor(self):
        """An atom with its powers and factorials; and whether it is a bare number."""
        start = self.at
        value = self.atom()
        number = self.at == start + 1 and self.tokens[start][0].isdigit()
        while self.peek() in ("^", "!", '"degree'):
            token = self.take()
            if token == '"degree':
                continue
            if token == "!":
                value = Fraction(math.factorial(self.whole(value, 3000)))
            else:
                value = self.power(value, self.exponent())
        return value, number

    def exponent(self):
        tower = []  # 2^3^4 is 2^(3^4)
        while not tower or self.peek() == "^" and self.take():
            sign = Fraction(-1 if self.peek() == "-" and self.take() else 1)
            tower.append(self.times(sign, self.simple()))
        value = tower.pop()
        while tower:
            value = self.power(tower.pop(), value)
        return value

    def simple(self):
        """An atom, but of x^2\\frac12 only the 2."""
        return literal(self.take()) if self.peek()[:1].isdigit() else self.atom()

    def whole(self, value, most):
        if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= most:
            raise Undecided
        self.spend(int(value))
        return int(value)

    def argument(self):
        """Of \\frac: a group, one token, or of a run of digits the first, as TeX reads \\frac12."""
        token = self.peek()
        if len(token) > 1 and token.isdigit():
            self.spend(len(self.tokens))
            self.tokens = [*self.tokens[: self.at], token[0], token[1:], *self.tokens[self.at + 1 :]]
        return self.simple()

    def atom(self):
        self.depth += 1
        if self.depth > 60:
            raise Undecided
        value = self.read_atom(self.take())
        self.depth -= 1
        return value

    def read_atom(self, token):
        if token[0].isdigit() or token[0] == "." and len(token) > 1:
            return self.mixed(literal(token))
        if token in ("(", "[", "{"):
            bars, self.bars = self.bars, False
            value = self.sum()
            self.take(CLOSE[OPEN.index(token)])
            self.bars = bars
            return value
        if token == "\\frac":
            above = self.argument()
            return self.times(above, self.power(self.argument(), Fraction(-1)))
        if token == "\\sqrt":
            degree = Fraction(2)
            if self.peek() == "[":
                degree = self.atom()
            return self.power(self.simple(), self.power(degree, Fraction(-1)))
        if token == "\\binom":
            n, k = self.whole(self.argument(), 1000), self.whole(self.argument(), 1000)
            return Fraction(math.comb(n, k))
        if token == "|":
            self.bars, start = True, self.at
            value = self.sum()
            self.bars = False
            named = any(t.isalpha() or t[1:] in NAMES - {"pi"} for t in self.tokens[start : self.at])
            self.take("|")
            if isinstance(value, Fraction):
                return abs(value)
            return value if value[2] and not named else self.random("||", min(value[0], self.p - value[0]))
        if token[1:] in FUNCTIONS:
            return self.function(token)
        start = self.at
        if token[1:] in ACCENTS:
            self.atom()
            return self.random(token, self.tokens[start : self.at])
        if not token.isalpha() and token[1:] not in NAMES:
            raise Undecided
        if self.peek() == "_":
            self.take()
            if self.take() == "{":
                while self.take() != "}":
                    pass
        subscript = "".join(self.tokens[start : self.at]).replace("{", "").replace("}", "")
        return self.random("name", token + subscript, positive=True)

    def mixed(self, whole):
        """2\\frac34 is 2 + 3/4: a whole number right before a proper fraction of digits."""
        rest = "".join(self.tokens[self.at : self.at + 7])
        digits = re.match(r"\\frac(?:\{([0-9]{1,9})\}|([0-9]))(?:\{([0-9]{1,9})\}|([0-9])(?![0-9]))", rest)
        if digits and whole.denominator == 1 and 0 < int(digits[1] or digits[2]) < int(digits[3] or digits[4]):
            return whole + self.atom()
        return whole

    def function(self, name):
        base, power = None, Fraction(1)
        while self.peek() in ("_", "^"):
            if self.take() == "_":
                base = self.residues(self.argument())[0]
            else:
                power = self.exponent()
        value = self.atom() if self.peek() in ("(", "{", "[") else self.product(functions=False)
        return self.power(self.random(name, base, self.residues(value)[0]), power)


def bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The positive root if it is rational; None if not, or if value is not positive or is too long."""
    parts = []
    for n in (value.numerator, value.denominator):
        low, high = 0, 1 << (n.bit_length() // degree + 1) if 0 < n < 2**1000 else 0
        while low < high:  # the largest root with root^degree <= n
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**degree <= n else (low, middle - 1)
        if n <= 0 or low**degree != n:
            return None
        parts.append(low)
    return Fraction(*parts)


def literal(token: str) -> Fraction:
    """12, 0.5 or 0.1\\overline{6}, exactly and of any length."""
    token, _, repeated = token.partition("\\")
    digits, _, decimals = token.partition(".")
    repeated = re.sub(r"[^0-9]", "", repeated)

    def whole(text):  # int() refuses more than 4,300 digits
        return int(text[:4000] or 0) if len(text) <= 4000 else whole(text[:-4000]) * 10**4000 + int(text[-4000:])

    value = Fraction(whole(digits + decimals), 10 ** len(decimals))
    return value + (Fraction(whole(repeated), (10 ** len(repeated) - 1) * 10 ** len(decimals)) if repeated else 0)


def without_unit(tokens: list[str]) -> tuple[list[str], str]:
    """Tokens without a unit at the end (words, perhaps with a power and a slash) or currency in front; and the unit."""
    tokens = list(tokens)
    for currency in ('"dollar', '"euro'):
        if currency in tokens[:2] and tokens[-1] != currency and tokens[0] in (currency, "-"):
            tokens.remove(currency)
            return without_unit(tokens)[0], currency[1:]
    end = len(tokens)
    while end > 1:
        at = end
        if tokens[end - 1] == "}" and tokens[max(0, end - 4) : end - 2] == ["^", "{"]:
            at -= 4
        elif tokens[end - 2] == "^":
            at -= 2
        if at > 1 and tokens[at - 1][0] == '"':
            end = at - 1
        elif end < len(tokens) and tokens[end - 1] == "/":
            end -= 1
        else:
            break
    if end == len(tokens) or tokens[end - 1] in ("+", "-", "*", "/", "^", "_", "="):
        return tokens, ""
    unit = re.sub(r'["{}]', "", "".join(tokens[end:])).lower()
    unit = re.sub(r"^(?:square|sq)\.?(.*)", r"\1^2", re.sub(r"^(?:cubic|cu)\.?(.*)", r"\1^3", unit))
    name, caret, power = unit.partition("^")
    name = UNITS.get(name, UNITS.get(name.removesuffix("s"), name.removesuffix("s")))
    return tokens[:end], "" if name == "unit" else name + caret + power


# ---- Problems --------------------------------------------------------------------------------------------------------

GPQA = ["Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"]


def data_file(path: str | Path, name: str) -> Path:
    """NAME.jsonl or NAME.csv of a data folder; a file is itself."""
    path = Path(path)
    if path.is_dir():
        return path / (f"{name}.csv" if (path / f"{name}.csv").exists() else f"{name}.jsonl")
    return path


def read_rows(path: Path) -> list[tuple[str, dict]]:
    """(where, fields) of each row of a CSV file or a JSONL file; blank lines are passed over."""
    if not path.is_file():
        maker = path.parent / "prepare.py"
        raise ValueError(f"{path}: there is no such file" + (f"; python {maker} makes it" if maker.exists() else ""))
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    rows = []
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from None
    else:
        for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): U+2028 inside a string ends no line
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: not a JSON object")
            rows.append((f"{path}, line {number}", row))
    if not rows:
        raise ValueError(f"{path}: holds no problem")
    return rows


def load_problems(path: str | Path) -> list[dict]:
    """Problems of a JSONL file in MATH's fields (problem, solution, answer) or GSM8K's (question, answer with ####), or
    of a CSV file in GPQA's.

    Each has id (its row, from 0), problem, solution, working (the solution without its final answer), answer (None
    where no gold answer is known), kind, level and subject; a choice also has its question and its options, shuffled.
    ValueError names file and line.
    """
    problems = []
    for number, (where, row) in enumerate(read_rows(Path(path))):
        level, subject = row.get("level", "all"), row.get("type") or row.get("subject") or "all"
        if "Question" in row:
            problem = read_choice(row, where)
            subject = row.get("High-level domain") or row.get("Subdomain") or "all"
        elif "question" in row and "problem" not in row:
            problem = dict(kind="gsm8k", problem=row["question"], solution=row.get("answer"), answer=None)
            if isinstance(problem["solution"], str) and "####" in problem["solution"]:
                working, _, problem["answer"] = (part.strip() for part in problem["solution"].rpartition("####"))
                problem["working"] = re.sub(r"<<[^>]*>>", "", working)  # its calculator's notes
        else:
            problem = dict(kind="math", **{name: row.get(name) for name in ("problem", "solution", "answer")})
            if problem["answer"] is None and isinstance(problem["solution"], str):
                problem["answer"] = last_box(problem["solution"])
        for name in ("problem", "solution", "answer"):
            if not isinstance(problem[name], str) and (name, problem[name]) != ("answer", None):
                raise ValueError(f"{where}: no text for {name!r}; want MATH's problem, solution (and answer), GSM8K's "
                                 "question and answer, or GPQA's columns")
        problem.setdefault("working", problem["solution"])
        problems.append(dict(problem, id=number, level=level_name(level), subject=str(subject)))
    return problems


def level_name(level) -> str:
    return f"Level {level}" if str(level).isdigit() else str(level)  # MATH-500 has 5 for MATH's "Level 5"


def read_choice(row: dict, where: str) -> dict:
    """A row of GPQA's CSV. The order of its options is drawn from a hash of its question, so it is everyone's."""
    missing = [name for name in GPQA if not isinstance(row.get(name), str) or not row[name].strip()]
    if missing:
        raise ValueError(f"{where}: column {missing[0]!r} is missing or empty; want {', '.join(GPQA)}")
    question, *texts = (row[name].strip() for name in GPQA)
    draw = int(hashlib.sha256(question.encode()).hexdigest(), 16) % 24
    order = list(itertools.permutations(range(4)))[draw]  # order[i]: which text is option i; text 0 is the right one
    options, letter = [texts[i] for i in order], "ABCD"[order.index(0)]
    working = (row.get("Explanation") or "").strip()
    return dict(kind="choice", problem=ask_choice(question, options, "({}) {}"), question=question, options=options,
                working=working, solution=f"{working} The answer is ({letter}).".strip(), answer=letter)


def ask_choice(question: str, options: list[str], style: str) -> str:
    return "\n".join([question, *(style.format(letter, option) for letter, option in zip("ABCD", options))])


# ---- Prompts ---------------------------------------------------------------------------------------------------------

PROMPT = "Problem: {problem}\nSolution:"

# The published protocols, in our own layout: kind → (worked examples, most new tokens, question, worked answer).
# {working} is a solution without its final answer. Wording moves such a number by points: for a figure that is to stand
# beside a published one, take the words from the source and give them as --prompt "... {problem} ...".
PROTOCOLS = {
    "plain": dict(
        source="this repository: what train.py teaches", chat=False, option="({}) {}",
        math=(0, 256, PROMPT, " {solution}")),
    "minerva": dict(
        source="Lewkowycz et al. 2022 (arXiv:2206.14858), appendix; 512 tokens as in Llama 3's evaluation details. Its "
               "four examples are MATH training problems and are not here: yours are the first of --few-shot-from",
        chat=False, option="({}) {}",
        math=(4, 512, "Problem:\n{problem}\n\nSolution:", "\n{working}\nThe final answer is ${answer}$."),
        gsm8k=(4, 512, "Problem:\n{problem}\n\nSolution:", "\n{working}\nThe final answer is {answer}."),
        choice=(4, 512, "Problem:\n{problem}\n\nSolution:", "\n{working}\nThe final answer is ({answer}).")),
    "tulu3": dict(
        source="Lambert et al. 2024 (arXiv:2411.15124), evaluation appendix, and github.com/allenai/olmes", chat=True,
        option="({}) {}",
        math=(4, 1024, "Problem:\n{problem}\n\nSolution:", "{working}\nThe final answer is ${answer}$."),
        gsm8k=(8, 512, "Question: {problem}\nAnswer:", "{working} So the answer is {answer}."),
        choice=(0, 2048, "Choose the one right option of this question. Reason step by step first, and close with the "
                "line \"Therefore, the answer is (X)\", X being its letter.\n\nQuestion: {problem}\nAnswer:",
                "{working}\nTherefore, the answer is ({answer}).")),
    "llama3": dict(
        source="github.com/meta-llama/llama-models, models/llama3_1/eval_details.md, and the prompts in the evals data "
               "sets at huggingface.co/meta-llama", chat=True, option="{}. {}",
        math=(0, 5120, "Solve this problem. Where one or two steps do, answer in a few words; otherwise write each "
              "step under a heading such as\n\n## Step 1: What it does\n\nClose with the sentence\n\nTherefore, the "
              "final answer is: $\\boxed{X}$\n\nwhere X is the number or expression alone.\n\nProblem: {problem}",
              "{working}\n\nTherefore, the final answer is: $\\boxed{{answer}}$"),
        gsm8k=(8, 1024, "Reason about this problem, and close with \"The final answer is X\", X being a number.\n\n"
               "Problem: {problem}", "{working} The final answer is {answer}"),
        choice=(0, 2048, "Choose the best of the four candidate answers A, B, C and D to this question. Where it is "
                "simple, answer in a few words; otherwise write each step under a heading such as\n\n## Step 1: What "
                "it does\n\nClose with the sentence\n\nThe best answer is X.\n\nwhere X is one of the letters.\n\n"
                "Question: {problem}\n\nThink step by step.", "{working}\nThe best answer is {answer}.")),
    "simple-evals": dict(
        source="github.com/openai/simple-evals, math_eval.py and common.py (sampled at temperature 0.5, 2,048 tokens)",
        chat=True, option="{}) {}",
        math=(0, 2048, "Solve this math problem step by step. Let the last line of your response be Answer: $ANSWER, "
              "where $ANSWER is your answer, and use no box.\n\n{problem}", "{working}\n\nAnswer: {answer}"),
        choice=(0, 2048, "Answer this multiple choice question. Think step by step, and let the last line of your "
                "response be Answer: $LETTER, where LETTER is one of ABCD.\n\n{problem}",
                "{working}\n\nAnswer: {answer}")),
}


def fill(template: str, **fields: str) -> str:
    """The template with its {names} replaced, all at once: braces in what is filled in, or in LaTeX, are only text."""
    return re.sub("|".join(rf"\{{{name}\}}" for name in fields), lambda match: fields[match[0][1:-1]], template)


class Protocol:
    """How a problem is put to the model: the wording of one kind of problem, and worked examples before it."""

    def __init__(self, name: str, kind: str):
        """name: one of PROTOCOLS, or a format string with {problem}. ValueError for anything else."""
        if name not in PROTOCOLS and "{problem}" not in name:
            raise ValueError(f"--prompt {name!r}: want one of {', '.join(PROTOCOLS)}, or a text with {{problem}} in "
                             "it; --help-prompts prints them all")
        self.name, entry = name, PROTOCOLS.get(name)
        if entry and name != "plain":
            self.name += " in our wording"
        if not entry:  # a shell has no easy way to write a line feed; \nabla is none
            question = re.sub(r"\\n(?![a-z])", "\n", name)
            self.name = repr(question)
            entry = dict(chat=False, option="({}) {}",
                         math=(0, 256, question, "{solution}" if question[-1].isspace() else " {solution}"))
        self.chat, self.option = entry["chat"], entry["option"]
        self.shots, self.max_new_tokens, self.question, self.answer = entry.get(kind, entry["math"])
        first = self.question.partition("{problem}")[0].strip().partition("\n")[0]
        self.cut = f"\n{first}" if ":" in first else ""  # how an invented next problem would begin: "Problem:", "Q:"
        self.examples = []

    def ask(self, problem: dict) -> str:
        text = problem["problem"]
        if "options" in problem:
            text = ask_choice(problem["question"], problem["options"], self.option)
        return fill(self.question, problem=text)

    def turns(self, problem: dict) -> list[str]:
        """Question and answer of each worked example, then the question."""
        texts = []
        for shot in self.examples:
            answer = fill(self.answer, solution=shot["solution"], working=shot["working"], answer=shot["answer"] or "")
            texts += [self.ask(shot), answer]
        return [*texts, self.ask(problem)]

    def encode(self, encoding: tiktoken.Encoding, problem: dict, bos: int | None, chat=None) -> list[int]:
        """The prompt's tokens: chat turns through the folder's template, chat, where there is one; else plain text."""
        turns = self.turns(problem)
        if self.chat and chat:
            roles = itertools.cycle(("user", "assistant"))
            return chat([dict(role=role, content=text) for role, text in zip(roles, turns)])
        gap = " " if self.chat else ""  # between a question and its answer
        text = "".join(turn + ("" if i == len(turns) - 1 else "\n\n" if i % 2 else gap) for i, turn in enumerate(turns))
        return [bos] * (bos is not None) + encoding.encode_ordinary(text)


def help_prompts() -> str:
    """Every named protocol in full."""
    texts = []
    for name, entry in PROTOCOLS.items():
        texts.append(f"==== {name}: {'chat turns' if entry['chat'] else 'plain text'}. Source: {entry['source']}")
        for kind in (kind for kind in KINDS if kind in entry):
            shots, tokens, question, answer = entry[kind]
            texts.append(f"---- {name}, {kind}: {shots} worked examples, at most {tokens:,} new tokens\n{question}\n"
                         f"-- a worked answer, in an example\n{answer.strip()}")
    texts.append("A kind that a protocol lacks is asked as its math is. A choice's options follow its question: " +
                 ", ".join(f"{name} {entry['option'].format('A', 'text')!r}" for name, entry in PROTOCOLS.items()))
    return "\n\n".join(texts)


def end_tokens(encoding: tiktoken.Encoding, config: GPTConfig, chat: bool = False) -> tuple[int, ...]:
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


def begin_token(encoding: tiktoken.Encoding, config: GPTConfig) -> int | None:
    """The token that begins every text: as the tokenizer's file says, where it does; else the model's bos_token_id."""
    return getattr(encoding, "bos", config.bos_token_id)


# The turns of a folder that has a rank file alone, told by a special token: Llama 3's and ChatML's.
TURNS = {
    "<|start_header_id|>": "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + "
                           "'<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
                           "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}",
    "<|im_start|>": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
                    "{% endfor %}{{ '<|im_start|>assistant\\n' }}",
}


def load_chat(folder: str | Path, encoding: tiktoken.Encoding) -> Callable[[list[dict]], list[int]] | None:
    """A function from messages (role, content) to tokens, up to where the assistant speaks; None without a template.

    The folder's template, rendered in a sandbox as transformers does, but without today's date: a prompt is the same
    tomorrow. Special tokens in a message are just text. Raises ValueError for a template that cannot be rendered.
    """
    path, file = Path(folder, "tokenizer_config.json"), Path(folder, "chat_template.jinja")
    config = read_json(path) if path.is_file() else {}
    guess = next((turns for token, turns in TURNS.items() if token in encoding.special_tokens_set), None)
    source = file.read_bytes() if file.is_file() else config.get("chat_template") if path.is_file() else guess
    if not source:
        return None
    special = "|".join(map(re.escape, sorted(encoding.special_tokens_set, key=len, reverse=True))) or "(?!)"
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                            extensions=["jinja2.ext.loopcontrols"])

    def encode(messages: list[dict]) -> list[int]:
        said = "".join(message["content"] for message in messages)
        mark = next(chr(i) for i in range(0xE000, 0xF900) if chr(i) not in said)  # breaks up what looks special
        broken = [m | {"content": re.sub(special, lambda t: t[0][0] + mark + t[0][1:], m["content"])} for m in messages]
        try:
            text = source.decode() if isinstance(source, bytes) else source
            if isinstance(text, list):  # several, by name
                text = {entry["name"]: entry["template"] for entry in text}["default"]
            names = {name: token["content"] if isinstance(token, dict) else token for name, token in config.items()
                     if name.endswith("_token") and token}
            text = sandbox.from_string(text).render(messages=broken, add_generation_prompt=True, **names)
        except Exception as error:  # a template is a stranger's program: it may fail in any way
            raise ValueError(f"{folder}: its chat template cannot be rendered ({error!r})") from None
        return [token for i, piece in enumerate(re.split(f"({special})", text)) for token in (
            [encoding.encode_single_token(piece)] if i % 2 else encoding.encode_ordinary(piece.replace(mark, "")))]

    encode.source = "guessed from the special tokens" if source is guess else "the folder's template"
    return encode


def encode_prompt(encoding: tiktoken.Encoding, problem: dict, bos: int | None = None) -> list[int]:
    """The plain prompt's tokens, the same in training and evaluation. Special tokens in a problem are just text."""
    return [bos] * (bos is not None) + encoding.encode_ordinary(PROMPT.format(problem=problem["problem"]))


def encode_example(encoding: tiktoken.Encoding, problem: dict, end: int, bos: int | None = None):
    """(prompt ids, answer ids): encoded apart, so that no token spans the border; the end token closes the answer."""
    return encode_prompt(encoding, problem, bos), [*encoding.encode_ordinary(f" {problem['solution']}"), end]


def decode(encoding: tiktoken.Encoding, tokens: list[int]) -> str:
    """Text of the tokens. Models have more ids than their tokenizer has tokens: such an id decodes to nothing."""
    pieces = []
    for token in tokens:
        try:
            pieces.append(encoding.decode_single_token_bytes(token))
        except KeyError:
            continue
    return b"".join(pieces).decode("utf-8", errors="replace")


# ---- The run ---------------------------------------------------------------------------------------------------------


def auto_batch_size(model: GPT, tokens: int) -> int:
    """As many rows of that many tokens as their keys and values fit half of the free GPU memory, or 2 GiB on a CPU."""
    weight, config = model.model.embed_tokens.weight, model.config
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * tokens * weight.element_size()
    if weight.device.type != "cuda":
        return max(1, min(100, 2**31 // row))
    return max(1, min(256, torch.cuda.mem_get_info()[0] // 2 // row))


def answers(model: GPT, encoding: tiktoken.Encoding, problems: list[dict], prompts: list[list[int]], cut: str,
            ends: tuple[int, ...], max_new_tokens: int = 256, batch_size: int = 100, samples: int = 1,
            temperature: float = 0.0, top_p: float = 1.0, seed: int = 0,
            done: set = frozenset()) -> Iterator[list[dict]]:
    """Completes and grades; yields the records of a batch at a time, but for the (id, sample) pairs that are done.

    A completion ends before an end token, or where it begins a next problem of its own invention: at cut. Batches are
    of like length, and the same in a run that goes on after a stop. Every sample has its own random numbers, by seed,
    problem and number, so that they do not depend on the batch.
    """
    context = model.config.max_position_embeddings
    rows = sorted(((i, n) for i in range(len(problems)) for n in range(samples)), key=lambda row: len(prompts[row[0]]))
    for start in range(0, len(rows), batch_size):
        batch = [row for row in rows[start : start + batch_size] if len(prompts[row[0]]) < context]
        unasked = [row for row in rows[start : start + batch_size] if row not in batch]
        if all((problems[i]["id"], n) in done for i, n in batch + unasked):
            continue
        began = time.time()
        seeds = [f"{seed} {problems[i]['id']} {n}".encode() for i, n in batch]
        generators = [torch.Generator().manual_seed(int(hashlib.sha256(s).hexdigest()[:15], 16)) for s in seeds]
        outputs = model.generate([prompts[i] for i, _ in batch], max_new_tokens, ends, temperature, top_p, generators)
        seconds = (time.time() - began) / max(1, len(batch))
        records = []
        for (i, n), tokens in [*zip(batch, outputs), *((row, None) for row in unasked)]:
            if (problems[i]["id"], n) in done:
                continue
            ended = bool(tokens) and tokens[-1] in ends
            text = decode(encoding, tokens[:-1] if ended else tokens or [])
            completion, invented, _ = text.partition(cut) if cut else (text, "", "")
            records.append(dict(
                id=problems[i]["id"], sample=n, kind=problems[i]["kind"], level=problems[i]["level"],
                subject=problems[i]["subject"], prompt=decode(encoding, prompts[i]), completion=completion,
                tokens=len(tokens or []), truncated=tokens is not None and not ended and not invented,
                seconds=round(seconds, 4) if tokens is not None else 0.0,
                **graded(completion, problems[i]["answer"], problems[i]["kind"], tokens is not None)))
        yield records


def graded(completion: str, gold: str, kind: str, asked: bool = True) -> dict:
    """What the grader says of a completion; asked is False where the prompt was longer than the context."""
    extracted = extract_answer(completion, kind) if asked else None
    correct = matches(extracted, gold, kind)
    reason = "right" if correct else "wrong" if extracted else "no answer" if asked else "prompt too long"
    return dict(extracted=extracted, gold=gold, correct=correct, reason=reason)


def solve(model: GPT, encoding: tiktoken.Encoding, problems: list[dict]) -> list[dict]:
    """The graded greedy answer to each problem, in the problems' order, asked as training asks."""
    bos = begin_token(encoding, model.config)
    prompts = [encode_prompt(encoding, problem, bos) for problem in problems]
    batches = answers(model, encoding, problems, prompts, "\nProblem:", end_tokens(encoding, model.config))
    return sorted((record for batch in batches for record in batch), key=lambda record: record["id"])


# ---- Tables ----------------------------------------------------------------------------------------------------------


def by_problem(records: list[dict]) -> dict[int, list[bool]]:
    """{id: [whether each sample is right]}, in the order of the ids."""
    samples = {}
    for record in sorted(records, key=lambda record: (record["id"], record["sample"])):
        samples.setdefault(record["id"], []).append(record["correct"])
    return samples


def pass1(records: list[dict]) -> dict:
    """n problems, their pass@1 with its 95% interval."""
    samples = by_problem(records)
    counts = {len(s) for s in samples.values()}
    if len(counts) > 1:
        raise ValueError(f"problems have {min(counts)} to {max(counts)} answers each: an unfinished run, or a mixture")
    mean, low, high = pass1_interval([sum(s) for s in samples.values()], counts.pop())
    return dict(n=len(samples), pass1=mean, low=low, high=high)


def summarize(records: list[dict], ks: list[int] = ()) -> dict:
    """The figures of one model: pass@1 in all, by level and by subject, and what the answers were like."""
    summary = pass1(records)
    for name in ("level", "subject"):
        groups = sorted({record[name] for record in records})
        if len(groups) > 1:
            summary[name] = {group: pass1([r for r in records if r[name] == group]) for group in groups}
    samples = by_problem(records).values()
    if ks:
        summary["pass_at_k"] = {k: sum(pass_at_k(len(s), sum(s), k) for s in samples) / len(samples) for k in ks}
    seconds = sum(record["seconds"] for record in records)
    return dict(summary, samples=len(records) // len(samples),
                mean_tokens=sum(record["tokens"] for record in records) / len(records),
                no_answer=sum(record["extracted"] is None for record in records) / len(records),
                truncated=sum(record["truncated"] for record in records) / len(records),
                too_long=sum(record["reason"] == "prompt too long" for record in records) / len(records),
                problems_per_s=len(samples) / seconds if seconds else None)


def print_table(columns: dict[str, list[dict]], ks: list[int] = (), details: bool = False) -> None:
    """pass@1 in per cent with its 95% interval: a row a level and a subject, a column a model. The records of each."""
    summaries = {name: summarize(records, ks) for name, records in columns.items()}
    first = next(iter(summaries.values()))
    width = max(20, *(len(name) + 2 for name in columns))
    rows = [(group, first[by][group]["n"], [s.get(by, {}).get(group) for s in summaries.values()])
            for by in ("level", "subject") for group in first.get(by, {})]
    rows.append(("all", first["n"], list(summaries.values())))
    left = max(14, *(len(row[0]) + 2 for row in rows))
    print(f"{'pass@1, %':{left}}{'problems':>8}" + "".join(f"{name:>{width}}" for name in columns))
    for group, n, cells in rows:
        texts = [f"{100 * c['pass1']:.1f} [{100 * c['low']:.1f}, {100 * c['high']:.1f}]" if c else "-" for c in cells]
        print(f"{group:{left}}{n:8}" + "".join(f"{text:>{width}}" for text in texts))
    if not details:
        return
    lines = [(f"pass@{k}, %", [f"{100 * s['pass_at_k'][k]:.1f}" for s in summaries.values()]) for k in ks]
    if any(record["kind"] == "choice" for record in next(iter(columns.values()))):
        lines.append(("chance, %", ["25.0"] * len(columns)))
    lines.append(("mean tokens", [f"{s['mean_tokens']:.1f}" for s in summaries.values()]))
    for name in ("no_answer", "truncated", "too_long"):
        if name != "too_long" or any(s[name] for s in summaries.values()):
            lines.append((f"{name.replace('_', ' ')}, %", [f"{100 * s[name]:.1f}" for s in summaries.values()]))
    lines.append(("problems/s", [f"{s['problems_per_s'] or 0:.1f}" for s in summaries.values()]))
    for name, texts in lines:
        print(f"{name:{left + 8}}" + "".join(f"{text:>{width}}" for text in texts))
    (name, records), *others = columns.items()
    for other, its in others:
        counts = [[sum(s) for s in by_problem(column).values()] for column in (records, its)]
        mean, low, high, p = paired_difference(*counts, first["samples"])
        test = "McNemar's exact" if first["samples"] == 1 else "sign test's"
        print(f"{other} - {name}: {100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], paired by problem; "
              f"{test} p = {p:.2g}")


# ---- The command line ------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line on stderr and exit status 2, without the usage above it."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def plain_output() -> None:
    """Characters that the console's encoding lacks are replaced instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    what = parser.add_argument_group("what is evaluated")
    what.add_argument("--base", metavar="FOLDER", default=HERE / "data/base", help="model folder (default: data/base)")
    what.add_argument("--adapter", metavar="FOLDER", action="append",
                      help="PEFT adapter folder, or none for the base alone; may be given several times (default: none "
                           "and the newest under out/)")
    what.add_argument("--data", metavar="PATH", default=HERE / "data/equations",
                      help="folder with test.jsonl or test.csv, a JSONL file in MATH's or GSM8K's fields, or a CSV "
                           "file in GPQA's (default: data/equations)")
    what.add_argument("--kind", choices=KINDS, help="how answers are graded (default: told by the fields)")
    what.add_argument("--limit", type=int, metavar="N", help="a random N of the problems, by --seed: a smoke test")
    ask = parser.add_argument_group("how it is asked")
    ask.add_argument("--prompt", default="plain", metavar="P",
                     help=f"{', '.join(PROTOCOLS)}, or a text with {{problem}} in it, where \\\\n is a line feed "
                          "(default: plain)")
    ask.add_argument("--help-prompts", action="store_true", help="print every named protocol in full, and end")
    ask.add_argument("--few-shot", type=int, metavar="K",
                     help="worked examples before the problem (default: the protocol's)")
    ask.add_argument("--few-shot-from", metavar="FILE",
                     help="where they are from, in order (default: train.jsonl or train.csv of the --data folder)")
    ask.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: the protocol's)")
    ask.add_argument("--samples", type=int, default=1, metavar="N", help="answers to each problem (default: 1)")
    ask.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: 0)")
    ask.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus that is sampled from (default: 1)")
    ask.add_argument("--k", type=int, nargs="+", default=[], metavar="K", help="also pass@k, for k up to --samples")
    ask.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples and of --limit (default: 0)")
    run = parser.add_argument_group("run")
    run.add_argument("--batch-size", default="auto", metavar="N", help="prompts at a time, or auto (default: auto)")
    run.add_argument("--out", metavar="FOLDER", help="writes samples.jsonl, a line a sample, batch by batch, and "
                                                     "summary.json; a run that was stopped goes on from there")
    run.add_argument("--regrade", metavar="FILE", help="no model: grades the lines of a samples.jsonl, or of any "
                                                       "JSONL with response and gold, anew")
    args = parser.parse_args(argv)
    for name in ("limit", "max_new_tokens", "samples"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: want 1 or more")
    if args.few_shot is not None and args.few_shot < 0:
        parser.error(f"--few-shot {args.few_shot}: want 0 or more")
    if args.batch_size != "auto" and not (args.batch_size.isdecimal() and int(args.batch_size) > 0):
        parser.error(f"--batch-size {args.batch_size}: want auto, or 1 or more")
    if not (0 <= args.temperature < math.inf and 0 < args.top_p <= 1):
        parser.error(f"--temperature {args.temperature} --top-p {args.top_p}: want 0 or more, and 0 < top-p <= 1")
    if args.samples > 1 and args.temperature == 0:
        parser.error(f"--samples {args.samples} at temperature 0 are all the same: add --temperature, such as 0.8")
    if not all(1 <= k <= args.samples for k in args.k):
        parser.error(f"--k {' '.join(map(str, args.k))}: each must be from 1 to --samples, {args.samples}")
    return parser, args


def pick_problems(args) -> tuple[list[dict], list[dict]]:
    """The problems under test, and all of the file's."""
    every = load_problems(data_file(args.data, "test"))
    for problem in every:
        if args.kind == "choice" and "options" not in problem:
            raise ValueError(f"--kind choice: {args.data} has no options; want GPQA's columns, {', '.join(GPQA)}")
        problem["kind"] = args.kind or problem["kind"]
        if not problem["answer"]:
            raise ValueError(f"{args.data}: row {problem['id']} (from 0) has no answer to grade against")
    if len({problem["kind"] for problem in every}) > 1:
        raise ValueError(f"{args.data}: holds several kinds of problem; give --kind, or a file for each")
    if args.limit is None or args.limit >= len(every):
        return every, every
    return [every[i] for i in sorted(random.Random(args.seed).sample(range(len(every)), args.limit))], every


def pick_examples(args, protocol: Protocol, every: list[dict]) -> None:
    """Gives the protocol its worked examples: the first of the file that are not under test themselves."""
    count = protocol.shots if args.few_shot is None else args.few_shot
    if not count and args.few_shot_from:
        raise ValueError(f"--few-shot-from {args.few_shot_from}: this protocol has no examples; add --few-shot K")
    if not count:
        return
    source = Path(args.few_shot_from) if args.few_shot_from else data_file(args.data, "train")
    if not args.few_shot_from and (not Path(args.data).is_dir() or not source.exists()):
        raise ValueError(f"{count} worked examples are wanted: add --few-shot-from FILE (or --few-shot 0)")
    tested = {" ".join(problem["problem"].split()) for problem in every}
    pool = [p for p in load_problems(source) if " ".join(p["problem"].split()) not in tested and p["answer"]]
    if any(("options" in p) != ("options" in every[0]) for p in pool):
        raise ValueError(f"{source}: worked examples of another kind than the problems of {args.data}")
    if len(pool) < count:
        raise ValueError(f"{source}: {len(pool)} worked examples that are not under test, {count} are wanted")
    protocol.examples = pool[:count]


def weights_of(folder: str | Path) -> dict[str, str]:
    """{file: sha256} of what makes a model or an adapter: weights, configs, tokenizer."""
    found = {}
    for path in sorted(Path(folder).glob("*")):
        if path.suffix in (".safetensors", ".json", ".tiktoken", ".model", ".jinja") and path.name != "run.json":
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(2**24):
                    digest.update(block)
            found[path.name] = digest.hexdigest()
    return found


def remove_lora(model: GPT) -> None:
    """Takes the adapters off: the base's own layers, whose weights they never touched, are back."""
    for name, layer in lora_layers(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)


class Samples:
    """samples.jsonl of --out: the lines of a run that was stopped, and a line more for each sample, batch by batch."""

    def __init__(self, out: str | None, settings: dict):
        self.path, self.records = Path(out, "samples.jsonl") if out is not None else None, []
        if out is None:
            return
        Path(out).mkdir(parents=True, exist_ok=True)
        if Path(out, "settings.json").exists():
            before = read_json(Path(out, "settings.json"))
            changed = [name for name in settings if before.get(name) != json.loads(json.dumps(settings[name]))]
            if changed:
                raise ValueError(f"--out {out} holds another run ({', '.join(changed)} differ): choose another folder")
        elif any(path.suffix != ".tmp" and path.name[0] != "." for path in Path(out).iterdir()):
            raise ValueError(f"--out {out} holds files that are no run of eval_pass1.py: choose another folder")
        write_json(Path(out, "settings.json"), settings)
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]  # without the line in which the run was stopped
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        found = {}
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
                record |= graded(record["completion"], record["gold"], record["kind"],
                                 record["reason"] != "prompt too long")  # by the grader of today
                found.setdefault((record["adapter"], record["id"], record["sample"]), record)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ValueError(f"{self.path}, line {number}: no sample of this run; remove the line") from None
        self.records = list(found.values())  # a second process may have written the same sample

    def add(self, records: list[dict]) -> None:
        self.records += records
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(record) + "\n" for record in records))


def regrade(args) -> None:
    """Grades a stored file anew and says what has changed. Rows with the same id are answers to one problem."""
    columns, changed, judged = {}, [], 0
    for number, (where, row) in enumerate(read_rows(Path(args.regrade))):
        text, gold = row.get("completion", row.get("response")), row.get("gold")
        if not isinstance(text, str) or not isinstance(gold, str):
            raise ValueError(f"{where}: want a completion or response and its gold answer, as strings")
        kind = args.kind or next((kind for kind in KINDS if kind in str(row.get("kind"))), "math")
        verdict = graded(text, gold, kind, row.get("reason") != "prompt too long")
        before = row.get("correct", row.get("label"))
        judged += isinstance(before, bool)
        if isinstance(before, bool) and before != verdict["correct"]:
            changed.append(f"  {where}: {'right' if before else 'wrong'} → {verdict['reason']}, "
                           f"{verdict['extracted']!r:.60} against {gold!r:.60}")
        problem = next((row[name] for name in ("id", "problem_id", "unique_id", "test_index") if name in row), number)
        column = columns.setdefault(str(row.get("adapter", "responses")), [])
        column.append(dict(id=str(problem), sample=len(column), kind=kind, level=level_name(row.get("level", "all")),
                           subject=str(row.get("subject", "all")), tokens=0, truncated=False, seconds=0.0, **verdict))
    kinds = sorted({record["kind"] for column in columns.values() for record in column})
    print(f"regraded {args.regrade}; grader {', '.join(kinds)}, exact")
    print_table({"base" if name == "none" else name: column for name, column in columns.items()})
    if judged:
        print(f"{judged:,} had a verdict; {len(changed):,} have another now", *changed[:20], sep="\n")
        if len(changed) > 20:
            print(f"  and {len(changed) - 20:,} more")


def main(argv=None):
    plain_output()
    parser, args = parse_args(argv)
    if args.help_prompts:
        print(help_prompts())
        return
    try:
        if args.regrade is not None:
            regrade(args)
            return
        device = "cuda" if torch.cuda.is_available() else "cpu"
        newest = sorted(Path("out").glob("*/adapter_config.json"), key=lambda path: path.stat().st_mtime)
        adapters = list(dict.fromkeys(args.adapter or ["none", *(str(path.parent) for path in newest[-1:])]))
        problems, every = pick_problems(args)
        kind = problems[0]["kind"]
        protocol = Protocol(args.prompt, kind)
        pick_examples(args, protocol, every)
        max_new_tokens = args.max_new_tokens or protocol.max_new_tokens
        encoding, model = load_tokenizer(args.base), load_model(args.base, torch.bfloat16 if device == "cuda" else
                                                                torch.float32, device)
        chat = load_chat(args.base, encoding) if protocol.chat else None
        ends = end_tokens(encoding, model.config, bool(chat))
        bos = begin_token(encoding, model.config)
        prompts = [protocol.encode(encoding, problem, bos, chat) for problem in problems]
        longest = min(model.config.max_position_embeddings, max(map(len, prompts)) + max_new_tokens)
        batch_size = auto_batch_size(model, longest) if args.batch_size == "auto" else int(args.batch_size)
        if not all(prompts):
            raise ValueError(f"--prompt {args.prompt!r}: a problem's prompt has no token")
        for adapter in adapters:  # before anything is written
            if adapter != "none":
                remove_lora(load_adapter(model, adapter))
        settings = dict(
            base=args.out and weights_of(args.base),
            adapters={adapter: weights_of(adapter) if args.out and adapter != "none" else {} for adapter in adapters},
            problems=hashlib.sha256(repr([(p["id"], q) for p, q in zip(problems, prompts)]).encode()).hexdigest(),
            gold=hashlib.sha256(repr([p["answer"] for p in problems]).encode()).hexdigest(), kind=kind,
            prompt=args.prompt, few_shot=len(protocol.examples), max_new_tokens=max_new_tokens, samples=args.samples,
            temperature=args.temperature, top_p=args.top_p, seed=args.seed, device=device)
        samples = Samples(args.out, settings)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    asked = "greedy" if args.temperature == 0 else f"temperature {args.temperature:g}, top-p {args.top_p:g}"
    turns = ", turns as plain text (no chat template in --base)" if protocol.chat else ""
    turns = f", chat turns ({chat.source})" if chat else turns
    print(f"protocol {protocol.name}{turns}, {len(protocol.examples)}-shot, {asked}, {args.samples} "
          f"sample{'s' * (args.samples > 1)} a problem, at most {max_new_tokens:,} new tokens; grader {kind}, exact")
    if len(problems) < len(every):
        print(f"smoke test: a random {len(problems):,} of {len(every):,} problems, seed {args.seed}; no result")
    context = model.config.max_position_embeddings
    cramped = sum(len(prompt) + max_new_tokens > context for prompt in prompts)
    if cramped:
        over = sum(len(prompt) >= context for prompt in prompts)
        print(f"{cramped:,} of {len(prompts):,} prompts with {max_new_tokens:,} new tokens exceed the context of "
              f"{context:,}: {over:,} are not asked and count as wrong, {cramped - over:,} have less room to answer")
    sys.stdout.flush()
    columns = {}
    for adapter in adapters:
        records = [record for record in samples.records if record["adapter"] == adapter]
        if adapter != "none":
            load_adapter(model, adapter)
        done = {(record["id"], record["sample"]) for record in records}
        for batch in answers(model, encoding, problems, prompts, protocol.cut, ends, max_new_tokens, batch_size,
                             args.samples, args.temperature, args.top_p, args.seed, done):
            batch = [{"id": record.pop("id"), "adapter": adapter, **record} for record in batch]
            samples.add(batch)
            records += batch
            if sys.stdout.isatty():
                print(f"\r{adapter}: {len(records):,} of {len(problems) * args.samples:,}", end="", flush=True)
        if sys.stdout.isatty():
            print("\r" + " " * (len(adapter) + 30), end="\r")
        remove_lora(model)
        columns["base" if adapter == "none" and "base" not in adapters else adapter] = records
    print_table(columns, args.k, details=True)
    if args.out:
        write_json(Path(args.out, "summary.json"), {**settings, "models": {
            adapter: summarize(records, args.k) for adapter, records in columns.items()}})


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\neval_pass1.py: interrupted; with --out the same command goes on from here")
    except BrokenPipeError:  # as in "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
