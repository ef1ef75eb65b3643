"""The tree of states: positions, anchors, paths and replay."""
