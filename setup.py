import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# Read as text, because the environment that builds the wheel may lack the package's dependencies.
VERSION = re.search(
    r'^__version__ = "([^"]+)"$',
    (ROOT / "src" / "audiox_diffusers" / "version.py").read_text(encoding="utf-8"),
    re.MULTILINE,
).group(1)

README = ROOT / "README.md"

setup(
    name="audiox-diffusers",
    version=VERSION,
    description="AudioX as a diffusers pipeline: sound and music from any mix of text, video, images and audio",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "audiox_diffusers.embedded": ["audiox-tiny/**", "audiox-tiny-turbo/**"],
        "audiox_diffusers.loaders": ["configs/*.json"],
    },
    python_requires=">=3.11",
    # The tests run with the exact versions in constraints.txt.
    install_requires=[
        "torch>=2.6,<3",
        "diffusers>=0.42,<1",
        "transformers>=5,<6",
        "accelerate>=1.10,<2",
        "peft>=0.18,<1",
        "datasets>=4,<6",
        "safetensors>=0.8,<1",
        "torchaudio>=2.6,<3",
        "av>=14",
        "pillow>=11",
        "numpy>=2,<3",
        "tokenizers>=0.22,<1",
        "psutil",
        "huggingface_hub>=1.32,<3",
        # datasets requires these three too.
        "pyarrow>=21",
        "fsspec",
        "tqdm",
    ],
    extras_require={
        "training": ["tensorboard>=2.18"],
        "optimizers": ["bitsandbytes>=0.46", "prodigyopt>=1.1", "schedulefree>=1.4"],
        "quantization": ["bitsandbytes>=0.46", "torchao>=0.15"],
        # Older versions of gradio and python-multipart have known vulnerabilities.
        "serve": [
            "fastapi>=0.115",
            "uvicorn>=0.30",
            "python-multipart>=0.0.18",
            "prometheus-client>=0.20",
            "gradio>=6.20,<7",
            "pyloudnorm>=0.1.1",
        ],
        "evaluate": ["audiobox-aesthetics>=0.0.4"],
        "dev": [
            "audiobox-aesthetics>=0.0.4",
            "tensorboard>=2.18",
            "prodigyopt>=1.1",
            "schedulefree>=1.4",
            "fastapi>=0.115",
            "uvicorn>=0.30",
            "python-multipart>=0.0.18",
            "prometheus-client>=0.20",
            "gradio>=6.20,<7",
            "pyloudnorm>=0.1.1",
            "openai>=2",
            "playwright>=1.50",
            "pytest>=9",
            "pytest-xdist>=3.8",
            "ruff>=0.17",
            # The build backend, for tests/test_packaging.py, which builds without isolation.
            "setuptools>=77",
        ],
        "dist": ["build>=1.2", "twine>=6"],
    },
    entry_points={"console_scripts": ["audiox = audiox_diffusers.cli:main"]},
    classifiers=[
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Sound/Audio",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
