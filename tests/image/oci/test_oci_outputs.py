"""What is written: folders, archives; other tools read them; whole or absent."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from mfimage.errors import BuildError
from mfimage.image.oci import outputs
from mfimage.image.oci.base import read_image
from mfimage.image.registry.location import Location, parse_location
from mfimage.image.registry.reference import parse_tag
from tests.image.oci.bases import FILES, layout
from tests.image.oci.building import Written, build, names, oci_builder, plan_on
from tests.image.sample import make_sample

SUPPORT = Path(__file__).parents[2] / "support"
BOTH = ("linux/amd64", "linux/arm64")


@pytest.fixture
def sample(tmp_path):
    return make_sample(tmp_path / "blobs")


@pytest.fixture
def base(tmp_path) -> Location:
    return layout(
        tmp_path / "base",
        FILES,
        platforms=BOTH,
        ExposedPorts={"80/tcp": {}},
        Labels={"of": "base"},
        OnBuild=["RUN false"],
        Healthcheck={"Test": ["CMD", "false"]},
    )


def written(sample, base, out: Location, *tags: str, platforms=("linux/amd64",)) -> list:
    with oci_builder() as builder:
        plans = [plan_on(builder, sample, base, at=at) for at in platforms]
        images = [builder.build(plan, sample.blobs.path) for plan in plans]
        builder.write(images, out, [parse_tag(tag) for tag in tags])
        return images


def test_the_configuration(sample, base, tmp_path):
    out = Location(kind="oci", path=tmp_path / "out")
    (image,) = written(sample, base, out)
    found = Written(out.path)
    config = found.config["config"]
    path, *variables = config["Env"]
    assert path == "PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin"
    assert {"LANG=C.UTF-8", "PYTHON_VERSION=3.11.7", "HOME=/tmp"} <= set(variables)
    assert config["Labels"]["of"] == "base"
    assert config["Labels"]["org.opencontainers.image.base.digest"].startswith("sha256:")
    assert config["ExposedPorts"] == {"80/tcp": {}, "8000/tcp": {}}
    assert config["Healthcheck"] == {"Test": ["NONE"]}
    assert "OnBuild" not in config
    assert names(image) == [
        "base", "dependencies", "artifact:model", "artifact:feature_names", "runtime", "code",
    ]  # fmt: skip
    history = [entry["created_by"] for entry in found.config["history"]]
    assert history[:2] == ["base 0", "mfimage dependencies"]
    assert len(found.config["rootfs"]["diff_ids"]) == len(found.manifest["layers"]) == 6
    annotations = found.manifest["annotations"]
    assert annotations["org.opencontainers.image.title"] == "predict"


def test_what_the_layers_hold(sample, base, tmp_path):
    out = Location(kind="oci", path=tmp_path / "out")
    written(sample, base, out)
    found = Written(out.path)
    code = found.files(5)
    assert code["opt/function/pylock.toml"] == sample.lock
    assert code["opt/function/code/predict.py"] == sample.code["predict.py"]
    links = {m.name: m.linkname for m in found.members(1).values() if m.issym()}
    assert links["opt/venv/bin/python"] == "/usr/local/bin/python3"
    assert links["opt/venv/bin/python3.11"] == "python"
    assert b"home = /usr/local/bin\n" in found.files(1)["opt/venv/pyvenv.cfg"]
    for number in range(1, 6):
        assert {(m.uid, m.gid, m.mtime) for m in found.members(number).values()} == {
            (0, 0, 315_532_800)
        }


def test_a_layout_keeps_what_else_is_in_it(sample, base, tmp_path):
    out = Location(kind="oci", path=tmp_path / "out")
    first = written(sample, base, out, "team/a:1")
    sample.code["predict.py"] += b"# edited\n"
    second = written(sample, base, out, "team/a:2")
    again = written(sample, base, out, "team/a:2")
    listed = {
        entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"]
        for entry in Written(out.path).index["manifests"]
    }
    assert listed == {"1": first[0].digest, "2": second[0].digest}
    assert again[0].digest == second[0].digest


def test_a_folder_of_something_else_is_left_alone(sample, base, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("all my work")
    with pytest.raises(BuildError, match=r"not an OCI layout: it contains thesis\.tex"):
        written(sample, base, Location(kind="oci", path=tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_an_archive_is_whole_or_absent(sample, base, tmp_path, monkeypatch, kind):
    out = Location(kind=kind, path=tmp_path / "new" / "image.tar")
    out.path.parent.mkdir()
    verified, calls = outputs._verified, []

    def breaks(*arguments):
        calls.append(arguments)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return verified(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "_verified", breaks)
        with pytest.raises(BuildError, match="No space left"):
            written(sample, base, out)
    assert list(out.path.parent.iterdir()) == []
    written(sample, base, out)
    assert [path.name for path in out.path.parent.iterdir()] == ["image.tar"]


@pytest.mark.parametrize("kind", ["oci", "oci-archive"])
def test_what_is_written_can_be_read(sample, base, tmp_path, kind):
    out = Location(kind=kind, path=tmp_path / "out")
    (image,) = written(sample, base, out)
    with read_image(out, "linux/amd64") as found:
        assert found.digest == image.digest
        for layer, built in zip(found.layers, image.layers, strict=True):
            assert layer.diff_id == built.diff_id
            with layer.open() as file:
                assert len(file.read()) == built.size


def test_a_docker_archive(sample, base, tmp_path):
    out = Location(kind="docker-archive", path=tmp_path / "out.tar")
    (image,) = written(sample, base, out, "team/a:1", "team/b:2")
    with tarfile.open(out.path) as tar:
        (entry,) = json.load(tar.extractfile("manifest.json"))
        config = tar.extractfile(entry["Config"]).read()
        assert len(entry["Layers"]) == 6
        assert set(entry["Layers"]) <= set(tar.getnames())
    assert entry["RepoTags"] == ["team/a:1", "team/b:2"]
    assert entry["Config"] == f"{image.id[7:]}.json"
    with read_image(out, "linux/amd64") as found:
        assert found.raw_config == config
        assert [layer.diff_id for layer in found.layers] == [x.diff_id for x in image.layers]


def test_several_platforms_make_an_index(sample, base, tmp_path):
    out = Location(kind="oci", path=tmp_path / "out")
    images = written(sample, base, out, "team/a:1", platforms=BOTH)
    found = Written(out.path)
    index = found.json(found.index["manifests"][0]["digest"])
    assert [entry["platform"]["architecture"] for entry in index["manifests"]] == [
        "amd64",
        "arm64",
    ]
    assert [entry["digest"] for entry in index["manifests"]] == [i.digest for i in images]
    # What does not depend on the platform is there once.
    assert images[0].layers[2].digest == images[1].layers[2].digest
    with pytest.raises(BuildError, match="takes an image for one platform"):
        archive = Location(kind="docker-archive", path=tmp_path / "out.tar")
        written(sample, base, archive, platforms=BOTH)


TOOLS = ("skopeo", "umoci")
INSTALL = f". {SUPPORT}/packages.sh; can_install && install {' '.join(TOOLS)}"


@pytest.fixture(scope="module")
def tools() -> None:
    """Other programs that read images."""
    if not all(map(shutil.which, TOOLS)):
        subprocess.run(["bash", "-c", INSTALL], check=False, capture_output=True)
    if not all(map(shutil.which, TOOLS)):
        pytest.skip("skopeo and umoci are not here, and cannot be installed")


def tool(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive"])
def test_skopeo_reads_it(sample, base, tmp_path, kind):
    out = Location(kind=kind, path=tmp_path / "out")
    (image,) = written(sample, base, out)
    told = json.loads(tool("skopeo", "inspect", f"{kind}:{out.path}"))
    assert told["Labels"]["io.mfimage.function.name"] == "predict"
    if kind != "docker-archive":
        assert told["Digest"] == image.digest
    # Copying verifies every digest.
    tool("skopeo", "copy", f"{kind}:{out.path}", f"dir:{tmp_path / 'copy'}")


@pytest.mark.usefixtures("tools")
def test_umoci_unpacks_it(sample, base, tmp_path):
    out = Location(kind="oci", path=tmp_path / "out")
    written(sample, base, out, "team/a:1")
    bundle = tmp_path / "bundle"
    tool("umoci", "unpack", "--rootless", "--image", f"{out.path}:1", str(bundle))
    root = bundle / "rootfs"
    assert (root / "opt/function/code/predict.py").read_bytes() == sample.code["predict.py"]
    assert (root / "opt/venv/bin/python").readlink().as_posix() == "/usr/local/bin/python3"
    process = json.loads((bundle / "config.json").read_text())["process"]
    assert process["args"] == ["/opt/venv/bin/python", "-m", "mfimage.runtime", "serve"]
    assert (process["user"]["uid"], process["cwd"]) == (1000, "/opt/function/code")


def test_an_archive_that_is_cut_short_is_told(sample, base, tmp_path):
    out = Location(kind="oci-archive", path=tmp_path / "out.tar")
    written(sample, base, out)
    whole = out.path.read_bytes()
    out.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BuildError, match="oci-archive"):
        build(sample, out)


def stored(text: str) -> str:
    location = parse_location(text, field="image")
    with read_image(location, "linux/amd64") as image:
        return image.config["config"]["Labels"]["number"]


@pytest.mark.parametrize("kind", ["oci", "oci-archive"])
def test_tags_of_one_image_are_one_image(sample, base, tmp_path, kind):
    out = Location(kind=kind, path=tmp_path / "out")
    written(sample, base, out, "team/iris:1", "team/iris:2")
    for name in ("", ":1", ":2", ":docker.io/team/iris:2"):
        location = parse_location(f"{out}{name}", field="image")
        with read_image(location, "linux/amd64") as image:
            assert image.digest is not None


def test_a_layout_with_images_of_several_names_stays_readable(sample, base, tmp_path):
    out = Location(kind="oci", path=tmp_path / "out:put")  # a folder may contain a colon
    for number in ("1", "2"):
        with oci_builder() as builder:
            plan = plan_on(builder, sample, base, labels={"number": number})
            image = builder.build(plan, sample.blobs.path)
            builder.write([image], out, [parse_tag(f"team/iris:{number}")])
    assert [stored(f"{out}:1"), stored(f"{out}:2")] == ["1", "2"]
    assert stored(f"{out}:docker.io/team/iris:2") == "2"
    with pytest.raises(BuildError, match="has several images") as raised:
        stored(str(out))
    assert raised.value.hint == f"choose one: {out}:docker.io/team/iris:1"
    with pytest.raises(BuildError, match="no image has that tag") as raised:
        stored(f"{out}:3")
    assert "docker.io/team/iris:1, docker.io/team/iris:2" in raised.value.hint
