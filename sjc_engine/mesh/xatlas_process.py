"""Runs xatlas on one mesh: `python xatlas_process.py < mesh.npz > atlas.npz`.

A process of its own, since xatlas cannot be interrupted and may take minutes on a bad mesh. It
imports nothing of the engine, so that it starts at once.
"""

import io
import signal
import sys

import numpy as np
import xatlas


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this process
    mesh = np.load(io.BytesIO(sys.stdin.buffer.read()))
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh["vertices"], mesh["faces"])
    packing = xatlas.PackOptions()
    packing.resolution = int(mesh["size"])
    packing.padding = int(mesh["padding"])
    packing.bilinear = True
    charting = xatlas.ChartOptions()
    charting.max_iterations = 1
    charting.max_cost = 1.0  # half the time of the default 2, and no more seams on noisy surfaces
    atlas.generate(charting, packing)
    corners, faces, uv = atlas[0]
    data = io.BytesIO()
    np.savez(data, corners=corners, faces=faces, uv=uv, atlases=atlas.atlas_count)
    sys.stdout.buffer.write(data.getvalue())


if __name__ == "__main__":
    main()
