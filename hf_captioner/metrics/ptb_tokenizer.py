"""The tokens that the COCO caption evaluation scores, without Java.

COCO tokenises captions with the Stanford PTB tokeniser (CoreNLP 3.4.1, `-preserveLines -lowerCase`) and drops
seventeen punctuation marks. The rules below were written from observing what that program does with captions, with
every character of the basic plane and with random strings; `tests/metrics/test_ptb_tokenizer.py` compares the two
and lists where they differ. Two of its habits look like mistakes but are part of COCO's scores: brackets become words
("-lrb-"), because the list of punctuation has them in capitals only, and "!!" is a word, because it has single marks
only.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache

import regex

PUNCTUATION = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())

# ---------------------------------------------------------------- characters
# The program reads UTF-16, so it knows no character beyond the basic plane (most emoji) and drops it. Which combining
# marks it takes for letters depends on the script.
_MARKS = (
    r"\u02c2-\u02c5\u02d2-\u02df\u02e5-\u036f\u0375\u0378\u0379\u0384\u0385\u03f6\u0483-\u0487\u055a-\u055f\u0591-\u05bd"
    r"\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06e4\u06e7-\u06ed\u06fd\u06fe\u070f"
    r"\u0711\u0730-\u074c\u07a6-\u07b0\u07eb-\u07f3\u0900-\u0903\u093c\u093e-\u094e\u0951-\u0955\u0962\u0963\u0981-\u0983"
    r"\u09bc\u09be-\u09c4\u09c7\u09c8\u09cb-\u09cd\u09d7\u09e2\u09e3\u0a01-\u0a03\u0a3c\u0a3e-\u0a4f\u0a81-\u0a83\u0abc"
    r"\u0abe-\u0acf\u0b82\u0bbe-\u0bc2\u0bc6-\u0bc8\u0bca-\u0bcd\u0c01-\u0c03\u0c3e-\u0c56\u0d3e-\u0d44\u0d46-\u0d48"
    r"\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd\u1885\u1886"
)
_SYMBOLS = (
    r"$%&*+./<=>\\^|~\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b1\u00b4\u00b6-\u00b8\u00bf\u00d7\u00f7\u037e\u0387\u0589\u05be"
    r"\u05c0\u05c3\u05c6\u05f3\u05f4\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e\u061f\u066a\u066d\u06d4\u0700-\u070d"
    r"\u07f6-\u07f8\u0964\u0965\u0e3f\u0e4f\u1fbd\u2016\u2017\u2020-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044"
    r"\u207a-\u207e\u208a-\u208e\u20a4\u2100\u2101\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127"
    r"\u2129\u212e\u213a\u213b\u2140-\u2144\u214a-\u214d\u214f\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb"
    r"\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)
_PLAIN_LETTER = r"[[\p{L}\u1885\u1886]--[\U00010000-\U0010ffff]]"
_LETTER = rf"(?:[[\p{{L}}--[\U00010000-\U0010ffff]]||[{_MARKS}\u00ad]]|&[aeiouAEIOU](?:acute|grave|uml);)"
_DIGIT = r"[\p{Nd}--[\U00010000-\U0010ffff]]"
_APOSTROPHE = r"(?:['\u0092\u2019]|&apos;)"
_ANY_APOSTROPHE = r"(?:['\u0092\u2019`\u0091\u2018\u201b]|&apos;)"
_SPACE = r"[ \t\u00a0\u2000-\u200a\u3000]"

# ---------------------------------------------------------------- words that keep their full stop
_ABBREVIATIONS = (
    "a.d al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec dept esq "
    "est etc ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb "
    "nev nov oct okla penn ph.d ed.d plc rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt "
    "wed wis wisc wyo"
).split()
_STATES = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash".split()  # ordinary words when in lower case
_TITLES = (
    "adj adm adv alex assoc asst atty attys ave brig capt cf cmdr col comdr cpl det dr drs elec ft gen gov "
    "govs hon insp jos lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pte pty "
    "ptys pvt rep reps rev sen sens sgt spc st ste supt supts treas vs wm"
).split()
_NUMBERED = "art ca fig figs no nos op pp prop".split()  # before a number only: "no. 5"
# "vitamin B. The" ends a sentence, "J. Smith" does not
_SENTENCE_STARTERS = (
    "A About After An As At But He Her Here However If In It Last Many More Now Once One Other Our She Since "
    "So Some Such That The Their Then There These They This We What When While Yet You"
).split()


def _any_of(words: Iterable[str]) -> str:
    return "(?:" + "|".join(regex.escape(word) for word in sorted(words, key=len, reverse=True)) + ")"


# ---------------------------------------------------------------- parts of rules
_ALNUM = f"(?:{_LETTER}|{_DIGIT})"
_PLAIN_ALNUM = f"(?:{_PLAIN_LETTER}|{_DIGIT})"
_WORD = f"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"
_NAME = f"(?:[dDoOlL]{_ANY_APOSTROPHE}{_PLAIN_ALNUM})?{_PLAIN_ALNUM}+"  # O'Brien, d'Artagnan, 12
_COMPOUND = rf"{_NAME}(?:[-_\u058a\u2010\u2011]{_NAME})*"
_CLITIC = rf"{_APOSTROPHE}(?i:[msd]|re|ve|ll)"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+"
_NUMBER = rf"(?:{_DIGIT}*(?:[.:,\u00ad\u066b\u066c]{_DIGIT}+)+|{_DIGIT}+)"
_ATTRIBUTE = r"[A-Za-z][A-Za-z0-9_:.-]*"
_TAG = (
    rf"(?:<[!?][A-Za-z-][^>\r\n]*>|</{_ATTRIBUTE}{_SPACE}*>|<{_ATTRIBUTE}(?:{_SPACE}+{_ATTRIBUTE}"
    rf"(?:{_SPACE}*={_SPACE}*(?:\"[^\"\r\n]*\"|'[^'\r\n]*'))?)*{_SPACE}*/?{_SPACE}*>)"
)
_URL_CHARACTER, _URL_END = r'[^\s"<>|(){}]', r'[^\s"<>|.!?(){},-]'
_FILE_TYPES = "bat bmp c cgi class cpp doc docx exe gif gz h htm html jar java jpeg jpg".split()
_FILE_TYPES += "mov mp3 pdf php pl png ppt ps py sql tar txt wav x xml zip".split()

# ---------------------------------------------------------------- what becomes of a token
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ENTITIES = {"&lt;": "<", "&gt;": ">", "&amp;": "&", "&quot;": "''", "&apos;": "'", "&nbsp;": ""}
_ENTITIES |= {"&ndash;": "--", "&mdash;": "--", "&MD;": "--"}
_REPLACEMENTS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "¢": "cents", "£": "#", "\u00ad": "-"}
_REPLACEMENTS |= dict.fromkeys("$¤\x80\u20a0€", "$")
_QUOTES = {"‘": "`", "\x91": "`", "‛": "`", "‹": "`", "’": "'", "\x92": "'", "›": "'"}
_QUOTES |= {"“": "``", "\x93": "``", "«": "``", "”": "''", "\x94": "''", "»": "''"}


def _without_soft_hyphens(token: str) -> str:
    return token.replace("\u00ad", "")


def _as_word(token: str) -> str:
    return _without_soft_hyphens(token).replace("&amp;", "&")


def _as_quotes(token: str) -> str:
    return "".join(_QUOTES.get(mark, mark) for mark in token)


def _as_clitic(token: str) -> str:
    return regex.sub(_APOSTROPHE, "'", token).replace("\u2018", "`").replace("\u0091", "`")


def _with_names(token: str) -> str:
    """Brackets by name, and no space that would end the token in COCO's list of words."""
    token = token.replace("(", "-lrb-").replace(")", "-rrb-")
    return regex.sub(_SPACE, "\u00a0", token)


def _as_entity(token: str) -> str:
    return _ENTITIES.get(token, token)


def _as_replacement(token: str) -> str:
    return _REPLACEMENTS.get(token, token)


def _as_bracket(token: str) -> str:
    return _BRACKETS[token]


def _as_dash(token: str) -> str:
    return token if len(token) > 4 else "--"


def _as_dots(token: str) -> str:
    return "..."


# Each rule: the token, what must follow it, what becomes of it. As in any lexer, the longest match wins, what must
# follow included, and the first of equally long ones.
_RULES: list[tuple[str, str, Callable[[str], str] | None]] = [
    # markup and the web
    (_TAG, "", _with_names),
    (r"&(?:lt|gt|amp|quot|nbsp|apos|ndash|mdash|MD|HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);", "", _as_entity),
    (rf"(?i:https?)://{_URL_CHARACTER}+{_URL_END}", "", None),
    (
        rf"(?:[wW]{{3}}\.(?:[^\s\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}|"
        rf"(?:[^\s\"`'<>|.!?(){{}},-_$]+\.)+(?:com|net|org|edu))(?:/{_URL_CHARACTER}+{_URL_END})?",
        "",
        _without_soft_hyphens,
    ),
    (
        r"(?:&lt;|<)?[A-Za-z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+(?:&gt;|>)?",
        "",
        None,
    ),
    (r"@[A-Za-z_][A-Za-z_0-9]*", "", None),
    (f"#{_LETTER}+", "", _as_word),
    # words; the written-together ones are cut in two
    ("(?i:can)", "(?i:not)", None),
    ("(?i:gon|wan)", "(?i:na)", None),
    ("(?i:got)", "(?i:ta)", None),
    ("(?i:lem|gim)", "(?i:me)", None),
    ("'[tT]", "(?i:is|was)", None),
    (_WORD, _CLITIC, _as_word),
    (r"[A-Za-z\u00ad]*[A-MO-Za-mo-z]", f"[nN]{_ANY_APOSTROPHE}[tT]", _as_word),
    (f"[nN]{_ANY_APOSTROPHE}[tT]", "", _as_clitic),
    (f"[A-HJ-XZn]{_ANY_APOSTROPHE}{_PLAIN_LETTER}{{2,}}", "", None),
    (_CLITIC, "[^A-Za-z]", _as_clitic),
    (_WORD, "", _as_word),
    # full stops that belong to a word
    (rf"(?i:{_any_of(_ABBREVIATIONS + _TITLES)})\.", "", None),
    (rf"{_any_of(_STATES + [state.upper() for state in _STATES])}\.", "", None),
    (
        rf"(?:(?i:{_any_of(_ABBREVIATIONS)})|{_any_of(_STATES + [state.upper() for state in _STATES])})\.",
        r"(?s:..)",
        None,
    ),
    (rf"(?:{_WORD}|{_COMPOUND})\.", r"[,;:\u3001]", _as_word),
    (rf"(?i:{_any_of(_NUMBERED)})\.", rf"{_SPACE}?[0-9]", None),
    (r"[A-Za-z]\.", "", None),
    (rf"{_INITIALS}\.", "", None),
    ("[A-Za-z]", rf"\.{_SPACE}+(?:{_any_of(_SENTENCE_STARTERS)}|M[rs]\.|{_TAG})\s", None),
    # words with apostrophes, hyphens and slashes
    (
        rf"(?i:{_APOSTROPHE}n{_APOSTROPHE}?|{_APOSTROPHE}em|{_APOSTROPHE}till?|{_APOSTROPHE}cause|[ldj]{_APOSTROPHE}|"
        rf"(?:ol|dunkin|somethin){_APOSTROPHE}|cap{_APOSTROPHE}n|c{_APOSTROPHE}est|"
        r"c'mon|s'mores|e'er|ev'ry|li'l|nat'l|cont'd\.|nor'easter)",
        "",
        None,
    ),
    (f"{_APOSTROPHE}[2-9]0[sS]", "", None),
    (f"{_APOSTROPHE}[0-9][0-9]", r"\s", None),
    (f"[yY]{_APOSTROPHE}", _LETTER, None),
    (f"{_PLAIN_LETTER}+[aeiouyAEIOUY]{_ANY_APOSTROPHE}[aeiouA-Z]{_PLAIN_LETTER}*", "", None),
    (_COMPOUND, "", None),
    (rf"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:{_INITIALS}\.|[A-Za-z0-9\u00ad]+))+", "", _as_word),
    (r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}", "", None),
    ("[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+", "", _as_word),
    (r"[cC]\+\+|[cCfF]#", "", None),
    (r"(?i:pro-|anti-|C\.D\.s|S&P-500|S&Ls|-[LR][RCS]B-)", "", None),
    # numbers, money, telephone numbers
    (f"{_DIGIT}{{1,2}}[-/]{_DIGIT}{{1,2}}[-/]{_DIGIT}{{2,4}}", "", None),
    (rf"[-+]?{_NUMBER}", "", _as_word),
    (rf"(?:{_DIGIT}{{1,4}}[- \u00a0])?{_DIGIT}{{1,4}}(?:\\?/|\u2044){_DIGIT}{{1,4}}", "", _with_names),
    (
        rf"(?:\({_DIGIT}{{2,3}}\)[ \u00a0]?|(?:\+\+?)?(?:{_DIGIT}{{2,4}}[- \u00a0])?{_DIGIT}{{2,4}}[- \u00a0])"
        rf"{_DIGIT}{{3,4}}[- \u00a0]?{_DIGIT}{{3,5}}",
        "",
        _with_names,
    ),
    (r"[\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)", "", None),
    (rf"{_ALNUM}+(?:\.{_ALNUM}+)*\.(?i:{_any_of(_FILE_TYPES)})", r"[\s.?!,]", None),
    (r"[A-Z]*\$|#", "", None),
    (r"[\u00bc-\u00be\u2153\u2154\u00a2-\u00a4\u0080\u20a0\u20ac]", "", _as_replacement),
    # faces
    (r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", "[^A-Za-z0-9]", _with_names),
    (r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)", "", _with_names),
    # punctuation
    (r"-+|[\u0096\u0097\u2013-\u2015]", "", _as_dash),
    (r"\.{3,5}|(?:\.[ \u00a0]){2,4}\.|\u2026", "", _as_dots),
    (r"[?!]+", "", None),
    (r"@+|#+|_+|\*+|(?:\\\*){1,3}", "", None),
    (r"<<|>>|''|'|[,:;]", "", None),
    ("'", r"[A-Za-z]\S", None),
    (_CLITIC, "", _as_clitic),
    (r"[`\u2018-\u201f\u0091-\u0094\u00ab\u00bb\u2039\u203a]{1,2}", "", _as_quotes),
    (r"\u0092", "", _as_quotes),
    (r"[()\[\]{}]", "", _as_bracket),
    (rf"[{_SYMBOLS}]", "", None),
]
_COMPILED = [(regex.compile(f"(?V1)({token}){follows}"), change) for token, follows, change in _RULES]


def _lex(text: str) -> list[str]:
    text += "\n"  # a caption is a line
    tokens, place = [], 0
    while place < len(text):
        best, end = None, place
        for pattern, change in _COMPILED:
            if (match := pattern.match(text, place)) and match.end() > end:
                best, best_change, end = match, change, match.end()
        if best is None:  # a space, or a character that the program drops
            place += 1
            continue
        token = best[1] if best_change is None else best_change(best[1])
        token = token.lower()
        if token and token not in PUNCTUATION:
            tokens.append(token)
        place = best.end(1)
    return tokens


# ---------------------------------------------------------------- speed: most words need no lexer
_SIMPLE = regex.compile(r"([A-Za-z]+)([.,:;!?]?)")
_CUT_WORDS = frozenset("cannot gonna wanna gotta lemme gimme".split())
_KEEP_STOP = frozenset(_ABBREVIATIONS + _TITLES + _NUMBERED + [state.lower() for state in _STATES])
# what can make a token depend on the text after the next space: markup, numbers, stops that may belong to a word
_REACHING_CHUNK = regex.compile(r"[<\p{Nd}]|[A-Za-z]\.$")
_REACHING = regex.compile(r"<|\p{Nd}\)?\s+\p{Nd}|[A-Za-z]\.\s")


@lru_cache(maxsize=1 << 16)
def _lex_chunk(chunk: str) -> tuple[str, ...]:
    return tuple(_lex(chunk))


@lru_cache(maxsize=1 << 16)
def _lex_alone(chunk: str) -> tuple[str, ...] | None:
    """The tokens of a piece of caption between spaces, None if they may depend on the pieces after it."""
    if simple := _SIMPLE.fullmatch(chunk):
        word, mark = simple[1].lower(), simple[2]
        if word not in _CUT_WORDS and not (mark == "." and (len(word) == 1 or word in _KEEP_STOP)):
            return (word,)
    return None if _REACHING_CHUNK.search(chunk) else _lex_chunk(chunk)


def tokenize(captions: Iterable[str]) -> list[list[str]]:
    """Splits captions into the words that the COCO caption evaluation scores: lower-cased, punctuation removed.

    That evaluation runs a Java program, the Stanford PTB tokeniser (CoreNLP 3.4.1). The result differs where that lets
    captions influence each other: here a caption is a line of its own whatever stands in it, so a line separator
    inside a caption is a space, and an abbreviation at a caption's end does not look at the next caption.

    Args:
        captions: texts.

    Returns:
        A list of words for each caption; an empty caption has none.

    Raises:
        TypeError: a caption is not a string.

    Examples:
        >>> from hf_captioner.metrics import tokenize
        >>> tokenize(["A dog, running.", "The dog's ball isn't red!"])
        [['a', 'dog', 'running'], ['the', 'dog', "'s", 'ball', 'is', "n't", 'red']]
    """
    tokenized = []
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise TypeError(f"captions[{index}] must be a string, got {caption!r}")
        chunks = caption.split()
        tokens: list[str] = []
        for chunk in chunks:
            alone = _lex_alone(chunk)
            if alone is None:
                tokens = _lex_together(caption, chunks)
                break
            tokens += alone
        tokenized.append(tokens)
    return tokenized


def _lex_together(caption: str, chunks: list[str]) -> list[str]:
    if _REACHING.search(caption):
        return _lex(caption)
    return [token for chunk in chunks for token in _lex_chunk(chunk)]


def clear_cache() -> None:
    """Forgets the tokens of the words met so far, so that a measurement starts from nothing."""
    _lex_chunk.cache_clear()
    _lex_alone.cache_clear()
