"""The weights of a model, each declared once: shapes, axes, names, storages, layouts, counts."""
