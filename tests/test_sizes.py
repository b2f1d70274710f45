"""Sizes as people write them."""

from __future__ import annotations

import pytest

from mfimage.errors import OptionError
from mfimage.runtime.settings import Settings
from mfimage.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("16777216", 16_777_216),
        ("500MB", 500_000_000),
        ("500m", 500_000_000),
        ("500MiB", 524_288_000),
        ("1.5 GiB", 1_610_612_736),
        ("2kB", 2000),
        ("7B", 7),
    ],
)
def test_units_of_a_thousand_and_of_1024_are_told_apart(text: str, size: int) -> None:
    assert parse_size(text, field="max-size") == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e6", "5 XB", "1iB", "1,5GB"])
def test_what_is_not_a_size_is_refused_with_its_field(text: str) -> None:
    with pytest.raises(OptionError, match=f"max-size: {text!r} is not a size"):
        parse_size(text, field="max-size")


def test_the_server_counts_as_the_build_does() -> None:
    assert Settings.from_environ({"MFIMAGE_MAX_BODY": "500MB"}).max_body == 500_000_000
    assert Settings.from_environ({"MFIMAGE_MAX_BODY": "500MiB"}).max_body == 524_288_000
    with pytest.raises(OptionError, match="MFIMAGE_MAX_BODY: '1e6' is not a size"):
        Settings.from_environ({"MFIMAGE_MAX_BODY": "1e6"})


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_949, "9.9 kB"),
        (9_950, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (201_988_817, "202 MB"),
        (5_400_000_000, "5.4 GB"),
        (2_000_000_000_000, "2.0 TB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text
