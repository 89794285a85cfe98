"""Which characters `ptb.py` takes for letters, marks and symbols; all others only separate.

Each constant is the inside of a character class of a regular expression. Only the basic plane
counts: the original drops everything above it, such as emoji.
"""

from __future__ import annotations

import unicodedata

# Written against, or as part of, letters: modifiers, accents, vowel signs.
_MARKS = """
    2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf 5c1-5c2
    5c4-5c5 5c7 615-61a 64b-65e 670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0 7eb-7f3 900-903
    93c 93e-94e 951-955 962-963 981-983 9bc 9be-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 a01-a03 a3c a3e-a4f
    a81-a83 abc abe-acf b82 bbe-bc2 bc6-bc8 bca-bcd c01-c03 c3e-c56 d3e-d44 d46-d48 e31 e34-e3a
    e47-e4e eb1 eb4-ebc ec8-ecd
"""

# Tokens of their own.
_SYMBOLS = """
    24-27 2a 3b-3e 5c 5e-60 7c 7e a1 a5-a9 ac ae-b4 b6-b9 bf d7 f7 37e 387 589 5be 5c0 5c3 5c6
    5f3-5f4 600-603 606-60c 614 61b 61e-61f 66a 66d 6d4 700-70d 7f6-7f8 964-965 e3f e4f 1fbd
    2016-2017 201a 201e-2023 2030-2038 203b 203e-2042 2044 2070 2074-207e 2080-208e 20a4 2100-2101
    2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 2127 2129 212e 213a-213b 2140-2144 214a-214d
    214f 2155-215e 2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65 ffe0-ffe1
    ffe5-ffe6
"""


def _ranges(text: str) -> str:
    return "".join(
        "-".join(rf"\u{int(end, 16):04x}" for end in part.split("-")) for part in text.split()
    )


def _letters() -> str:
    """Runs of letters: a class of ranges is read much faster than one of 48,000 characters."""
    runs: list[list[int]] = []
    for code in range(0x10000):
        if unicodedata.category(chr(code)).startswith("L"):
            if runs and runs[-1][1] == code - 1:
                runs[-1][1] = code
            else:
                runs.append([code, code])
    return "".join(rf"\u{first:04x}-\u{last:04x}" for first, last in runs)


LETTER = _letters()
MARK = _ranges(_MARKS)
SYMBOL = _ranges(_SYMBOLS)
