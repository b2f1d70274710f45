"""Push an image that is there already."""

from __future__ import annotations

import click


@click.command()
@click.argument("image", metavar="IMAGE|oci:DIR|oci-archive:FILE|docker-archive:FILE")
@click.argument("tags", nargs=-1, required=True, metavar="REGISTRY/NAME[:TAG]...")
def push(image: str, tags: tuple[str, ...]) -> None:
    """Push an image of the Docker engine, of a folder or a file; print repository@digest."""
    from mfimage.cli.console import say, story
    from mfimage.image.registry.reference import parse_tag
    from mfimage.push import push as push_image

    parsed = [parse_tag(tag) for tag in tags]
    with story() as on_event:
        pushed = push_image(image, parsed, on_event=on_event, say=say)
    for digest in dict.fromkeys(pushed):
        click.echo(digest)
