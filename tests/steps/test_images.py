"""Images of steps: built once, set on what executes the steps, and run, by real flows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.steps.running import Flows, metadata_of
from tests.support.docker import Unavailable, ensure_base_image, registry
from tests.support.s3 import Bucket

pytestmark = [pytest.mark.docker, pytest.mark.index, pytest.mark.slow]
BAKERY = "--environment=fast-bakery"
HEAD = "from metaflow import FlowSpec, step, pypi, conda, docker, pypi_base, kubernetes\n"
MFIMAGE = str(Path(sys.executable).with_name("mfimage"))
ASK = "import importlib.metadata as m; self.v = m.version('six'); print('six', self.v)"
BUILT = re.compile(r": built (\S+)")
IMAGE = re.compile(r"step (\w+): image (\S+)")


def source(start: str = "", middle: str = "", end: str = "", *, body: str = ASK) -> str:
    """A flow of three steps; `middle` is the one that asks for its version of six."""
    return f"""{HEAD}
class F(FlowSpec):
    {start}
    @step
    def start(self):
        self.next(self.middle)

    {middle}
    @step
    def middle(self):
        {body}
        self.next(self.end)

    {end}
    @step
    def end(self):
        pass

if __name__ == "__main__":
    F()
"""


@pytest.fixture(scope="module")
def base() -> str:
    try:
        ensure_base_image("3.11")
    except Unavailable as reason:
        pytest.skip(str(reason))
    return "3.11"


@pytest.fixture
def here(tmp_path: Path, base: str, caches: Path) -> Iterator[Flows]:
    """A folder for a flow; its images leave the engine with the test."""
    made: set[str] = set()
    flows = Recorded(folder=tmp_path / "flows", env={"MFIMAGE_CACHE": str(caches / "steps")})
    flows.folder.mkdir()
    yield flows
    made |= set(flows.images)
    if made:
        subprocess.run(["docker", "rmi", "--force", *made], capture_output=True, check=False)


class Recorded(Flows):
    """Flows that note which images their runs named."""

    @property
    def images(self) -> list[str]:
        file = self.folder / "images.txt"
        return file.read_text().split() if file.exists() else []

    def run(self, *arguments: str, fails: bool = False, **env: str) -> str:
        printed = super().run(*arguments, fails=fails, **env)
        found = [name for _, name in IMAGE.findall(printed)]
        (self.folder / "images.txt").write_text("\n".join([*self.images, *found]))
        return printed

    def mfimage(self, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [MFIMAGE, *arguments], cwd=self.folder, env=self.environ, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert bool(done.returncode) is fails, done.stderr
        return done


def images(printed: str) -> dict[str, str]:
    return dict(IMAGE.findall(printed))


def test_pypi_as_an_image_built_once(here: Flows) -> None:
    """`@docker` runs the step in it; a second run builds nothing; the task leads to the image."""
    assert isinstance(here, Recorded)
    pypi = "@pypi(python='3.11', packages={'six': '1.16.0'})"
    here.write(source(middle=f"@docker\n    {pypi}"))
    first = here.run("--no-pylint", BAKERY, "run")
    name = images(first)["middle"]
    assert BUILT.findall(first) == [name]
    assert re.fullmatch(r"mfimage-step:fn-[0-9a-f]{40}", name)
    (task,) = here.tasks("middle")
    assert task["v"].data == "1.16.0"
    assert "six 1.16.0" in task.stdout
    assert metadata_of(task)["step.image"] == name
    assert "step.image" not in metadata_of(here.tasks("start")[0])
    again = here.run("--no-pylint", BAKERY, "run")
    assert images(again) == {"middle": name}
    assert not BUILT.findall(again)
    shown = json.loads(here.mfimage("inspect", task.pathspec, "--json").stdout)
    assert (shown["task"], shown["tags"]) == (task.pathspec, [name])
    assert shown["environment.source"] == "pypi"
    start = here.mfimage("inspect", here.tasks("start")[0].pathspec, fails=True)
    assert "records no image" in start.stderr
    rebuilt = here.run("--no-pylint", "--force-rebuild-environments", BAKERY, "run")
    assert BUILT.findall(rebuilt) == [name]


def test_steps_of_equal_environments_share_an_image(here: Flows) -> None:
    """They are built side by side, each line says for which step, and what runs is `@docker`."""
    pypi = "@pypi(python='3.11', packages={'six': '1.16.0'})"
    here.write(source(pypi, "@conda(packages={'six': '1.13.0'})", pypi))
    printed = here.run("--no-pylint", BAKERY, "run")
    found = images(printed)
    assert found["start"] == found["end"] != found["middle"]
    assert sorted(BUILT.findall(printed)) == sorted({*found.values()})
    assert {f"{step}: dependencies" in printed for step in ("start", "middle")} == {True}, printed
    assert here.tasks("middle")[0]["v"].data == "1.13.0"
    assert metadata_of(here.tasks("middle")[0])["step.executor"] == "docker"


def test_a_bare_docker_runs_in_what_the_flow_imports(here: Flows) -> None:
    here.write(source(middle="@docker", body="import six; self.v = six.__version__"))
    printed = here.run("--no-pylint", "run")
    assert set(images(printed)) == {"middle"}
    import six

    assert here.tasks("middle")[0]["v"].data == six.__version__
    assert not BUILT.findall(here.run("--no-pylint", "run"))


def test_a_bare_docker_runs_in_uv_lock(here: Flows) -> None:
    (here.folder / "pyproject.toml").write_text(
        '[project]\nname = "p"\nversion = "1"\nrequires-python = "==3.11.*"\n'
        'dependencies = ["six==1.12.0", "metaflow"]\n'
    )
    subprocess.run([sys.executable, "-m", "uv", "lock", "--quiet"], cwd=here.folder, check=True)
    here.write(source(middle="@docker"))
    here.run("--no-pylint", "run")
    assert here.tasks("middle")[0]["v"].data == "1.12.0"


def test_what_cannot_be_built_ends_the_run_before_it_starts(here: Flows) -> None:
    here.write(source(middle="@conda(packages={'cudatoolkit': '11.8'})"))
    printed = here.run("--no-pylint", BAKERY, "run", fails=True)
    assert "@conda of step middle: cudatoolkit 11.8 is a conda package without a wheel" in printed
    assert "leave it out" in printed
    assert "Traceback" not in printed
    assert "Workflow starting" not in printed


def test_nothing_is_built_for_a_named_image_and_a_disabled_pypi(
    here: Flows, step_image: str
) -> None:
    """The latter runs as without it."""
    disabled = "@pypi(disabled=True, packages={'six': '1.11.0'})"
    here.write(source(disabled, f"@docker(image={step_image!r})", body="self.v = 1"))
    printed = here.run("--no-pylint", BAKERY, "run")
    assert images(printed) == {}
    assert metadata_of(here.tasks("middle")[0])["step.image"] == step_image
    assert "step.executor" not in metadata_of(here.tasks("start")[0])


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        with registry("plain", directory=tmp_path_factory.mktemp("registry")) as found:
            yield f"{found.address}/team/steps"
    except Unavailable as reason:
        pytest.skip(str(reason))


def cluster(bucket: Bucket, remote: str) -> dict[str, str]:
    return {
        **bucket.env,
        "AWS_ENDPOINT_URL": bucket.server.url,
        "METAFLOW_DATASTORE_SYSROOT_S3": f"{bucket.url}/flows",
        "MFIMAGE_STEP_REGISTRY": remote,
    }


def document(printed: str) -> dict[str, Any]:
    return dict(json.loads(printed[printed.index("\n{") :]))


def test_argo_runs_each_step_in_its_image(here: Flows, bucket: Bucket, remote: str) -> None:
    """The manifest names images by digest; its commands run in them, as any user."""
    pytest.importorskip("kubernetes")
    flow = source("@pypi(python='3.11', packages={'six': '1.16.0'})", body="pass")
    here.write(flow.replace("self.next(self.middle)", f"{ASK}\n        self.next(self.middle)"))
    env = cluster(bucket, remote)
    create = (
        "--no-pylint", BAKERY, "--datastore=s3", "argo-workflows", "create", "--only-json"
    )  # fmt: skip
    printed = here.run(*create, **env)
    templates = {
        each["name"]: each["container"]
        for each in document(printed)["spec"]["templates"]
        if "container" in each
    }
    assert set(images(printed)) == {"start", "middle", "end"}
    for step, image in images(printed).items():
        assert image.startswith(f"{remote}@sha256:")
        assert templates[step]["image"] == image
    assert templates["middle"]["image"] == templates["end"]["image"]
    assert templates["start"]["image"] != templates["middle"]["image"]
    # Another machine, with no cache and nothing in its engine, finds them.
    again = here.run(*create, **env, MFIMAGE_CACHE=str(here.folder / "empty"))
    assert images(again) == images(printed)
    assert not BUILT.findall(again)
    assert "six 1.16.0" in run_container(templates["start"], env)
    assert re.search(r"flows/F/argo-w/start/t-\w+/0\.DONE", "\n".join(bucket.objects()))


def run_container(container: Mapping[str, Any], env: Mapping[str, str]) -> str:
    """Run a container of an Argo template, on this machine's engine; return its log."""
    values = {
        "{{workflow.name}}": "w",
        "{{workflow.creationTimestamp}}": "2026",
    }

    def filled(text: str) -> str:
        for name, value in values.items():
            text = text.replace(name, value)
        return text

    variables = {each["name"]: each["value"] for each in container["env"] if each.get("value")}
    names = ("POD_NAME", "POD_NAMESPACE", "POD_ID", "SERVICE_ACCOUNT_NAME", "NODE_IP")
    variables |= {f"METAFLOW_KUBERNETES_{name}": "x" for name in names}
    variables |= {name: env[name] for name in env if name.startswith("AWS_")}
    command = ["docker", "run", "--rm", "--network=host", "--user=4321:4321"]
    command += ["--tmpfs=/mnt/out:mode=1777"]
    for name, value in variables.items():
        command += ["--env", f"{name}={filled(value)}"]
    entry, *arguments = container["command"]
    done = subprocess.run(
        [*command, f"--entrypoint={entry}", container["image"], *map(filled, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def batch_queue(bucket: Bucket) -> str:
    """Make a queue of the bucket's name for AWS Batch; return a role."""
    iam, batch, ec2 = (bucket.server.client(each) for each in ("iam", "batch", "ec2"))
    name = bucket.name
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    profile = iam.create_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Arn"]
    resources = {
        "type": "EC2",
        "minvCpus": 0,
        "maxvCpus": 1,
        "instanceTypes": ["m5.large"],
        "instanceRole": profile,
        "subnets": [ec2.describe_subnets()["Subnets"][0]["SubnetId"]],
        "securityGroupIds": [ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]],
    }
    made = batch.create_compute_environment(
        computeEnvironmentName=name, type="MANAGED", state="ENABLED", serviceRole=role,
        computeResources=resources,
    )  # fmt: skip
    order = [{"order": 1, "computeEnvironment": made["computeEnvironmentArn"]}]
    batch.create_job_queue(
        jobQueueName=name, state="ENABLED", priority=1, computeEnvironmentOrder=order
    )
    return str(role)


def test_step_functions_get_images_by_digest(here: Flows, bucket: Bucket, remote: str) -> None:
    here.write(source(middle="@pypi(python='3.11', packages={'six': '1.16.0'})"))
    batch = bucket.server.client("batch")
    role = batch_queue(bucket)
    env = {
        **cluster(bucket, remote),
        "METAFLOW_SFN_IAM_ROLE": role,
        "METAFLOW_EVENTS_SFN_ACCESS_IAM_ROLE": role,
        "METAFLOW_ECS_S3_ACCESS_IAM_ROLE": role,
        "METAFLOW_BATCH_JOB_QUEUE": bucket.name,
    }
    printed = here.run(
        "--no-pylint", BAKERY, "--datastore=s3", "step-functions", "create", "--only-json", **env
    )
    found = images(printed)
    assert set(found) == {"start", "middle", "end"}
    definitions = batch.describe_job_definitions()["jobDefinitions"]
    used = {each["containerProperties"]["image"] for each in definitions}
    assert used == set(found.values())
    assert all(image.startswith(f"{remote}@sha256:") for image in used)


def test_a_cluster_needs_a_registry(here: Flows, bucket: Bucket, remote: str) -> None:
    pytest.importorskip("kubernetes")
    here.write(source())
    env = cluster(bucket, remote)
    del env["MFIMAGE_STEP_REGISTRY"]
    command = ("--no-pylint", BAKERY, "--datastore=s3", "run", "--with", "kubernetes")
    printed = here.run(*command, fails=True, **env)
    assert "@kubernetes pulls images, and there is no registry for them" in printed
    assert "MFIMAGE_STEP_REGISTRY" in printed


def test_docker_with_a_registry_and_the_datastore_in_s3(
    here: Flows, bucket: Bucket, remote: str
) -> None:
    """The engine has the image under the registry's name, and the registry for others."""
    here.write(
        source(
            middle="@docker(network='host')\n    @pypi(python='3.11', packages={'six': '1.16.0'})"
        )
    )
    env = cluster(bucket, remote)
    printed = here.run("--no-pylint", BAKERY, "--datastore=s3", "run", **env)
    name = images(printed)["middle"]
    assert name.startswith(f"{remote}:fn-")
    assert any("/middle/" in key for key in bucket.objects())
    subprocess.run(["docker", "rmi", name], check=True, capture_output=True)
    again = here.run("--no-pylint", BAKERY, "--datastore=s3", "run", **env)
    assert not BUILT.findall(again)
    assert images(again) == images(printed)


def test_a_build_of_a_step(here: Flows) -> None:
    """It has the code; it is tested, compared and verified like an image of a function."""
    assert isinstance(here, Recorded)
    here.write(source(middle="@pypi(python='3.11', packages={'six': '1.16.0'})"))
    step, layout = ("flow.py:middle", "--target", "step"), f"oci:{here.folder / 'out'}"
    plan = here.mfimage("plan", *step).stdout
    assert "middle for step" in plan
    built = here.mfimage("build", *step, "--output", layout, "-t", "team/middle:1", "--json")
    report = json.loads(built.stdout)
    assert (report["target"], report["step"]["name"]) == ("step", "middle")
    verified = here.mfimage("verify", layout, "--reference", "flow.py:middle")
    assert "the same" in verified.stderr
    here.mfimage("build", *step, "--test", "-t", "mfimage-test-team/middle:1")
    (here.folder / "images.txt").write_text("mfimage-test-team/middle:1")
    same = here.mfimage("diff", layout, "mfimage-test-team/middle:1", "--exit-code")
    assert "no differences" in same.stdout
    code = ["docker", "run", "--rm", "mfimage-test-team/middle:1"]
    listed = subprocess.run(
        [*code, "bash", "-c", "pwd; touch here; ls /opt/function/code; python -c 'import six'"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert listed.split() == ["/metaflow", "flow.py"]
    here.write(source(middle="@pypi(python='3.11', packages={'six': '1.15.0'})"))
    other = here.mfimage("verify", layout, "--reference", "flow.py:middle", fails=True)
    assert "holds the step sha256:" in other.stderr
    assert "name the file and step that it was built from" in other.stderr
    task = here.mfimage("build", *step, "--task", "F", fails=True)
    assert "a step is built from its file" in task.stderr
