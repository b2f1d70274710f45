"""Which media type reads a request and which writes its answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mfimage.runtime.serving import content
from mfimage.runtime.serving.app import headers_of
from mfimage.runtime.serving.content import MediaCodec, Negotiation
from mfimage.runtime.serving.problems import Problem
from tests.runtime.codecs import LITERAL, Literals
from tests.runtime.packages import live

JSON = "application/json"
OTHER = "text/x-other"


class Others(Literals):
    name = "other"
    media_type = OTHER


def double(data: int) -> int:
    return data * 2


def codec(serializer: Any) -> MediaCodec:
    return MediaCodec(serializer=serializer, input=None, output=None, data="data")


FN = live(double)
CODECS = {LITERAL: codec(Literals()), OTHER: codec(Others())}
SPOKEN = (JSON, LITERAL, OTHER)


def negotiation(**options: Any) -> Negotiation:
    return Negotiation(CODECS, FN, **{"assume_json": True, **options})


def chosen(accept: str | None, kind: str | None = JSON) -> str:
    """Return the media type of the answer."""
    given = {b"content-type": kind, b"accept": accept}
    headers = {k: v.encode("latin-1") for k, v in given.items() if v is not None}
    (value,) = (v for k, v in negotiation().negotiate(headers).headers if k == b"content-type")
    return value.decode()


@pytest.mark.parametrize(
    ("accept", "kind", "answer"),
    [
        (None, JSON, JSON),
        (None, LITERAL, LITERAL),
        ("", LITERAL, LITERAL),
        ("*/*", LITERAL, LITERAL),
        ("application/*", LITERAL, LITERAL),
        ("application/*", OTHER, JSON),
        ("text/*", JSON, OTHER),
        (LITERAL, JSON, LITERAL),
        (JSON, LITERAL, JSON),
        (f"{JSON};q=0.5, {LITERAL}", JSON, LITERAL),
        (f"{JSON};q=0, */*", JSON, LITERAL),
        (f"{JSON};q=0, */*", OTHER, OTHER),
        ("*/*;q=0.1, text/*;q=0.3, application/*;q=0.2", JSON, OTHER),
        (f"APPLICATION/JSON ; Q=1.000 ,, {OTHER};q=0.9", LITERAL, JSON),
        (f"{JSON};charset=utf-8", LITERAL, JSON),
        (f'{LITERAL};a="q=0, \\", {JSON};q=0";q=0.1', JSON, LITERAL),
        ("application/json, text/plain, */*", LITERAL, LITERAL),
        ("nonsense", LITERAL, LITERAL),
        (f"nonsense, {JSON};q=2, {OTHER}", JSON, OTHER),
        # What java.net.HttpURLConnection of older JDKs sends.
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", LITERAL, LITERAL),
        (f"*;q=.2, {OTHER};q=.25, {LITERAL};q=0.20001", JSON, OTHER),
        (f"{OTHER};q=0., *", OTHER, JSON),
    ],
)
def test_accept_chooses_the_answer_s_type(accept: str | None, kind: str, answer: str) -> None:
    assert chosen(accept, kind) == answer


@pytest.mark.parametrize(
    "accept", ["text/html", "image/*, text/html;q=0.9", "*/*;q=0", f"{JSON};q=0"]
)
def test_what_cannot_be_answered_in_is_406_and_lists_what_can(accept: str) -> None:
    with pytest.raises(Problem) as caught:
        Negotiation({}, FN, assume_json=True).negotiate({b"accept": accept.encode()})
    assert caught.value.status == 406
    with pytest.raises(Problem) as caught:
        negotiation().negotiate({b"accept": b"text/html, application/xml"})
    assert caught.value.detail == (
        f"can answer in {JSON} or {LITERAL} or {OTHER}; the request accepts "
        "text/html, application/xml"
    )


def test_several_accept_headers_are_one() -> None:
    given = [(b"accept", b"text/html"), (b"host", b"x"), (b"accept", LITERAL.encode())]
    assert headers_of(given)[b"accept"] == f"text/html, {LITERAL}".encode()


SPACE = st.sampled_from(["", " ", "\t "])
WEIGHTS = st.sampled_from(["0", "0.0", "0.001", "0.5", "1", "1.000", "0.25"])
RANGES = st.sampled_from([*SPOKEN, "application/*", "text/*", "*/*", "text/html", "image/*"])
ELEMENTS = st.tuples(RANGES, WEIGHTS)


@given(
    st.lists(ELEMENTS, min_size=1, unique_by=lambda pair: pair[0]), SPACE, st.sampled_from(SPOKEN)
)
def test_no_type_that_is_spoken_is_more_welcome_than_the_one_chosen(
    elements: list[tuple[str, str]], space: str, kind: str
) -> None:
    accept = f"{space},{space}".join(
        f'{media.upper()}{space};{space}x="a,;b"{space};q={weight}' for media, weight in elements
    )
    weights = {media: float(weight) for media, weight in elements}

    def welcome(name: str) -> float:
        whole = f"{name.partition('/')[0]}/*"
        return next((weights[m] for m in (name, whole, "*/*") if m in weights), 0.0)

    best = max(map(welcome, SPOKEN))
    try:
        answer = chosen(accept, kind)
    except Problem as problem:
        assert (problem.status, best) == (406, 0)
        return
    assert welcome(answer) == best > 0
    if welcome(kind) == best:
        assert answer == kind


HEADER = st.text(st.characters(max_codepoint=255), max_size=60)


@given(HEADER | st.text('*/;,q=01."\\ ajson', max_size=40), HEADER | st.sampled_from(SPOKEN))
@example('"' * 5000, JSON)
@example(';"\\' * 5000, JSON)
def test_any_headers_are_understood_or_refused(accept: str, kind: str) -> None:
    try:
        assert chosen(accept, kind) in SPOKEN
    except Problem as problem:
        assert problem.status in (406, 415)


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON; charset=UTF-8",
        'application/json;charset="utf-8"',
        "application/json;",
        "application/json; format=pandas-split",
        "application/json;odata.metadata=minimal",
        "application/json; charset=utf-8; version=2",
        "application/json; charset=ISO-8859-1",
        "application/problem+json",
        "application/x-www-form-urlencoded",
        " application/json ",
        "",
        None,
    ],
)
def test_json_is_read(kind: str | None) -> None:
    headers = {} if kind is None else {b"content-type": kind.encode()}
    assert negotiation().negotiate(headers).reader is None


@pytest.mark.parametrize("kind", [LITERAL, LITERAL.upper(), f"{LITERAL} ; charset=x"])
def test_another_type_is_read_by_its_serializer(kind: str) -> None:
    found = negotiation().negotiate({b"content-type": kind.encode()})
    assert found.reader is CODECS[LITERAL]


@pytest.mark.parametrize(
    "headers",
    [
        {b"content-type": b"text/plain"},
        {b"content-type": b"multipart/form-data; boundary=x"},
        {b"content-type": b"application/jsonp"},
        {b"content-type": b"*/*"},
        {b"content-encoding": b"gzip"},
    ],
)
def test_another_type_is_refused(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(Problem) as caught:
        negotiation().negotiate(headers)
    assert caught.value.status == 415
    if b"content-type" in headers:
        assert dict(caught.value.headers) == {b"accept-post": ", ".join(SPOKEN).encode()}


def test_what_is_not_said_is_not_guessed_where_it_may_be_either() -> None:
    """One byte is a number in JSON and another one in Avro."""
    strict = negotiation(assume_json=False)
    for headers in ({}, {b"content-type": b" "}):
        with pytest.raises(Problem, match="without Content-Type") as caught:
            strict.negotiate(headers)
        assert caught.value.status == 415


def test_headers_of_hostile_clients_are_not_remembered() -> None:
    it = negotiation()
    for number in range(1000):
        it.negotiate({b"accept": b"*/*;x=%d" % number})
    it.negotiate({b"accept": b"*/*" + b" " * 10_000})
    assert len(it._choices.cache) <= 64
    assert max(len(accept or b"") for _, accept in it._choices.cache) < 1000


def test_lists_have_only_the_media_types_that_can_write_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(content, "codecs_of", lambda spec, *, data: CODECS)
    media_types = content.MediaTypes.of(FN.spec, FN, data="data")
    media_types.record.negotiate({b"content-type": LITERAL.encode()})
    with pytest.raises(Problem, match="expected application/json in UTF-8, got"):
        media_types.batch.negotiate({b"content-type": LITERAL.encode()})
