"""Where the texts of TensorRT-LLM's source files are, and which commit each is of."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a folder of single files cannot say of itself.

    Attributes:
        version: of TensorRT-LLM, as far as it is known.
        sources: path to repository and commit, in the form ``owner/name@hash``.
    """

    version: str
    sources: dict[str, str]

    @classmethod
    def read(cls, file: Path) -> "Provenance":
        """Read it from JSON with these two names."""
        return cls(**json.loads(file.read_text()))


class Sources:
    """One revision of the sources, or single files of several.

    Args:
        place: a checkout, a git directory without one, or a folder of files.
        revision: of the git directory; a checkout is read as it lies.
        provenance: for a folder of files: which commit each is of.
    """

    def __init__(
        self, place: Path, revision: str = "HEAD", provenance: Provenance | None = None
    ) -> None:
        self._place = place
        self._revision = revision
        self._provenance = provenance
        self._bare = (place / "objects").is_dir() and (place / "HEAD").is_file()

    def text(self, name: str) -> str:
        """A file.

        Raises:
            SystemExit: there is none of this name.
        """
        if not self._bare:
            try:
                return (self._place / name).read_text()
            except FileNotFoundError:
                raise SystemExit(f"{self._place} has no {name}") from None
        asked = self._git("show", f"{self._revision}:{name}")
        if asked.returncode:
            raise SystemExit(f"{self._place} has no {name} at {self._revision}")
        return asked.stdout

    def commit(self, name: str) -> str:
        """The commit that a file's text is of; says so where nobody knows.

        Raises:
            SystemExit: the provenance leaves this file out.
        """
        if self._provenance is not None:
            if name not in self._provenance.sources:
                raise SystemExit(f"the provenance does not say where {name} is from")
            return self._provenance.sources[name]
        asked = self._git("rev-parse", self._revision if self._bare else "HEAD")
        return asked.stdout.strip() if asked.returncode == 0 else "not a git checkout"

    def version(self, name: str) -> str:
        """TensorRT-LLM's version: as the provenance has it, else as the file of this name."""
        if self._provenance is not None:
            return self._provenance.version
        found = re.search(r'__version__ = "([^"]+)"', self.text(name))
        return found.group(1) if found else "unknown"

    def _git(self, *words: str) -> "subprocess.CompletedProcess[str]":
        where = f"--git-dir={self._place}" if self._bare else f"-C{self._place}"
        return subprocess.run(
            ["git", where, *words],  # noqa: S607 - whichever git there is
            capture_output=True,
            text=True,
            check=False,
        )
