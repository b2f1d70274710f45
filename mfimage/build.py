"""build: reference + options -> an image."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from mfimage.errors import OptionError
from mfimage.image.builder import DOCKER, Builder, BuiltImage, OnEvent
from mfimage.image.builders import open_builder
from mfimage.image.plan.base import BaseImage, default_base
from mfimage.image.plan.lock import target_lock
from mfimage.image.plan.options import BuildOptions
from mfimage.image.plan.plan import ImagePlan, make_plan
from mfimage.image.registry.location import Location
from mfimage.image.report import Clock, Image, check_size
from mfimage.image.sbom.attach import attach_sboms
from mfimage.image.secrets.build import CA, Secret, read_secrets
from mfimage.image.secrets.scanning import scan_image
from mfimage.package.store import Package, open_package

if TYPE_CHECKING:
    from mfimage.image.checks.report import Report
    from mfimage.image.plan.layers import BlobPath
    from mfimage.image.plan.preview import PlannedImage

Say = Callable[[str], None]
# Where tools keep the path of the certificates that this machine trusts.
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE")


def build(
    reference: str,
    options: BuildOptions,
    *,
    push: bool = False,
    force: bool = False,
    test: bool = False,
    max_size: int | None = None,
    on_event: OnEvent = lambda _: None,
    say: Say = lambda _: None,
) -> Image:
    """Build an image.

    Parameters
    ----------
    reference : str
        The function package.
    options : BuildOptions
        What the image shall be.
    push : bool
        Push every tag afterwards.
    force : bool
        Build even if the registry has the very image already.
    test : bool
        Push only what passes `mfimage test`.
    max_size : int, optional
        Fail if an image has more bytes.
    on_event : callable
        Told of every step.
    say : callable
        Told of what happens between the steps, a line each.

    Raises
    ------
    MfimageError
        Naming what is wrong with the package, the options, the engine or a step.
    """
    if push and not options.tags:
        raise OptionError(
            "push: the image has no name", hint="give it one: --tag REGISTRY/NAME:TAG"
        )
    options = _trusting_host(options)
    package = open_package(reference)
    secrets, clock = read_secrets(options.secrets), Clock()
    builder = open_builder(options, push=push, secrets=secrets, on_event=on_event, say=say)
    with closing(builder):
        with clock("plan"):
            plans = _plans(package, options, builder, say)
        plan = plans[0]
        blob_path: BlobPath = package.store.unverified_file
        if builder.name == DOCKER:
            # An engine is sent what it does not have: of the rest nobody would see the damage.
            blob_path = _verified_path(package)
        base = plan.base.pinned
        say(f"building {plan.function} for {plan.target.name} on {base}, {_names(plans)}")
        found = None
        # Who pushed it need not have tested it.
        if push and not (force or test or options.no_cache):
            found = builder.find(plans, options.tags, blob_path)
        if found:
            say("the registry has it already: nothing is built")
        # An image elsewhere, too, is made of layers that are here.
        wanted = options.output or options.output_engine or not push
        if found and not wanted:
            images = found
        else:
            with clock("build"):
                images = _build(builder, plans, blob_path)
            with clock("scan"):
                for image in images:
                    scan_image(builder, image, blob_path, secrets)
        for image in images:
            check_size(builder, image, max_size)
        with clock("test"):
            tests = _test(builder, images, say) if test else ()
        with clock("write"):
            place = builder.write(images, options.output, options.tags) if wanted else None
        with clock("push"):
            digests = builder.push(found or images, options.tags) if push else ()
            attach_sboms(images, digests, blob_path, say)
        with clock("export"):
            builder.export(images, options.tags if push else ())
    made = Image(
        builder=builder.name,
        images=images,
        tags=tuple(str(tag) for tag in options.tags),
        digests=digests,
        place=place,
        timings=clock.seconds,
        tests=tests,
    )
    say(f"built {made.name} ({made.size / 1e6:.1f} MB, {made.id[:19]})")
    return made


def _test(builder: Builder, images: Sequence[BuiltImage], say: Say) -> tuple[Report, ...]:
    from mfimage.image.checks.built import check_built

    return check_built(builder, images, say=say)


def plan_build(
    reference: str, options: BuildOptions, *, push: bool = False, say: Say = lambda _: None
) -> tuple[PlannedImage, ...]:
    """Tell what `build` would make, one image a platform, and why each layer would change.

    Nothing is built. It is compared with what the first tag names now, or ``--output`` holds.

    Raises
    ------
    MfimageError
        As `build` does for what it can know before.
    """
    from mfimage.image.plan.preview import explain, image_before

    options = _trusting_host(options)
    package = open_package(reference)
    secrets = read_secrets(options.secrets)
    # Where the image would go does not matter yet.
    builder = open_builder(options, push=True, secrets=secrets, on_event=lambda _: None, say=say)
    blob_path = package.store.unverified_file
    with closing(builder):
        plans = _plans(package, options, builder, say)
        if push and options.tags and builder.find(plans, options.tags, blob_path):
            say("the registry has it already: nothing would be built")
    return tuple(
        explain(plan, blob_path, image_before(options, plan.platform, builder.name))
        for plan in plans
    )


def _names(plans: Sequence[ImagePlan]) -> str:
    return " and ".join(plan.platform for plan in plans)


def _build(
    builder: Builder, plans: Sequence[ImagePlan], blob_path: BlobPath
) -> tuple[BuiltImage, ...]:
    return tuple(builder.build(plan, blob_path) for plan in plans)


def _plans(
    package: Package, options: BuildOptions, builder: Builder, say: Say
) -> tuple[ImagePlan, ...]:
    """Plan the image for each platform."""
    spec = package.spec
    source = options.base_image or default_base(spec)
    plans = []
    for platform in options.platforms or (spec.environment.platform,):
        wanted = dataclasses.replace(options, platform=platform)
        plans.append(
            make_plan(
                spec,
                base=builder.base(source, platform),
                lock=target_lock(package, wanted, platform, say),
                options=wanted,
            )
        )
    return tuple(plans)


def render(reference: str, options: BuildOptions, folder: Path) -> Path:
    """Write the Dockerfile and its context; no engine is needed.

    Raises
    ------
    MfimageError
        Naming what is wrong with the package, the options or the folder.
    """
    from mfimage.image.docker.render import write_context

    options = _trusting_host(options)
    package = open_package(reference)
    blob_path = _verified_path(package)
    chosen = options.base_image or default_base(package.spec)
    if isinstance(chosen, Location) or len(options.platforms) > 1:
        raise OptionError(
            "render: a Dockerfile builds on an image by name, for one platform",
            hint="give --base-image NAME and one --platform",
        )
    # What the base holds, its patch version of Python say, is for whoever builds the folder to see.
    base = BaseImage(reference=chosen, python=package.spec.environment.python_minor)
    platform = options.platform or package.spec.environment.platform
    lock = target_lock(package, options, platform, lambda _: None)
    plan = make_plan(package.spec, lock=lock, base=base, options=options)
    write_context(plan, folder, blob_path)
    return folder


def _trusting_host(options: BuildOptions) -> BuildOptions:
    """Let the dependency step trust the certificates that this machine was told to trust.

    Behind a proxy that signs connections anew, nothing could be installed otherwise. They are
    mounted for that step only, and what is installed is held against the lock's hashes.
    """
    if any(secret.id == CA for secret in options.secrets):
        return options
    for variable in _CA_VARIABLES:
        path = Path(os.environ.get(variable, ""))
        if path.is_file():
            secret = Secret(id=CA, source=path)
            return dataclasses.replace(options, secrets=(*options.secrets, secret))
    return options


def _verified_path(package: Package) -> BlobPath:
    """Verify every blob; return what tells where each is, as long as there is the package."""
    files = {ref.digest: package.store.blob_file(ref) for ref in package.spec.blobs.values()}
    return lambda ref: files[ref.digest]
