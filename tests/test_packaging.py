"""What a person gets who installs the wheel, builds the image or pushes to the repository."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from edlm_jax.parallel import cpu

ROOT = Path(__file__).parents[1]
NEVER_COPIED = (".*", "__pycache__", "runs", "build", "dist", "*.egg-info", "*.so")
HAS_COMPILER = shutil.which((sysconfig.get_config_var("CXX") or "none").split()[0]) is not None


@pytest.mark.parametrize("compiler", [True, False])
def test_wheel_finds_its_configs_in_an_empty_folder(tmp_path, compiler):
    """With or without a C++ compiler; where there is one the wheel has the CPU kernels, and jax takes them."""
    source, site, empty = (tmp_path / name for name in ("source", "site", "empty"))
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NEVER_COPIED))
    build = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    hidden = {} if compiler else {"CXX": "a-compiler-that-is-not-there"}
    subprocess.run(build, check=True, cwd=tmp_path, env=os.environ | hidden)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    program = (
        "import edlm_jax; from pathlib import Path; from edlm_jax.commands import config\n"
        "names = config.recorded_configs(); c = config.load_config('quickstart', ['--config.steps=7'])\n"
        "print(Path(edlm_jax.__file__).parent.parent, c.steps, (Path(c.init.path) / 'model.safetensors').is_file())\n"
        "print(*names); config.load_study('studies/masking')\n"
        "from edlm_jax.parallel import cpu; print(cpu.available())"
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run([sys.executable, "-c", program], cwd=empty, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    first, names, kernels = ran.stdout.splitlines()
    assert first == f"{site} 7 True"
    recorded = (file.relative_to(ROOT / "configs").with_suffix("") for file in (ROOT / "configs").rglob("*.py"))
    assert sorted(names.split()) == sorted(map(str, recorded))
    assert (site / "edlm_jax" / "py.typed").is_file()
    assert kernels == str(compiler and HAS_COMPILER)


def test_this_installation_has_the_kernels_that_its_compiler_can_build():
    assert cpu.available() or not HAS_COMPILER, "install again, or: python setup.py build_ext --inplace"


def test_dockerfile_passes_the_linter_and_has_the_targets_that_launchers_name():
    run_linter("hadolint", str(ROOT / "Dockerfile"))
    targets = re.findall(r"^FROM \S+ AS (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {"tpu", "cuda"} <= set(targets)
    for launcher, target in (("gke.sh", "tpu"), ("slurm.sh", "cuda")):
        assert f"docker build --target={target}" in (ROOT / "launch" / launcher).read_text()


def test_workflow_is_valid_and_runs_the_versions_that_setup_names():
    workflow = ROOT / ".github" / "workflows" / "test.yml"
    run_linter("check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(workflow))
    tested = re.findall(r'python: "([\d.]+)", jax: "jax==([\d.]+)"', workflow.read_text())
    said = re.search(r"tested: ([\d.]+) with Python ([\d.]+), ([\d.]+) with Python ([\d.]+)", setup_text())
    assert tested == [(said[2], said[1]), (said[4], said[3])]
    assert f'"jax>={said[1]}"' in setup_text() and f'python_requires=">={said[2]}"' in setup_text()


def setup_text() -> str:
    return (ROOT / "setup.py").read_text()


def run_linter(name: str, *arguments: str) -> None:
    ran = subprocess.run([Path(sys.executable).with_name(name), *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
