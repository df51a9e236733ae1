"""The safety layer: sets, projections, and hooks that keep plans safe."""
