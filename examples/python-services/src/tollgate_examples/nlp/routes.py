"""HTTP routes of the nlp service: translate, detect, translate/batch, languages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Response
from pydantic import Field, TypeAdapter, model_validator

from tollgate_examples.nlp import detection, translation
from tollgate_examples.problem import Refused
from tollgate_examples.schema import ShortText, Strict
from tollgate_examples.static import RESPONSES, Static

Language = Literal["en", "fr", "de", "es", "it", "pt"]
Source = Literal["auto", "en", "fr", "de", "es", "it", "pt"]
MAX_TEXT = 5000
MAX_BATCH = 100
MAX_BATCH_TEXT = 50_000

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


class TranslateRequest(Strict):
    """A text and its languages; ``auto`` detects the source."""

    text: Text
    source: Source = "auto"
    target: Language


class DetectRequest(Strict):
    """A text to tell the language of."""

    text: Text


class BatchItem(Strict):
    """One text of a batch, with an id to find it again."""

    id: ShortText
    text: Text


class BatchRequest(Strict):
    """Up to 100 texts, 50,000 characters in all, into one language."""

    items: Annotated[list[BatchItem], Field(min_length=1, max_length=MAX_BATCH)]
    source: Source = "auto"
    target: Language

    @model_validator(mode="after")
    def _bounded(self) -> BatchRequest:
        if len({item.id for item in self.items}) < len(self.items):
            raise ValueError("the ids of the items must differ")
        if sum(len(item.text) for item in self.items) > MAX_BATCH_TEXT:
            raise ValueError(f"the texts have more than {MAX_BATCH_TEXT} characters in all")
        return self


@dataclass(frozen=True, slots=True)
class TranslateResponse:
    """The translation; words that are not in the table are left as they were and listed."""

    source: str
    target: str
    detected: bool
    translation: str
    coverage: float
    untranslated: list[str]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One translation of a batch, or why there is none."""

    id: str
    result: TranslateResponse | None
    error: str | None


@dataclass(frozen=True, slots=True)
class BatchResponse:
    """The results in the order of the items."""

    translated: int
    failed: int
    results: list[BatchResult]


@dataclass(frozen=True, slots=True)
class LanguageInfo:
    """A language, its own name for itself, and whether it can be translated."""

    code: str
    name: str
    translation: bool


@dataclass(frozen=True, slots=True)
class LanguagesResponse:
    """The languages that are detected, and how many phrases the table has."""

    languages: list[LanguageInfo]
    phrases: int


NAMES = {
    "en": "English",
    "fr": "français",
    "de": "Deutsch",
    "es": "español",
    "it": "italiano",
    "pt": "português",
    "ru": "русский",
    "el": "ελληνικά",
    "ar": "العربية",
    "he": "עברית",
    "ja": "日本語",
    "ko": "한국어",
    "hi": "हिन्दी",
    "zh": "中文",
    "th": "ไทย",
}


class Translator:
    """The phrase table with the detector in front of it."""

    def __init__(self, table: translation.PhraseTable, detector: detection.Detector) -> None:
        self.table = table
        self.detector = detector

    def translate(self, text: str, source: Source, target: Language) -> TranslateResponse:
        """Translate; raises Refused where the detected language is not in the table."""
        spoken: str = source
        if source == "auto":
            spoken = self.detector.detect(text).language
            if spoken == detection.UNDETERMINED:
                raise Refused("language_unknown", "the language of the text cannot be told; name the source")
            if spoken not in self.table.languages:
                raise Refused("language_unsupported", f"the text seems to be {NAMES[spoken]}, which is not translated")
        done = self.table.translate(text, spoken, target)
        return TranslateResponse(spoken, target, source == "auto", done.text, done.coverage, done.untranslated)

    def batch(self, request: BatchRequest) -> BatchResponse:
        """Translate each item by itself: one that fails does not spoil the others."""
        results = []
        for item in request.items:
            try:
                results.append(BatchResult(item.id, self.translate(item.text, request.source, request.target), None))
            except Refused as exc:
                results.append(BatchResult(item.id, None, exc.code))
        failed = sum(r.result is None for r in results)
        return BatchResponse(len(results) - failed, failed, results)


def build_router() -> APIRouter:
    """Load the table, train the detector, and bind the routes."""
    router = APIRouter()
    translator = Translator(translation.load(), detection.load())
    table, detector = translator.table, translator.detector
    languages = LanguagesResponse([LanguageInfo(c, n, c in table.languages) for c, n in NAMES.items()], table.size)

    @router.post("/translate", name="translate")
    def translate(request: TranslateRequest) -> TranslateResponse:
        """Translate a text. The same body always gets the same answer."""
        return translator.translate(request.text, request.source, request.target)

    @router.post("/detect", name="detect")
    def detect(request: DetectRequest) -> detection.Detection:
        """Tell the language of a text. The same body always gets the same answer."""
        return detector.detect(request.text)

    @router.post("/translate/batch", name="translate_batch")
    def translate_batch(request: BatchRequest) -> BatchResponse:
        """Translate several texts; the status is 200 even if some could not be translated."""
        return translator.batch(request)

    kept = Static(TypeAdapter(LanguagesResponse).dump_json(languages))

    @router.get("/languages", name="languages", response_model=LanguagesResponse, responses=RESPONSES)
    async def list_languages(if_none_match: Annotated[str | None, Header()] = None) -> Response:
        """List the languages known. The answer is the same for everybody and may be kept."""
        return kept.answer(if_none_match)

    return router
