"""An image plan as a Dockerfile. The templates hold the layout; every value is quoted here."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from mfimage.errors import OptionError
from mfimage.files import EPOCH
from mfimage.image.build_secrets import CA, NETRC, PIP_CONF
from mfimage.image.layer_files import artifact_folder
from mfimage.image.options import refuse_credentials, split_index
from mfimage.image.plan import ImagePlan
from mfimage.runtime.layout import PROGRAMS, VENV
from mfimage.templating import Quoted, environment

# The first words of the first line, by which a rendered folder is known again.
MARKER = "# Made by mfimage "

_SECRETS = "/run/secrets"
_PIP_CONF = "/etc/pip.conf"
_WORD = re.compile(r"[A-Za-z0-9_@%+=:,./~-]+")
_LONGEST_LINE = 65_000


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
    """Write the Dockerfile.

    Raises
    ------
    OptionError
        If a value cannot be written, or a URL with a password would be.
    """
    template = environment(_FILTERS).get_template(plan.target.template)
    text = template.render(
        plan=plan,
        venv=PurePosixPath(VENV),
        programs=PROGRAMS,
        epoch=EPOCH,
        artifacts=[(artifact_folder(layer), layer.names) for layer in plan.artifacts],
        credentials=_dependency_step(plan),
        apt=_apt_step(plan),
    )
    refuse_credentials("the Dockerfile", text)
    return text


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What a ``RUN`` needs for credentials: mounts, and shell commands that use them.

    All are optional: a file that the builder was not given is not there.
    """

    mounts: tuple[str, ...]
    setup: tuple[str, ...]


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
        return _Step(mounts=(), setup=())
    # Below /var/log, which is not kept: a mount elsewhere leaves its folder in the image.
    path, config = "/var/log/ca.pem", "/var/log/apt.conf"
    use = f"echo 'Acquire::https::CAInfo \"{path}\";' >{config}; export APT_CONFIG={config}"
    return _Step(
        mounts=(f"--mount=type=secret,id={CA},target={path}",),
        setup=(f"if [ -s {path} ]; then {use}; fi",),
    )
