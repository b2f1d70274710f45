"""Flags that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return one decorator that adds all these options, in this order."""

    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


bind_flags = options(
    click.option("--name", help="Name of the function package; the function's own by default."),
    click.option(
        "--artifact", "artifacts", multiple=True, metavar="NAME",
        help="Artifact that goes along; by default those that the function reads.",
    ),
    click.option(
        "--environment", type=click.Path(dir_okay=False), metavar="FILE",
        help="requirements, pylock.toml or uv.lock that describes the environment.",
    ),
    click.option(
        "--example", "examples", multiple=True, metavar="JSON",
        help="Record to run the function on; @FILE reads a line each.",
    ),
    click.option(
        "--param", "params", multiple=True, metavar="NAME=JSON",
        help="Value that takes the place of an artifact.",
    ),
    click.option("--root", metavar="DIR", help="Where packages are kept."),
    click.option("--namespace", help="Metaflow namespace to look in; '' is the global one."),
    click.option(
        "--code", type=click.Choice(["here", "task"]),
        help="Where FUNCTION's file is: here, or in the code package of the task's run; "
        "by default here, if it is.",
    ),
)  # fmt: skip

builder_flags = options(
    click.option(
        "--builder", type=click.Choice(["auto", "docker", "oci"]),
        help="auto: docker when an engine answers, else oci, which needs none.",
    ),
    click.option(
        "--output", metavar="WHERE",
        help="docker, oci:DIR, oci-archive:FILE or docker-archive:FILE.",
    ),
    click.option(
        "--compression", type=click.Choice(["gzip", "zstd"]), help="Of the oci builder's layers."
    ),
    click.option(
        "--compile", is_flag=True, help="Let the oci builder compile Python files; docker's does."
    ),
)  # fmt: skip

pipeline_flags = options(
    click.option("--dry-run", is_flag=True, help="Tell what would be built, and build nothing."),
    click.option("--max-size", metavar="SIZE", help="Fail if an image is larger, as 500MB."),
    click.option(
        "--cache-from", multiple=True, metavar="NAME[:TAG]",
        help="Cache to use: a name in a registry, or as buildx has it: type=gha, type=local,...",
    ),
    click.option(
        "--cache-to", metavar="NAME[:TAG]", help="Cache to write this build's layers to, likewise."
    ),
    click.option(
        "--iidfile", type=click.Path(dir_okay=False), metavar="FILE", help="Write its ID there."
    ),
    click.option(
        "--metadata-file", type=click.Path(dir_okay=False), metavar="FILE",
        help="Write all there is to know there, as JSON.",
    ),
)  # fmt: skip

build_flags = options(
    click.option("--target", default=None, help="Interface of the image: fastapi or ray."),
    click.option("--base-image", metavar="IMAGE", help="python:<minor>-slim by default."),
    click.option("--apt", multiple=True, metavar="PACKAGE", help="Debian package to install."),
    click.option("--env", multiple=True, metavar="NAME=VALUE", help="Variable of the image."),
    click.option("--label", multiple=True, metavar="NAME=VALUE", help="Label of the image."),
    click.option("--platform", metavar="OS/ARCH", help="linux/amd64, linux/arm64, or both."),
    click.option(
        "--secret", multiple=True, metavar="id=ID,src=FILE|env=VAR",
        help="Credential for the dependency step: ca, netrc, pip.conf, or a UV_ variable.",
    ),
    click.option("--index-url", metavar="URL", help="Package index to install from."),
    click.option("--extra-index-url", multiple=True, metavar="URL", help="Index beside it."),
    click.option("--ray-version", metavar="VERSION", help="Of an image for Ray; newest that fits."),
    click.option(
        "--with", "parts", multiple=True, metavar="PART",
        help="What of Ray goes along beside its core: serve, data.",
    ),
)  # fmt: skip
