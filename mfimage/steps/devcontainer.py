"""Reads what of a ``devcontainer.json`` decides how code runs, and writes one for a step's image.

The format is that of https://containers.dev/implementors/json_reference/. Keys of editors are
ignored; keys that change what runs, and are not supported, are refused by name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from mfimage.errors import OptionError, suggest

USED = {
    *("image", "build", "features", "containerEnv", "remoteEnv", "remoteUser", "containerUser"),
    *("mounts", "runArgs", "workspaceFolder", "onCreateCommand", "postCreateCommand"),
}
# What concerns editors, ports and the life of a container that someone works in.
IGNORED = {
    *("$schema", "name", "customizations", "extensions", "settings", "forwardPorts"),
    *("portsAttributes", "otherPortsAttributes", "shutdownAction", "waitFor", "secrets"),
    *("postAttachCommand", "hostRequirements", "overrideCommand"),
}
BUILD = {"dockerfile", "context", "args", "target", "cacheFrom", "options"}
# What `docker run` is called with by us.
TAKEN = {"-d", "--detach", "--name", "--rm", "-i", "-t", "-it", "--tty", "--entrypoint"}
VARIABLE_FLAGS = {"-e", "--env", "--build-arg"}
HINTS = {
    "dockerComposeFile": "name the service's image or Dockerfile in a devcontainer.json of its own",
    "dockerFile": "write build: {dockerfile: ...}",
    "initializeCommand": "it would run on this machine: run it yourself, before the flow",
    "privileged": "write it in runArgs: --privileged",
    "init": "write it in runArgs: --init",
    "capAdd": "write it in runArgs: --cap-add=...",
    "securityOpt": "write it in runArgs: --security-opt=...",
    "workspaceMount": "the flow's folder is mounted at its own path, and at workspaceFolder",
    "postStartCommand": "write it in postCreateCommand, or in the step",
    "updateContentCommand": "write it in postCreateCommand",
}
# Build arguments that would change the docker command, if they were its variables.
DOCKERS_OWN = {"HOME", "PATH"}
PLACES = (".devcontainer/devcontainer.json", ".devcontainer.json")


@dataclass(frozen=True, kw_only=True)
class DevContainer:
    """What of a ``devcontainer.json`` decides how code runs, with its variables filled in.

    Attributes
    ----------
    path : Path
        The file.
    workspace : Path
        The folder that it is for.
    inside : str
        Where that folder is in the container.
    image : str, optional
        What to run, if it is not built.
    build : mapping, optional
        How to build it.
    features : mapping
        What the ``devcontainer`` command adds.
    container_env, remote_env : mapping
        Variables, with ``${localEnv:...}`` as it is written: values may be secrets.
    user : str, optional
        Who runs the code.
    mounts, run_args : sequence of str
        For ``docker run``.
    commands : sequence
        What prepares a container, in order: a shell's line, or a program and its arguments.
    """

    path: Path
    workspace: Path
    inside: str
    image: str | None = None
    build: Mapping[str, Any] | None = None
    features: Mapping[str, Any] = field(default_factory=dict)
    container_env: Mapping[str, str] = field(default_factory=dict)
    remote_env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    mounts: Sequence[str] = ()
    run_args: Sequence[str] = ()
    commands: Sequence[str | Sequence[str]] = ()


def find(folder: Path, config: str | None = None) -> Path:
    """Return the file to read: the one named, else the only one where such files are.

    Raises
    ------
    OptionError
        If there is none, or more than one.
    """
    if config is not None:
        path = folder / config
        if path.is_dir():
            path /= "devcontainer.json"
        if not path.is_file():
            raise OptionError(f"config: there is no file {path}")
        return path
    for place in PLACES:
        if (folder / place).is_file():
            return folder / place
    found = sorted(folder.glob(".devcontainer/*/devcontainer.json"))
    if len(found) != 1:
        some = ", ".join(str(each.relative_to(folder)) for each in found)
        raise OptionError(
            f"config: {some or 'no devcontainer.json'} in {folder}",
            hint="name the file: config='.devcontainer/devcontainer.json'",
        )
    return found[0]


def read(path: Path, env: Mapping[str, str]) -> DevContainer:
    """Read a file.

    Raises
    ------
    OptionError
        If it is not valid, or asks for what is not supported.
    """
    path = path.absolute()
    try:
        raw = json.loads(strip_comments(path.read_text("utf-8-sig")))
    except ValueError as error:
        raise OptionError(f"{path}: is not JSON with comments: {error}") from None
    if not isinstance(raw, dict):
        raise OptionError(f"{path}: is not a JSON object")
    for key in raw:
        if key not in USED | IGNORED:
            hint = HINTS.get(key) or suggest(key, sorted(USED))
            raise OptionError(f"{path}: {key} is not supported", hint=hint)
    # The folder around .devcontainer, or around .devcontainer.json.
    above = [each for each in path.parents if each.name == ".devcontainer"]
    workspace = above[-1].parent if above else path.parent
    local = {
        "localWorkspaceFolder": str(workspace),
        "localWorkspaceFolderBasename": workspace.name,
    }
    inside = _text(path, raw, "workspaceFolder") or f"/workspaces/{workspace.name}"
    inside = fill(inside, env, local)
    local |= {
        "containerWorkspaceFolder": inside,
        "containerWorkspaceFolderBasename": inside.rsplit("/", 1)[-1],
    }

    def deep(value: Any) -> Any:
        if isinstance(value, str):
            return fill(value, env, local)
        if isinstance(value, list):
            return [deep(each) for each in value]
        if isinstance(value, dict):
            return {key: deep(each) for key, each in value.items()}
        return value

    build = deep(raw.get("build"))
    if (raw.get("image") is None) == (build is None):
        raise OptionError(f"{path}: needs image or build, and not both")
    if build is not None and (unknown := sorted({*build} - BUILD)):
        raise OptionError(f"{path}: build.{unknown[0]} is not supported")
    run_args = [str(each) for each in deep(raw.get("runArgs", []))]
    for each in run_args:
        if each.partition("=")[0] in TAKEN:
            raise OptionError(f"{path}: runArgs: {each} is not supported", hint="leave it out")
    _refuse_secrets(path, "runArgs", raw.get("runArgs", []))
    if build is not None:
        _refuse_secrets(path, "build.options", raw["build"].get("options", []))
    return DevContainer(
        path=path,
        workspace=workspace,
        inside=inside,
        image=deep(_text(path, raw, "image")),
        build=build,
        features=deep(raw.get("features", {})),
        container_env=_variables(path, raw, "containerEnv", local),
        remote_env=_variables(path, raw, "remoteEnv", local),
        user=deep(_text(path, raw, "remoteUser") or _text(path, raw, "containerUser")),
        mounts=[_mount(path, each) for each in deep(raw.get("mounts", []))],
        run_args=run_args,
        commands=[
            each
            for key in ("onCreateCommand", "postCreateCommand")
            for each in _commands(path, key, deep(raw.get(key)))
        ],
    )


def _refuse_secrets(path: Path, key: str, arguments: Sequence[Any]) -> None:
    """Refuse a variable of this machine as the value of a variable: it may be a secret."""
    written = [str(each) for each in arguments]
    for before, each in zip(["", *written], written, strict=False):
        variable = re.match(r"--env=|--build-arg=|-e.", each) or before in VARIABLE_FLAGS
        if variable and re.search(r"\$\{(localEnv|env):", each):
            raise OptionError(
                f"{path}: {key}: {each}: other users can read command lines",
                hint="write it in containerEnv, or in args of build",
            )


def strip_comments(text: str) -> str:
    """Return JSON for JSON with comments and trailing commas."""
    # A string is matched first, so that what looks like a comment inside of one stays.
    tokens = r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/'
    plain = re.sub(tokens, lambda found: found[1] or " ", text, flags=re.DOTALL)
    commas = r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])'
    return re.sub(commas, lambda found: found[1] or "", plain, flags=re.DOTALL)


def fill(text: str, env: Mapping[str, str], values: Mapping[str, str]) -> str:
    """Replace ``${localEnv:NAME:default}`` and ``${NAME}`` of ``values``.

    Raises
    ------
    OptionError
        If another variable is used.
    """

    def value(found: re.Match[str]) -> str:
        kind, _, rest = found[1].partition(":")
        if kind in ("localEnv", "env") and rest:
            name, _, default = rest.partition(":")
            return env.get(name, default)
        if found[1] in values:
            return values[found[1]]
        known = ", ".join(f"${{{each}}}" for each in ("localEnv:NAME", *values))
        raise OptionError(f"devcontainer.json: the variable {found[0]} is unknown", hint=known)

    return re.sub(r"\$\{([^}]*)\}", value, text)


def _text(path: Path, raw: Mapping[str, Any], key: str) -> str | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        raise OptionError(f"{path}: {key} is not a string: {value!r}")
    return value


def _variables(
    path: Path, raw: Mapping[str, Any], key: str, local: Mapping[str, str]
) -> dict[str, str]:
    """Return variables with folders filled in; this machine's own are, when a task starts."""
    found = raw.get(key, {})
    if not isinstance(found, dict):
        raise OptionError(f"{path}: {key} is not an object")
    made = {}
    for name, value in found.items():
        if not isinstance(value, str):
            raise OptionError(f"{path}: {key}.{name} is not a string: {value!r}")
        # Those of the container are filled in there, and those of this machine are secrets.
        later = re.compile(r"(\$\{(?:localEnv|env|containerEnv):[^}]*\})")
        parts = later.split(value)
        made[name] = "".join(
            each if later.fullmatch(each) else fill(each, {}, local) for each in parts
        )
    return made


def _mount(path: Path, value: Any) -> str:
    if isinstance(value, dict) and {*value} <= {"type", "source", "target"}:
        return ",".join(f"{key}={each}" for key, each in value.items())
    if not isinstance(value, str):
        raise OptionError(f"{path}: mounts: {value!r} is not supported")
    # An older form of the command line.
    return ",".join(part for part in value.split(",") if not part.startswith("consistency="))


def _commands(path: Path, key: str, value: Any) -> list[str | list[str]]:
    if value is None or value in ("", [], {}):
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [[str(each) for each in value]]
    if isinstance(value, dict):  # side by side in an editor; one by one here
        return [each for part in value.values() for each in _commands(path, key, part)]
    raise OptionError(f"{path}: {key}: {value!r} is not a command")


def build_image(container: DevContainer) -> str:
    """Return the image to run: named, or built now by ``docker`` or ``devcontainer``.

    Raises
    ------
    OptionError
        If a build fails, or ``devcontainer`` is needed and not installed.
    """
    if container.image and not container.features:
        return container.image
    # The same file gives the same name: an image that is built again replaces itself.
    tag = f"mfimage-devcontainer:{sha256(str(container.path).encode()).hexdigest()[:16]}"
    if container.features:
        command = shutil.which("devcontainer")
        if command is None:
            raise OptionError(
                f"{container.path}: features need the command devcontainer, which is not on PATH",
                hint="npm install -g @devcontainers/cli",
            )
        arguments = [command, "build", "--workspace-folder", str(container.workspace)]
        _call([*arguments, "--config", str(container.path), "--image-name", tag], container.path)
        return tag
    build = container.build or {}
    folder = container.path.parent
    arguments = ["docker", "build", "--tag", tag]
    arguments += ["--file", str(folder / build.get("dockerfile", "Dockerfile"))]
    env = dict(os.environ)
    for name, value in build.get("args", {}).items():
        if name in DOCKERS_OWN or name.startswith("DOCKER_"):
            arguments += ["--build-arg", f"{name}={value}"]
        else:  # by name: the value may be a secret, and other users can read command lines
            arguments += ["--build-arg", name]
            env[name] = str(value)
    if target := build.get("target"):
        arguments += ["--target", target]
    cache = build.get("cacheFrom", [])
    for each in [cache] if isinstance(cache, str) else cache:
        arguments += ["--cache-from", each]
    arguments += build.get("options", [])
    _call([*arguments, str(folder / build.get("context", "."))], container.path, env)
    return tag


def _call(arguments: Sequence[str], path: Path, env: Mapping[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except FileNotFoundError:
        raise OptionError(f"{path}: the command {arguments[0]} is not on PATH") from None
    if done.returncode:
        lines = done.stdout.decode(errors="replace").strip().splitlines()[-20:]
        raise OptionError(f"{path}: {arguments[0]} {arguments[1]} failed\n" + "\n".join(lines))


def write(folder: Path, name: str, *, image: str, title: str, overwrite: bool = False) -> Path:
    """Write a file by which editors open a step's image; return its path.

    Parameters
    ----------
    folder : Path
        The project's.
    name : str
        The folder below ``.devcontainer``.
    image : str
        What to open.
    title : str
        What editors show.
    overwrite : bool
        Whether a file that is there and differs may be replaced.

    Raises
    ------
    OptionError
        If another file is there.
    """
    content = {
        "name": title,
        "image": image,
        "containerEnv": {"METAFLOW_USER": "${localEnv:USER:metaflow}"},
        "customizations": {"vscode": {"extensions": ["ms-python.python"]}},
    }
    text = json.dumps(content, indent=2) + "\n"
    path = folder / ".devcontainer" / name / "devcontainer.json"
    if path.exists() and path.read_text() != text and not overwrite:
        raise OptionError(f"{path} exists", hint="--force replaces it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
