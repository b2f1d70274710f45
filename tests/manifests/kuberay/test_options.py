"""What KubeRay or Kubernetes would refuse, or take for something else, is refused by name."""

from __future__ import annotations

import dataclasses

import pytest

from mfimage.errors import OptionError
from mfimage.manifests.kuberay import raycluster, rayjob, rayservice
from mfimage.manifests.kuberay.image import RayImage
from mfimage.manifests.kuberay.options import ClusterOptions
from mfimage.manifests.kuberay.rayjob import JobOptions
from mfimage.manifests.kuberay.rayservice import ServiceOptions
from mfimage.manifests.options import (
    Resources,
    Scale,
    SecretRef,
    Toleration,
    flags,
    parse_pairs,
    read_options,
)
from tests.manifests.kuberay.samples import IMAGE, JOB, parsed

REFUSED = [
    ({"namespace": "a_b"}, "namespace: 'a_b'"),
    ({"labels": {"a b": "c"}}, "label: 'a b'"),
    ({"labels": {"a": "c d"}}, "label a: 'c d'"),
    ({"labels": {"ray.io/cluster": "c"}}, "label: ray.io/cluster is reserved for KubeRay"),
    ({"worker": Resources(cpu="two")}, "worker-cpu: 'two'"),
    ({"worker": Resources(cpu="2Gi")}, "worker-cpu: '2Gi'"),
    ({"worker": Resources(cpu="0")}, "worker-cpu: '0'"),
    ({"head": Resources(memory="8GB")}, "head-memory: '8GB'"),
    ({"head": Resources(memory="500m")}, "head-memory: '500m'"),
    ({"head": Resources(memory="8")}, "head-memory: '8' is 8 bytes"),
    ({"worker": Resources(gpus=-1)}, "worker-gpus: -1"),
    ({"gpu_resource": "nvidia/com/gpu"}, "gpu-resource: 'nvidia/com/gpu'"),
    ({"replicas": -1}, "replicas: -1"),
    ({"min_replicas": 3, "max_replicas": 2}, "min-replicas: 3 is more than max-replicas 2"),
    ({"replicas": 5, "max_replicas": 2}, "replicas: 5 is more than max-replicas 2"),
    ({"replicas": 1, "min_replicas": 2}, "replicas: 1 is less than min-replicas 2"),
    ({"autoscaling": True}, "autoscaling: min and max replicas are both 1"),
    ({"idle_timeout": -1}, "idle-timeout: -1"),
    ({"service_account": "A"}, "service-account: 'A'"),
    ({"node_selector": {"": "x"}}, "node-selector: ''"),
    ({"worker_node_selector": {"a": "x y"}}, "worker-node-selector a: 'x y'"),
    ({"tolerations": (Toleration(key="a", effect="No"),)}, "toleration: a: 'No' is not an effect"),
    ({"image_pull_secrets": ("a_b",)}, "image-pull-secret: 'a_b'"),
    ({"image_pull_policy": "Sometimes"}, "image-pull-policy: 'Sometimes'"),
    ({"env": {"1A": "x"}}, "env: '1A' cannot be the name of a variable"),
    ({"env": {"PATH": "x"}}, "env: PATH is set by the image"),
    ({"env": {"RAY_ADDRESS": "x"}}, "env: RAY_ADDRESS is set by KubeRay"),
    ({"env": {"RAY_AUTH_MODE": "x"}}, "env: RAY_AUTH_MODE is set by --auth"),
    ({"env": {"A": "x\0"}}, "env A: it holds bytes"),
    ({"env": {"A": "\udc80"}}, "env A: it holds bytes"),
    ({"env_from_secret": {"A": SecretRef(secret="s_", key="k")}}, "env-from-secret A: 's_'"),
    ({"env_from_secret": {"A": SecretRef(secret="s", key="k k")}}, "env-from-secret A: 'k k'"),
    ({"env": {"A": "x"}, "env_from_secret": {"A": SecretRef(secret="s", key="k")}},
     "env-from-secret: A is given twice"),
    ({"auth": "disabled", "auth_secret": "s"}, "auth-secret: it has no use"),
    ({"run_as_user": 0}, "run-as-user: 0"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_an_option_is_refused_by_name_and_value(given, said):
    with pytest.raises(OptionError) as raised:
        ClusterOptions(**given)
    assert raised.value.message.startswith(said)
    assert raised.value.hint


@pytest.mark.parametrize(
    "env", [{"AWS_SECRET_ACCESS_KEY": "hush"}, {"PROXY": "http://me:hush@proxy.example.com"}]
)
def test_a_credential_is_no_variable(env):
    with pytest.raises(OptionError) as raised:
        ClusterOptions(env=env)
    assert "hush" not in f"{raised.value} {raised.value.hint}"
    assert "--env-from-secret" in raised.value.hint


@pytest.mark.parametrize(
    ("text", "hint"), [("8GB", "write 8G"), ("8GiB", "write 8Gi"), ("8", "add a unit, such as 8Gi")]
)
def test_a_wrong_unit_is_told_the_right_one(text, hint):
    with pytest.raises(OptionError) as raised:
        ClusterOptions(worker=Resources(memory=text))
    assert raised.value.hint == hint


@pytest.mark.parametrize("given", [
    {"input": ""}, {"input": "a;b"}, {"input": "$HOME"}, {"input": "a\nb"}, {"output": "a'b"},
    {"input": "s3://me:hush@bucket"}, {"format": "a b;c"}, {"batch_size": 0}, {"num_actors": 0},
    {"num_cpus": float("nan")}, {"num_gpus": -1}, {"ttl": -1}, {"backoff_limit": -1},
    {"deadline": 0},
])  # fmt: skip
def test_a_job_is_refused_by_name(given):
    (name,) = given
    with pytest.raises(OptionError, match=rf"^{name.replace('_', '-')}: "):
        JobOptions(**{"input": "a", "output": "b", **given})


@pytest.mark.parametrize("given", [
    {"replicas": 0}, {"min_replicas": 0}, {"max_replicas": 0}, {"ongoing_requests": 0},
    {"ongoing_requests": 1}, {"cpus": -1}, {"gpus": float("inf")},
])  # fmt: skip
def test_a_service_is_refused_by_name(given):
    (name,) = given
    with pytest.raises(OptionError, match=rf"^serve-{name.replace('_', '-')}: "):
        ServiceOptions(**given)


@pytest.mark.parametrize(
    ("cluster", "service", "said"),
    [
        (ClusterOptions(), ServiceOptions(replicas=3), "serve-replicas: 3, each with 1 CPUs"),
        (ClusterOptions(), ServiceOptions(cpus=2.5), "serve-replicas: 1, each with 2.5 CPUs"),
        (ClusterOptions(), ServiceOptions(gpus=1), "serve-replicas: 1, each with 1 CPUs and 1 GPU"),
        (ClusterOptions(replicas=0), ServiceOptions(cpus=0), "replicas: without a worker"),
        (ClusterOptions(), ServiceOptions(min_replicas=3, max_replicas=2), "serve-min-replicas: 3"),
    ],
)  # fmt: skip
def test_a_service_that_can_never_run_is_refused(cluster, service, said):
    with pytest.raises(OptionError) as raised:
        rayservice.write(IMAGE, cluster, service)
    assert raised.value.message.startswith(said)


@pytest.mark.parametrize(
    ("cluster", "job", "said"),
    [
        (ClusterOptions(), {"num_actors": 3}, "num-actors: 3, each with 1 CPUs"),
        (ClusterOptions(), {"num_gpus": 1}, "num-actors: 1, each with 1 CPUs and 1 GPUs"),
        (ClusterOptions(autoscaling=True, min_replicas=0, max_replicas=4), {}, "replicas: without"),
    ],
)
def test_a_job_that_can_never_run_is_refused(cluster, job, said):
    with pytest.raises(OptionError) as raised:
        rayjob.write(IMAGE, cluster, dataclasses.replace(JOB, **job))
    assert raised.value.message.startswith(said)


def test_names_leave_room_for_what_kuberay_appends():
    long = ClusterOptions(name="a" * 48)
    raycluster.write(IMAGE, long)
    for make in (
        lambda: rayjob.write(IMAGE, long, JOB),
        lambda: rayservice.write(IMAGE, long, ServiceOptions()),
    ):
        with pytest.raises(OptionError, match=r"name: 'a{48}'"):
            make()
    with pytest.raises(OptionError, match="name: '1a'"):
        raycluster.write(IMAGE, ClusterOptions(name="1a"))


@pytest.mark.parametrize(
    ("function", "name"), [("Predict_Iris", "predict-iris"), ("_f_", "f"), ("f" * 63, "f" * 47)]
)
def test_a_functions_name_becomes_one_that_kubernetes_takes(function, name):
    image = dataclasses.replace(IMAGE, function=function)
    assert parsed(rayjob.write(image, ClusterOptions(), JOB))["metadata"]["name"] == name


def test_a_name_of_which_nothing_is_left_is_asked_for():
    with pytest.raises(OptionError, match="'_1'") as raised:
        raycluster.write(dataclasses.replace(IMAGE, function="_1"), ClusterOptions())
    assert raised.value.hint == "choose one: --name NAME"


@pytest.mark.parametrize(
    ("given", "scale"),
    [
        ({}, (1, 1, 1)),
        ({"replicas": 3}, (3, 3, 3)),
        ({"min_replicas": 2}, (2, 2, 2)),
        ({"max_replicas": 4}, (1, 1, 4)),
        ({"min_replicas": 0, "max_replicas": 4}, (0, 0, 4)),
        ({"max_replicas": 0}, (0, 0, 0)),
    ],
)
def test_bounds_are_always_there(given, scale):
    replicas, minimum, maximum = scale
    found = ClusterOptions(**given).workers
    assert found == Scale(replicas=replicas, minimum=minimum, maximum=maximum)


@pytest.mark.parametrize("version", ["2.52.1", "1.13", "two", "", "2"])
def test_an_old_ray_is_refused(version):
    with pytest.raises(OptionError, match="ray-version"):
        RayImage(reference="a", ray_version=version, function="f")


@pytest.mark.parametrize("given", [{"function": "a\nb"}, {"digest": "sha256:12"}])
def test_labels_are_not_believed(given):
    with pytest.raises(OptionError):
        dataclasses.replace(IMAGE, **given)


def given(**texts):
    """Return what the command line gives where only some flags are written."""
    defaults = {
        names[1]: () if about["multiple"] else about["default"]
        for names, about in flags(ClusterOptions)
    }
    return defaults | texts


def test_flags_give_the_options_that_fields_declare():
    assert read_options(ClusterOptions, given(run_as_user="1000")) == ClusterOptions()
    read = read_options(
        ClusterOptions,
        given(
            env=["A=b=c", "D="],
            env_from_secret=["E=s:k"],
            tolerations=["a=b:NoExecute", "a"],
            worker_cpu="3500m",
            run_as_user="any",
            image_pull_secrets=["s"],
        ),
    )
    assert read == ClusterOptions(
        env={"A": "b=c", "D": ""},
        env_from_secret={"E": SecretRef(secret="s", key="k")},
        tolerations=(Toleration(key="a", value="b", effect="NoExecute"), Toleration(key="a")),
        worker=Resources(cpu="3500m"),
        run_as_user=None,
        image_pull_secrets=("s",),
    )
    named = {names[0]: about for names, about in flags(ServiceOptions, "serve_")}
    assert named["--serve-cpus"]["default"] == 1.0
    required = [names[1] for names, about in flags(JobOptions) if about["required"]]
    assert required == ["input", "output"]


@pytest.mark.parametrize("wrong", [
    lambda: parse_pairs(["A"], field="env"),
    lambda: parse_pairs(["=x"], field="env"),
    lambda: parse_pairs(["A=1", "A=2"], field="env"),
    lambda: SecretRef.parse("s"),
    lambda: SecretRef.parse(":k"),
    lambda: read_options(ClusterOptions, given(run_as_user="root")),
])  # fmt: skip
def test_texts_that_are_none(wrong):
    with pytest.raises(OptionError) as raised:
        wrong()
    assert raised.value.hint
