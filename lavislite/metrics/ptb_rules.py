"""The rules of `ptb.py`: what counts as a token, and how it is written.

Abbreviations and sentence starters are those that the original recognized among 29,000 English
words and some hand-picked ones. The other rules follow its grammar and were checked against its
output; so some lists look arbitrary, and `int'l` is in none of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from lavislite.metrics.ptb_characters import LETTER, MARK, SYMBOL


class Rule(NamedTuple):
    """Group 1 is the token; whatever else matches has to follow it but stays for the next one."""

    pattern: re.Pattern[str]
    write: Callable[[str], str] | None = None  # None: as it stands


def _words(text: str) -> str:
    """One of the words, in capitals or not."""
    return f"(?ai:{'|'.join(text.split())})"


SPACE = "[ \t\u00a0\u2000-\u200a\u3000]"
GAP = "[ \t\n\u00a0\u0085\u2000-\u200a\u3000]"
A = f"[{LETTER}]"
AN = rf"[{LETTER}\d]"
APOS = "(?:['\u0092\u2019]|(?ai:&apos;))"
TICK = "(?:['`\u0091\u0092\u2018\u2019\u201b]|(?ai:&apos;))"
HYPHEN = "[-_\u058a\u2010\u2011]"

_ENTITY = "&[aeiouAEIOU](?ai:acute|grave|uml);"
_FIRST = f"(?:[{LETTER}{MARK}\u00ad]|{_ENTITY})"
_OTHERS = rf"(?:[{LETTER}{MARK}\d\u00ad]|{_ENTITY})*"
WORD = f"{_FIRST}{_OTHERS}(?:[.!?]{_FIRST}{_OTHERS})*"
SUFFIX = f"{APOS}(?:[msdMSD]|{_words('re ve ll')})"
NOT = f"(?ai:n){TICK}(?ai:t)"

NUMBER = r"(?:\d*(?:[.:,\u00ad\u066b\u066c]\d+)+|\d+)"
PHONE = (
    r"(?:\(\d{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0])"
    r"\d{3,4}[- \u00a0]?\d{3,5}"
)
DOTTED_PHONE = r"(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5}"
FRACTION = r"(?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4}"

IN_URL, URL_END = '[^ \t\n\f\r"<>|()]', '[^ \t\n\f\r"<>|.!?(){},-]'
DOMAIN = (
    f"(?ai:www)\\.(?:{URL_END[:-2]}]+\\.)+[a-zA-Z]{{2,4}}"
    "|(?:[^ \t\n\f\r\"`'<>|.!?(){},-_$]+\\.)+" + _words("com net org edu")
)
E_MAIL = (
    r"<?[a-zA-Z0-9][^ \t\n\f\r\"<>|()\u00a0{}]*@(?:[^ \t\n\f\r\"<>|(){}.\u00a0]+\.)*"
    r"[^ \t\n\f\r\"<>|(){}.\u00a0]+>?"
)
FILE_TYPES = (
    "bat bmp class cgi cpp c dll docx? exe gif gz html? h jar java jpe?g mov mp3 pdf php pl png "
    "pptx? py ps sql tar txt wav wm[va] xlsx? xml x zip"
)

NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
TAG = (
    rf"<(?:[!?][A-Za-z-][^>\r\n]*|/?{NAME}"
    rf"(?: +(?:{NAME} *= *['\"][^\r\n'\"]*['\"]|{NAME}|['\"][^\r\n'\"]*['\"]))* */?) *>"
)

ABBREVIATIONS = (
    "jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thu thurs fri "
    "ala ariz calif colo conn dak fla ga kans? ky md mich minn mo mont neb nev okla penn tenn va "
    "vt wisc? wyo "
    "inc cos? corp ltd plc bancorp bhd assn univ intl sys ind "
    "jr sr bros blvd rd esq etc al seq est ext tel sq bldg ct (?:ed|ph)\\.d"
)
# States that are everyday words too: with a capital only.
CAPITALIZED = (
    "A(?ai:rk|z)|D(?ai:el)|I(?ai:ll)|L(?ai:a)|M(?ai:ass|iss)|O(?ai:re)"
    "|P(?ai:a)|T(?ai:ex)|W(?ai:ash)"
)
ABBREVIATION = (
    f"(?:{_words(ABBREVIATIONS)}|{CAPITALIZED}|(?ai:m)[ft](?ai:g)|(?ai:pt)[ey](?ai:s?))\\."
)
TITLES = (
    "mr mrs ms drs? profs? sens? reps? attys? lt col gen messrs govs? adm rev maj sgt cpl pvt capt "
    "ste? ave pres lieut hon brig co?mdr pfc spc supts? det insp adj msgr ens mme mlle "
    "vs alex wm jos cie cf treas assoc mt ft invt elec natl dept"
)
DOTTED = (
    r"[A-Za-z](?:\.[A-Za-z])+|" + _words("canada sino korean eu japan non") + r"-(?ai:u\.s)"
    r"|(?ai:u\.s\.-(?:u\.k|u\.s\.s\.r))"
)
SENTENCE_STARTERS = (
    "About According Additionally After An As At A But Earlier Her? Here However If In It Last "
    "Many More Now Once One Other Our She Since Some So Such That Their Then There These The They "
    "This We What When While Yet You"
)
STARTER = "(?:" + "|".join(f"{w[0]}(?ai:{w[1:]})" for w in SENTENCE_STARTERS.split()) + ")"

ELIDED = f"(?:[dDoOlL]{TICK}(?={AN}{AN}))?{AN}+"
THING = f"{ELIDED}(?:{HYPHEN}{ELIDED})*"
HYPHENATED = rf"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:(?:{DOTTED})\.|[A-Za-z0-9\u00ad]+))+"

APOSTROPHE_WORDS = "|".join(
    (
        f"{APOS}(?ai:n){APOS}?",
        f"[lLdDjJ]{APOS}",
        f"(?ai:dunkin|somethin|ol){APOS}",
        f"{APOS}(?ai:em|till?|cause)",
        f"{APOS}[2-9]0(?ai:s)",
        f"[A-HJ-XZn]{TICK}{A}{{2,}}",
        f"{A}+[aeiouyAEIOUY]{TICK}[aeiouA-Z]{A}*",
        r"(?ai:cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l|'twas)",
        f"(?ai:o){TICK}(?ai:o)",
    )
)


def _rule(pattern: str, write: str | Callable[[str], str] | None = None) -> Rule:
    return Rule(re.compile(pattern), (lambda _: write) if isinstance(write, str) else write)


def _joined(token: str) -> str:
    """Spaces within a token are no-break spaces, and its round brackets the treebank's."""
    return token.replace(" ", "\u00a0").replace("(", "-LRB-").replace(")", "-RRB-")


def _no_soft_hyphen(token: str) -> str:
    return token.replace("\u00ad", "").replace("&apos;", "'").replace("&amp;", "&") or "-"


def _quotes(token: str) -> str:
    return token.replace("&apos;", "'").translate(QUOTES)


QUOTES = str.maketrans(
    dict.fromkeys("\u0091\u2018\u201b\u2039", "`")
    | dict.fromkeys("\u0092\u2019\u203a", "'")
    | dict.fromkeys("\u0093\u201c\u00ab", "``")
    | dict.fromkeys("\u0094\u201d\u00bb", "''")
)
FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}

RULES: list[Rule] = [
    _rule("((?ai:can))(?ai:not)"),
    _rule("((?ai:gon|wan))(?ai:na)"),
    _rule("((?ai:lem|gim))(?ai:me)"),
    _rule("((?ai:got))(?ai:ta)"),
    _rule("('(?ai:t))(?ai:is|was)"),
    _rule(f"({TAG})", lambda s: s.replace(" ", "\u00a0")),
    _rule("((?ai:&(?:md|mdash|ndash);)|[\u0096\u0097\u2013-\u2015])", "--"),
    _rule("((?ai:&amp;))", "&"),
    _rule("((?ai:&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);))"),
    _rule("((?ai:&nbsp;))", ""),
    _rule(f"({WORD}){SUFFIX}", _no_soft_hyphen),
    _rule(f"([A-Za-z]*[A-MO-Za-mo-z]\u00ad*){NOT}", _no_soft_hyphen),
    _rule(f"({WORD})", _no_soft_hyphen),
    _rule(f"({APOSTROPHE_WORDS})"),
    _rule(f"((?ai:y){APOS}){A}"),
    _rule(f"((?ai:https?)://{IN_URL[:-1]}{{}}]+{URL_END})"),
    _rule(f"((?:{DOMAIN})(?:/{IN_URL}+{URL_END})?)"),
    _rule(f"({E_MAIL})"),
    _rule(f"(@[a-zA-Z_][a-zA-Z_0-9]*|#{A}+)"),
    _rule(f"({SUFFIX})[^A-Za-z]", _quotes),
    _rule(f"({NOT})[^A-Za-z]", _quotes),
    _rule("(')[A-Za-z][^ \t\n\r\u00a0]"),
    _rule(f"({SUFFIX}|{NOT})", _quotes),
    _rule(r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})"),
    _rule(f"([-+]?{NUMBER})", _no_soft_hyphen),
    _rule(
        "([\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+))"
    ),
    _rule(f"({FRACTION})", _joined),
    _rule("([¼-¾⅓-⅞])", lambda s: FRACTIONS.get(s, s)),
    _rule(
        f"(-(?ai:RRB|LRB|RCB|LCB|RSB|LSB)-|(?ai:C\\.D\\.s|pro-|anti-|S(?:&|&amp;)P-500|S(?:&|&amp;)Ls|Cap{APOS}n|c{APOS}est))"
    ),
    _rule(f"('[0-9][0-9]){GAP}"),
    _rule(r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})"),
    _rule(r"([A-Z]*\$|#)"),
    _rule("(\u00a2)", "cents"),
    _rule("(\u00a3)", "#"),
    _rule("([\u0080\u00a4\u20a0\u20ac])", "$"),
    _rule(f"([A-Za-z])\\.{GAP}+(?:{STARTER}|{TAG}){GAP}"),
    _rule(f"({ABBREVIATION})[\\s\\S]{{2}}"),
    _rule(f"({ABBREVIATION}|{_words(TITLES)}\\.)"),
    _rule(f"((?:{DOTTED}|[A-Za-z])\\.)"),
    _rule(f"({_words('nos? art prop pp figs? ca op')}\\.){GAP}?\\d"),
    _rule(rf"({AN}+(?:\.{AN}+)*\.{_words(FILE_TYPES)})(?:{GAP}|[.?!,])"),
    _rule(f"((?:{WORD}|{THING}|{HYPHENATED})\\.)[,;:\u3001]", _no_soft_hyphen),
    _rule(f"({PHONE})", _joined),
    _rule(f"({DOTTED_PHONE})"),
    _rule('("|(?ai:&quot;))', "''"),
    _rule("((?ai:&lt;))", "<"),
    _rule("((?ai:&gt;))", ">"),
    _rule(r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", _joined),
    _rule(
        r"([\^x=~<>]\.[\^x=~<>]|[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\))",
        _joined,
    ),
    _rule(r"(\()", "-LRB-"),
    _rule(r"(\))", "-RRB-"),
    _rule(r"(\[)", "-LSB-"),
    _rule(r"(\])", "-RSB-"),
    _rule(r"(\{)", "-LCB-"),
    _rule(r"(\})", "-RCB-"),
    _rule("(-+)", lambda s: "--" if 2 <= len(s) <= 4 else s),
    _rule("(\\.{3,5}|(?:\\.[ \u00a0]){2,4}\\.|[\u0085\u2026])", "..."),
    _rule(r"(\*+|(?:\\\*){1,3}|#+|@+|_+|\+|<<|>>|(?ai:c\+\+|[cf]#))"),
    _rule("([?!]+)"),
    _rule("([.,;:/=\u3001])"),
    _rule(f"({THING})"),
    _rule(f"({HYPHENATED})[^a-zA-Z0-9.+]", _no_soft_hyphen),
    _rule(f"({HYPHENATED})", _no_soft_hyphen),
    _rule("([`\u2018-\u201f\u0091-\u0094\u2039\u203a\u00ab\u00bb]{1,2}|''?|(?ai:&apos;))", _quotes),
    _rule(r"([A-Z]+(?:(?:[&+]|(?ai:&amp;))[A-Z]+)+)", _no_soft_hyphen),
    _rule(f"([{SYMBOL}])"),
]
