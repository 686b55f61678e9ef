"""The files for Kubernetes and Slurm say what the program understands, and fall into no trap that it checks for."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import typer
import yaml

from allrec.cli.commands import app
from allrec.cluster.checks import LEAST_SHARED, check_needs
from allrec.parallel import Needs
from allrec.serving.app import STOP_SECONDS

DEPLOY = Path(__file__).parents[2] / "deploy"


VERSION = "1.37"
"""Of Kubernetes."""


def options_of(command):
    return {option for one in typer.main.get_command(app).commands[command].params for option in one.opts}


def groups():
    spec = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())["spec"]
    cluster = spec["rayClusterSpec"]
    return spec, [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_job_runs_a_command_that_there_is():
    spec, _ = groups()
    program, command, *rest = shlex.split(spec["entrypoint"])
    assert program == "allrec"
    used = {word for word in rest if word.startswith("--")}
    assert {"--engine", "--workers", "--out"} <= used <= options_of(command)


def test_pods_have_the_cpus_that_ray_is_told_and_enough_shared_memory():
    spec, every = groups()
    nodes = []
    for group in every:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (memory,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "memory"]
        assert memory["medium"] == "Memory"
        assert int(memory["sizeLimit"].removesuffix("Gi")) << 30 >= LEAST_SHARED
        assert {"name": "memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
        cpus = int(group["rayStartParams"]["num-cpus"])
        assert cpus in (0, int(container["resources"]["limits"]["cpu"]))
        nodes += [{"CPU": float(cpus)}] * group.get("replicas", 1)
    check_needs(Needs(), nodes)
    workers = int(re.search(r"--workers (\d+)", spec["entrypoint"])[1])
    assert workers == sum(node["CPU"] for node in nodes)


def test_the_slurm_script_is_a_script_and_passes_options_that_its_commands_have():
    script = DEPLOY / "slurm.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    last = script.read_text().strip().splitlines()[-1]
    used = set(re.findall(r"(--[a-z-]+)", last))
    assert used == {"--engine", "--workers"}
    named = re.search(r"COMMAND ARGUMENTS: ([a-z, -]+) or ([a-z]+) of allrec", script.read_text())
    commands = [*named[1].split(", "), named[2]]
    assert commands == ["recommend-all", "train", "prepare", "compare", "baselines"]
    assert all(used <= options_of(command) for command in commands)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", ["deploy/slurm.sh", ".ci/run"])
def test_shell_scripts_have_no_known_mistake(script):
    found = subprocess.run(["shellcheck", str(DEPLOY.parent / script)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_the_slurm_script_says_what_is_missing():
    done = subprocess.run(["bash", str(DEPLOY / "slurm.sh")], capture_output=True, text=True, check=False)
    assert (done.returncode, "usage: sbatch" in done.stderr) == (2, True)


def test_the_service_is_as_kubernetes_wants_it_and_asks_what_there_is():
    deployment, service = yaml.safe_load_all((DEPLOY / "service.yaml").read_text())
    for part in (deployment, service):
        kubernetes_validate.validate(part, VERSION, strict=True)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {word for word in container["args"] if word.startswith("--")} <= options_of("serve")
    paths = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"/readyz", "/healthz"}
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector == service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > STOP_SECONDS


def test_pods_of_the_job_are_as_kubernetes_wants_them():
    for group in groups()[1]:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, VERSION, strict=True)
        pod["spec"]["containers"][0]["resources"]["limit"] = {}
        with pytest.raises(kubernetes_validate.ValidationError, match="limit"):
            kubernetes_validate.validate(pod, VERSION, strict=True)
