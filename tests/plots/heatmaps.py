"""What a seaborn heatmap drew."""

from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex


def cell_colours(ax):
    """Colour by (row, column), from above and from the left, of every filled cell."""
    (mesh,) = (one for one in ax.collections if isinstance(one, QuadMesh))
    rows, columns = mesh.get_array().shape
    colours = mesh.to_rgba(mesh.get_array()).reshape(rows, columns, 4)
    return {
        (row, column): to_hex(colours[row, column])
        for row in range(rows)
        for column in range(columns)
        if colours[row, column, 3]
    }
