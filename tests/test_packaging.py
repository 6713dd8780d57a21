"""What a person gets who installs the wheel, builds the image or pushes to the repository."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import edlm_jax
from edlm_jax.parallel import cpu

ROOT = Path(__file__).parents[1]
ROOMS = ("attention", "decoding", "diffusion", "models", "pretrained")
NEVER_COPIED = (".*", "__pycache__", "runs", "build", "dist", "*.egg-info")
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
    for file in "py.typed", "pretrained/smollm2/edlm.json", "pretrained/smollm2/adapter/adapter_model.safetensors":
        assert (site / "edlm_jax" / file).is_file()
    assert kernels == str(compiler and HAS_COMPILER)
    if built := cpu.available() and [*site.rglob("*.so")]:  # as the checkout has them: none is compiled twice
        assert built[0].read_bytes() == (ROOT / built[0].relative_to(site)).read_bytes()


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


def test_what_setup_says_is_tested_is_what_is_installed_and_run():
    lowest = re.search(r'"jax>=([\d.]+)"', setup_text())[1]
    assert f'setup_requires=["jaxlib>={lowest}"]' in setup_text()
    here, workflow = (ROOT / ".ci" / "run").read_text(), (ROOT / ".github" / "workflows" / "test.yml").read_text()
    made = re.findall(r"^ +- run: make (\w+)", workflow, re.MULTILINE)
    assert made == ["test", "lint"] and all(f"make {target}\n" in here for target in made)
    makefile = (ROOT / "Makefile").read_text()
    for target in made:  # by way of one installation, of the jax that is asked for
        assert re.search(rf"^{target}: \$\(VENV\)/installed-(test|dev) ", makefile, re.MULTILINE)
    assert "--editable . '$(JAX)'" in makefile and "'$(JAX)'" in makefile.partition("--editable")[0]


def test_the_type_checker_reads_where_public_names_are_defined():
    """They are those of the rooms' `__all__`, kernels apart; the docs' others stand in tests/typed.py."""
    checked = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["files"])
    rooms = [edlm_jax, *(importlib.import_module(f"edlm_jax.{name}") for name in ROOMS)]
    for room in rooms:
        values = [room, *(getattr(room, name) for name in room.__all__)]
        modules = {getattr(value, "__module__", getattr(value, "__name__", "")) for value in values}
        ours = [sys.modules[name] for name in modules if name.startswith("edlm_jax")]
        kernels = {"edlm_jax/attention/context.py", "edlm_jax/attention/splash.py"}
        missing = {str(Path(module.__file__).relative_to(ROOT)) for module in ours} - checked - kernels
        assert not missing, f"{room.__name__}: pyproject.toml's mypy does not read {missing}"


def setup_text() -> str:
    return (ROOT / "setup.py").read_text()


def run_linter(name: str, *arguments: str) -> None:
    ran = subprocess.run([Path(sys.executable).with_name(name), *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
