"""App code: orders six tiles and one that no timeout would wait for."""

from handrail import context

tiles = [
    {"name": f"tile-{row}-{column}", "x": -2 + column, "y": -1 + row, "width": 1.0}
    for row in range(2)
    for column in range(3)
]
impossible = {"name": "impossible", "x": -0.5, "y": -0.5, "width": 1.0, "pixels": 4000, "depth": 10_000_000}

receipt = context.queues.send_bulk("render", [*tiles, impossible])
receipt.wait(timeout=10)
print(f"ordered {len(tiles)} tiles, and one that will be given up")
