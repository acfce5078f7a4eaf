"""Token texts set in lines of equally wide characters, broken between words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

CUT = 50  # percent of each response before the cut that Figure 1 marks
WIDTH = 62  # characters of a line of Figure 1
LINES = 16  # lines of the longest response that it shows
MARKS = {"\n": "\u21b5", "\t": "\u2192", "": "\u25ab"}  # a return, a tab, and a token that only carries on a character

_Char = tuple[int, str]  # the number of its token, and itself


@dataclass(frozen=True)
class Piece:
    """What one line shows of one token."""

    token: int
    column: int  # of its first character
    text: str


def token_texts(text: str, starts: Sequence[int], ends: Sequence[int]) -> list[str]:
    """The characters that each token brings; they join to `text`.

    Of a character that is made of several tokens the first brings all, the others nothing.
    """
    reached = 0
    found = []
    for start, end in zip(starts, ends, strict=True):
        found.append(text[max(start, reached) : max(end, reached)])
        reached = max(end, reached)
    return found


def token_lines(tokens: Sequence[str], width: int = WIDTH) -> list[list[Piece]]:
    """Set tokens in lines of at most `width` characters.

    Every token gets a piece at least. Lines break before a word that does not fit (inside it only where it is longer
    than a line) and after a line feed.
    """
    lines: list[list[_Char]] = [[]]
    for unit in _units(tokens):
        if len(lines[-1]) + len(unit) > width and lines[-1]:
            lines.append([])
            # A token that only starts with its space is seen without it.
            unit = unit[1:] if len(unit) > 1 and unit[0][1] == " " else unit
        for token, char in unit:
            if len(lines[-1]) == width:
                lines.append([])
            lines[-1].append((token, MARKS.get(char, char)))
        if unit[-1][1] == "\n":
            lines.append([])
    return [_pieces(line) for line in lines if line]


def fits(tokens: Sequence[str]) -> bool:
    """Whether Figure 1 has room for a response."""
    return len(token_lines(tokens)) <= LINES


def _units(tokens: Sequence[str]) -> Iterator[list[_Char]]:
    """What lines keep together: words, with the space before them where one token holds both; other space by itself."""
    unit: list[_Char] = []
    chars = [(token, char) for token, text in enumerate(tokens) for char in text or [""]]
    for at, (token, char) in enumerate(chars):
        if char.isspace() or not unit:
            if unit:
                yield unit
            unit = []
        unit.append((token, char))
        alone = at + 1 == len(chars) or char != " " or chars[at + 1][0] != token
        if char.isspace() and alone:
            yield unit
            unit = []
    if unit:
        yield unit


def _pieces(line: list[_Char]) -> list[Piece]:
    pieces = []
    column = 0
    for token, chars in groupby(line, key=lambda char: char[0]):
        text = "".join(char for _, char in chars)
        pieces.append(Piece(token, column, text))
        column += len(text)
    return pieces
