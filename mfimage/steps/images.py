"""The images of a flow's steps: found where an earlier run left them, else built side by side.

An image is named by what its steps declare, so it is found without anything being solved; steps
of equal environments share one, and so do runs and users of one registry.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mfimage import __version__
from mfimage.errors import EngineError, OptionError
from mfimage.files import sha256_hex
from mfimage.image.build import build_image
from mfimage.image.builder import BuildEvent, OnEvent
from mfimage.image.docker.local import connect
from mfimage.image.plan.layers import own_files
from mfimage.image.plan.lock import index_options
from mfimage.image.plan.options import ENGINE, BuildOptions
from mfimage.image.plan.settings import make_options, read_settings
from mfimage.image.plan.subject import STEP, BuildSource, Subject
from mfimage.image.registry.client import open_registry, repository_of
from mfimage.image.registry.reference import Reference, parse_reference
from mfimage.image.story import BuildStory, note, show
from mfimage.package.platforms import machine_platform
from mfimage.package.spec import sha256_of
from mfimage.steps.capture import environment_labels
from mfimage.steps.declared import Declared, FlowFile, declare_steps
from mfimage.steps.environments import solved, step_store

# The repository of images that stay in the engine.
LOCAL = "mfimage-step"
REGISTRY_VARIABLE = "MFIMAGE_STEP_REGISTRY"
_DOCKER = "docker"
_AT_ONCE = 4
# Settings of a project that its functions' images have, and its steps' do not.
_OF_FUNCTIONS = ("target", "tags", "ray_version", "parts", "platform")
Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class StepImage:
    """An image that steps run in."""

    declared: Declared
    name: Reference  # its repository, and a tag made from what decides the image
    steps: tuple[str, ...]
    local: bool  # @docker runs some of them here
    remote: tuple[str, ...]  # decorators that run some of them elsewhere


def set_images(
    flow: Any, *, environment: str, datastore: str, only: str | None = None, fresh: bool = False
) -> dict[str, str]:
    """Give an image to each step that runs in one and names none; return them by step.

    Parameters
    ----------
    flow : FlowSpec
        Its steps' decorators get their attribute ``image``.
    environment, datastore : str
        TYPE of Metaflow's environment and datastore.
    only : str, optional
        The one decorator to set; by default all that have an image.
    fresh : bool
        Build again what exists.
    """
    runners = {
        step.name: (step, runner)
        for step in flow
        if (runner := _runner(step)) and only in (None, runner.name)
    }
    if not runners:
        return {}
    path = Path(inspect.getfile(flow.__class__)).absolute()
    options = step_options(path.parent)
    file = FlowFile(
        path=path, flow=flow.name, environment=environment, datastore=datastore,
        index=index_options(options),
    )  # fmt: skip
    platforms = {name: _platform(runner) for name, (_, runner) in runners.items()}
    declared = declare_steps(flow, platforms, file)
    kinds = {name: runner.name for name, (_, runner) in runners.items()}
    wanted = list(_shared(declared, kinds, options))
    named = ensure(wanted, options, fresh=fresh)
    found: dict[str, str] = {}
    for image in wanted:
        by_name, by_digest = named[str(image.name)]
        for name in image.steps:
            local = kinds[name] == _DOCKER
            found[name] = by_name if local else by_digest
            runners[name][1].attributes["image"] = found[name]
            note(f"step {name}: image {found[name]}")
    return found


def step_options(folder: Path) -> BuildOptions:
    """Return the options of a project's step images: its settings, and the variable's registry."""
    settings = read_settings(folder)
    kept = {name: value for name, value in settings.items() if name not in _OF_FUNCTIONS}
    given = {"target": STEP, "step_registry": os.environ.get(REGISTRY_VARIABLE)}
    return make_options(given, kept)


def _runner(step: Any) -> Any:
    """Return the decorator that runs a step in an image, if it names none."""
    found = [each for each in step.decorators if "image" in each.attributes]
    # Metaflow's own executors fill in a default; what runs elsewhere goes before @docker.
    found.sort(key=lambda each: each.name == _DOCKER)
    if not found or "image" in found[0]._user_defined_attributes:
        return None
    runner = found[0]
    return None if runner.name == _DOCKER and runner.attributes["image"] else runner


def _platform(runner: Any) -> str:
    if runner.name == _DOCKER:
        return machine_platform()
    machine = str(getattr(runner, "target_platform", "linux-64"))
    return "linux/arm64" if machine.endswith("aarch64") else "linux/amd64"


def _shared(
    declared: Mapping[str, Declared], kinds: Mapping[str, str], options: BuildOptions
) -> Iterator[StepImage]:
    by_digest: dict[str, list[str]] = {}
    for name, each in declared.items():
        by_digest.setdefault(each.digest, []).append(name)
    for names in by_digest.values():
        remote = sorted({kinds[name] for name in names} - {_DOCKER})
        each = declared[names[0]]
        if remote and not options.step_registry:
            raise OptionError(
                f"step {names[0]}: @{remote[0]} pulls images, and there is no registry for them",
                hint=f"set step-registry in [tool.mfimage], or {REGISTRY_VARIABLE}, such as "
                "registry.example.com/team/steps",
            )
        yield StepImage(
            declared=each,
            name=image_name(each, options),
            steps=tuple(names),
            local=any(kinds[name] == _DOCKER for name in names),
            remote=tuple(remote),
        )


def image_name(declared: Declared, options: BuildOptions) -> Reference:
    """Return the name of the image of a declared environment."""
    target = options.image_target
    own = [[file.path, sha256_hex(file.chunks())] for file in own_files(target.runtime)]
    key = sha256_of(
        {
            "environment": declared.digest,
            "base": str(options.base_image or ""),
            "apt": sorted(options.apt),
            "env": dict(options.env),
            "labels": dict(options.labels),
            "compile": options.compile,
            "mfimage": __version__,
            "runtime": own,
        }
    )
    repository = options.step_registry or parse_reference(LOCAL)
    return dataclasses.replace(repository, tag=f"fn-{key.removeprefix('sha256:')[:40]}")


def ensure(
    wanted: Sequence[StepImage], options: BuildOptions, *, fresh: bool = False
) -> dict[str, tuple[str, str]]:
    """Return name, and name by digest, of each image; build those that do not exist."""
    # Its first use is not safe in threads before Python 3.13; uv and pydantic use it.
    sysconfig.get_config_vars()
    found: dict[str, tuple[str, str]] = {}
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="mfimage-step") as pool:
        if not fresh:
            places = list(pool.map(partial(_find, options=options), wanted))
            found = {str(each.name): at for each, at in zip(wanted, places, strict=True) if at}
        missing = [each for each in wanted if str(each.name) not in found]
        if missing:
            with show(BuildStory) as story:
                telling = _Together(story)
                building = partial(_build, options=options, fresh=fresh, telling=telling)
                built = list(pool.map(building, missing))
            found |= {str(each.name): at for each, at in zip(missing, built, strict=True)}
    return found


def _find(image: StepImage, options: BuildOptions) -> tuple[str, str] | None:
    """Look for an image: in the engine if it runs here, else in the registry."""
    name = str(image.name)
    if not image.remote:
        with suppress(EngineError), closing(connect()) as engine:
            if engine.inspect(name):
                return name, name
    if options.step_registry:
        with closing(open_registry(image.name)) as client:
            if found := client.manifest(repository_of(image.name), str(image.name.tag)):
                return name, f"{image.name.name}@{found[0].digest}"
    return None


def _build(
    image: StepImage, *, options: BuildOptions, fresh: bool, telling: _Together
) -> tuple[str, str]:
    declared, store = image.declared, step_store()
    steps = ", ".join(image.steps)
    subject = Subject(
        kind=STEP,
        name="environment",
        digest=declared.digest,
        environment=solved(declared, store, fresh=fresh),
        labels=environment_labels(declared),
    )
    source = BuildSource(subject=subject, store=store, folder=f"steps/{subject.digest[7:]}")
    push = options.step_registry is not None
    wanted = dataclasses.replace(
        options, tags=(image.name,), platform=declared.platform, no_cache=fresh or options.no_cache,
        output=ENGINE if image.local else None,
    )  # fmt: skip
    made = build_image(
        source, wanted, push=push, force=fresh,
        on_event=telling.events(steps), note=telling.notes(steps),
    )  # fmt: skip
    return str(image.name), made.digests[0] if push else str(image.name)


class _Together:
    """One story of several builds."""

    def __init__(self, story: BuildStory) -> None:
        self._story, self._lock = story, threading.Lock()

    def events(self, steps: str) -> OnEvent:
        """Return what a build calls with its events."""

        def tell(event: BuildEvent) -> None:
            with self._lock:
                self._story(dataclasses.replace(event, step=f"{steps}: {event.step}"))

        return tell

    def notes(self, steps: str) -> Note:
        """Return what a build calls with its lines."""
        return lambda text: note(f"{steps}: {text}")
