"""Which images `mfimage test` pulls."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mfimage.errors import ReferenceNotFound
from mfimage.image.checks import runner


@pytest.mark.parametrize("name", ["nosuch", "nosuch:1", "0" * 64])
def test_a_name_that_only_docker_hub_could_mean_is_not_pulled(monkeypatch, name):
    """It was looked for on Docker Hub, which `mfimage inspect` does not do."""

    def find(image: str, **_: object) -> None:
        raise ReferenceNotFound(f"no image {image!r}")

    monkeypatch.setattr(runner, "find_image", find)
    api = SimpleNamespace(base_url="http+docker://localhost", close=lambda: None)
    with (
        pytest.raises(ReferenceNotFound, match="no image"),
        runner.open_image(api, name, say=pytest.fail),
    ):
        pass
