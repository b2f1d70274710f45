"""A source + options -> an image: from base, lock and plan to what is written and pushed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mfimage.errors import OptionError
from mfimage.image.builder import DOCKER, OCI, Builder, OnEvent, lasting
from mfimage.image.builders import open_builder
from mfimage.image.plan.base import BaseImage, default_base
from mfimage.image.plan.lock import target_lock
from mfimage.image.plan.options import BuildOptions
from mfimage.image.plan.plan import ImagePlan, make_plan
from mfimage.image.plan.subject import BuildSource
from mfimage.image.registry.location import Location
from mfimage.image.report import Image, check_size, timed
from mfimage.image.sbom.attach import attach_sboms
from mfimage.image.secrets.build import CA, Secret, read_secrets
from mfimage.image.secrets.scan import scan_image
from mfimage.package.storage.cache import read_only

if TYPE_CHECKING:
    from mfimage.image.checks.report import Report
    from mfimage.image.plan.layers import BlobPath
    from mfimage.image.plan.preview import PlannedImage

Note = Callable[[str], None]
# Where tools look for the certificates that this machine trusts.
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE")


def build_image(
    source: BuildSource,
    options: BuildOptions,
    *,
    push: bool = False,
    force: bool = False,
    test: bool = False,
    max_size: int | None = None,
    on_event: OnEvent = lambda _: None,
    note: Note = lambda _: None,
) -> Image:
    """Build an image; see `mfimage.build.build`."""
    options = _trusting_host(options)
    secrets, timings = read_secrets(options.secrets), dict[str, float]()
    phase = partial(timed, timings)
    builder = open_builder(
        options, system_packages=source.subject.environment.system_packages, push=push,
        secrets=secrets, on_event=on_event, say=note,
    )  # fmt: skip
    with closing(builder):
        with phase("plan"), lasting("resolving", on_event):
            plans = _plans(source, options, builder, note)
        plan = plans[0]
        blob_path: BlobPath = source.unverified_file
        if builder.name == DOCKER:
            # An engine reads only what it does not have: damage in the rest would go unnoticed.
            blob_path = _verified_path(source)
        platforms = " and ".join(each.platform for each in plans)
        what = f"{plan.subject.name} for {plan.target.name}"
        note(f"building {what} on {plan.base.pinned}, {platforms}")
        found = None
        # An image that was pushed before need not have been tested.
        if push and not (force or test or options.no_cache):
            found = builder.find(plans, options.tags, blob_path)
        if found:
            note("the registry has it already: nothing is built")
        # What is written elsewhere too is made of layers that are here.
        wanted = options.output is not None or not push
        if found and not wanted:
            images = found
        else:
            with phase("build"):
                images = tuple(builder.build(each, blob_path) for each in plans)
            with phase("scan"), lasting("scanning", on_event):
                for image in images:
                    scan_image(builder, image, blob_path, secrets)
        for image in images:
            check_size(builder, image, max_size)
        tests: tuple[Report, ...] = ()
        with phase("test"):
            if test:
                from mfimage.image.checks.built import check_built

                tests = check_built(builder, images, say=note)
        with phase("write"):
            location = options.output if isinstance(options.output, Location) else None
            place = builder.write(images, location, options.tags) if wanted else None
        with phase("push"):
            digests = builder.push(found or images, options.tags) if push else ()
            if found or builder.name == DOCKER:  # the oci builder pushes them with an image
                attach_sboms(images, digests, blob_path, note)
        with phase("export"):
            builder.export(images, options.tags if push else ())
    made = Image(
        builder=builder.name,
        images=images,
        tags=tuple(str(tag) for tag in options.tags),
        digests=digests,
        place=place,
        timings=timings,
        tests=tests,
    )
    note(f"built {made.name} ({made.size / 1e6:.1f} MB, {made.id[:19]})")
    return made


def plan_image(
    source: BuildSource, options: BuildOptions, *, push: bool = False, note: Note = lambda _: None
) -> tuple[PlannedImage, ...]:
    """Describe what `build_image` would make for each platform, and why each layer would change."""
    # Nothing is built, pulled or kept. It is compared with what the first tag names now, or
    # ``--output`` holds.
    from mfimage.image.plan.preview import explain, image_before

    options = _trusting_host(options)
    secrets = read_secrets(options.secrets)
    open_it = partial(
        open_builder, push=True,  # where the image would go does not matter yet
        secrets=secrets, on_event=lambda _: None, say=note,
    )  # fmt: skip
    builder = open_it(options, system_packages=source.subject.environment.system_packages)
    reader = builder
    if builder.name == DOCKER:  # it would pull the base
        reader = open_it(dataclasses.replace(options, builder=OCI, cache_from=(), cache_to=None))
    blob_path = source.unverified_file
    engine = builder.name == DOCKER or not (push or isinstance(options.output, Location))
    with read_only(), closing(builder), closing(reader):
        plans = _plans(source, options, reader, note)
        if push and options.tags and builder.find(plans, options.tags, blob_path):
            note("the registry has it already: nothing would be built")
        return tuple(
            explain(plan, blob_path, image_before(options, plan.platform, engine=engine))
            for plan in plans
        )


def render_image(source: BuildSource, options: BuildOptions, folder: Path) -> Path:
    """Write the Dockerfile and its context; no engine is needed."""
    from mfimage.image.docker.render import write_context

    options, environment = _trusting_host(options), source.subject.environment
    blob_path = _verified_path(source)
    chosen = options.base_image or default_base(environment.python_minor)
    if isinstance(chosen, Location) or len(options.platforms) > 1:
        raise OptionError(
            "render: a Dockerfile needs a base image by name, and one platform",
            hint="give --base-image NAME and one --platform",
        )
    # The base is not read: what it holds is known where the folder is built.
    base = BaseImage(reference=chosen, python=environment.python_minor)
    platform = options.platform or environment.platform
    lock = target_lock(source, options, platform, lambda _: None)
    plan = make_plan(source.subject, lock=lock, base=base, options=options)
    write_context(plan, folder, blob_path)
    return folder


def _plans(
    source: BuildSource, options: BuildOptions, builder: Builder, note: Note
) -> tuple[ImagePlan, ...]:
    subject, environment = source.subject, source.subject.environment
    chosen = options.base_image or default_base(environment.python_minor)
    plans = []
    for platform in options.platforms or (environment.platform,):
        wanted = dataclasses.replace(options, platform=platform)
        base = builder.base(chosen, platform)
        lock = target_lock(source, wanted, platform, note)
        plans.append(make_plan(subject, base=base, lock=lock, options=wanted))
    return tuple(plans)


def _trusting_host(options: BuildOptions) -> BuildOptions:
    """Make the dependency step trust the certificates that this machine is set up to trust."""
    # Behind a proxy that re-signs connections nothing could be installed otherwise. They are
    # mounted for that step only, and what is installed is verified against the lock's hashes.
    if any(secret.id == CA for secret in options.secrets):
        return options
    for variable in _CA_VARIABLES:
        path = Path(os.environ.get(variable, ""))
        if path.is_file():
            secret = Secret(id=CA, source=path)
            return dataclasses.replace(options, secrets=(*options.secrets, secret))
    return options


def _verified_path(source: BuildSource) -> BlobPath:
    """Verify every blob; return what finds each, for as long as the source exists."""
    files = source.verified_files()
    return lambda ref: files[ref.digest]
