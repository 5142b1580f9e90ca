"""Detects the language of a text: first its script, then, for Latin letters, trigrams and common words.

The trigram model is trained at start on about a page of text a language (``corpus/``).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

UNDETERMINED = "und"
_SCRIPTS = {
    "CYRILLIC": "ru",
    "GREEK": "el",
    "ARABIC": "ar",
    "HEBREW": "he",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "DEVANAGARI": "hi",
    "CJK": "zh",
    "THAI": "th",
}
"""The commonest language of a script stands for all of its languages: Ukrainian is taken for Russian."""

_STOPWORDS = {
    "en": "the of and to in is that it was for on are with as at be this have from or you not by but what we i",
    "fr": "le la les de des du et un une est que qui dans en pour pas sur au avec il elle je vous nous ne ce où",
    "de": "der die das und ist nicht ein eine zu den mit von sich des auf für im dem ich sie wir es wie wo wenn",
    "es": "el la los las de y que en un una es por con no para su se del al lo como más pero yo dónde cuánto",
    "it": "il la lo gli le di e che un una è per con non si del della dei nel sono ma come anche io dove quanto",
    "pt": "o a os as de e que do da em um uma é por com não para se no na mais como mas eu onde quanto você",
}
LANGUAGES = tuple(_STOPWORDS)
"""The languages told apart by trigrams."""

_SEPARATORS = re.compile(r"[\W\d_]+")
MAX_EVIDENCE = 25
"""From this many trigrams on a longer text does not make the answer surer: they are not independent."""
STOPWORD_WEIGHT = 2.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A language with its share of belief; not calibrated."""

    language: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Detection:
    """The likeliest language (``und`` for a text without letters), and the next ones."""

    language: str
    confidence: float
    script: str | None
    candidates: list[Candidate]


class Detector:
    """Holds the trained model; immutable after construction, so threads may share it."""

    def __init__(self, corpus: dict[str, str]) -> None:
        counts = {language: Counter(trigrams(text)) for language, text in corpus.items()}
        vocabulary = len(set().union(*counts.values()))
        self._log: dict[str, dict[str, float]] = {}
        self._unseen: dict[str, float] = {}
        for language, count in counts.items():
            total = sum(count.values()) + 0.5 * vocabulary
            self._log[language] = {t: math.log((n + 0.5) / total) for t, n in count.items()}
            self._unseen[language] = math.log(0.5 / total)
        self._stopwords = {language: frozenset(words.split()) for language, words in _STOPWORDS.items()}

    def detect(self, text: str) -> Detection:
        """Tell the language of a text."""
        text = unicodedata.normalize("NFC", text)
        script, share = main_script(text)
        if script is None:
            return Detection(UNDETERMINED, 0.0, None, [])
        if script != "LATIN":
            language = _SCRIPTS.get(script, UNDETERMINED)
            confidence = round(share, 4) if language != UNDETERMINED else 0.0
            candidates = [Candidate(language, confidence)] if confidence else []
            return Detection(language, confidence, script.lower(), candidates)
        beliefs = self._beliefs(text)
        candidates = [Candidate(language, round(b, 4)) for language, b in beliefs[:3]]
        return Detection(candidates[0].language, candidates[0].confidence, "latin", candidates)

    def _beliefs(self, text: str) -> list[tuple[str, float]]:
        """Return a softmax over naive Bayes scores, likeliest first."""
        grams = trigrams(text)
        words = _SEPARATORS.sub(" ", text.casefold()).split()
        scores = {}
        for language, table in self._log.items():
            unseen = self._unseen[language]
            mean = sum(table.get(g, unseen) for g in grams) / max(1, len(grams))
            common = sum(w in self._stopwords[language] for w in words) / max(1, len(words))
            scores[language] = mean * min(len(grams), MAX_EVIDENCE) + STOPWORD_WEIGHT * common * min(len(words), 5)
        top = max(scores.values())
        weights = {language: math.exp(score - top) for language, score in scores.items()}
        total = sum(weights.values())
        return sorted(((language, w / total) for language, w in weights.items()), key=lambda c: (-c[1], c[0]))


def trigrams(text: str) -> list[str]:
    """Return the letter trigrams of the casefolded text, words padded by one space."""
    padded = f" {_SEPARATORS.sub(' ', text.casefold()).strip()} "
    return [padded[i : i + 3] for i in range(len(padded) - 2)]


def main_script(text: str) -> tuple[str | None, float]:
    """Return the Unicode script most letters are of, and their share; None without letters.

    Japanese mixes kana with Chinese characters: some kana make it Japanese.
    """
    counts: Counter[str] = Counter()
    for char, times in Counter(c for c in text if c.isalpha()).items():
        counts[unicodedata.name(char, "UNKNOWN").split(" ")[0].split("-")[0]] += times
    if not counts:
        return None, 0.0
    kana = counts["HIRAGANA"] + counts["KATAKANA"]
    if kana and kana + counts["CJK"] > counts.total() / 2:
        return "HIRAGANA", (kana + counts["CJK"]) / counts.total()
    script, number = counts.most_common(1)[0]
    return script, number / counts.total()


def load() -> Detector:
    """Train on the corpus that comes with the package."""
    folder = Path(__file__).with_name("corpus")
    return Detector({language: (folder / f"{language}.txt").read_text("utf-8") for language in LANGUAGES})
