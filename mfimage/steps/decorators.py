"""``@docker``: a step decorator that writes down where the step runs.

Metaflow imports this module with ``import metaflow``: only the standard library and Metaflow stand
at its top.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metaflow.decorators import StepDecorator
from metaflow.exception import MetaflowException
from metaflow.metadata_provider import MetaDatum

from mfimage.steps.command import Launch, prefix, run_folder

# A step with one of these runs there.
ELSEWHERE = ("kubernetes", "batch")
# Where a task finds what the launcher knows about it, for its metadata.
FIELDS = {
    "step.executor": "MFIMAGE_STEP_EXECUTOR",
    "step.image": "MFIMAGE_STEP_IMAGE",
    "step.worker": "MFIMAGE_STEP_WORKER",
    "step.pool": "MFIMAGE_STEP_POOL",
}


class StepError(MetaflowException):
    """A step cannot run where its decorator says."""

    headline = "Step cannot run there"

    def __init__(self, message: str) -> None:
        super().__init__(message)  # type: ignore[no-untyped-call]


class ContainerDecorator(StepDecorator):
    """Runs a step in a container: what such decorators have in common."""

    def step_init(  # noqa: PLR0917 - Metaflow's signature
        self,
        flow: Any,
        graph: Any,
        step_name: str,
        decorators: Sequence[StepDecorator],
        environment: Any,
        flow_datastore: Any,
        logger: Any,
    ) -> None:
        """Note what surrounds the step."""
        self.flow_name, self.step_name = flow.name, step_name
        self.decorators, self.environment = decorators, environment
        self.datastore = getattr(flow_datastore, "TYPE", None)
        names = {each.name for each in decorators}
        self.elsewhere = not names.isdisjoint(ELSEWHERE)
        self.pooled = "worker_pool" in names  # one container runs all items

    def runtime_init(self, flow: Any, graph: Any, package: Any, run_id: str) -> None:
        """Write the executor's options."""
        if not (self.elsewhere or self.pooled):
            launch = Launch(
                executor="docker",
                flow=self.flow_name,
                step=self.step_name,
                options=self.executor_options(),
            )
            self.launch_file = launch.write()

    def runtime_step_cli(
        self, cli_args: Any, retry_count: int, max_user_code_retries: int, ubf_context: Any
    ) -> None:
        """Put the launcher before the command line of an attempt."""
        # What follows the last retry is the fallback of @catch, which has to run in any case.
        if retry_count <= max_user_code_retries and not (self.elsewhere or self.pooled):
            cli_args.entrypoint = [*prefix(self.launch_file), *cli_args.entrypoint]

    def task_pre_step(  # noqa: PLR0917 - Metaflow's signature
        self,
        step_name: str,
        task_datastore: Any,
        metadata: Any,
        run_id: str,
        task_id: str,
        flow: Any,
        graph: Any,
        retry_count: int,
        max_user_code_retries: int,
        ubf_context: Any,
        inputs: Any,
    ) -> None:
        """Register where the task runs."""
        register_place(metadata, run_id, step_name, task_id, retry_count)

    executor_options: Callable[[], dict[str, Any]]  # keyword arguments of a `DockerExecutor`

    def docker_options(self, wanted: Mapping[str, Any], image: str) -> dict[str, Any]:
        """Return the executor's keyword arguments for attributes and an image."""
        where = f"@{self.name} of step {self.step_name}"
        resources = requested(self.decorators)
        # A flow may ask for more than this machine has; here it gets what there is.
        cores = min(resources.get("cpu", 0), os.cpu_count() or 1)
        memory = max(_number(wanted, "memory", where), resources.get("memory", 0))
        gpus = wanted["gpus"] or int(resources.get("gpu", 0)) or None
        return {
            "image": image,
            "network": wanted["network"],
            "memory": int(memory) or None,
            "shared_memory": int(resources.get("shared_memory", 0)) or None,
            "cpu": max(_number(wanted, "cpu", where), cores) or None,
            "gpus": None if gpus is None else str(gpus),
            "volumes": [volume(each, where) for each in wanted["volumes"] or ()],
            "user": None if wanted["user"] is None else str(wanted["user"]),
            "read_only": bool(wanted["read_only"]),
            "runtime": wanted["runtime"],
            **surroundings(self.decorators, sandbox=bool(wanted["sandbox"])),
            "sandbox": str(run_folder()) if self._strict(wanted, where) else None,
        }

    @staticmethod
    def _strict(wanted: Mapping[str, Any], where: str) -> bool:
        if wanted["sandbox"] not in (None, "strict"):
            raise StepError(f'{where}: sandbox={wanted["sandbox"]!r} is not "strict".')
        if not wanted["sandbox"]:
            return False
        if wanted["network"] not in (None, "none"):
            raise StepError(f'{where}: sandbox="strict" has no network; leave network= out.')
        for each in wanted["volumes"] or ():
            if not str(each).endswith(":ro"):
                raise StepError(
                    f'{where}: sandbox="strict" only reads volumes; write "{each}:ro", with the '
                    "folder inside between."
                )
        return True


class DockerDecorator(ContainerDecorator):
    """
    Run a step in a container on this machine.

    Parameters
    ----------
    image : str, optional
        The image to run in. It needs Python, and Metaflow. By default it is one of the step's own
        environment.
    network : str, optional
        As `docker run --network` has it: `host`, `none`, or the name of a network.
    memory : int, optional
        Memory limit in MB. `@resources(memory=)` counts if it is larger.
    cpu : float, optional
        How many cores the step may use. `@resources(cpu=)` counts if it is larger.
    gpus : str or int, optional
        `all`, or how many. `@resources(gpu=)` counts if there is none.
    volumes : List[str], optional
        Folders to mount beside the flow's own: `/data`, `/data:/inside` or `/data:/inside:ro`.
    user : str, optional
        `uid[:gid]` to run as; the caller by default.
    read_only : bool, default False
        Make the image's files read-only; `/tmp` is then in memory.
    runtime : str, optional
        One of the engine's runtimes, such as `runsc`.
    sandbox : str, optional
        `strict`, for code that is not trusted: no network, no privileges, no credentials, files
        read-only, and results that are checked before they are kept (docs/sandboxing.md).
    """

    name = "docker"
    defaults = {  # noqa: RUF012 - as Metaflow declares it
        "image": None,
        "network": None,
        "memory": None,
        "cpu": None,
        "gpus": None,
        "volumes": None,
        "user": None,
        "read_only": False,
        "runtime": None,
        "sandbox": None,
    }

    def runtime_init(self, flow: Any, graph: Any, package: Any, run_id: str) -> None:
        """Find or build the images of all steps that name none; write the executor's options."""
        if not (self.elsewhere or self.attributes["image"]):
            set_images(
                flow, environment=self.environment.TYPE, datastore=self.datastore, only=self.name
            )
        super().runtime_init(flow, graph, package, run_id)

    def executor_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `mfimage.steps.docker.DockerExecutor`."""
        return self.docker_options(self.attributes, str(self.attributes["image"]))


class DevContainerDecorator(ContainerDecorator):
    """
    Run a step in a container as a devcontainer.json describes it.

    Parameters
    ----------
    config : str, optional
        The file; `.devcontainer/devcontainer.json` or what else is found by default.
    memory : int, optional
        Memory limit in MB. `@resources(memory=)` counts if it is larger.
    cpu : float, optional
        How many cores the step may use. `@resources(cpu=)` counts if it is larger.
    """

    name = "devcontainer"
    defaults = {  # noqa: RUF012 - as Metaflow declares it
        "config": None,
        "memory": None,
        "cpu": None,
    }

    def step_init(  # noqa: PLR0917 - Metaflow's signature
        self,
        flow: Any,
        graph: Any,
        step_name: str,
        decorators: Sequence[StepDecorator],
        environment: Any,
        flow_datastore: Any,
        logger: Any,
    ) -> None:
        """Note what surrounds the step."""
        super().step_init(flow, graph, step_name, decorators, environment, flow_datastore, logger)
        for other in ("docker", "worker_pool"):
            if any(each.name == other for each in decorators):
                raise StepError(
                    f"step {step_name}: @devcontainer and @{other} both say where it runs. "
                    "Remove one."
                )

    def executor_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `mfimage.steps.docker.DockerExecutor`."""
        from mfimage.errors import MfimageError
        from mfimage.steps.devcontainer import build_image, find, read

        try:
            container = read(find(Path.cwd(), self.attributes["config"]), os.environ)
            image = build_image(container)
        except MfimageError as error:
            hint = f"\n{error.hint}" if error.hint else ""
            where = f"@devcontainer of step {self.step_name}"
            raise StepError(f"{where}: {error.message}{hint}") from None
        options = self.docker_options({**DockerDecorator.defaults, **self.attributes}, image)
        options["mounts"].append({"source": str(container.workspace), "target": container.inside})
        return {
            **options,
            "user": container.user,
            "arguments": [
                *(part for each in container.mounts for part in ("--mount", each)),
                *container.run_args,
            ],
            "container_env": container.container_env,
            "remote_env": container.remote_env,
            "before": [[container.inside, each] for each in container.commands],
        }


def register_place(
    metadata: Any, run_id: str, step_name: str, task_id: str, retry_count: int
) -> None:
    """Register what a task's environment says about where it runs."""
    tags = [f"attempt_id:{retry_count}"]
    found = [
        MetaDatum(field=field, value=os.environ[name], type=field, tags=tags)
        for field, name in FIELDS.items()
        if name in os.environ
    ]
    if found:
        metadata.register_metadata(run_id, step_name, task_id, found)


def requested(decorators: Sequence[StepDecorator]) -> dict[str, float]:
    """Return what ``@resources`` asks for, without what it would ask for by default."""
    return {
        key: float(value)
        for each in decorators
        if each.name == "resources"
        for key, value in each.attributes.items()
        if key in each._user_defined_attributes and value is not None
    }


def volume(text: str, where: str) -> str:
    """Return what ``docker run --volume`` takes for an item of ``volumes``."""
    source, *rest = str(text).split(":")
    if not rest:
        rest = [source]
    if source.startswith((".", "~", "/")):
        source = str(Path(source).expanduser().absolute())
        if not Path(source).exists():
            raise StepError(f"{where}: volumes: the folder {source} does not exist.")
    if not rest[0].startswith("/"):
        rest[0] = str(Path(rest[0]).expanduser().absolute())
    return ":".join([source, *rest])


def surroundings(decorators: Sequence[StepDecorator], *, sandbox: bool = False) -> dict[str, Any]:
    """Return the options by which a container sees what a local step sees.

    A sandbox sees the code alone.
    """
    import mfimage
    from mfimage.steps.docker import EXTENSION

    package = Path(mfimage.__file__).parent
    registration = package.parent / "metaflow_extensions" / "mfimage"
    mounts = [
        {"source": str(source), "target": f"{EXTENSION}/{target}", "read_only": True}
        for source, target in (
            (package, "mfimage"),
            (registration, "metaflow_extensions/mfimage"),
        )
    ]
    variables = {"METAFLOW_USER": user_name()}
    for name, default in DEFAULT_FILES.items():
        path = Path(default).expanduser()
        if name not in os.environ and path.exists() and not sandbox:
            variables[name] = str(path)
            mounts.append({"source": str(path), "read_only": True})
    folders = code_folders()
    mounts += [{"source": each, "read_only": True} for each in folders]
    # Metadata may be local where the datastore is not.
    if not sandbox and (metadata := metadata_folder()):
        mounts.append({"source": metadata})
    names = [
        str(name)
        for each in decorators
        if each.name == "environment"
        for name in each.attributes["vars"] or ()
    ]
    return {"mounts": mounts, "names": names, "variables": variables, "path": folders}


# What libraries read where no variable names another file.
DEFAULT_FILES: Mapping[str, str] = {
    "METAFLOW_HOME": "~/.metaflowconfig",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CONFIG_FILE": "~/.aws/config",
    "GOOGLE_APPLICATION_CREDENTIALS": "~/.config/gcloud/application_default_credentials.json",
}


def user_name() -> str:
    """Return the user in whose name the flow runs."""
    from metaflow.util import get_username

    return str(get_username())


def metadata_folder() -> str | None:
    """Return the folder of the local datastore and of local metadata."""
    from metaflow.plugins.datastores.local_storage import LocalStorage

    found = LocalStorage.get_datastore_root_from_config(lambda _: None, create_on_absent=False)
    return None if found is None else str(Path(found).absolute())


def code_folders() -> list[str]:
    """Return the folders of ``sys.path`` with the user's own code, not an installation's."""
    import mfimage

    installed = {*sysconfig.get_paths().values(), *site.getsitepackages()}
    installed |= {site.getusersitepackages(), str(Path(mfimage.__file__).parents[1])}
    return [
        str(folder)
        for folder in map(Path, dict.fromkeys(sys.path))
        if folder.is_absolute()
        and folder.is_dir()
        and not any(folder.is_relative_to(each) for each in installed)
        and not any(folder.glob("*.dist-info"))
    ]


def _number(attributes: Mapping[str, Any], name: str, where: str) -> float:
    value = attributes[name]
    try:
        number = float(value or 0)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise StepError(f"{where}: {name}={value!r} is not a positive number.")
    return number


def set_images(flow: Any, **given: Any) -> dict[str, str]:
    """Give an image to each step that runs in one; see `mfimage.steps.images.set_images`."""
    with explained():
        from mfimage.steps.images import set_images as set_them

        return set_them(flow, **given)


class explained:
    """Raises mfimage's errors as Metaflow's, which it prints without a traceback."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        from mfimage.errors import MfimageError

        if isinstance(error, MfimageError):
            hint = f"\n{error.hint}" if error.hint else ""
            raise StepError(f"{error.message}{hint}") from None
