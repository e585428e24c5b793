"""The mixture-of-experts layer: its dispatches, how it is split over a mesh, its experts."""
