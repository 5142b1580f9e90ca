"""Detection and translation."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tollgate_examples.nlp import detection, translation

DETECTOR = detection.load()
TABLE = translation.load()

# None of these sentences is in the corpus.
SENTENCES = [
    ("en", "The weather will be fine until the end of the week."),
    ("en", "I forgot my umbrella at the restaurant."),
    ("fr", "Le chien de mes voisins aboie toute la nuit."),
    ("fr", "Il faut acheter du fromage et des pommes."),
    ("de", "Der Zug nach Zürich fährt heute leider nicht."),
    ("de", "Wir treffen uns nach dem Essen vor dem Theater."),
    ("es", "Mi hermana trabaja en un hospital de Sevilla."),
    ("es", "Los niños juegan en el parque todas las tardes."),
    ("it", "Mio fratello lavora in una fabbrica vicino a Torino."),
    ("it", "Gli studenti hanno finito gli esami questa settimana."),
    ("pt", "Minha irmã trabalha num hospital em Lisboa."),
    ("pt", "Os meninos não gostam de acordar cedo."),
    ("ru", "Сегодня очень хорошая погода."),
    ("el", "Καλημέρα σε όλους τους φίλους."),
    ("ar", "صباح الخير يا أصدقائي"),
    ("he", "בוקר טוב לכולם"),
    ("ja", "今日はとても天気がいいです。"),
    ("zh", "今天天气很好。"),
    ("ko", "오늘 날씨가 좋습니다."),
    ("hi", "आज मौसम अच्छा है"),
    ("th", "วันนี้อากาศดี"),
]


@pytest.mark.parametrize(("language", "text"), SENTENCES)
def test_detects(language: str, text: str) -> None:
    found = DETECTOR.detect(text)
    assert found.language == language
    assert found.confidence > 0.5
    assert found.candidates[0].language == language


@pytest.mark.parametrize("text", ["", " ", "12345 !?", "🏠🎉", "\0", "---"])
def test_no_letters_no_language(text: str) -> None:
    found = DETECTOR.detect(text)
    assert (found.language, found.confidence, found.script, found.candidates) == ("und", 0.0, None, [])


def test_script_without_a_language() -> None:
    found = DETECTOR.detect("ქართული ენა")
    assert (found.language, found.script, found.confidence) == ("und", "georgian", 0.0)


def test_composed_and_decomposed_are_the_same() -> None:
    text = "Où est l'été dernier déjà passé?"
    assert DETECTOR.detect(text) == DETECTOR.detect(unicodedata.normalize("NFD", text))


def test_confidences_are_shares() -> None:
    beliefs = DETECTOR._beliefs("casa")
    assert sum(b for _, b in beliefs) == pytest.approx(1.0)
    assert {language for language, _ in beliefs} == set(detection.LANGUAGES)


def test_trigrams_by_hand() -> None:
    assert detection.trigrams("Ab, c1") == [" ab", "ab ", "b c", " c "]


@pytest.mark.parametrize(
    ("source", "target", "text", "wanted", "coverage"),
    [
        ("en", "fr", "Hello", "Bonjour", 1.0),
        ("en", "de", "THANK YOU", "DANKE", 1.0),
        ("en", "fr", "good morning, please!", "bonjour, s'il vous plaît!", 1.0),
        # The longest phrase wins: not "thank you" and then "very much".
        ("en", "es", "thank you very much", "muchas gracias", 1.0),
        ("fr", "en", "s’il vous plaît", "please", 1.0),
        # Two of four words are known; the others stay.
        ("en", "fr", "water zzz and qqq", "eau zzz et qqq", 0.5),
        ("de", "en", "Ich möchte ein Brot.", "I would like a bread.", 1.0),
        ("en", "fr", "12.50 🏠", "12.50 🏠", 0.0),
        ("en", "fr", "good\n\nmorning", "bonjour", 1.0),
        ("en", "fr", "good, morning", "bon, morning", 0.5),
        ("es", "es", "hola", "hola", 1.0),
    ],
)
def test_translates(source: str, target: str, text: str, wanted: str, coverage: float) -> None:
    done = TABLE.translate(text, source, target)
    assert (done.text, done.coverage) == (wanted, coverage)


def test_unknown_words_are_listed_once() -> None:
    assert TABLE.translate("foo bar foo water", "en", "fr").untranslated == ["foo", "bar"]


def test_every_phrase_translates_into_every_language() -> None:
    for source in TABLE.languages:
        for phrase in TABLE._known[source]:
            for target in TABLE.languages:
                assert TABLE.translate(" ".join(phrase), source, target).coverage == 1.0


def post(clients: dict[str, TestClient], path: str, body: Any) -> tuple[int, Any]:
    answer = clients["nlp"].post(f"/api/v1/nlp/{path}", json=body)
    return answer.status_code, answer.json()


def test_translate_detects_the_source(clients: dict[str, TestClient]) -> None:
    status, answer = post(clients, "translate", {"text": "Bonjour, où est la gare ?", "target": "en"})
    assert status == 200
    assert (answer["source"], answer["detected"]) == ("fr", True)
    assert answer["translation"] == "Good morning, where is the train station ?"


@pytest.mark.parametrize(
    ("text", "code"), [("12345", "language_unknown"), ("Сегодня хорошая погода", "language_unsupported")]
)
def test_translate_refuses_what_it_cannot(clients: dict[str, TestClient], text: str, code: str) -> None:
    status, answer = post(clients, "translate", {"text": text, "target": "en"})
    assert (status, answer["code"]) == (422, code)


def test_batch_keeps_going(clients: dict[str, TestClient]) -> None:
    items = [{"id": "a", "text": "Guten Morgen, wie geht es dir?"}, {"id": "b", "text": "???"}]
    status, answer = post(clients, "translate/batch", {"items": items, "target": "en"})
    assert (status, answer["translated"], answer["failed"]) == (200, 1, 1)
    assert answer["results"][0]["result"]["translation"] == "Good morning, how are you?"
    assert answer["results"][1] == {"id": "b", "result": None, "error": "language_unknown"}


@pytest.mark.parametrize(
    "items",
    [
        [],
        [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}],
        [{"id": str(i), "text": "x"} for i in range(101)],
        [{"id": str(i), "text": "x" * 5000} for i in range(11)],
    ],
    ids=["empty", "same id", "too many", "too long"],
)
def test_batch_bounds(clients: dict[str, TestClient], items: list[dict[str, str]]) -> None:
    assert post(clients, "translate/batch", {"items": items, "target": "en"})[0] == 422


def test_languages_may_be_kept(clients: dict[str, TestClient]) -> None:
    path = "/api/v1/nlp/languages"
    whole = clients["nlp"].get(path)
    tag = whole.headers["etag"]
    assert "max-age=" in whole.headers["cache-control"]
    assert "set-cookie" not in whole.headers
    for condition in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = clients["nlp"].get(path, headers={"If-None-Match": condition})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert again.headers["cache-control"] == whole.headers["cache-control"]
    for condition in ('"other"', tag.strip('"'), ""):
        again = clients["nlp"].get(path, headers={"If-None-Match": condition})
        assert (again.status_code, again.content) == (200, whole.content)


def test_languages(clients: dict[str, TestClient]) -> None:
    answer = clients["nlp"].get("/api/v1/nlp/languages").json()
    translated = {entry["code"] for entry in answer["languages"] if entry["translation"]}
    assert translated == {"en", "fr", "de", "es", "it", "pt"}
    assert answer["phrases"] == TABLE.size
