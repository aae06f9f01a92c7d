"""What the indexes of a sidecar may take of a GPU."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MIB = 1 << 20
GIB = 1 << 30


class GpuSettings(BaseModel):
    """Where a GPU serves large scopes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    device: Annotated[int, Field(ge=0, le=63)] = 0
    """Number of the GPU, as CUDA counts them."""
    least_rows: Annotated[int, Field(ge=64)] = 10_000
    """Large scopes under so many vectors stay on the CPU, which is as quick there."""
    max_bytes: Annotated[int, Field(ge=256 * MIB)] = 4 * GIB
    """Bound on what all indexes together hold on the GPU, as estimated before each is
    built: 112 MiB and 0.8 to 1.4 KB a vector. A scope that would pass it is served by the
    CPU."""
