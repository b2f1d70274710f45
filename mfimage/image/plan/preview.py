"""What a build would make, layer by layer, and why each would differ from the image before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mfimage.errors import ReferenceNotFound
from mfimage.image.builder import DOCKER
from mfimage.image.find.contents import Contents, contents_of
from mfimage.image.find.diff import REMOVED, Change, diff
from mfimage.image.find.info import ImageInfo
from mfimage.image.find.places import ENGINE, FILES, REGISTRY, FoundImage, find_image
from mfimage.image.plan.layers import code_files, runtime_files, sbom_file
from mfimage.image.plan.options import LABEL_PREFIX, BuildOptions
from mfimage.image.plan.plan import ImagePlan

if TYPE_CHECKING:
    from mfimage.image.plan.layers import BlobPath

NEW, SAME, CHANGED = "new", "same", "changed"
_LOCK = f"{LABEL_PREFIX}lock.digest"
_MOST_TOLD = 8


@dataclass(frozen=True, kw_only=True)
class PlannedPart:
    """A layer, or the configuration.

    Attributes
    ----------
    name : str
        ``base``, ``system``, ``dependencies``, ``artifact:<names>``, ``runtime``, ``code``,
        ``configuration``.
    holds : str
        What is in it, for people.
    size : int or None
        Bytes before compression, where known.
    change : str
        ``new``, ``same``, ``changed`` or ``removed``.
    reasons : tuple of str
        Why.
    """

    name: str
    holds: str
    size: int | None
    change: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlannedImage:
    """An image that would be built, for one platform.

    Attributes
    ----------
    plan : ImagePlan
        What it would be.
    before : str or None
        The image that it is compared with.
    parts : tuple of PlannedPart
        Layers, lowest first, and the configuration.
    """

    plan: ImagePlan
    before: str | None
    parts: tuple[PlannedPart, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        plan = self.plan
        return {
            "function": {"name": plan.function, "digest": plan.digest},
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
        against = f"compared with {self.before}" if self.before else "there is none before it"
        lines = [f"{plan.function} for {plan.target.name}, {plan.platform}; {against}"]
        width = max(len(part.name) for part in self.parts)
        for part in self.parts:
            size = f", {part.size / 1e6:.1f} MB" if part.size is not None else ""
            lines.append(f"{part.change:<8} {part.name:<{width}}  {part.holds}{size}")
            told = part.reasons[:_MOST_TOLD]
            lines += [f"{'':<8} {'':<{width}}    {reason}" for reason in told]
            if (more := len(part.reasons) - len(told)) > 0:
                lines.append(f"{'':<8} {'':<{width}}    and {more} more")
        return "\n".join(lines)


def explain(plan: ImagePlan, blob_path: BlobPath, before: FoundImage | None) -> PlannedImage:
    """Tell what would be built, and why.

    Parameters
    ----------
    plan : ImagePlan
        What to build.
    blob_path : callable
        Returns where the function's code is.
    before : FoundImage, optional
        The image that would be replaced; one that mfimage did not build counts as none.
    """
    if before is not None and not before.has_labels:
        before = None
    code, runtime = code_files(plan, blob_path), runtime_files(plan)
    sbom = sbom_file(code)
    sizes = {"code": sum(f.size() for f in code), "runtime": sum(f.size() for f in runtime)}
    after = contents_of(_info(plan), sbom)
    if before is None:
        parts = [part for part, _ in _parts(plan, after, sizes)]
        return PlannedImage(plan=plan, before=None, parts=tuple(parts))
    info = dataclasses.replace(before.info, env=_without_path(before.info.env))
    known = contents_of(info, before.sbom())
    changes = diff(known, after, names=(before.name, plan.function)).changes
    parts = [
        _compared(part, _reasons(part, sections, plan, before, changes))
        for part, sections in _parts(plan, after, sizes)
    ]
    parts = [*_removed(parts, changes), *_with_code(parts)]
    return PlannedImage(plan=plan, before=before.name, parts=tuple(parts))


def image_before(options: BuildOptions, platform: str, builder: str) -> FoundImage | None:
    """Return what a build would replace: what the first tag names, or the output holds.

    Parameters
    ----------
    options : BuildOptions
        What was asked.
    platform : str
        Of the image.
    builder : str
        The oci builder does not look into an engine that it does not write to.
    """
    if options.output is not None and not options.output.path.exists():
        return None
    names = [str(place) for place in (options.output, *options.tags) if place]
    engine = (ENGINE,) if builder == DOCKER or options.output_engine else ()
    places = (FILES, *engine, REGISTRY)
    try:
        return find_image(names[0], platform=platform, places=places) if names else None
    except ReferenceNotFound:
        return None  # there is none yet


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
    """Leave out what is made of the base's own."""
    return {name: value for name, value in env.items() if name != "PATH"}


def _parts(
    plan: ImagePlan, after: Contents, sizes: Mapping[str, int]
) -> Iterator[tuple[PlannedPart, tuple[str, ...]]]:
    """Yield each part as if it were new, and the sections of the contents that it makes."""
    yield _new("base", str(plan.base.pinned), None), ("base", "python")
    if plan.system_packages:
        yield _new("system", ", ".join(plan.system_packages), None), ("system",)
    count = len(after.sections["distributions"] or ())
    lock = plan.dependencies.digest[:19]
    yield _new("dependencies", f"{count} distributions, lock {lock}", None), ("distributions",)
    for layer in plan.artifacts:
        name = f"artifact:{','.join(layer.names)}"
        digests = ", ".join(blob.digest[:19] for blob in layer.blobs)
        yield _new(name, digests, sum(blob.size for blob in layer.blobs)), ("artifacts",)
    yield _new("runtime", f"mfimage {plan.version}", sizes["runtime"]), ("runtime",)
    files = len(after.sections["code"] or ())
    holds = f"{files} files, function {plan.digest[:19]}"
    yield _new("code", holds, sizes["code"]), ("code", "function")
    shown = f"{len(plan.env)} variables, {len(plan.labels)} labels, {' '.join(plan.cmd)}"
    yield _new("configuration", shown, None), ("env", "labels", "config")


def _new(name: str, holds: str, size: int | None) -> PlannedPart:
    return PlannedPart(name=name, holds=holds, size=size, change=NEW)


def _compared(part: PlannedPart, reasons: Sequence[str]) -> PlannedPart:
    change = CHANGED if reasons else SAME
    if reasons and part.name.startswith("artifact:") and all(r[0] == "+" for r in reasons):
        change = NEW
    return dataclasses.replace(part, change=change, reasons=tuple(reasons))


def _reasons(
    part: PlannedPart,
    sections: tuple[str, ...],
    plan: ImagePlan,
    before: FoundImage,
    changes: Iterable[Change],
) -> list[str]:
    found = [change for change in changes if change.section in sections]
    if part.name.startswith("artifact:"):
        names = part.name.partition(":")[2].split(",")
        return [str(change) for change in found if change.name in names]
    reasons = [str(change) for change in found]
    if part.name == "dependencies" and before.info.labels.get(_LOCK) != plan.dependencies.digest:
        return reasons or ["the lock differs, in other things than what is installed"]
    return reasons if part.name != "dependencies" else []


def _removed(parts: Sequence[PlannedPart], changes: Iterable[Change]) -> Iterator[PlannedPart]:
    """Yield what has no layer any more."""
    held = {part.name for part in parts}
    for change in changes:
        gone = change.kind == REMOVED and change.section in ("artifacts", "system")
        if gone and not (change.section == "system" and "system" in held):
            name = f"artifact:{change.name}" if change.section == "artifacts" else change.name
            yield PlannedPart(name=name, holds="", size=None, change=REMOVED)


def _with_code(parts: Sequence[PlannedPart]) -> Iterator[PlannedPart]:
    """Let the code's layer change with all others: it holds the lock and the SBOM."""
    others = [p.name for p in parts if p.change != SAME and p.name not in ("code", "configuration")]
    for part in parts:
        if part.name == "code" and part.change == SAME and others:
            reason = f"its SBOM lists what changed in {', '.join(others)}"
            yield dataclasses.replace(part, change=CHANGED, reasons=(reason,))
        else:
            yield part
