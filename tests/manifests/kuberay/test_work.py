"""What runs on the cluster: the job's command line, the service's deployment."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
import yaml

from mfimage.errors import OptionError
from mfimage.manifests.kuberay import rayjob, rayservice
from mfimage.manifests.kuberay.options import ClusterOptions
from mfimage.manifests.kuberay.rayjob import JobOptions
from mfimage.manifests.kuberay.rayservice import ServiceOptions
from mfimage.manifests.options import Resources
from tests.manifests.kuberay.samples import IMAGE, JOB, parsed


def serve_config(cluster: ClusterOptions, service: ServiceOptions) -> dict[str, Any]:
    manifest = parsed(rayservice.write(IMAGE, cluster, service))
    (application,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    return application


def test_a_service_has_the_functions_route():
    application = serve_config(ClusterOptions(), ServiceOptions())
    assert application["route_prefix"] == "/predict_iris"
    assert application["import_path"] == "mfimage.runtime.ray_worker:build"


@pytest.mark.parametrize(
    ("cluster", "service", "args"),
    [
        (ClusterOptions(replicas=3), ServiceOptions(),
         {"num_replicas": 3, "ray_actor_options": {"num_cpus": 1, "num_gpus": 0}}),
        (ClusterOptions(worker=Resources(gpus=4)), ServiceOptions(cpus=0.5),
         {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.5, "num_gpus": 1}}),
        (ClusterOptions(), ServiceOptions(max_replicas=2),
         {"autoscaling_config": {"initial_replicas": 1, "min_replicas": 1, "max_replicas": 2},
          "ray_actor_options": {"num_cpus": 1, "num_gpus": 0}}),
    ],
)  # fmt: skip
def test_every_worker_gets_a_copy_unless_told_otherwise(cluster, service, args):
    assert serve_config(cluster, service)["args"] == args


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        (ClusterOptions(replicas=3), ""),
        (ClusterOptions(worker=Resources(gpus=2)), "--num-gpus=1 "),
        (ClusterOptions(autoscaling=True, max_replicas=5, worker=Resources(cpu="3500m")),
         "--num-actors=20 "),
    ],
)  # fmt: skip
def test_a_job_uses_what_the_workers_have(cluster, expected):
    entrypoint = parsed(rayjob.write(IMAGE, cluster, JOB))["spec"]["entrypoint"]
    assert entrypoint == (
        "python -m mfimage.runtime batch '--input=s3://bucket/in/*.jsonl' "
        f"--output=s3://bucket/out {expected}--address=auto"
    )


# How `ray job submit` of Ray 2.56, and of those before, puts words together again.
JOINED = ["shlex.join(sys.argv[1:])", "subprocess.list2cmdline(sys.argv[1:])"]


@pytest.mark.parametrize("joined", JOINED, ids=["new", "old"])
@pytest.mark.parametrize(
    "url",
    ["s3://b/in/*.jsonl", "/*", "/data/in 2026/**/[a-c]?.parquet", "~/x", "größe/!^%+,=@:", "-"],
)  # fmt: skip
def test_urls_come_through_all_shells(tmp_path, url, joined):
    """KubeRay's bash in the submitter, then the sh that the head starts the job by."""
    entrypoint = JobOptions(input=url, output="o").entrypoint(ClusterOptions())
    submit = f"import shlex, subprocess, sys; print({joined})"
    first = subprocess.run(
        ["/bin/bash", "-ce", "--", f"{sys.executable} -c '{submit}' {entrypoint} ;"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    program = "import json, sys; print(json.dumps(sys.argv[1:]))"
    line = first.stdout.strip().removeprefix("python -m mfimage.runtime batch ")
    second = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -c '{program}' {line}"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(second.stdout) == [f"--input={url}", "--output=o", "--address=auto"]


def test_an_image_without_serve_gives_no_service():
    image = dataclasses.replace(IMAGE, parts=("default", "data"))
    with pytest.raises(OptionError, match="has no Ray Serve") as raised:
        rayservice.write(image, ClusterOptions(), ServiceOptions())
    assert "--with serve" in raised.value.hint


def test_one_of_several_functions_is_chosen():
    image = dataclasses.replace(IMAGE, function="predict/emea", several=True)
    (application,) = yaml.safe_load(
        parsed(rayservice.write(image, ClusterOptions(), ServiceOptions()))["spec"]["serveConfigV2"]
    )["applications"]
    assert application["args"]["function"] == "predict/emea"
    assert application["route_prefix"] == "/predict/emea"
    job = parsed(rayjob.write(image, ClusterOptions(), JOB))
    assert job["metadata"]["name"] == "predict-emea"
    assert " --function=predict/emea " in job["spec"]["entrypoint"]
    for odd in ("predict/a'b", "predict/", "predict/a/b"):
        with pytest.raises(OptionError, match=f"function: .*{odd}.* cannot be"):
            dataclasses.replace(image, function=odd)
