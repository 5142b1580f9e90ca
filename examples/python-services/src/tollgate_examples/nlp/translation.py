"""Translates by a small phrase table: the longest known phrase first, unknown words left as they are.

No grammar: word order, gender and inflection stay those of the phrases in the table.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

_WORD = r"[^\W\d_]+(?:['\-][^\W\d_]+)*"
_TOKEN = re.compile(rf"{_WORD}|\d+(?:[.,]\d+)*|\s+|.", re.DOTALL)
_WORD_ONLY = re.compile(_WORD)


@dataclass(frozen=True, slots=True)
class Translated:
    """A text in another language; coverage is the share of its words that were known."""

    text: str
    coverage: float
    untranslated: list[str]


class PhraseTable:
    """Phrases in several languages. Immutable after construction."""

    def __init__(self, rows: list[dict[str, list[str]]]) -> None:
        self.languages = tuple(rows[0])
        self.size = len(rows)
        self._known: dict[str, dict[tuple[str, ...], int]] = {language: {} for language in self.languages}
        self._first = [{language: variants[0] for language, variants in row.items()} for row in rows]
        for number, row in enumerate(rows):
            for language, variants in row.items():
                for phrase in variants:
                    # The row that comes first wins: "casa" alone is the noun, not a part of a phrase.
                    self._known[language].setdefault(tuple(_words(phrase)), number)
        self._longest = {language: max(map(len, known)) for language, known in self._known.items()}

    def translate(self, text: str, source: str, target: str) -> Translated:
        """Translate between two languages of the table; raises KeyError for others."""
        tokens = _TOKEN.findall(_normalised(text))
        known, longest = self._known[source], self._longest[source]
        out: list[str] = []
        untranslated: dict[str, None] = {}
        words = translated = at = 0
        while at < len(tokens):
            if not _WORD_ONLY.fullmatch(tokens[at]):
                out.append(tokens[at])
                at += 1
                continue
            end, row = self._match(tokens, at, known, longest)
            if row is None:
                words += 1
                untranslated[tokens[at]] = None
                out.append(tokens[at])
            else:
                count = sum(1 for t in tokens[at:end] if _WORD_ONLY.fullmatch(t))
                words += count
                translated += count
                # German writes every noun with a capital: there it says something at a sentence's start only.
                capitals = source != "de" or _starts_sentence(out)
                out.append(_cased(self._first[row][target], tokens[at:end]) if capitals else self._first[row][target])
            at = end
        coverage = round(translated / words, 4) if words else 0.0
        return Translated("".join(out), coverage, list(untranslated))

    @staticmethod
    def _match(tokens: list[str], at: int, known: dict[tuple[str, ...], int], longest: int) -> tuple[int, int | None]:
        """Return the end of the longest phrase that starts here and its row, or the next token and None."""
        phrase: list[str] = []
        best: tuple[int, int | None] = (at + 1, None)
        k = at
        while k < len(tokens) and len(phrase) < longest:
            if _WORD_ONLY.fullmatch(tokens[k]):
                phrase.append(tokens[k].casefold())
                row = known.get(tuple(phrase))
                if row is not None:
                    best = (k + 1, row)
            elif not tokens[k].isspace():
                break
            k += 1
        return best


def load() -> PhraseTable:
    """Read the table that comes with the package: a column a language, variants split by ``|``."""
    lines = Path(__file__).with_name("phrases.tsv").read_text("utf-8").splitlines()
    languages = lines[0].split("\t")
    return PhraseTable(
        [dict(zip(languages, (cell.split("|") for cell in line.split("\t")), strict=True)) for line in lines[1:]]
    )


def _normalised(text: str) -> str:
    return unicodedata.normalize("NFC", text).replace("\u2019", "'")


def _words(phrase: str) -> list[str]:
    return [w.casefold() for w in _WORD_ONLY.findall(_normalised(phrase))]


def _starts_sentence(before: list[str]) -> bool:
    last = next((t for t in reversed(before) if not t.isspace()), ".")
    return last in ".!?¡¿:"


def _cased(phrase: str, source: list[str]) -> str:
    """Give a phrase the capitals of what it replaces: all, the first, or none."""
    letters = "".join(source)
    if len(letters) > 1 and letters.isupper():
        return phrase.upper()
    return phrase[0].upper() + phrase[1:] if letters[0].isupper() else phrase
