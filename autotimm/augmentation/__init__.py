"""How training images are varied: presets, geometry, copy-paste, pipelines of the user's own."""
