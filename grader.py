"""The answer that a response states, and whether it equals the gold one: pure Python, exact.
"""

import hashlib
import math
import operator
import re
from fractions import Fraction

KINDS = ("math", "gsm8k", "choice")  # of problem, and how its answer is graded

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
