"""Options that several kinds have, and what they write of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from mfimage.errors import OptionError
from mfimage.manifests.checks import (
    NAMESPACE,
    OBJECT,
    SECRET_KEY,
    SECRETS,
    VARIABLE,
    check_label,
    check_number,
    check_value,
)
from mfimage.manifests.options import SecretRef, Toleration, VariableSource, option

_POLICIES = ("Always", "IfNotPresent", "Never")
_CREDENTIALS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
IMAGE_VARIABLES = dict.fromkeys(("PATH", "PYTHONPATH", "PYTHONHOME"), "the image")
NO_PRIVILEGES = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _user(text: str) -> int | None:
    if text == "any":
        return None
    if not text.isascii() or not text.isdigit():
        raise OptionError(f"run-as-user: {text!r} is not a uid", hint="such as 1000, or any")
    return int(text)


@dataclass(frozen=True, kw_only=True)
class ObjectOptions:
    """How objects are named and labeled."""

    name: str | None = option("Name of the resource; the function's by default.", "NAME")
    namespace: str | None = option("Namespace; kubectl's by default.", "NAME")
    labels: Mapping[str, str] = option("Label of the resource.", "NAME=VALUE", {}, flag="label")

    def check_object(self, reserved: str, owner: str) -> None:
        """Check names; labels that start with ``reserved`` are refused."""
        if self.namespace is not None:
            NAMESPACE.check(self.namespace, field="namespace")
        for key, value in self.labels.items():
            check_label(key, value, field="label")
            if key.startswith(reserved):
                raise OptionError(
                    f"label: {key} is reserved for {owner}", hint="choose another name"
                )


@dataclass(frozen=True, kw_only=True)
class PodOptions:
    """How pods pull and run their image."""

    service_account: str | None = option("Service account of the pods.", "NAME")
    image_pull_secrets: tuple[str, ...] = option(
        "Secret to pull with.", "NAME", (), flag="image-pull-secret"
    )
    image_pull_policy: str | None = option(
        "Always, IfNotPresent (the default for an image by digest) or Never.", "POLICY"
    )
    run_as_user: int | None = option(
        "User of the pods; any: as the cluster chooses.", "UID|any", 1000, type=str, parse=_user
    )

    def check_pod(self) -> None:
        """Check each option."""
        check_number(self.run_as_user, field="run-as-user", minimum=1)
        for name in self.image_pull_secrets:
            OBJECT.check(name, field="image-pull-secret")
        if self.service_account is not None:
            OBJECT.check(self.service_account, field="service-account")
        if self.image_pull_policy not in (None, *_POLICIES):
            raise OptionError(
                f"image-pull-policy: {self.image_pull_policy!r} is not a policy",
                hint=", ".join(_POLICIES),
            )

    def pull_policy(self, *, pinned: bool) -> str:
        """Return the policy for an image; a node that pulled a tag before may have another one."""
        return self.image_pull_policy or ("IfNotPresent" if pinned else "Always")

    @property
    def pull_secrets(self) -> list[dict[str, str]] | None:
        """``imagePullSecrets`` of a pod."""
        return [{"name": name} for name in self.image_pull_secrets] or None

    @property
    def security_context(self) -> dict[str, Any]:
        """``securityContext`` of a pod."""
        return {
            "runAsNonRoot": True,
            "runAsUser": self.run_as_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        }


@dataclass(frozen=True, kw_only=True)
class PlacementOptions:
    """Which nodes pods may run on."""

    node_selector: Mapping[str, str] = option("Label of nodes for all pods.", "NAME=VALUE", {})
    tolerations: tuple[Toleration, ...] = option(
        "Taint that all pods tolerate.", "KEY[=VALUE][:EFFECT]", (),
        flag="toleration", parse=Toleration.parse,
    )  # fmt: skip

    def check_placement(self) -> None:
        """Check each option."""
        for key, value in self.node_selector.items():
            check_label(key, value, field="node-selector")
        for each in self.tolerations:
            each.check()

    def placement(self, more: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
        """Return a pod's fields; ``more`` are labels of nodes, too."""
        return {
            "nodeSelector": {**self.node_selector, **more} or None,
            "tolerations": [each.to_dict() for each in self.tolerations] or None,
        }


@dataclass(frozen=True, kw_only=True)
class VariableOptions:
    """Variables that are written into the manifest."""

    credentials: ClassVar[str] = SECRETS  # where they belong

    env: Mapping[str, str] = option("Variable, literally.", "NAME=VALUE", {})

    def check_variables(self, owned: Mapping[str, str]) -> None:
        """Check each variable; ``owned`` are those that something else sets, with what does."""
        for name, value in self.env.items():
            check_variable(name, owned, field="env")
            check_value(value, field=f"env {name}", hint=self.credentials)
            if name in _CREDENTIALS:
                raise OptionError(
                    f"env: {name} is a credential, which everyone who reads the manifest would see",
                    hint=self.credentials.replace("NAME", name),
                )


@dataclass(frozen=True, kw_only=True)
class EnvironmentOptions(VariableOptions):
    """Variables of containers, also from Secrets and ConfigMaps."""

    env_from_secret: Mapping[str, SecretRef] = option(
        "Variable from a Secret.", "NAME=SECRET:KEY", {}, parse=SecretRef.parse
    )
    env_from: tuple[VariableSource, ...] = option(
        "Secret or ConfigMap whose keys are all variables.", "secret/NAME|configmap/NAME", (),
        parse=VariableSource.parse,
    )  # fmt: skip

    def check_variables(self, owned: Mapping[str, str]) -> None:
        """See `VariableOptions`."""
        super().check_variables(owned)
        for name, ref in self.env_from_secret.items():
            check_variable(name, owned, field="env-from-secret")
            if name in self.env:
                raise OptionError(
                    f"env-from-secret: {name} is given twice", hint="leave one of them out"
                )
            OBJECT.check(ref.secret, field=f"env-from-secret {name}")
            SECRET_KEY.check(ref.key, field=f"env-from-secret {name}")
        for each in self.env_from:
            OBJECT.check(each.name, field=f"env-from {each.kind}")

    def variables(self, first: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Yield ``env`` of a container; ``first`` are variables before those of the user."""
        for name, value in {**first, **self.env}.items():
            # "$(NAME)" would refer to a variable.
            yield {"name": name, "value": value.replace("$", "$$")}
        for name, ref in self.env_from_secret.items():
            key = {"name": ref.secret, "key": ref.key}
            yield {"name": name, "valueFrom": {"secretKeyRef": key}}

    @property
    def sources(self) -> list[dict[str, Any]] | None:
        """``envFrom`` of a container."""
        return [each.to_dict() for each in self.env_from] or None


def check_variable(name: str, owned: Mapping[str, str], *, field: str) -> None:
    """Check the name of a variable."""
    VARIABLE.check(name, field=field)
    if name in owned:
        raise OptionError(f"{field}: {name} is set by {owned[name]}", hint="leave it out")
