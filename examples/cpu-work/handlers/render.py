"""Renders a tile of the Mandelbrot set into tiles/, as a PGM file."""

from dataclasses import dataclass
from pathlib import Path

from handrail import context


@dataclass
class Tile:
    name: str
    x: float
    y: float
    width: float
    pixels: int = 64
    depth: int = 200


# with one parameter, returning is the acknowledgement, and what is returned is the result
def tile(wanted: Tile) -> dict[str, str]:
    rows = []
    step = wanted.width / wanted.pixels
    for row in range(wanted.pixels):
        rows.append(
            bytes(
                _shade(complex(wanted.x + column * step, wanted.y + row * step), wanted.depth)
                for column in range(wanted.pixels)
            )
        )
        context.job.progress((row + 1) / wanted.pixels)
    folder = Path("tiles")
    folder.mkdir(exist_ok=True)
    file = folder / f"{wanted.name}.pgm"
    # whole or not at all: a process may be killed at any instant
    unfinished = file.with_suffix(".part")
    unfinished.write_bytes(b"P5 %d %d 255\n" % (wanted.pixels, wanted.pixels) + b"".join(rows))
    unfinished.replace(file)
    print(f"rendered {file}")
    return {"file": str(file)}


def _shade(c: complex, depth: int) -> int:
    z = 0j
    for n in range(depth):
        z = z * z + c
        if abs(z) > 2:
            return 255 - 255 * n // depth
    return 0
