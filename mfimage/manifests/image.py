"""The image of a manifest: where it is, what its labels say, and its digest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mfimage.errors import MfimageError, OptionError
from mfimage.image.find.places import ENGINE, REGISTRY, FoundImage, Place, find_image
from mfimage.image.plan.labels import FUNCTION_NAME, TARGET
from mfimage.image.plan.options import LABEL_PREFIX
from mfimage.image.registry.reference import Reference, parse_reference
from mfimage.image.targets.fastapi import FastapiTarget
from mfimage.manifests.checks import check_function
from mfimage.manifests.options import option

# Only images of several functions have it.
FUNCTIONS_COUNT = f"{LABEL_PREFIX}functions.count"


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What the user states about an image; it must agree with the image's labels."""

    function: str | None = option(
        "Function in an image that is not found, or that has several.", "NAME"
    )


@dataclass(frozen=True, kw_only=True)
class StatedPulled(Stated):
    """What the user states about an image that other machines pull."""

    allow_tag: bool = option("Accept a tag if the image's digest is not known.", default=False)


@dataclass(frozen=True, kw_only=True)
class LocatedImage:
    """An image as a manifest names it, and what is known of it."""

    reference: Reference  # with the digest if it is known
    found: FoundImage | None = None
    why: str = ""  # it was not found, or has no labels

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels; none if it was not found."""
        return self.found.info.labels if self.found else {}

    def agreed(self, option: str, label: str, stated: str | None) -> str | None:
        """Return a label's value, or what is stated; they must not contradict each other."""
        found = self.labels.get(label)
        if None not in (found, stated) and found != stated:
            raise OptionError(
                f"{option}: {stated!r} is not what the image has, which is {found!r}",
                hint=f"leave out --{option}",
            )
        return stated if found is None else found

    def unknown(self, option: str) -> OptionError:
        """Return the error for what neither labels nor the user state."""
        return OptionError(
            f"{option}: not known: {self.why}",
            hint=f"give --{option}, or let the image be found: docker login, docker pull",
        )

    def check_target(self, target: str, runs: str) -> None:
        """Raise an `OptionError` if the image is of another target."""
        if (found := self.labels.get(TARGET)) not in (None, target):
            kinds = {"fastapi": "deployment, knative, kserve or compose", "ray": "rayservice"}
            other = f", or write another manifest: {kinds[found]}" if found in kinds else ""
            raise OptionError(
                f"image: {self.reference} is for {found}, not for {runs}",
                hint=f"build one: mfimage build REFERENCE --target {target} -t NAME --push{other}",
            )


def locate(
    name: str,
    stated: StatedPulled,
    *,
    say: Callable[[str], None],
    places: Sequence[Place] = (ENGINE, REGISTRY),
) -> LocatedImage:
    """Find an image in the engine or its registry, and pin it by digest."""
    reference = parse_reference(name)
    image, why = None, f"{name} has no labels of mfimage that state it"
    try:
        image = find_image(name, places=places)
    except MfimageError as error:
        why = error.message
    pinned = _pin(reference, image)
    if pinned.digest is None:
        if not stated.allow_tag:
            raise OptionError(
                f"image: the digest of {reference} is not known: "
                + ("it is in the Docker engine only" if image else why),
                hint="push it and name it as it was pushed (mfimage push, docker push), give "
                "NAME@sha256:..., or accept that the tag may move to another image: --allow-tag",
            )
        say(f"the manifest has the tag of {reference}, which may move to another image")
    return LocatedImage(reference=pinned, found=image, why=why)


def _pin(reference: Reference, image: FoundImage | None) -> Reference:
    """Return the reference with the digest under which its own repository has the image."""
    if reference.digest or image is None:
        return reference
    if image.place is REGISTRY:
        digest = image.index or image.digest
        return reference.with_digest(digest) if digest else reference
    for text in image.info.repo_digests:
        if not text.startswith("<none>"):
            found = parse_reference(text)
            if found.digest and _repository(found) == _repository(reference):
                return reference.with_digest(found.digest)
    return reference


def _repository(reference: Reference) -> str:
    return dataclasses.replace(reference, tag=None, digest=None).canonical


@dataclass(frozen=True, kw_only=True)
class ServerImage:
    """An image of target fastapi."""

    reference: str  # what nodes pull
    name: str  # the function's, or the repository's if there are several functions
    pinned: bool = True  # by digest, so that it always means the same image
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


def read_server_image(
    name: str,
    stated: StatedPulled,
    *,
    say: Callable[[str], None],
    places: Sequence[Place] = (ENGINE, REGISTRY),
) -> ServerImage:
    """Describe an image by its labels; if it is not found, as stated."""
    located = locate(name, stated, say=say, places=places)
    located.check_target(FastapiTarget.name, "a server")
    function = located.agreed("function", FUNCTION_NAME, stated.function)
    if function is None and TARGET in located.labels:
        function = located.reference.name.rpartition("/")[2]
    if function is None:
        raise located.unknown("function")
    check_function(function)
    return ServerImage(
        reference=str(located.reference),
        name=function,
        pinned=located.reference.digest is not None,
        labels=located.labels,
        env=located.found.info.env if located.found else {},
    )


def read_local_image(
    name: str,
    stated: Stated,
    *,
    say: Callable[[str], None],
    places: Sequence[Place] = (ENGINE, REGISTRY),
) -> ServerImage:
    """Describe an image that may be in this machine's engine only."""
    local = StatedPulled(function=stated.function, allow_tag=True)
    return read_server_image(name, local, say=lambda _: None, places=places)
