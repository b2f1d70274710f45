"""An image plan as a Dockerfile. The templates hold the layout; every value is quoted here."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mfimage.errors import BuildError, OptionError, shorten
from mfimage.files import EPOCH, is_rendered
from mfimage.image.plan.files import ContextFile
from mfimage.image.plan.layers import BlobPath, artifact_folder, blob_file, layer_files, verified
from mfimage.image.plan.options import refuse_credentials, split_index
from mfimage.image.plan.plan import ImagePlan
from mfimage.image.secrets.build import CA, NETRC, PIP_CONF
from mfimage.runtime.layout import PROGRAMS, VENV
from mfimage.templating import Quoted, environment

_SECRETS = "/run/secrets"
_PIP_CONF = "/etc/pip.conf"
_WORD = re.compile(r"[A-Za-z0-9_@%+=:,./~-]+")
_LONGEST_LINE = 65_000
_LONGEST_COMMENT = 1000


def word(value: object) -> Quoted:
    """Let a value through that has no character with a meaning, in a Dockerfile or a shell."""
    text = str(value)
    if not _WORD.fullmatch(text):
        raise OptionError(f"{text!r} cannot stand in a Dockerfile")
    return Quoted(text)


def quote(value: str) -> Quoted:
    """Quote an ``ENV`` or ``LABEL`` value: it comes out as it is, ``$`` and all."""
    escaped = re.sub(r'([\\"$])', r"\\\1", value)
    if re.search(r"[\r\n\0]", value) or len(escaped.encode()) > _LONGEST_LINE:
        raise OptionError(f"{value[:80]!r} cannot stand on one line of a Dockerfile")
    return Quoted(f'"{escaped}"')


def exec_form(words: Iterable[str]) -> Quoted:
    """Write a command as a JSON list, which no shell reads."""
    return Quoted(json.dumps(list(words)))


def comment(value: str) -> Quoted:
    """Make a value safe to stand in a comment."""
    return Quoted(json.dumps(value)[1:-1])


def line(value: str) -> Quoted:
    """Let a part of a command through that was made in this module."""
    if "\n" in value or value.endswith("\\"):
        raise OptionError(f"{value!r} does not end where its line does")
    return Quoted(value)


_FILTERS = {
    "word": word,
    "quote": quote,
    "exec": exec_form,
    "comment": comment,
    "line": line,
    "shell": lambda value: Quoted(shlex.quote(value)),
}


def render(plan: ImagePlan) -> str:
    """Write the Dockerfile."""
    template = environment(_FILTERS).get_template(plan.target.template)
    text = template.render(
        plan=plan,
        venv=PurePosixPath(VENV),
        programs=PROGRAMS,
        workdir_mode=None if plan.workdir_mode == 0o755 else f"{plan.workdir_mode:o}",
        epoch=EPOCH,
        artifacts=[
            (artifact_folder(layer), shorten(", ".join(layer.names), _LONGEST_COMMENT))
            for layer in plan.artifacts
        ],
        credentials=_dependency_step(plan),
        apt=_apt_step(plan),
    )
    refuse_credentials("the Dockerfile", text)
    return text


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What a ``RUN`` needs for credentials: mounts, which are optional, and what uses them."""

    mounts: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()


def _dependency_step(plan: ImagePlan) -> _Step:
    mounts = tuple(
        f"--mount=type=secret,id={word(name)},target={_secret_path(name)}" for name in plan.secrets
    )
    setup = [*_indexes(plan), *(line for name in plan.secrets for line in _use(name))]
    return _Step(mounts=mounts, setup=tuple(setup))


def _indexes(plan: ImagePlan) -> list[str]:
    commands = []
    if plan.index_url:
        url = shlex.quote(split_index(plan.index_url)[1])
        commands.append(
            f"export PIP_INDEX_URL={url} UV_DEFAULT_INDEX={shlex.quote(plan.index_url)}"
        )
    if plan.extra_index_urls:
        urls = shlex.quote(" ".join(split_index(url)[1] for url in plan.extra_index_urls))
        named = shlex.quote(" ".join(plan.extra_index_urls))
        commands.append(f"export PIP_EXTRA_INDEX_URL={urls} UV_INDEX={named}")
    return commands


def _secret_path(name: str) -> str:
    # Elsewhere `pip config get` would not look into it.
    return _PIP_CONF if name == PIP_CONF else f"{_SECRETS}/{word(name)}"


def _use(name: str) -> list[str]:
    path = _secret_path(name)
    if name == CA:
        return [f"if [ -s {path} ]; then export SSL_CERT_FILE={path} PIP_CERT={path}; fi"]
    if name == NETRC:
        return [f"if [ -s {path} ]; then export NETRC={path}; fi"]
    if name == PIP_CONF:
        # uv does not read the file itself. pip lists several URLs one a line, uv wants spaces.
        ask = f'if [ -s {path} ] && url="$(python3 -m pip config --global get global.%s 2>&-)"'
        return [
            f'{ask % "index-url"}; then export UV_DEFAULT_INDEX="$url"; fi',
            f'{ask % "extra-index-url"}; then export UV_INDEX="$(echo $url)"; fi',
        ]
    return [f'if [ -s {path} ]; then {name}="$(cat {path})"; export {name}; fi']


def _apt_step(plan: ImagePlan) -> _Step:
    if CA not in plan.secrets:
        return _Step()
    # Below /var/log, which is not kept: a mount elsewhere leaves its folder in the image.
    path, config = "/var/log/ca.pem", "/var/log/apt.conf"
    use = f"echo 'Acquire::https::CAInfo \"{path}\";' >{config}; export APT_CONFIG={config}"
    return _Step(
        mounts=(f"--mount=type=secret,id={CA},target={path}",),
        setup=(f"if [ -s {path} ]; then {use}; fi",),
    )


# The uv that installs dependencies in a build: one version, verified like what it installs.

UV_VERSION = "0.13.8"

# Of the wheels for glibc's Linux, amd64 and arm64, where images are built for.
_HASHES = (
    "e18a57b8b352eb7c8feb317b9f6f533c8f0ad9673fd6cf34bbe3cf1a9f6a8984",
    "0b3e8b1a4f5e405e31e2ff33de8af4744831e9f7338539671efbd8c3c94e791d",
    "5337c30bb893b4f9ce0ceb921ba2da0d13f649da644f40ad3bef84083bef0203",
)


def uv_requirement() -> bytes:
    """Return the requirements file that pip installs uv from."""
    hashes = "".join(f" \\\n    --hash=sha256:{digest}" for digest in _HASHES)
    return f"uv=={UV_VERSION}{hashes}\n".encode()


# A build's context: the plan's files, laid out as the Dockerfile expects them.
#
# ::
#
# Dockerfile
# build/uv.txt                     what pip installs uv from
# build/lock/pylock.toml, wheels/  what uv installs
# layers/artifact-<digest>/        files as they stand in the image, one folder a layer
# layers/runtime/                  mfimage's own
# layers/code/                     the function's
#
# The same plan gives the same layers: fixed times to the second, modes 0644 and 0755.

DOCKERFILE = "Dockerfile"
_FOLDERS = ("build", "layers")


def context_files(plan: ImagePlan, blob_path: BlobPath) -> list[ContextFile]:
    """List the context's files, sorted by path; artifacts are named, not read."""
    files = [
        ContextFile(path=DOCKERFILE, content=render(plan).encode()),
        ContextFile(path="build/uv.txt", content=uv_requirement()),
        ContextFile(path="build/lock/pylock.toml", content=plan.dependencies.lock),
    ]
    for name, blob in plan.dependencies.wheels.items():
        files.append(blob_file(f"build/lock/wheels/{name}", blob, blob_path))
    for layer, contents in layer_files(plan, blob_path).items():
        files += [replace(file, path=f"layers/{layer}/{file.path}") for file in contents]
    return sorted(files, key=lambda file: file.path.split("/"))


def write_context(plan: ImagePlan, folder: Path, blob_path: BlobPath) -> None:
    """Write the context into a folder."""
    # ``docker build`` of it gives the same image, but for what its SBOM says of the base. The
    # folder is new, empty, or one that this function wrote before. Artifacts are copied, not
    # linked: their times are set for equal layers, and an edit must not reach into the package.
    files = context_files(plan, blob_path)
    _refuse_foreign(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mfimage-", dir=folder) as temporary:
            fresh = Path(temporary)
            _write_files(files, fresh)
            for name in (*_FOLDERS, DOCKERFILE):
                path = folder / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                (fresh / name).rename(path)
    except OSError as error:
        where = error.filename or folder
        raise BuildError(
            f"the build context cannot be written: {where}: {error.strerror}",
            hint="choose another folder, or free space",
        ) from None


def _refuse_foreign(folder: Path) -> None:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise OptionError(f"output: {folder}: {error.strerror}") from None
    if names and not is_rendered(folder):
        raise OptionError(
            f"output: {folder} holds other files, as {names[0]}",
            hint="name a new or empty folder, or one rendered before",
        )


def _write_files(files: list[ContextFile], root: Path) -> None:
    folders = {root}
    for file in files:
        path = root / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        folders |= {folder for folder in path.parents if folder.is_relative_to(root)}
        with path.open("wb") as out:
            out.writelines(verified(file))
        path.chmod(file.mode)
        os.utime(path, ns=(EPOCH * 10**9, file.mtime_ns()))
    for folder in sorted(folders - {root}, reverse=True):
        folder.chmod(0o755)
        os.utime(folder, (EPOCH, EPOCH))
