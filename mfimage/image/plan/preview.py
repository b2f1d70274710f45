"""What a build would make, layer by layer, and why each would differ from the image before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mfimage.errors import ReferenceNotFound
from mfimage.image.find import places
from mfimage.image.find.contents import REMOVED, Change, Contents, contents_of, diff
from mfimage.image.find.info import ImageInfo
from mfimage.image.find.places import FoundImage, find_image
from mfimage.image.plan.labels import LOCK_DIGEST
from mfimage.image.plan.layers import code_files, runtime_files, sbom_file
from mfimage.image.plan.options import BuildOptions
from mfimage.image.plan.plan import ImagePlan
from mfimage.image.registry.location import Location
from mfimage.terminal import visible

if TYPE_CHECKING:
    from mfimage.image.plan.layers import BlobPath

NEW, SAME, CHANGED = "new", "same", "changed"
_MOST_REASONS = 8
_ARTIFACT = "artifact:"


@dataclass(frozen=True, kw_only=True)
class PlannedPart:
    """A layer by its name, or ``configuration``: how it would change, and why."""

    name: str
    holds: str  # its content for people
    size: int | None  # in bytes before compression, where known
    change: str  # ``new``, ``same``, ``changed`` or ``removed``
    reasons: tuple[str, ...] = ()

    @property
    def listed(self) -> tuple[str, ...]:
        """The first reasons, and how many more there are."""
        more = len(self.reasons) - _MOST_REASONS
        return (*self.reasons[:_MOST_REASONS], *([f"and {more} more"] if more > 0 else []))


@dataclass(frozen=True, kw_only=True)
class PlannedImage:
    """An image that would be built for one platform, compared with the one before, if any."""

    plan: ImagePlan
    before: str | None
    parts: tuple[PlannedPart, ...]  # its layers, lowest first, and the configuration

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        plan = self.plan
        return {
            **plan.subject.to_dict(),
            "target": plan.target.name,
            "platform": plan.platform,
            "base": str(plan.base.pinned),
            "lock": plan.dependencies.digest,
            "compared_with": self.before,
            "changed": any(part.change != SAME for part in self.parts),
            "layers": [dataclasses.asdict(part) for part in self.parts],
        }

    def to_text(self) -> str:
        """Return a line for each part, and one for each reason."""
        plan = self.plan
        against = f"compared with {self.before}" if self.before else "no image to compare with"
        lines = [f"{plan.subject.name} for {plan.target.name}, {plan.platform}; {against}"]
        width = max(len(part.name) for part in self.parts)
        for part in self.parts:
            size = f", {part.size / 1e6:.1f} MB" if part.size is not None else ""
            lines.append(f"{part.change:<8} {part.name:<{width}}  {part.holds}{size}")
            lines += [f"{'':<8} {'':<{width}}    {reason}" for reason in part.listed]
        return "\n".join(map(visible, lines))


def explain(plan: ImagePlan, blob_path: BlobPath, before: FoundImage | None) -> PlannedImage:
    """Describe what would be built instead of ``before``, and why."""
    # An image that mfimage did not build counts as none.
    if before is not None and not before.has_labels:
        before = None
    code, runtime = code_files(plan, blob_path), runtime_files(plan)
    sizes = {"code": sum(f.size() for f in code), "runtime": sum(f.size() for f in runtime)}
    after = contents_of(_info(plan), sbom_file(code))
    layers = list(_layers(plan, after, sizes))
    if before is None:
        new = [PlannedPart(name=n, holds=h, size=s, change=NEW) for n, h, s, _ in layers]
        return PlannedImage(plan=plan, before=None, parts=tuple(new))
    info = dataclasses.replace(before.info, env=_without_path(before.info.env))
    known = contents_of(info, before.sbom())
    changes = diff(known, after, names=(before.name, plan.subject.name)).changes
    relocked = before.info.labels.get(LOCK_DIGEST) != plan.dependencies.digest
    parts = list(_removed(plan, changes))
    for name, holds, size, sections in layers:
        found = [change for change in changes if change.section in sections]
        reasons = _reasons(name, found, relocked=relocked)
        others = [part.name for part in parts if part.change != SAME]
        if name == "code" and others and not reasons:
            reasons = [f"its SBOM lists what changed in {', '.join(others)}"]
        change = CHANGED if reasons else SAME
        if reasons and name.startswith(_ARTIFACT) and all(reason[0] == "+" for reason in reasons):
            change = NEW
        parts.append(
            PlannedPart(name=name, holds=holds, size=size, change=change, reasons=tuple(reasons))
        )
    return PlannedImage(plan=plan, before=before.name, parts=tuple(parts))


def image_before(options: BuildOptions, platform: str, *, engine: bool) -> FoundImage | None:
    """Return what a build would replace: what the first tag names, or the output holds."""
    # ``engine`` is whether the engine is asked before a registry: where the image would go there.
    output = options.output if isinstance(options.output, Location) else None
    if output is not None and not output.path.exists():
        return None
    names = [str(place) for place in (output, *options.tags) if place]
    where = (places.FILES, *((places.ENGINE,) if engine else ()), places.REGISTRY)
    try:
        return find_image(names[0], platform=platform, places=where) if names else None
    except ReferenceNotFound:
        return None


def _info(plan: ImagePlan) -> ImageInfo:
    system, _, machine = plan.platform.partition("/")
    return ImageInfo(
        id="",
        os=system,
        architecture=machine,
        env=_without_path({**plan.base.env, **plan.env}),
        labels={**plan.base.labels, **plan.labels},
        user=plan.user,
        working_dir=plan.workdir,
        entrypoint=plan.entrypoint,
        command=plan.cmd,
    )


def _without_path(env: Mapping[str, str]) -> dict[str, str]:
    """Leave out what is made from the base's own."""
    return {name: value for name, value in env.items() if name != "PATH"}


def _layers(
    plan: ImagePlan, after: Contents, sizes: Mapping[str, int]
) -> Iterator[tuple[str, str, int | None, tuple[str, ...]]]:
    """Yield name, content, size, and the sections of `Contents` that depend on it."""
    yield "base", str(plan.base.pinned), None, ("base", "python")
    if plan.system_packages:
        yield "system", ", ".join(plan.system_packages), None, ("system",)
    count = len(after["distributions"] or ())
    lock = plan.dependencies.digest[:19]
    yield "dependencies", f"{count} distributions, lock {lock}", None, ("distributions",)
    for layer in plan.artifacts:
        digests = ", ".join(blob.digest[:19] for blob in layer.blobs)
        size = sum(blob.size for blob in layer.blobs)
        yield f"{_ARTIFACT}{','.join(layer.names)}", digests, size, ("artifacts",)
    yield "runtime", f"mfimage {plan.version}", sizes["runtime"], ("runtime",)
    files = len(after["code"] or ())
    holds = f"{files} files, {plan.subject.kind} {plan.subject.digest[:19]}"
    yield "code", holds, sizes["code"], ("code", "function")
    holds = f"{len(plan.env)} variables, {len(plan.labels)} labels, {' '.join(plan.cmd)}"
    yield "configuration", holds, None, ("env", "labels", "config")


def _reasons(name: str, changes: Iterable[Change], *, relocked: bool) -> list[str]:
    if name.startswith(_ARTIFACT):
        names = name.removeprefix(_ARTIFACT).split(",")
        return [str(change) for change in changes if change.name in names]
    reasons = [str(change) for change in changes]
    if name != "dependencies":
        return reasons
    return (reasons or ["the lock differs, but not in what it installs"]) if relocked else []


def _removed(plan: ImagePlan, changes: Iterable[Change]) -> Iterator[PlannedPart]:
    for change in changes:
        system = change.section == "system" and not plan.system_packages
        if change.kind == REMOVED and (system or change.section == "artifacts"):
            name = change.name if system else f"{_ARTIFACT}{change.name}"
            yield PlannedPart(name=name, holds="", size=None, change=REMOVED)
