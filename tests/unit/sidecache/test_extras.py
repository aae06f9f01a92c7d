"""What an extra installs is what its services import."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Modules whose distribution has another name; what no extra needs to name comes with these.
DISTRIBUTIONS = {
    "faiss": r"faiss-(cpu|gpu-cu13-cuvs)",
    "grpc_reflection": "grpcio-reflection",
    "pydantic_settings": "pydantic-settings",
}
ASKED = (*DISTRIBUTIONS, "jinja2", "numpy", "onnxruntime", "tokenizers", "uvloop", "xxhash")
SERVICES = {
    "cpu": ("cache_svc.serve", "router.serve", "inference_svc.engines.openvino"),
    "gpu": ("cache_svc.serve",),
    "vllm-client": ("inference_svc.serve", "inference_svc.engines.vllm"),
    "tensorrt-llm": ("inference_svc.serve", "inference_svc.engines.tensorrt_llm"),
}


def imported_by(modules: tuple[str, ...]) -> set[str]:
    """Which of ASKED a fresh interpreter has loaded after importing these modules."""
    code = f"import sys, {', '.join(modules)}; print(*set({ASKED!r}) & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("extra", SERVICES)
def test_an_extra_brings_what_its_services_import(extra: str) -> None:
    """A service starts with its extra alone; a missing package would stop it at its import."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        for requirement in (
            *extras["dependencies"],
            *extras["optional-dependencies"]["services"],
            *extras["optional-dependencies"][extra],
        )
    }
    found = imported_by(SERVICES[extra])
    assert found
    for module in found:
        pattern = DISTRIBUTIONS.get(module, module)
        assert any(re.fullmatch(pattern, name) for name in named), (extra, module)
