"""Packaging; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "hf_captioners/_version.py").read_text("utf-8"), re.M)[1]

CORE = [
    "torch>=2.10",
    "transformers>=5.23,<6",
    "huggingface_hub>=2.4",
    "safetensors>=0.8",
    "tokenizers>=0.23",
    "numpy>=1.26",
    "jinja2>=3.1",
    "pillow>=12",
    "tqdm>=4.66",
    "typing_extensions>=4.10",
]
EXTRAS = {
    "train": ["accelerate>=1.15", "datasets>=5.2", "trl>=1.16", "peft>=0.21", "pyyaml>=6", "rich>=13.8"],
    "eval": ["evaluate>=0.4.6", "datasets>=5.2", "pycocoevalcap>=1.2", "snowballstemmer>=2.2,<3"],
    "features": ["datasets>=5.2"],
    "faiss": ["faiss-cpu>=1.8", "datasets>=5.2"],
    "h5": ["h5py>=3.11"],
    "heif": ["pillow-heif>=1.8"],
    "onnx": ["onnx>=1.20", "onnxscript>=0.7", "onnx_ir>=1.0", "onnxruntime>=1.23"],
    "openvino": ["openvino>=2026.3", "nncf>=3.4"],
    "plot": ["matplotlib>=3.9"],
    "demo": ["gradio>=6,<7", "pillow>=12,<13"],
    "ray": ["ray[data]>=2.60"],
    "tensorboard": ["tensorboard>=2.18"],
    "notebook": ["nbclient>=0.10", "ipykernel>=6.29"],
    "docs": ["zensical>=0.0.73", "mkdocstrings-python>=2.0", "latex2mathml>=3.78"],
}
EXTRAS["test"] = [
    *sorted(
        {requirement for name in ("train", "eval", "features", "h5", "onnx", "plot") for requirement in EXTRAS[name]}
    ),
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff>=0.15",
    "mypy>=1.18",
    "setuptools>=77",
    "types-PyYAML",
    "types-tqdm",
]

setup(
    name="hf_captioners",
    version=VERSION,
    description="Research image captioners in the Hugging Face ecosystem",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["hf_captioners", "hf_captioners.*"]),
    package_data={"hf_captioners": ["py.typed", "__init__.pyi"], "hf_captioners.hub": ["cards/*.md"]},
    python_requires=">=3.10",
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["hf-captioners = hf_captioners.cli.main:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
