"""Signed folders: a version's weights with a signature that OpenSSF's model-signing verifies.

`statement` is what is signed, and its form; `folder` is what lies in such a folder; `signing` makes
one, and brings one that lies there already to another version at the cost of what differs.
"""
