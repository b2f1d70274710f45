"""Manifests of servers, as those read them who run them. ``MFIMAGE_WRITE_GOLDEN=1`` writes them."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mfimage.cli import main
from mfimage.errors import OptionError
from mfimage.image.find.info import ImageInfo
from mfimage.manifests import KINDS, compose, deployment, knative, kserve
from mfimage.manifests.compose import ComposeOptions
from mfimage.manifests.deployment import DeploymentOptions
from mfimage.manifests.image import StatedPulled, read_local_image, read_server_image
from mfimage.manifests.kind import find_kind, kinds_with
from mfimage.manifests.knative import KnativeOptions
from mfimage.manifests.kserve import KServeOptions
from mfimage.manifests.measured import Measured
from mfimage.manifests.server import ALIVE, MARGIN, METRICS, READY
from mfimage.runtime.serving.http import supervisor
from mfimage.runtime.settings import Settings
from tests.manifests.kuberay.test_image import DIGEST, LABELS, OneImage
from tests.manifests.servers import FULL, IMAGE, MANIFESTS, documents
from tests.support.kubernetes import definitions, validate, validate_pod

GOLDEN = Path(__file__).parents[1] / "golden" / "manifests"
CLUSTER = [name for name in MANIFESTS if not name.startswith("compose")]
# What Knative takes of a pod's spec and a container unless a cluster enables more: PodSpecMask and
# ContainerMask of knative.dev/serving/pkg/apis/serving, its main branch of August 2026.
KNATIVE_POD = {
    "automountServiceAccountToken", "containers", "enableServiceLinks", "imagePullSecrets",
    "serviceAccountName", "volumes",
}  # fmt: skip
KNATIVE_CONTAINER = {
    "args", "command", "env", "envFrom", "image", "imagePullPolicy", "livenessProbe", "name",
    "ports", "readinessProbe", "resources", "securityContext", "startupProbe", "volumeMounts",
    "terminationMessagePath", "terminationMessagePolicy", "workingDir",
}  # fmt: skip
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
KNATIVE_REVISION = {"containerConcurrency", "timeoutSeconds"}
KSERVE_PREDICTOR = {
    "containerConcurrency", "maxReplicas", "minReplicas", "scaleMetric", "scaleTarget", "timeout",
}  # fmt: skip


def pod_of(name: str) -> dict[str, Any]:
    """Return the part of a manifest that is a pod's spec, with or without what is beside it."""
    workload = next(iter(documents(name).values()))  # the first object
    spec: dict[str, Any] = workload["spec"]
    return spec["predictor"] if "predictor" in spec else spec["template"]["spec"]


for_each = pytest.mark.parametrize("name", MANIFESTS)
for_clusters = pytest.mark.parametrize("name", CLUSTER)


@for_each
def test_golden(name):
    text = MANIFESTS[name]()
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("MFIMAGE_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", [name for name in CLUSTER if name.startswith("deployment")])
def test_kubernetes_takes_each_object(name):
    found = documents(name)
    for kind, document in found.items():
        if kind != "ServiceMonitor":
            validate(document)
    names = {
        (each["metadata"]["name"], each["metadata"].get("namespace")) for each in found.values()
    }
    assert len(names) == 1
    selected = found["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert found["Service"]["spec"]["selector"].items() <= selected
    assert found["Deployment"]["spec"]["selector"]["matchLabels"].items() <= selected


@for_clusters
def test_pods_are_pods_of_kubernetes_and_unprivileged(name):
    pod = copy.deepcopy(pod_of(name))
    for field in KNATIVE_REVISION | KSERVE_PREDICTOR:
        pod.pop(field, None)
    (container,) = pod["containers"]
    validate_pod(pod)
    security = {**pod.get("securityContext", {}), **container["securityContext"]}
    user = {} if "full" in name or name == "kserve-knative" else {"runAsUser": 1000}
    assert security == {
        "runAsNonRoot": True,
        **user,
        "seccompProfile": {"type": "RuntimeDefault"},
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    assert pod["volumes"] == [{"name": "tmp", "emptyDir": {}}]
    assert "@sha256:" in container["image"]


@pytest.mark.parametrize("name", ["knative", "knative-full", "kserve-knative"])
def test_knative_takes_the_pods(name):
    pod = pod_of(name)
    assert pod.keys() <= KNATIVE_POD | KNATIVE_REVISION | KSERVE_PREDICTOR
    (container,) = pod["containers"]
    assert container.keys() <= KNATIVE_CONTAINER
    assert [port["name"] for port in container["ports"]] == ["http1"]
    # Knative calls the port user-port in the pod, but not in the startup probe.
    ports = {container[probe]["httpGet"]["port"] for probe in PROBES}
    assert ports == {container["ports"][0]["containerPort"]}
    assert not {"PORT", "K_SERVICE"} & {each["name"] for each in container.get("env", ())}
    # A pod has as long to stop as a request may take.
    grace = Settings.grace if name == "knative" else 90
    assert pod.get("timeoutSeconds", pod.get("timeout")) >= grace + MARGIN


@pytest.mark.parametrize("name", [name for name in CLUSTER if not name.startswith("deployment")])
def test_the_definitions_of_knative_and_kserve_take_them(name):
    if not definitions():
        pytest.skip("no definitions of resources; MFIMAGE_CRDS names a folder with them")
    (document,) = documents(name).values()
    validator = definitions()[document["apiVersion"], document["kind"]]
    assert [error.message for error in validator.iter_errors(document)] == []
    document["spec"]["unknown"] = 1
    assert not validator.is_valid(document)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_patches_them(tmp_path):
    """By the names of objects and containers, which do not depend on the image."""
    (tmp_path / "base.yaml").write_text(MANIFESTS["deployment-full"]())
    patch = {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "iris", "namespace": "models"},
        "spec": {"template": {"spec": {"containers": [
            {"name": "server", "env": [{"name": "NUMBER", "value": "11"}]},
        ]}}},
    }  # fmt: skip
    image = {"name": "registry.example.com/team/iris", "newTag": "2"}
    kustomization = {
        "resources": ["base.yaml"], "patches": [{"patch": yaml.safe_dump(patch)}],
        "images": [image], "nameSuffix": "-blue",
    }  # fmt: skip
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    assert found.keys() == documents("deployment-full").keys()
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"].endswith("iris:2")
    before = documents("deployment-full")["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    env = {each["name"]: each.get("value") for each in container["env"]}
    assert env == {**{e["name"]: e.get("value") for e in before["env"]}, "NUMBER": "11"}
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
    assert target == found["Deployment"]["metadata"]["name"] == "iris-blue"


# Numbers


@pytest.mark.parametrize(
    ("env", "wait"),
    [({}, 4), ({"MFIMAGE_DRAIN": "10"}, 0), ({"MFIMAGE_DRAIN": "10", "MFIMAGE_GRACE": "2"}, 3),
     ({"MFIMAGE_DRAIN": "0", "MFIMAGE_GRACE": "119.5"}, 5)],
)  # fmt: skip
def test_a_pod_has_the_time_that_its_server_needs_to_stop(env, wait):
    """Of the image's variables or the user's; load balancers have 5 s before the port closes."""
    settings = Settings.from_environ(env)
    options = DeploymentOptions(env={k: v for k, v in env.items() if k == "MFIMAGE_DRAIN"})
    image = {k: v for k, v in env.items() if k == "MFIMAGE_GRACE"}
    text = deployment.write(_with(image), options)
    pod = next(yaml.safe_load_all(text))["spec"]["template"]["spec"]
    hook = pod["containers"][0].get("lifecycle")
    assert hook == ({"preStop": {"sleep": {"seconds": wait}}} if wait else None)
    assert wait + min(settings.drain, settings.grace) >= 5
    left = pod["terminationGracePeriodSeconds"] - wait
    assert settings.grace + supervisor._SLACK < left <= settings.grace + 6
    made = yaml.safe_load(compose.write(_with(env), ComposeOptions()))
    assert made["services"]["predict-iris"]["stop_grace_period"] == f"{left}s"


def _with(env):
    return dataclasses.replace(IMAGE, env=env)


def test_what_was_measured_becomes_the_request_and_the_probe(tmp_path):
    report = tmp_path / "measured.json"
    measured = {"start_seconds": 42.0, "memory_bytes": 100 << 20}
    report.write_text(json.dumps({"status": "passed", "measured": measured}))
    options = DeploymentOptions(measured=Measured.read(str(report)))
    pod = next(yaml.safe_load_all(deployment.write(IMAGE, options)))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 420
    # The limit has room for the bodies that the server may hold at once.
    room = Settings().max_held >> 20
    assert container["resources"] == {
        "requests": {"cpu": "1", "memory": "125Mi"},
        "limits": {"memory": f"{125 + room}Mi"},
    }
    # In the test there was one process.
    workers = DeploymentOptions(env={"MFIMAGE_WORKERS": "3"}, measured=options.measured)
    pod = next(yaml.safe_load_all(deployment.write(IMAGE, workers)))["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "3", "memory": "375Mi"},
        "limits": {"memory": f"{375 + 3 * room}Mi"},
    }


def test_lineage_is_in_labels_where_it_fits():
    metadata = documents("deployment")["Deployment"]["metadata"]
    assert metadata["annotations"] == {
        "io.mfimage/function.digest": "sha256:" + "cd" * 32,
        "io.mfimage/task": "IrisFlow/12/train/3",
    }
    labels = {k: v for k, v in metadata["labels"].items() if k.startswith("io.mfimage/")}
    assert labels == {
        "io.mfimage/function.name": "predict_iris", "io.mfimage/version": "0.1.0",
        "io.mfimage/flow": "IrisFlow", "io.mfimage/run": "12", "io.mfimage/step": "train",
    }  # fmt: skip


def test_compose_replaces_nothing_in_variables():
    service = documents("compose-full")["compose"]["services"]["iris"]
    greeting = service["environment"]["GREETING"]
    assert greeting.replace("$$", "$") == FULL.env["GREETING"]
    assert greeting.count("$") == 2


# What is refused

DEPLOYMENT = [
    ({"namespace": "a_b"}, "namespace: 'a_b'"),
    ({"labels": {"a b": "c"}}, "label: 'a b'"),
    ({"labels": {"a": "c d"}}, "label a: 'c d'"),
    ({"labels": {"app.kubernetes.io/name": "c"}}, "label: app.kubernetes.io/name is reserved"),
    ({"service_account": "A"}, "service-account: 'A'"),
    ({"image_pull_secrets": ("a_b",)}, "image-pull-secret: 'a_b'"),
    ({"image_pull_policy": "Sometimes"}, "image-pull-policy: 'Sometimes'"),
    ({"run_as_user": 0}, "run-as-user: 0"),
    ({"env": {"1A": "x"}}, "env: '1A'"),
    ({"env": {"PATH": "x"}}, "env: PATH is set by the image"),
    ({"env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "env: AWS_SECRET_ACCESS_KEY is a credential"),
    ({"env": {"A": "http://u:p@h"}}, "env A: a URL has a password"),
    ({"cpu": "two"}, "cpu: 'two'"),
    ({"memory": "8GB"}, "memory: '8GB'"),
    ({"gpus": -1}, "gpus: -1"),
    ({"gpu_resource": "a/b/c"}, "gpu-resource: 'a/b/c'"),
    ({"node_selector": {"a": "x y"}}, "node-selector a: 'x y'"),
    ({"replicas": -1}, "replicas: -1"),
    ({"max_replicas": 0}, "max-replicas: 0"),
    ({"min_replicas": 2}, "min-replicas: 2 has no effect"),
    ({"target_cpu": 50}, "target-cpu: 50 has no effect"),
    ({"target_cpu": 0, "max_replicas": 2}, "target-cpu: 0"),
    ({"replicas": 2, "max_replicas": 3}, "replicas: 2 would be set again"),
    ({"min_replicas": 4, "max_replicas": 3}, "min-replicas: 4 is more than max-replicas 3"),
    ({"allow_from": ("A",)}, "allow-from: 'A'"),
]
KNATIVE = [
    ({"env": {"PORT": "80"}}, "env: PORT is set by Knative"),
    ({"min_replicas": -1}, "min-replicas: -1"),
    ({"min_replicas": 4, "max_replicas": 3}, "min-replicas: 4 is more than max-replicas 3"),
    ({"concurrency": 0}, "concurrency: 0"),
    ({"target_concurrency": 0}, "target-concurrency: 0"),
]
KSERVE = [
    ({"env": {"PROTOCOL": "v1"}}, "env: PROTOCOL is set by KServe"),
    ({"min_replicas": 0}, "min-replicas: 0"),
    ({"concurrency": 1}, "concurrency: it has no effect with --mode standard"),
    ({"target_cpu": 1, "mode": "knative"}, "target-cpu: it has no effect with --mode knative"),
    ({"node_selector": {"a": "b"}, "mode": "knative"}, "node-selector: it has no effect"),
    ({"env": {"PORT": "80"}, "mode": "knative"}, "env: PORT is set by Knative"),
]
COMPOSE = [
    ({"publish": "80:80x"}, "publish: '80:80x'"),
    ({"publish": "99999"}, "publish: '99999'"),
    ({"env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "env: AWS_SECRET_ACCESS_KEY is a credential"),
    ({"cpu": "0"}, "cpu: '0'"),
]
REFUSED = [
    (kind, given, said)
    for kind, table in (
        (DeploymentOptions, DEPLOYMENT), (KnativeOptions, KNATIVE), (KServeOptions, KSERVE),
        (ComposeOptions, COMPOSE),
    )
    for given, said in table
]  # fmt: skip


@pytest.mark.parametrize(("kind", "given", "said"), REFUSED)
def test_an_option_is_refused_by_name_and_value(kind, given, said):
    with pytest.raises(OptionError) as raised:
        kind(**given)
    assert raised.value.message.startswith(said)
    assert raised.value.hint
    assert ("--env-file" in raised.value.hint) == ("credential" in said and kind is ComposeOptions)


@pytest.mark.parametrize(
    ("write", "options", "said"),
    [
        (deployment.write, DeploymentOptions(name="A"), "name: 'A'"),
        (
            deployment.write,
            DeploymentOptions(env={"MFIMAGE_GRACE": "x"}),
            "MFIMAGE_GRACE: expected",
        ),
        (kserve.write, KServeOptions(name="a" * 54), "name: 'aaa"),
        (compose.write, ComposeOptions(env={"PORT": "x"}), "PORT: expected"),
        (compose.write, ComposeOptions(name="-"), "name: '-'"),
        (knative.write, KnativeOptions(), "env PORT: 8012 is a port of Knative's own"),
    ],
)
def test_what_the_image_cannot_do_is_refused(write, options, said):
    image = _with({"PORT": "8012"}) if write is knative.write else IMAGE
    with pytest.raises(OptionError) as raised:
        write(image, options)
    assert raised.value.message.startswith(said)
    assert raised.value.hint


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "does not say what was measured"),
        ('{"status": "passed", "measured": null}', "does not say what was measured"),
        ('{"status": "failed", "image": "i:1", "measured": {}}', "i:1 did not pass its test"),
        (
            '{"status": "passed", "measured": {"start_seconds": true}}',
            "start_seconds in .* is True",
        ),
        ('{"status": "passed", "measured": {"start_seconds": 1, "memory_bytes": -1}}', "is -1"),
        (None, "cannot read"),
    ],
)
def test_a_report_is_read_with_care(tmp_path, report, said):
    path = tmp_path / "measured.json"
    if report is not None:
        path.write_text(report)
    with pytest.raises(OptionError, match=said) as raised:
        Measured.read(str(path))
    assert raised.value.message.startswith("measured: ")
    assert raised.value.hint


# Images

SERVER = {**LABELS, "io.mfimage.target": "fastapi"}


def read(labels=SERVER, digests=(), allow_tag=False, name="registry.example.com/iris:1"):
    said: list[str] = []
    info = None if labels is None else ImageInfo(id="x", labels=labels, repo_digests=digests)
    stated = StatedPulled(allow_tag=allow_tag)
    image = read_server_image(name, stated, say=said.append, places=[OneImage(info)])
    return image, said


def test_an_image_is_named_by_its_digest():
    image, said = read(digests=(f"registry.example.com/iris@{DIGEST}",))
    assert image.reference == f"registry.example.com/iris:1@{DIGEST}"
    assert (image.name, said) == ("predict", [])
    with pytest.raises(OptionError, match=r"digest of .* is not known: it is in"):
        read()
    image, said = read(allow_tag=True)
    assert (image.reference, image.pinned) == ("registry.example.com/iris:1", False)
    assert len(said) == 1
    text = deployment.write(image, DeploymentOptions())
    assert "imagePullPolicy: Always" in text
    # What runs here may be here only.
    places = [OneImage(ImageInfo(id="x", labels=SERVER))]
    assert (
        read_local_image("iris:1", StatedPulled(), say=said.append, places=places).name == "predict"
    )
    assert len(said) == 1


def test_images_of_other_targets_and_without_a_function():
    with pytest.raises(OptionError, match="is for ray, not for a server") as raised:
        read(labels=LABELS, allow_tag=True)
    assert "rayservice" in raised.value.hint
    with pytest.raises(OptionError, match="function: not known"):
        read(labels={}, allow_tag=True)
    several = {"io.mfimage.target": "fastapi"}
    assert read(labels=several, allow_tag=True)[0].name == "iris"


# The command


@pytest.mark.parametrize("kind", KINDS)
def test_each_option_says_what_it_does(kind):
    found = find_kind(kind)
    assert found.summary.endswith(".")
    for names, about in found.flags():
        assert about["help"][0].isupper(), names
        assert about["help"].endswith((".", "{pods}.")), names


def test_what_a_kind_does_not_have_is_refused_with_those_that_have_it():
    assert kinds_with("--auth") == ["raycluster", "rayjob", "rayservice"]
    result = CliRunner().invoke(main, ["manifest", "compose", "i:1", "--max-replicas", "2"])
    assert result.exit_code == 2
    having = "deployment, knative, kserve, raycluster, rayjob, rayservice"
    assert f"--max-replicas: compose does not have it; these do: {having}" in result.stderr
    result = CliRunner().invoke(main, ["manifest", "compose", "i:1", "--nonsense"])
    assert "No such option" in result.stderr


def test_paths_are_those_of_the_server():
    """Of the table that the app is made from."""
    source = (Path(supervisor.__file__).parents[1] / "contracts" / "status.py").read_text()
    for path in (ALIVE, READY, METRICS):
        assert f'"{path}"' in source or f'"{path[1:]}"' in source


def options_table() -> str:
    """What docs/manifests.md has between its header and the next empty line."""
    rows: dict[tuple[str, str], list[str]] = {}
    for kind in ("deployment", "knative", "kserve", "compose"):
        for (flag, _), about in find_kind(kind).flags():
            value = about["metavar"] or "|".join(about["choices"])
            written = f"{flag} {value}".strip().replace("|", "\\|")
            rows.setdefault((written, about["help"]), []).append(kind)
    lines = [f"| `{flag}` | {text} | {', '.join(kinds)} |" for (flag, text), kinds in rows.items()]
    return "\n".join(["| option | meaning | kinds |", "|---|---|---|", *lines])


def test_the_options_are_documented():
    page = Path(__file__).parents[2] / "docs" / "manifests.md"
    text = page.read_text()
    if os.environ.get("MFIMAGE_WRITE_GOLDEN"):
        start = text.index("| option | meaning | kinds |")
        text = text[:start] + options_table() + text[text.index("\n\n", start) :]
        page.write_text(text)
    assert f"\n{options_table()}\n" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--env-from", "iris"], "env-from: 'iris' does not name a Secret or ConfigMap"),
        (["--env-from", "secret/A_B"], "env-from secret: 'A_B'"),
        (["--env-from-secret", "A=s"], "env-from-secret: 's' does not name a key"),
        (["--env-from-secret", "MFIMAGE_GRACE=s:k"], "env-from-secret: MFIMAGE_GRACE is a setting"),
        (["--env", "A"], "env: 'A' has no value"),
        (["--label", "a"], "label: 'a' has no value"),
        (["--run-as-user", "root"], "run-as-user: 'root' is not a uid"),
        (["--disruption-budget", "0"], "disruption-budget: '0' is not a number of pods"),
        (["--disruption-budget", "101%"], "disruption-budget: '101%'"),
        (["--toleration", "a:Sometimes"], "toleration: a: 'Sometimes' is not an effect"),
        (["--measured", "absent.json"], "measured: cannot read absent.json"),
        (["--function", "a b"], "function: 'a b' cannot be the name of a function"),
    ],
)
def test_texts_of_flags_are_refused_by_name_and_value(arguments, said):
    command = ["manifest", "deployment", f"iris@{DIGEST}", "--function", "f", *arguments]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert result.stderr.startswith(f"error: {said}")
    assert "\nhint: " in result.stderr
